"""Class maps (segmentation): per position the class of the highest score over axis 1, streamed as confusion counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.evidence import ImageRate, MapFigures, MapScore, Pair
from onnxprune.evaluate.scores import Rows

IGNORED = 255
"""The label of positions that are not judged, as in Pascal VOC, where there are fewer classes than that."""


def fitting_map(targets: NDArray[Any] | None, array: NDArray[Any]) -> NDArray[Any] | None:
    """Return whole-number labels as maps [n, ...] that fit scores [n, C, ...], or None where they do not.

    A map may have a channel axis of one.
    """
    if targets is None or targets.dtype.kind not in "iu" or not _are_maps(array):
        return None
    wanted = (array.shape[0], *array.shape[2:])
    if targets.shape == (array.shape[0], 1, *array.shape[2:]):
        targets = targets.reshape(wanted)
    return targets if targets.shape == wanted else None


def _are_maps(array: NDArray[Any]) -> bool:
    return array.ndim >= 3 and array.shape[1] >= 2 and np.issubdtype(array.dtype, np.floating)


def decide_maps(scores: NDArray[Any]) -> Rows:
    """Return the class of every position [n, ...] of scores [n, C, ...]: ties to the lowest, C where a NaN is."""
    decided: Rows = scores.argmax(axis=1).astype(np.int64)
    decided[np.isnan(scores).any(axis=1)] = scores.shape[1]
    return decided


def mean_iou(confusion: NDArray[np.int64]) -> float | None:
    """Return the mean intersection over union of the classes that occur, from counts [C, C + 1]; None without any.

    The last column counts positions that were not decided.
    """
    classes = len(confusion)
    both = np.diagonal(confusion[:, :classes]).astype(np.float64)
    either = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0) - both
    present = either > 0
    return float((both[present] / either[present]).mean()) if present.any() else None


class LabelledMaps:
    """One model's maps against labels."""

    def __init__(self, classes: int) -> None:
        self.ignored = 0
        self._counts = np.zeros((classes, classes + 1), dtype=np.int64)

    def update(self, decided: Rows, labels: NDArray[Any]) -> None:
        """Add decisions [n, ...] and labels of the same shape.

        Raises:
            DataError: if a label is neither a class nor one that is not judged.
        """
        classes = len(self._counts)
        left_out = labels < 0
        if classes <= IGNORED:
            left_out = left_out | (labels == IGNORED)
        judged = labels[~left_out].astype(np.int64)
        if judged.size and int(judged.max()) >= classes:
            raise DataError(
                f"label {int(judged.max())} is outside the model's {classes} classes; labels must be 0 to "
                f"{classes - 1}, or {IGNORED} or below 0 where a position is not judged"
            )
        self.ignored += int(np.count_nonzero(left_out))
        self._counts += _confusion(judged, decided[~left_out], classes)

    def accuracy(self) -> float | None:
        """Return the share of judged positions that are right; None without any."""
        total = int(self._counts.sum())
        return int(np.trace(self._counts)) / total if total else None

    def score(self) -> MapScore:
        """Return the model's accuracy and mIoU."""
        return MapScore(int(self._counts.sum()), self.accuracy(), mean_iou(self._counts), self.ignored)


class MapSums:
    """Two models' maps of one output: confusion counts, and the share of equal positions image by image."""

    def __init__(self, name: str, classes: int) -> None:
        self._name = name
        self._classes = classes
        self._counts = np.zeros((classes, classes + 1), dtype=np.int64)
        self._before = LabelledMaps(classes)
        self._after = LabelledMaps(classes)
        self._labelled = False
        self._images = 0
        # Shares that differ: they are near 0, where sums of squares lose nothing.
        self._off = np.zeros(2)
        self._fits = True

    def update(
        self, original: NDArray[Any], compressed: NDArray[Any], targets: NDArray[Any] | None, rows: Rows
    ) -> None:
        """Add one batch of scores [n, C, ...]; maps [n, ...] of labels where there are any.

        Raises:
            ModelError: if the number of classes changes.
            DataError: if a label is no class.
        """
        if original.shape != compressed.shape:
            self._fits = False
        if not self._fits or not original.size:
            return
        if original.ndim < 3 or original.shape[1] != self._classes:
            raise ModelError(
                f"output {self._name!r} is of shape {original.shape}; class maps of {self._classes} classes are wanted"
            )
        was, now = decide_maps(original), decide_maps(compressed)
        self._counts += _confusion(was.reshape(-1), now.reshape(-1), self._classes)
        off = (was != now).reshape(len(was), -1).mean(axis=1)
        self._images += len(off)
        self._off += off.sum(), np.square(off).sum()
        truth = fitting_map(targets, original)
        if truth is not None:
            self._labelled = True
            self._before.update(was, truth)
            self._after.update(now, truth)

    def result(self, confidence: float) -> MapFigures | None:
        """Return what all batches so far show; None where the two models' shapes differ."""
        positions = int(self._counts.sum())
        if not self._fits or not positions:
            return None
        labelled = self._labelled
        before, after = self._before.score(), self._after.score()
        return MapFigures(
            classes=self._classes,
            positions=positions,
            agreement=int(np.trace(self._counts)) / positions,
            per_image=self._per_image(confidence),
            miou=mean_iou(self._counts),
            accuracy=Pair(before.accuracy, after.accuracy) if labelled else None,
            label_miou=Pair(before.miou, after.miou) if labelled else None,
            ignored=self._before.ignored if labelled else None,
        )

    def _per_image(self, confidence: float) -> ImageRate:
        """Return the mean share of equal positions of an image and its t interval over images.

        Positions of one image are not independent, images are. Equal shares have no spread to build an interval on.
        """
        n, (total, squares) = self._images, self._off
        mean = 1 - total / n
        spread = max(0.0, squares - total * total / n) / (n - 1) if n > 1 else 0.0
        if spread <= 1e-15 * squares or not spread:
            return ImageRate(n, float(mean), None, None, confidence)
        half = float(special.stdtrit(n - 1, 1 - (1 - confidence) / 2)) * math.sqrt(spread / n)
        return ImageRate(n, float(mean), max(0.0, float(mean) - half), min(1.0, float(mean) + half), confidence)


def _confusion(rows: Rows, columns: Rows, classes: int) -> NDArray[np.int64]:
    """Count pairs of classes [C, C + 1]; ``columns`` may hold C."""
    places = rows * (classes + 1) + columns
    return np.bincount(places, minlength=classes * (classes + 1)).reshape(classes, classes + 1)
