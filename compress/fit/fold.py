"""Making up for dropped channels in the weights that read them, from second moments alone."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from onnxprune.linalg import interpolation, masked_least_squares

_RIDGE = 1e-10


def fold_consumer(rows: np.ndarray, gram: np.ndarray, kept: np.ndarray, *, preserve_zeros: bool) -> np.ndarray:
    """Return consumer rows that use only the kept channels and come closest to the old output.

    Args:
        rows: weights over channels, float64 [R, C].
        gram: second moments of the channels, float64 [C, C].
        kept: indices of the channels that stay, ascending.
        preserve_zeros: False lets the fold fill zeros.
    """
    return Folding(gram, kept, preserve_zeros=preserve_zeros)(rows)


class Folding:
    """Folds rows of consumers, block by block, into the channels that stay.

    Dense rows take the interpolation matrix: ``W' = W_I + W_D T_D^T`` (Chee et al., 2022). A row with zeros among
    its kept weights, made by an earlier pass, is solved on its own support so that they stay zero: the correction
    ``d = argmin ||Z_D w_D - Z_S d||`` is added to what is there. Arguments as in :func:`fold_consumer`; ``table`` is
    T [k, C] where it is known.
    """

    def __init__(
        self, gram: np.ndarray, kept: np.ndarray, *, preserve_zeros: bool, table: np.ndarray | None = None
    ) -> None:
        self.gram, self.kept, self.preserve_zeros, self._table = gram, kept, preserve_zeros, table
        self.dropped = np.setdiff1d(np.arange(len(gram)), kept)

    @cached_property
    def matrix(self) -> np.ndarray:
        """The dropped columns of T, float64 [k, C - k]."""
        table = interpolation(self.gram, self.kept, _RIDGE) if self._table is None else self._table
        return np.asarray(table[:, self.dropped])

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [R, C], zero where channels are dropped."""
        if not len(self.dropped):
            return rows.copy()
        staying, lost = rows[:, self.kept], rows[:, self.dropped]
        sparse = (staying == 0.0).any(axis=1) if self.preserve_zeros else np.zeros(len(rows), dtype=bool)
        dense = ~sparse
        if not sparse.any():
            staying += lost @ self.matrix.T
        elif dense.any():
            staying[dense] += lost[dense] @ self.matrix.T
        if sparse.any():
            right = lost[sparse] @ self.gram[np.ix_(self.dropped, self.kept)]
            support = staying[sparse] != 0.0
            staying[sparse] += masked_least_squares(self.gram[np.ix_(self.kept, self.kept)], right, support)
            staying[sparse] = np.where(support, staying[sparse], 0.0)
        result = np.zeros_like(rows)
        result[:, self.kept] = staying
        return result
