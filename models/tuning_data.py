"""Examples to fine-tune a graph on: any DATA form, with labels or without."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.data import DataLike, Examples, InputSpec, Preprocess, named_splits, open_data
from onnxprune.data.split import Dropped
from onnxprune.errors import DataError, OptionError
from onnxprune.models.sources import HELD_OUT, TrainingData, check_held_out, divide

__all__ = ["divided", "open_tuning"]


def open_tuning(
    data: DataLike,
    test: DataLike | None,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    val_share: float = HELD_OUT,
    drop_classes: Sequence[str] = (),
    seed: int = 0,
    download: bool = False,
) -> TrainingData:
    """Open examples for a graph, preprocessed as its metadata says.

    A source with named splits (``digits``, ``mnist:ROOT`` …) trains on its training side, less ``val_share`` for
    validation, and is tested on the other. Of any other ``val_share`` is held out for validation and, without
    ``test``, as much for the test.

    Args:
        data: What is learnt from; labels are not needed.
        test: What is tested on in place of the above.
        inputs: What the graph reads.
        preprocess: How pixels become inputs.
        classes: Names by label.
        val_share: Share held out, above 0 and below 0.5.
        drop_classes: Classes of which no example is learnt from or validated on.
        seed: Decides the division.
        download: Allow torchvision to download.

    Raises:
        OptionError: If the share is out of range, or a dropped class is unknown.
        DataError: If the data cannot be opened, is too small, made up, or does not fit.
    """
    check_held_out(val_share)
    sides: tuple[DataLike, ...] = named_splits(data) or (data,) if isinstance(data, str) else (data,)
    wanted = sides if test is None else (sides[0], test)
    opened = [
        open_data(side, inputs, preprocess=preprocess, classes=classes, seed=seed, download=download) for side in wanted
    ]
    if any(each.synthetic for each in opened):
        raise DataError(f"{opened[0].source}: made-up examples teach nothing about decisions; give true ones")
    parts = divide(opened, seed, val_share)
    if drop_classes:
        if parts[0].labels is None:
            raise OptionError("drop-class needs examples with labels")
        dropped = Dropped.parse(drop_classes, classes)
        parts = [*(part.take(dropped.without(part, np.arange(part.count))) for part in parts[:2]), parts[2]]
    return divided(parts, preprocess, classes)


def divided(
    parts: Sequence[Examples], preprocess: Preprocess | None = None, classes: Sequence[str] | None = None
) -> TrainingData:
    """Return training, validation and test examples as training takes them."""
    train, validation, test = parts
    first = train.fetch(np.arange(1))
    shapes = [array.shape[1:] for array in first.values()]
    shape = tuple(shapes[0]) if len(shapes) == 1 else ()
    colour = len(shape) == 3 and shape[0] == 3
    return TrainingData(train, validation, test, tuple(classes or ()), preprocess, colour, None, shape)
