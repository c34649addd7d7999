"""Values (regression, depth, boxes): errors against labels and against the original, and correlations, streamed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.evidence import Pair, ValueFigures, ValueScore
from onnxprune.evaluate.scores import Rows

SAMPLED = 100_000
"""At most so many values, evenly spread over all in order, stand behind Spearman's correlation."""

Values = NDArray[np.float64]


def fitting_values(targets: NDArray[Any] | None, array: NDArray[Any]) -> NDArray[Any] | None:
    """Return real labels in the shape of an output, or None where they do not fit; axes of one do not count."""
    if targets is None or targets.dtype.kind != "f" or not array.ndim or len(targets) != len(array):
        return None
    sides = ([side for side in shape[1:] if side != 1] for shape in (targets.shape, array.shape))
    return targets.reshape(array.shape) if next(sides) == next(sides) else None


class LabelledValues:
    """One model's squared error against labels."""

    def __init__(self) -> None:
        self._square = 0.0
        self._count = 0

    def update(self, values: Values, targets: Values) -> None:
        """Add values and labels of the same shape."""
        with np.errstate(over="ignore"):
            self._square += float(np.square(values - targets).sum())
        self._count += values.size

    def score(self) -> ValueScore:
        """Return the root of the mean squared error; None without values or where it is no number."""
        mean = self._square / self._count if self._count else math.nan
        return ValueScore(self._count, math.sqrt(mean) if math.isfinite(mean) else None)


class ValueSums:
    """Two models' values of one output; rows that are not finite in both are left out."""

    def __init__(self) -> None:
        self._fits = True
        self._labelled = False
        self._before = LabelledValues()
        self._after = LabelledValues()
        self._count = 0
        self._origin = 0.0
        # Sums of x, y, xx, yy, xy around the first value, and of (y - x)^2.
        self._sums = np.zeros(6)
        self._sample = EvenSample(SAMPLED)

    def update(
        self, original: NDArray[Any], compressed: NDArray[Any], targets: NDArray[Any] | None, rows: Rows
    ) -> None:
        """Add one batch (any shape, examples on axis 0) and real labels that fit it, where there are any."""
        if original.shape != compressed.shape:
            self._fits = False
        if not self._fits or not original.size:
            return
        before, after = as_rows(original), as_rows(compressed)
        usable = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
        if not usable.any():
            return
        x, y = before[usable].reshape(-1), after[usable].reshape(-1)
        if not self._count:
            self._origin = float(x[0])
        self._count += x.size
        self._sample.update(np.stack([x, y], axis=1))
        with np.errstate(over="ignore", invalid="ignore"):
            u, v = x - self._origin, y - self._origin
            self._sums += u.sum(), v.sum(), (u * u).sum(), (v * v).sum(), (u * v).sum(), np.square(y - x).sum()
        truth = fitting_values(targets, original)
        if truth is not None:
            self._labelled = True
            wanted = as_rows(truth)[usable].reshape(-1)
            self._before.update(x, wanted)
            self._after.update(y, wanted)

    def result(self) -> ValueFigures | None:
        """Return what all batches so far show; None where nothing could be compared."""
        if not self._fits or not self._count:
            return None
        u, v, uu, vv, uv, moved = (float(each) / self._count for each in self._sums)
        first, second, both = max(0.0, uu - u * u), max(0.0, vv - v * v), uv - u * v
        sample = self._sample.values()
        rmse = Pair(self._before.score().rmse, self._after.score().rmse) if self._labelled else None
        return ValueFigures(
            rel_rmse=_share(math.sqrt(moved), math.sqrt(first)) if math.isfinite(moved) else None,
            pearson=_correlation(both, first, second),
            spearman=spearman(sample[:, 0], sample[:, 1]),
            sampled=len(sample),
            rmse=rmse,
            rmse_ratio=None
            if rmse is None or rmse.original is None or rmse.compressed is None
            else _share(rmse.compressed, rmse.original),
        )


class EvenSample:
    """At most ``most`` rows of a stream of unknown length, evenly spread: each 1st, 2nd, 4th ... by their index."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._stride = 1
        self._seen = 0
        self._kept: list[Values] = []
        self._size = 0

    def update(self, rows: Values) -> None:
        """Add rows [n, width]."""
        chosen = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        self._kept.append(chosen.copy())
        self._size += len(chosen)
        while self._size > self._most:
            thinned = np.concatenate(self._kept)[::2].copy()
            self._kept, self._size, self._stride = [thinned], len(thinned), 2 * self._stride
        if len(self._kept) > 256:
            self._kept = [np.concatenate(self._kept)]

    def values(self) -> Values:
        """Return the rows kept, in order [at most ``most``, width]; there must have been some."""
        return np.concatenate(self._kept)


def spearman(first: Values, second: Values) -> float | None:
    """Return the rank correlation (Spearman, 1904), ties at their mean rank; None where one side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    return _correlation(float(a @ b), float(a @ a), float(b @ b))


def as_rows(array: NDArray[Any]) -> Values:
    """Return an output as float64 rows [n, width], one per example; a scalar is one row."""
    return np.asarray(array, dtype=np.float64).reshape(array.shape[0] if array.ndim else 1, -1)


def _correlation(both: float, first: float, second: float) -> float | None:
    found = _share(both, math.sqrt(first) * math.sqrt(second))
    # Rounding can leave it a hair outside.
    return None if found is None else max(-1.0, min(1.0, found))


def _share(part: float, whole: float) -> float | None:
    found = part / whole if whole else math.nan
    return found if math.isfinite(found) else None
