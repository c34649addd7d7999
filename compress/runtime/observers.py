"""Observers: what a pass wants to know about a tensor, accumulated batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Rows converted to float64 at once: bounds the extra memory to some tens of megabytes.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class GramResult:
    """Second moments of a tensor's channels: ``gram`` = sum of z z^T over all rows, [C, C] float64."""

    gram: np.ndarray
    rows: int


class Gram:
    """Streamed Gram matrix over the channels of one axis.

    ``axis`` is the axis that carries channels; it is read as ``outer`` x C x ``inner`` (a flattened map repeats
    each channel ``inner`` times), every other position is a row. Sums are float64: float32 sums lose a quarter
    of the residual and more at condition 1e8.
    """

    def __init__(self, axis: int, channels: int, outer: int = 1, inner: int = 1) -> None:
        self.axis, self.channels, self.outer, self.inner = axis, channels, outer, inner
        self._gram = np.zeros((channels, channels))
        self._rows = 0

    def update(self, array: np.ndarray) -> None:
        """Add one batch."""
        moved = np.moveaxis(array, self.axis, -1)
        split = moved.reshape(-1, self.outer, self.channels, self.inner)
        rows = np.moveaxis(split, 2, 3).reshape(-1, self.channels)
        step = max(1, _CHUNK // self.channels)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # finite() tells of it
                self._gram += chunk.T @ chunk
        self._rows += len(rows)

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""
        return bool(np.isfinite(self._gram.diagonal()).all())

    def result(self) -> GramResult:
        """Return the sums; the observer may go on."""
        return GramResult(self._gram.copy(), self._rows)
