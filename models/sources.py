"""From a DATA spec to training, validation and test examples for a network of the zoo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt

from onnxprune.data import Examples, InputSpec, Preprocess, open_data
from onnxprune.data.digits import CLASSES
from onnxprune.data.images import SUFFIXES
from onnxprune.data.spec import GENERATED, Spec, parse_spec
from onnxprune.data.split import Dropped
from onnxprune.errors import DataError, OptionError
from onnxprune.models.datasets import CLASS_NAMES, open_torchvision

__all__ = ["HELD_OUT", "TrainingData", "check_held_out", "divide", "known_classes", "open_training", "portable_spec"]

INPUT = "input"
HELD_OUT = 0.1
LEAST = 10
_CHUNK = 256


@dataclass(frozen=True)
class TrainingData:
    """Labelled examples of one source, ready for a network.

    Attributes:
        train: What the weights learn from.
        validation: Held out of the training side; picks the epoch.
        test: Read once, at the end.
        classes: Class names by label.
        preprocess: How pixels became inputs; None where the source holds finished arrays.
        colour: The images have three channels that differ.
        spec: The DATA spec as a model file may name it, or None (see ``portable_spec``).
        shape: Of one input.
        regression: The examples have targets in place of labels, and the network gives real numbers.
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    preprocess: Preprocess | None
    colour: bool
    spec: str | None
    shape: tuple[int, ...] = (1, 28, 28)
    regression: bool = False

    @property
    def outputs(self) -> int:
        """Return the number of outputs a network for these examples has: its classes, or its values."""
        if not self.regression:
            return len(self.classes)
        targets = self.train.targets
        return 1 if targets is None or targets.ndim == 1 else int(np.prod(targets.shape[1:]))


def open_training(
    spec: str,
    input_shape: Sequence[int],
    *,
    test: str | None = None,
    seed: int = 0,
    download: bool = False,
    regression: bool = False,
    val_share: float = HELD_OUT,
    drop_classes: Sequence[str] = (),
) -> TrainingData:
    """Open a DATA spec for training a network.

    A source with named splits (``digits``, ``mnist:ROOT`` …) trains on its training side, less ``val_share`` for
    validation, and is tested on the other. Of any other source ``val_share`` is held out for validation and, without
    ``test``, as much for the test. Both draws come from ``seed``. Mean and standard deviation per channel come from
    the training examples alone, rounded to 4 decimals.

    Args:
        spec: Any DATA form.
        input_shape: Shape of one input: channels, height and width of an image, or any other.
        test: A DATA form that is tested on in place of the above.
        seed: Decides the division.
        download: Allow torchvision to download.
        regression: The examples carry real targets instead of labels.
        val_share: Share held out for validation, above 0 and below 0.5.
        drop_classes: Names or indices of classes of which no example is learnt from or validated on; the test
            keeps them.

    Raises:
        OptionError: If the share is out of range, or a dropped class is unknown.
        DataError: If the data cannot be opened, is unlabelled, too small, of one class, or does not fit.
    """
    check_held_out(val_share)
    parsed = parse_spec(spec)
    sides = parsed.sides or (spec,)
    if test is not None:
        sides = (sides[0], test)
    want = InputSpec(INPUT, np.dtype(np.float32), ("batch", *input_shape))
    names = None if regression else known_classes(parsed, download)
    plain = _plain_preprocess(sides[0], want, download)
    opened = [open_data(side, [want], preprocess=plain, classes=names, seed=seed) for side in sides]
    classes: tuple[str, ...] = ()
    if regression:
        opened = [_with_targets(examples) for examples in opened]
    else:
        most = max(int(_labels(examples).max()) for examples in opened)
        classes = names or tuple(str(label) for label in range(most + 1))
    parts = divide(opened, seed, val_share)
    if drop_classes:
        if regression:
            raise OptionError("drop-class is for classifiers: a regression has no classes")
        dropped = Dropped.parse(drop_classes, classes)
        parts = [*(part.take(dropped.without(part, np.arange(part.count))) for part in parts[:2]), parts[2]]
    if not regression and len(np.unique(_labels(parts[0]))) < 2:
        raise DataError(f"{spec}: the training examples are all of one class; a classifier needs at least 2")
    preprocess, colour = None, False
    if len(input_shape) == 3:
        mean, std, colour = _moments(parts[0])
        if plain is not None:
            preprocess = replace(plain, mean=mean, std=std)
            parts = [_normalised(part, preprocess) for part in parts]
    train, validation, judged = parts
    kept, shape = portable_spec(parsed), tuple(input_shape)
    return TrainingData(train, validation, judged, classes, preprocess, colour, kept, shape, regression)


def check_held_out(share: float) -> None:
    """Check a share to hold out for validation.

    Raises:
        OptionError: If it is out of range.
    """
    if not 0 < share < 0.5:
        raise OptionError(f"val-share {share}: a share above 0 and below 0.5 is accepted")


def portable_spec(spec: Spec) -> str | None:
    """Give the spec as a model file may carry it, or None.

    Only a source with named splits can be judged on images the model was not trained on, and an absolute
    path has no business in a file that travels.
    """
    if spec.sides is None:
        return None
    root: PurePath
    for root in (PurePosixPath(spec.path), PureWindowsPath(spec.path)):
        if root.is_absolute() or root.anchor or ".." in root.parts or spec.path.startswith("~"):
            return None
    return spec.text


