"""How far one output moved, streamed: sums over any number of batches, whatever way they are cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.evidence import OutputEvidence, OutputKind


class Differences:
    """Float64 sums over one output of two models; memory is that of one example's output.

    Rows that are not finite in both models are left out and counted in ``left_out``. ``varying`` holds the
    two models' shapes where they differ (the output's size depends on the data); nothing is compared then.
    """

    def __init__(self, name: str, kind: OutputKind) -> None:
        self.name = name
        self.kind: OutputKind = kind
        self.left_out = 0
        self.varying: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._rows = 0
        self._elements = 0
        self._max_abs = 0.0
        self._sum_abs = 0.0
        self._sum_square = 0.0
        self._norm_square = 0.0
        self._sum_cosine = 0.0
        self._width: int | None = 0
        self._origin: NDArray[np.float64] | None = None
        self._shifted = np.zeros(0)
        self._shifted_square = np.zeros(0)
        self._equal = 0

    def update(self, original: NDArray[Any], compressed: NDArray[Any]) -> None:
        """Add one batch of the output (any shape; examples on axis 0 where it has an axis)."""
        if original.shape != compressed.shape:
            self.varying = self.varying or (original.shape, compressed.shape)
        if self.varying or not original.size:
            return
        if self.kind == "discrete":
            self._elements += original.size
            self._equal += int(np.count_nonzero(original == compressed))
            return
        before, after = _as_rows(original), _as_rows(compressed)
        usable = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
        self.left_out += int(np.count_nonzero(~usable))
        if usable.any():
            # Values near the float64 limit may square to infinity, which a report then shows as unknown.
            with np.errstate(over="ignore", invalid="ignore"):
                self._add(before[usable], after[usable])

    def result(self, *, judged: bool) -> OutputEvidence:
        """Return the figures of everything added so far."""
        if self.varying or self.kind == "discrete":
            known = not self.varying and self._elements > 0
            equal = self._equal / self._elements if known and self.kind == "discrete" else None
            return OutputEvidence(self.name, self.kind, judged, None, None, None, None, None, equal)
        rows = self._rows
        return OutputEvidence(
            name=self.name,
            kind=self.kind,
            judged=judged,
            max_abs=self._max_abs if rows else None,
            mean_abs=self._sum_abs / self._elements if rows else None,
            rel_l2=self._relative() if rows else None,
            cosine=self._sum_cosine / rows if rows and self._width != 1 else None,
            r2=self._r2() if rows else None,
            equal=None,
        )

    def _add(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
        moved = after - before
        distance = np.abs(moved)
        self._rows += len(before)
        self._elements += before.size
        self._max_abs = max(self._max_abs, float(distance.max()))
        self._sum_abs += float(distance.sum())
        self._sum_square += float(np.square(moved).sum())
        self._norm_square += float(np.square(before).sum())
        self._sum_cosine += float(cosines(before, after).sum())
        self._add_spread(before)

    def _add_spread(self, before: NDArray[np.float64]) -> None:
        """Add to the sums behind R2, each element's spread over the examples."""
        width = before.shape[1]
        if self._origin is None:
            # Sums are taken around the first example: around 0 a large mean would cancel the variance away.
            self._origin, self._width = before[0].copy(), width
            self._shifted, self._shifted_square = np.zeros(width), np.zeros(width)
        if width != self._width:
            # Examples of different sizes have no spread per element.
            self._width = None
            return
        shifted = before - self._origin
        self._shifted += shifted.sum(axis=0)
        self._shifted_square += np.square(shifted).sum(axis=0)

    def _relative(self) -> float | None:
        if self._sum_square == 0:
            return 0.0
        return math.sqrt(self._sum_square / self._norm_square) if self._norm_square else None

    def _r2(self) -> float | None:
        """Return 1 - residual / spread over all elements, the spread around each element's own mean."""
        if self._width is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            spread = float((self._shifted_square - np.square(self._shifted) / self._rows).sum())
        return 1 - self._sum_square / spread if spread > 0 else None


def _as_rows(array: NDArray[Any]) -> NDArray[np.float64]:
    rows = array.shape[0] if array.ndim else 1
    return np.asarray(array, dtype=np.float64).reshape(rows, -1)


def cosines(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's cosine [n] of two arrays [n, width]: 1 where both rows are zero, 0 where one of them is."""
    before_norm, after_norm = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    product = before_norm * after_norm
    both_zero = (before_norm == 0) & (after_norm == 0)
    dots = np.einsum("ij,ij->i", before, after)
    cosines = np.divide(dots, product, out=both_zero.astype(np.float64), where=product > 0)
    return np.asarray(np.clip(cosines, -1, 1))
