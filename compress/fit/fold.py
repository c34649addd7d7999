"""Making up for dropped channels in the weights that read them, from second moments alone."""

from __future__ import annotations

import numpy as np

from onnxprune.linalg import interpolation, masked_least_squares

_RIDGE = 1e-10


def fold_consumer(rows: np.ndarray, gram: np.ndarray, kept: np.ndarray, *, preserve_zeros: bool) -> np.ndarray:
    """Return consumer rows that use only the kept channels and come closest to the old output.

    Dense rows take the interpolation matrix: ``W' = W_I + W_D T_D^T`` (Chee et al., 2022). A row with zeros among
    its kept weights, made by an earlier pass, is solved on its own support so that they stay zero: the correction
    ``d = argmin ||Z_D w_D - Z_S d||`` is added to what is there.

    Args:
        rows: weights over channels, float64 [R, C].
        gram: second moments of the channels, float64 [C, C].
        kept: indices of the channels that stay, ascending.
        preserve_zeros: False lets the fold fill zeros.
    """
    result = np.zeros_like(rows)
    dropped = np.setdiff1d(np.arange(rows.shape[1]), kept)
    staying = rows[:, kept]
    if not len(dropped):
        return rows.copy()
    lost = rows[:, dropped]
    sparse = (staying == 0.0).any(axis=1) if preserve_zeros else np.zeros(len(rows), dtype=bool)
    dense = ~sparse
    if dense.any():
        matrix = interpolation(gram, kept, _RIDGE)[:, dropped]
        if sparse.any():
            staying[dense] += lost[dense] @ matrix.T
        else:  # without copies of large weights
            staying += lost @ matrix.T
    if sparse.any():
        right = lost[sparse] @ gram[np.ix_(dropped, kept)]
        support = staying[sparse] != 0.0
        staying[sparse] += masked_least_squares(gram[np.ix_(kept, kept)], right, support)
        staying[sparse] = np.where(support, staying[sparse], 0.0)
    result[:, kept] = staying
    return result
