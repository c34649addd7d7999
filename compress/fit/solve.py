"""Ridge least squares for one linear node, towards weights that are already there, on the support that is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.fit.fold import fold_consumer
from onnxprune.fit.moments import Moments
from onnxprune.fit.wide import FEATURES, Wide
from onnxprune.graph.polyadic import Factors
from onnxprune.linalg import masked_least_squares, solve_psd

# The constant is not held back; this share keeps the system definite.
_CONSTANT = 1e-8
# With fewer rows per weight than this the ridge is weighed against these multiples of it.
_FEW = 4
_FACTORS = 10.0 ** np.arange(0, 6.5, 0.5)


@dataclass(frozen=True, eq=False)
class Solution:
    """What a linear node becomes: ``matrix`` [groups, F, O / groups], ``shift`` [O], and relative errors.

    ``folded`` is the squared error over the spread of the targets with the interpolation matrix alone, ``fitted``
    that of the solution. ``factors`` are those of the matrix where it is a sum of products.
    """

    matrix: np.ndarray
    shift: np.ndarray
    folded: float
    fitted: float
    factors: Factors | None = None


def refit(
    moments: Moments | Wide,
    matrix: np.ndarray,
    shift: np.ndarray,
    keep: np.ndarray,
    *,
    taps: int,
    ridge: float,
    shiftable: bool = True,
    preserve_zeros: bool = True,
) -> Solution:
    """Return the weights that come closest to the targets with the kept features alone.

    The ridge draws towards the fold of interpolative decomposition (Chee et al., 2022), not towards zero:
    ``M = M0 + (G + D)^-1 (B - G M0)`` with ``D = ridge * mean(diag G)``, so that the error on the data is never above
    the fold's and few examples change little. Where the kept weights as they are come closer than the fold, which
    looks at inputs alone, M0 is those. Rows (outputs) with zeros among their kept weights are solved on their own
    support where ``preserve_zeros`` asks for it.

    With fewer than four rows per weight the ridge is raised as far as generalised cross-validation says (Golub, Heath,
    Wahba, 1979): such rows can be met in any case, and what they do not show is lost.

    Args:
        moments: of the features and targets.
        matrix: present weights, float64 [groups, F, O / groups].
        shift: present constants, float64 [O].
        keep: features that stay, bool [groups, F].
        taps: positions under a kernel; features are ordered (tap, channel).
        ridge: relative to the mean of the Gram matrix's diagonal.
        shiftable: whether the constant may change.
        preserve_zeros: whether zeros among the weights stay.
    """
    groups, features, outputs = matrix.shape
    start = np.zeros((groups, features + 1, outputs))
    start[:, :features] = np.where(keep[:, :, None], matrix, 0.0)
    start[:, features] = shift.reshape(groups, outputs)
    before = moments.error(start)
    folded = before
    # So many channels have no Gram matrix; the dual solution below is over the same features without it.
    if groups == 1 and not keep.all() and features // taps <= FEATURES:
        other = start.copy()
        other[0, :features] = _folded(moments, matrix[0], keep[0], taps, preserve_zeros)
        folded = moments.error(other)
        if folded <= before:
            start, before = other, folded
    result = start.copy()
    for group in range(groups):
        live = np.append(keep[group], shiftable)
        if isinstance(moments, Wide):
            change = moments.change(start[group], live, ridge, preserve_zeros)
        else:
            change = _change(moments, start[group], live, group, ridge, preserve_zeros)
        result[group][live] += change
    spread = moments.spread() or 1.0
    after = moments.error(result)
    if not after <= before:  # rounding alone can do that, in problems without an error
        result, after = start, before
    return Solution(result[:, :features], result[:, features].ravel(), folded / spread, after / spread)


def _folded(
    moments: Moments | Wide, matrix: np.ndarray, keep: np.ndarray, taps: int, preserve_zeros: bool
) -> np.ndarray:
    """Return the weights with dropped channels folded into kept ones where whole channels go."""
    channels = len(matrix) // taps
    staying = keep.reshape(taps, channels)
    if not (staying == staying[0]).all() or not staying[0].any():
        return np.where(keep[:, None], matrix, 0.0)
    rows = matrix.reshape(taps, channels, -1).transpose(0, 2, 1).reshape(-1, channels)
    folded = fold_consumer(rows, moments.channel_gram(taps), np.flatnonzero(staying[0]), preserve_zeros=preserve_zeros)
    return np.asarray(folded.reshape(taps, -1, channels).transpose(0, 2, 1).reshape(matrix.shape))


def _change(
    moments: Moments, start: np.ndarray, live: np.ndarray, group: int, ridge: float, preserve_zeros: bool
) -> np.ndarray:
    """Return what is to be added to the live rows of ``start`` [live, O]."""
    gram = moments.gram[group][np.ix_(live, live)]
    misses = moments.cross[group] - moments.gram[group] @ start
    right = misses[live]
    weights = int(live[:-1].sum())
    if not weights and not live[-1]:
        return np.zeros((0, start.shape[1]))
    shift = ridge * float(np.mean(gram.diagonal()[:weights])) if weights else 0.0
    if shift > 0.0 and moments.rows < _FEW * weights:
        energy = moments.energy[group].sum() - np.sum(start * (moments.cross[group] + misses))
        shift *= _factor(gram, right, float(energy), moments.rows, shift, bool(live[-1]))
    ridges = np.full(len(gram), shift)
    if live[-1]:
        ridges[-1] = _CONSTANT * gram[-1, -1]
    gram = gram + np.diag(ridges)
    zero = start[live] == 0.0
    zero[weights:] = False
    sparse = zero.any(axis=0) if preserve_zeros else np.zeros(start.shape[1], dtype=bool)
    change = np.zeros((len(gram), start.shape[1]))
    dead = gram.diagonal() <= 0.0
    if (~sparse).any():
        change[:, ~sparse] = solve_psd(gram, right[:, ~sparse])
    if sparse.any():
        support = ~zero[:, sparse].T & ~dead
        change[:, sparse] = masked_least_squares(gram, right[:, sparse].T, support).T
    return change


def _factor(gram: np.ndarray, right: np.ndarray, energy: float, rows: int, ridge: float, shiftable: bool) -> float:
    """Return the multiple of the ridge with the least error to be expected on other rows.

    ``gram`` and ``right`` are over live weights (the constant last where there is one), ``energy`` is the squared error
    at the start. With the residual's part along every eigenvector known, each multiple costs a sum.
    """
    if shiftable:
        mean, middle = gram[-1, :-1], right[-1]
        gram, right = gram[:-1, :-1] - np.outer(mean, mean) / rows, right[:-1] - np.outer(mean, middle) / rows
        energy -= float(np.square(middle).sum()) / rows
    values, vectors = np.linalg.eigh(gram)
    values, squares = np.maximum(values, 0.0), np.square(vectors.T @ right).sum(axis=1)
    scores = []
    for level in ridge * _FACTORS:
        left = energy - float(np.sum(squares * (values + 2 * level) / np.square(values + level)))
        free = rows - shiftable - float(np.sum(values / (values + level)))
        scores.append(max(left, 1e-12 * energy, 0.0) / max(free, 1e-3) ** 2)
    return float(_FACTORS[int(np.argmin(scores))])
