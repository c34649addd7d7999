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
from onnxprune.data.spec import Spec, parse_spec
from onnxprune.errors import DataError
from onnxprune.models.datasets import CLASS_NAMES, open_torchvision

__all__ = ["TrainingData", "known_classes", "open_training", "portable_spec"]

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
    """

    train: Examples
    validation: Examples
    test: Examples
    classes: tuple[str, ...]
    preprocess: Preprocess | None
    colour: bool
    spec: str | None


def open_training(spec: str, input_shape: Sequence[int], *, seed: int = 0, download: bool = False) -> TrainingData:
    """Open a DATA spec for training a classifier.

    A source with named splits (``digits``, ``mnist:ROOT`` …) trains on its training side, less a tenth for
    validation, and is tested on the other. Any other source is divided 80/10/10. Both draws come from
    ``seed``. Mean and standard deviation per channel come from the training examples alone, rounded to
    4 decimals.

    Args:
        spec: Any DATA form.
        input_shape: Channels, height and width that the network wants.
        seed: Decides the division.
        download: Allow torchvision to download.

    Raises:
        DataError: If the data cannot be opened, is unlabelled, too small, of one class, or does not fit.
    """
    parsed = parse_spec(spec)
    sides = parsed.sides or (spec,)
    want = InputSpec(INPUT, np.dtype(np.float32), ("batch", *input_shape))
    names = known_classes(parsed, download)
    plain = _plain_preprocess(sides[0], want, download)
    opened = [open_data(side, [want], preprocess=plain, classes=names, seed=seed) for side in sides]
    most = max(int(_labels(examples).max()) for examples in opened)
    classes = names or tuple(str(label) for label in range(most + 1))
    parts = _divide(opened, seed)
    if len(np.unique(_labels(parts[0]))) < 2:
        raise DataError(f"{spec}: the training examples are all of one class; a classifier needs at least 2")
    mean, std, colour = _moments(parts[0])
    preprocess = None
    if plain is not None:
        preprocess = replace(plain, mean=mean, std=std)
        parts = [_normalised(part, preprocess) for part in parts]
    train, validation, test = parts
    named = portable_spec(parsed)
    return TrainingData(train, validation, test, classes, preprocess, colour, named)


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
    if spec.kind == "imagenet":
        return open_torchvision("imagenet", spec.path, spec.split or "train", download)[2]
    if spec.kind in ("folder", "zip"):
        return tuple(sorted({file.parent.name for file in _image_files(spec)} - {""})) or None
    return None


def _plain_preprocess(spec: str, want: InputSpec, download: bool) -> Preprocess | None:
    """Find how pixels must be sized for the input; None where the source holds finished arrays."""
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


def _divide(opened: Sequence[Examples], seed: int) -> list[Examples]:
    """Return training, validation and test examples."""
    rng = np.random.default_rng(seed)
    pool = opened[0]
    if pool.count < LEAST:
        raise DataError(f"{pool.source}: {pool.count} examples are too few to train on; at least {LEAST} are needed")
    order = rng.permutation(pool.count)
    held = max(1, round(pool.count * HELD_OUT))
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
