"""Observers: what a pass wants to know about a tensor, accumulated batch by batch in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Rows converted to float64 at once: bounds the extra memory to some tens of megabytes.
_CHUNK = 1 << 22
# Positions of one example that are looked at; where a map has more, the same random ones of every example.
_PLACES = 2048


@dataclass(frozen=True)
class GramResult:
    """Second moments of a tensor's channels: ``gram`` = sum of z z^T over all rows, [C, C] float64."""

    gram: np.ndarray
    rows: int


@dataclass(frozen=True)
class TriangularResult:
    """R [C, C] float64, upper triangular with a diagonal that is not negative: R^T R = sum of z z^T over all rows."""

    factor: np.ndarray
    rows: int


class _Rows:
    """The rows over channels of one axis of a tensor.

    ``axis`` is the axis that carries channels; it is read as ``outer`` x C x ``inner`` (a flattened map repeats
    each channel ``inner`` times), every other position is a row. Of maps with more than 2,048 positions that many
    are taken, drawn once: second moments are averages, and neighbours tell little that is new.
    """

    def __init__(self, axis: int, channels: int, outer: int = 1, inner: int = 1) -> None:
        self.axis, self.channels, self.outer, self.inner = axis, channels, outer, inner
        self._rows = 0

    def _chunks(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the rows of one batch in float64 blocks [n, C], and count them."""
        moved = np.moveaxis(array, self.axis, -1)
        places = int(np.prod(moved.shape[1:-1]))
        if self.axis % array.ndim and places > _PLACES:
            chosen = np.sort(np.random.default_rng(places).choice(places, _PLACES, replace=False, shuffle=False))
            moved = (
                array.reshape(len(array), array.shape[1], -1)[:, :, chosen].transpose(0, 2, 1)
                if (self.axis == 1)
                else moved.reshape(len(array), places, -1)[:, chosen]
            )
        split = moved.reshape(-1, self.outer, self.channels, self.inner)
        rows = np.moveaxis(split, 2, 3).reshape(-1, self.channels)
        step = max(1, _CHUNK // self.channels)
        for start in range(0, len(rows), step):
            yield rows[start : start + step].astype(np.float64)
        self._rows += len(rows)


class Gram(_Rows):
    """Streamed Gram matrix over the channels of one axis.

    Sums are float64: float32 sums lose a quarter of the residual and more at condition 1e8.
    """

    def __init__(self, axis: int, channels: int, outer: int = 1, inner: int = 1) -> None:
        super().__init__(axis, channels, outer, inner)
        self._gram = np.zeros((channels, channels))

    def update(self, array: np.ndarray) -> None:
        """Add one batch."""
        for chunk in self._chunks(array):
            with np.errstate(invalid="ignore", over="ignore"):  # finite() tells of it
                self._gram += chunk.T @ chunk

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""
        return bool(np.isfinite(self._gram.diagonal()).all())

    def result(self) -> GramResult:
        """Return the sums; the observer may go on."""
        return GramResult(self._gram.copy(), self._rows)


@dataclass(frozen=True)
class SpreadResult:
    """How a tensor's channels vary, float64: ``mean`` [C], ``covariance`` [C, C] over ``rows``, not divided by them.

    ``positive`` [C] is the share of rows above zero.
    """

    mean: np.ndarray
    covariance: np.ndarray
    positive: np.ndarray
    rows: int


class Spread(_Rows):
    """Streamed mean and covariance over the channels of one axis.

    Chunks are merged about their own means (Chan, Golub, LeVeque, 1979): a mean far from zero loses nothing.
    """

    def __init__(self, axis: int, channels: int) -> None:
        super().__init__(axis, channels)
        self._mean, self._positive = np.zeros(channels), np.zeros(channels)
        self._scatter = np.zeros((channels, channels))
        self._seen = 0

    def update(self, array: np.ndarray) -> None:
        """Add one batch."""
        for chunk in self._chunks(array):
            with np.errstate(invalid="ignore", over="ignore"):  # finite() tells of it
                count = len(chunk)
                mean = chunk.mean(axis=0)
                centred = chunk - mean
                total = self._seen + count
                step = mean - self._mean
                self._scatter += centred.T @ centred + np.outer(step, step) * (self._seen * count / total)
                self._mean += step * (count / total)
                self._positive += (chunk > 0.0).sum(axis=0)
                self._seen = total

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""
        return bool(np.isfinite(self._scatter.diagonal()).all())

    def result(self) -> SpreadResult:
        """Return what was seen; the observer may go on."""
        share = self._positive / max(1, self._seen)
        return SpreadResult(self._mean.copy(), self._scatter.copy(), share, self._rows)


class Triangular(_Rows):
    """Streamed triangular factor over the channels of one axis (TSQR; Demmel, Grigori, Hoemmen, Langou, 2012).

    Every block of rows is reduced to its R; the R's are stacked, and reduced again beyond 4 C rows. Nothing is
    squared, so that directions far below the 5e-9 of a Gram matrix survive. Twice the work of a Gram matrix.
    """

    def __init__(self, axis: int, channels: int, outer: int = 1, inner: int = 1) -> None:
        super().__init__(axis, channels, outer, inner)
        self._stack: list[np.ndarray] = []
        self._height = 0
        self._finite = True

    def update(self, array: np.ndarray) -> None:
        """Add one batch."""
        for chunk in self._chunks(array):
            self._finite = self._finite and bool(np.isfinite(chunk).all())
            if self._finite:  # LAPACK may not end on NaN
                self._add(chunk)

    def _add(self, chunk: np.ndarray) -> None:
        reduced = _triangle(chunk) if len(chunk) > self.channels else chunk
        self._stack.append(reduced)
        self._height += len(reduced)
        if self._height > 4 * self.channels:
            self._stack = [_triangle(np.concatenate(self._stack))]
            self._height = len(self._stack[0])

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""
        return self._finite

    def result(self) -> TriangularResult:
        """Return the factor; the observer may go on."""
        factor = np.zeros((self.channels, self.channels))
        if self._stack:
            found = _triangle(np.concatenate(self._stack))
            factor[: len(found)] = found * np.where(found.diagonal() < 0.0, -1.0, 1.0)[:, None]
        return TriangularResult(factor, self._rows)


def _triangle(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.qr(rows, mode="r"))