def known_classes(spec: Spec, download: bool = False) -> tuple[str, ...] | None:
    """Find the class names of a source without opening it for a network; None where it has none."""
    if spec.kind == "digits":
        return CLASSES
    if spec.kind in CLASS_NAMES:
        return CLASS_NAMES[spec.kind]
    if spec.kind in ("cifar100", "imagenet"):  # which name their classes themselves
        return open_torchvision(spec.kind, spec.path, spec.split or "train", download)[2]
    if spec.kind in ("folder", "zip"):
        return tuple(sorted({file.parent.name for file in _image_files(spec)} - {""})) or None
    return None


def _plain_preprocess(spec: str, want: InputSpec, download: bool) -> Preprocess | None:
    """Find how pixels must be sized for the input; None where the source holds finished arrays."""
    if len(want.shape) != 4 or spec.partition(":")[0] in GENERATED:
        return None
    channels, height, width = (int(size) for size in want.shape[1:] if isinstance(size, int))
    if channels not in (1, 3):
        return None
    plain = Preprocess(channels="L" if channels == 1 else "RGB")
    # Height and width left open: the source then shows its own sizes, and no size is refused.
    open_sized = InputSpec(want.name, want.dtype, ("batch", channels, None, None))
    first = np.arange(1)
    source = open_data(spec, [open_sized], preprocess=plain, download=download)
    shifted = open_data(spec, [open_sized], preprocess=replace(plain, mean=(1.0,)), download=download)
    if np.array_equal(source.fetch(first)[INPUT], shifted.fetch(first)[INPUT]):
        return None
    sizes = (source.fetch(np.array([row]))[INPUT].shape[2:] for row in range(source.count))
    if all(size == (height, width) for size in sizes):
        return plain
    if height != width:
        raise DataError(f"{spec}: images are not {height}x{width}, and only square inputs are resized to")
    return replace(plain, resize=height, crop=height)


def _labels(examples: Examples) -> npt.NDArray[np.int64]:
    if examples.labels is None:
        raise DataError(
            f"{examples.source}: the examples have no labels; training needs class folders, or 'y' in an .npz"
        )
    if int(examples.labels.min()) < 0:
        raise DataError(f"{examples.source}: label {int(examples.labels.min())} is negative; labels count from 0")
    return examples.labels


def _with_targets(examples: Examples) -> Examples:
    if examples.targets is not None:
        return examples
    if examples.labels is None:
        raise DataError(
            f"{examples.source}: the examples have no targets; a regression needs 'y' in an .npz, or voxels"
        )
    return replace(examples, targets=examples.labels.astype(np.float32))


def _image_files(spec: Spec) -> list[PurePosixPath]:
    """List the image files of a folder or zip by the rules of ``onnxprune.data``: nothing hidden."""
    names: list[str] = []
    if spec.kind == "zip":
        try:
            with ZipFile(spec.path) as archive:
                names.extend(archive.namelist())
        except (BadZipFile, OSError) as error:
            raise DataError(f"{spec.text} is not a readable zip archive: {error}") from error
    else:
        seen: set[str] = set()
        for folder, below, files in os.walk(spec.path, followlinks=True):
            real = os.path.realpath(folder)
            below[:] = [] if real in seen else below
            seen.add(real)
            here = Path(folder).relative_to(spec.path)
            names.extend((here / name).as_posix() for name in files)
    paths = [PurePosixPath(name) for name in names]
    return [path for path in paths if path.suffix.lower() in SUFFIXES and not _hidden(path)]


def _hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def divide(opened: Sequence[Examples], seed: int, share: float) -> list[Examples]:
    """Return training, validation and test examples: of a single source as many for the test as for validation.

    Raises:
        DataError: If there are too few.
    """
    rng = np.random.default_rng(seed)
    pool = opened[0]
    if pool.count < LEAST:
        raise DataError(f"{pool.source}: {pool.count} examples are too few to train on; at least {LEAST} are needed")
    order = rng.permutation(pool.count)
    held = max(1, round(pool.count * share))
    if len(opened) == 2:
        return [pool.take(order[held:]), pool.take(order[:held]), opened[1]]
    return [pool.take(order[2 * held :]), pool.take(order[:held]), pool.take(order[held : 2 * held])]


def _moments(examples: Examples) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Return mean and standard deviation per channel, and whether the channels differ anywhere."""
    total = square = np.zeros(1)
    pixels, colour = 0, False
    for batch in examples.batches(_CHUNK):
        images = batch.arrays[INPUT].astype(np.float64)
        total = total + images.sum((0, 2, 3))
        square = square + (images**2).sum((0, 2, 3))
        pixels += images.size // images.shape[1]
        colour = colour or (images.shape[1] == 3 and bool((images != images[:, :1]).any()))
    mean = total / pixels
    std = np.sqrt(np.maximum(square / pixels - mean**2, 0.0))
    if float(std.min()) < 1e-4:
        raise DataError(
            f"{examples.source}: a channel has the same value everywhere; there is nothing to learn from it"
        )
    return (
        tuple(round(float(value), 4) for value in mean),
        tuple(round(float(value), 4) for value in std),
        colour,
    )


def _normalised(examples: Examples, preprocess: Preprocess) -> Examples:
    """Centre and scale plain pixels exactly as ``Preprocess`` does, in float32."""
    mean = np.asarray(preprocess.mean, np.float32)[:, None, None]
    std = np.asarray(preprocess.std, np.float32)[:, None, None]
    fetch = examples.fetch
    return replace(examples, fetch=lambda rows: {name: (array - mean) / std for name, array in fetch(rows).items()})
