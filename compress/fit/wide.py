"""Least squares with more features than a Gram matrix has room for: the sampled rows themselves."""

from __future__ import annotations

import numpy as np

from onnxprune.linalg import solve_psd

# Features above which the rows are kept, not second moments.
FEATURES = 6000
# Rows kept of one problem.
ROWS = 4096
_TINY = 1e-10
# Rows made float64 at a time.
_BLOCK = 512


class Wide:
    """Rows a and targets y of a problem with too many features for second moments; the interface of ``Moments``.

    One group. The ridge solution comes from the dual, ``A^T (A A^T + d)^-1``, whose size is that of the rows.
    """

    def __init__(self, features: int, outputs: int) -> None:
        self.features, self.outputs = features, outputs
        self._a: list[np.ndarray] = []
        self._y: list[np.ndarray] = []
        self.rows = 0

    def update(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Add rows: features [1, rows, F], targets [rows, O]; what exceeds the room is not kept."""
        room = ROWS - self.rows
        if room > 0:
            self._a.append(np.array(features[0, :room], dtype=np.float32))
            self._y.append(targets[:room].astype(np.float64))
            self.rows += min(room, features.shape[1])

    def finite(self) -> bool:
        """Return whether every number seen so far was finite."""
        return not self._a or bool(np.isfinite(self._a[-1]).all() and np.isfinite(self._y[-1]).all())

    @property
    def matrix(self) -> np.ndarray:
        """The rows, float32 [rows, F]."""
        self._a = [np.concatenate(self._a)] if self._a else [np.zeros((0, self.features), dtype=np.float32)]
        return self._a[0]

    @property
    def targets(self) -> np.ndarray:
        """The targets, float64 [rows, O]."""
        self._y = [np.concatenate(self._y)] if self._y else [np.zeros((0, self.outputs))]
        return self._y[0]

    def spread(self) -> float:
        """Return the summed variance of the targets times the rows."""
        return float(np.square(self.targets - self.targets.mean(axis=0)).sum()) if self.rows else 0.0

    def residual(self, matrix: np.ndarray) -> np.ndarray:
        """Return the targets less what a matrix [F + 1, O] (the constant's row last) computes, float64 [rows, O]."""
        result = np.asarray(self.targets - matrix[-1])
        for start in range(0, self.rows, _BLOCK):
            result[start : start + _BLOCK] -= self.matrix[start : start + _BLOCK].astype(np.float64) @ matrix[:-1]
        return result

    def error(self, matrix: np.ndarray) -> float:
        """Return the squared error of a matrix [1, F + 1, O]."""
        return float(np.square(self.residual(matrix[0])).sum())

    def block(self, group: int, index: np.ndarray) -> np.ndarray:
        """Return second moments of some features, [n, n]."""
        part = self.matrix[:, index].astype(np.float64)
        return np.asarray(part.T @ part)

    def channel_gram(self, taps: int) -> np.ndarray:
        """Return second moments of the channels, summed over taps, [C, C]."""
        channels = self.features // taps
        parts = (self.matrix[:, t * channels : (t + 1) * channels].astype(np.float64) for t in range(taps))
        return np.asarray(sum((part.T @ part for part in parts), np.zeros((channels, channels))))

    def change(self, start: np.ndarray, live: np.ndarray, ridge: float, preserve_zeros: bool) -> np.ndarray:
        """Return what is to be added to the live rows of ``start`` [F + 1, O], [live, O].

        Outputs with zeros among their kept weights keep those weights where ``preserve_zeros`` asks for it, and get a
        constant alone: a support of their own would need a factorisation for each.
        """
        kept, shiftable = np.flatnonzero(live[:-1]), bool(live[-1])
        part = self.matrix[:, kept].astype(np.float64)
        left = self.residual(start)
        result = np.zeros((len(kept) + shiftable, start.shape[1]))
        mean = part.mean(axis=0) if shiftable else np.zeros(len(kept))
        middle = left.mean(axis=0) if shiftable else np.zeros(start.shape[1])
        level = max(ridge, _TINY) * float(np.einsum("ij,ij->", part, part)) / max(1, len(kept))
        part -= mean  # in place: a copy of 4,096 rows of a VGG's first classifier layer is 0.8 GB
        kernel = part @ part.T
        weights = part.T @ solve_psd(kernel + level * np.eye(len(kernel)), left - middle)
        if preserve_zeros:
            weights[:, (start[kept] == 0.0).any(axis=0)] = 0.0
        result[: len(kept)] = weights
        if shiftable:
            result[-1] = middle - mean @ weights
        return result
