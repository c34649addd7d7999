"""Labels: class indices from an array, from folder names, or from another order of the same classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.data.inputs import Array, shape_text
from onnxprune.errors import DataError

Labels = npt.NDArray[np.int64]


def read_labels(labels: Array, count: int, source: str) -> tuple[Labels | None, Array | None]:
    """Return what an array ``y`` holds: class indices int64 [count], or targets [count, ...]; the other is None.

    Targets are real numbers (for outputs that are values), and maps of whole numbers, of rank 3 and more (for class
    maps).

    Raises:
        DataError: wrong length or shape, negative indices, NaN, or neither whole nor real numbers.
    """
    if labels.dtype.kind not in "iubf":
        raise DataError(f"{source}: labels 'y' hold {labels.dtype}; class indices (whole numbers) are needed")
    if labels.ndim and (labels.dtype.kind == "f" or labels.ndim > 2):
        if len(labels) != count:
            raise DataError(f"{source}: {len(labels)} labels in 'y' for {count} examples; one per example is needed")
        if labels.dtype.kind == "f" and not bool(np.isfinite(labels).all()):
            raise DataError(f"{source}: labels 'y' hold NaN or infinity; finite numbers are needed")
        return None, labels
    if labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
        raise DataError(f"{source}: labels 'y' have shape {shape_text(labels.shape)}; [n] or [n,1] is needed")
    if len(labels) != count:
        raise DataError(f"{source}: {len(labels)} labels in 'y' for {count} examples; one per example is needed")
    flat = labels.reshape(-1)
    bad = np.flatnonzero((flat < 0) | (flat > np.iinfo(np.int64).max))
    if bad.size:
        raise DataError(f"{source}: label {flat[bad[0]]} of example {bad[0]} is no class index; those start at 0")
    return flat.astype(np.int64), None


def folder_labels(folders: Sequence[str], classes: Sequence[str] | None, source: str) -> Labels:
    """Return the class index of each image from its folder's name.

    The index is that in ``classes``, or in the sorted names where no classes are known.

    Raises:
        DataError: a folder's name is none of the classes.
    """
    present = sorted(set(folders))
    order = present if classes is None else list(classes)
    unknown = [name for name in present if name not in order]
    if unknown:
        raise DataError(f"{source}: folder {_some(unknown)} is no class of the model; its classes are {_some(order)}")
    index = {name: position for position, name in enumerate(order)}
    return np.asarray([index[name] for name in folders], dtype=np.int64)


def align_labels(labels: Labels, names: Sequence[str], classes: Sequence[str] | None) -> Labels:
    """Renumber labels of a known data set where the model orders the very same classes differently."""
    if classes is None or list(classes) == list(names) or sorted(classes) != sorted(names):
        return labels
    where = np.asarray([list(classes).index(name) for name in names], dtype=np.int64)
    return where[labels]


def _some(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
