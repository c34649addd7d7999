"""Ridge least squares for one linear node, towards weights that are already there, on the support that is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.fit.fold import fold_consumer
from onnxprune.fit.moments import Moments
from onnxprune.fit.wide import FEATURES, Wide
from onnxprune.graph.polyadic import Factors
from onnxprune.linalg import masked_least_squares, pivoted_cholesky, solve_all_psd

# The constant is not held back; this share keeps the system definite.
_CONSTANT = 1e-8
# With fewer rows per weight than this the ridge is weighed against these multiples of it.
_FEW = 4
_FACTORS = 10.0 ** np.arange(0, 6.5, 0.5)
# An eigenvalue below this share of the largest one is rounding.
_RANK = 1e-13


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
    live = np.column_stack([keep, np.full(groups, shiftable)])
    if isinstance(moments, Wide):
        result[0][live[0]] += moments.change(start[0], live[0], ridge, preserve_zeros)
    elif _are_few(moments, start, keep, preserve_zeros):
        result[0][live[0]] += _change_of_few(moments, start[0], live[0], ridge)
    else:
        kinds, kind = np.unique(live, axis=0, return_inverse=True)
        for place, each in enumerate(kinds):
            alike = np.flatnonzero(kind.ravel() == place)
            result[np.ix_(alike, each)] += _change(moments, start[alike], each, alike, ridge, preserve_zeros)
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
    moments: Moments, start: np.ndarray, live: np.ndarray, alike: np.ndarray, ridge: float, preserve_zeros: bool
) -> np.ndarray:
    """Return what is to be added to the live rows of ``start``, [n, live, O] for the n groups that have such rows."""
    # Taking all of it by indices would copy what is tens of megabytes for wide layers.
    own = moments.gram if len(alike) == len(moments.gram) else moments.gram[alike]
    gram = own.copy() if live.all() else own[np.ix_(np.arange(len(own)), live, live)]
    misses = moments.cross[alike] - own @ start
    right = misses[:, live]
    weights = int(live[:-1].sum())
    if not weights and not live[-1]:
        return np.zeros(right.shape)
    diagonal = np.diagonal(gram, axis1=1, axis2=2).copy()
    shift = ridge * diagonal[:, :weights].mean(axis=1) if weights else np.zeros(len(gram))
    few = shift > 0.0
    if few.any() and moments.rows < _FEW * weights:
        energy = moments.energy[alike].sum(axis=1) - np.sum(start * (moments.cross[alike] + misses), axis=(1, 2))
        shift[few] *= _factor(gram[few], right[few], energy[few], moments.rows, shift[few], bool(live[-1]))
    ridges = np.repeat(shift[:, None], gram.shape[1], axis=1)
    if live[-1]:
        ridges[:, -1] = _CONSTANT * gram[:, -1, -1]
    dead = diagonal + ridges <= 0.0
    index = np.arange(gram.shape[1])
    gram[:, index, index] += ridges
    zero = start[:, live] == 0.0
    zero[:, weights:] = False
    sparse = zero.any(axis=1) & preserve_zeros
    change = np.zeros(right.shape) if sparse.all() else solve_all_psd(gram, right)
    for place in np.flatnonzero(sparse.any(axis=1)):
        columns = sparse[place]
        support = ~zero[place][:, columns].T & ~dead[place]
        change[place][:, columns] = masked_least_squares(gram[place], right[place][:, columns].T, support).T
    return change


def _are_few(moments: Moments, start: np.ndarray, keep: np.ndarray, preserve_zeros: bool) -> bool:
    """Return whether a problem is solved by its rows; an output with zeros to keep has a Gram matrix of its own."""
    if moments.root is None or 2 * moments.rows > int(keep.sum()):
        return False
    return not (preserve_zeros and bool((start[0, :-1][keep[0]] == 0.0).any()))


def _change_of_few(moments: Moments, start: np.ndarray, live: np.ndarray, ridge: float) -> np.ndarray:
    """Return what :func:`_change` does, for one group, from rows that are few: no matrix has its features twice."""
    assert moments.root is not None
    kept, shiftable = np.flatnonzero(live[:-1]), bool(live[-1])
    misses = moments.cross[0] - moments.times(start[None])[0]
    energy = moments.energy[0].sum() - np.sum(start * (moments.cross[0] + misses))
    rows, right = moments.root[:, kept], misses[kept]
    level = ridge * float(np.square(rows).sum()) / len(kept)
    mean = rows.mean(axis=0)
    if shiftable:
        rows, right = rows - mean, right - np.outer(mean, misses[-1])
        energy -= np.square(misses[-1]).sum() / len(rows)
    # With A = U V W^T the solution A^T (A A^T + d)^-1 z is known from A^T z and eigenvectors U of as many as are rows.
    values, vectors = np.linalg.eigh(rows @ rows.T)
    seen = values > _RANK * max(float(values[-1]), np.finfo(float).tiny)
    values, vectors = values[seen], vectors[:, seen]
    along = vectors.T @ (rows @ right)
    if level > 0.0:
        squares = np.square(along).sum(axis=1) / values
        level *= float(_weighed(values, squares, np.array([energy]), len(rows), np.array([level]), shiftable)[0])
    weights = rows.T @ (vectors @ (along / (values * (values + level))[:, None]))
    if not shiftable:
        return np.asarray(weights)
    return np.vstack([weights, misses[-1] / len(rows) - mean @ weights])


def _factor(
    gram: np.ndarray, right: np.ndarray, energy: np.ndarray, rows: int, ridge: np.ndarray, shiftable: bool
) -> np.ndarray:
    """Return, per problem, the multiple of the ridge with the least error to be expected on other rows.

    ``gram`` and ``right`` are over live weights (the constant last where there is one), ``energy`` is the squared error
    at the start.
    """
    if shiftable:
        mean, middle = gram[:, -1, :-1], right[:, -1]
        gram = gram[:, :-1, :-1] - mean[:, :, None] * mean[:, None] / rows
        right = right[:, :-1] - mean[:, :, None] * middle[:, None] / rows
        energy = energy - np.square(middle).sum(axis=1) / rows
    values, squares = _spectrum(gram, right, rows)
    return _weighed(values, squares, energy, rows, ridge, shiftable)


def _weighed(
    values: np.ndarray, squares: np.ndarray, energy: np.ndarray, rows: int, ridge: np.ndarray, shiftable: bool
) -> np.ndarray:
    """Return the multiples of the ridge that generalised cross-validation takes.

    With eigenvalues and the residual's part along every eigenvector known, each multiple costs a sum.
    """
    scores = []
    for factor in _FACTORS:
        level = factor * ridge[:, None]
        left = energy - np.sum(squares * (values + 2 * level) / np.square(values + level), axis=1)
        free = rows - shiftable - np.sum(values / (values + level), axis=1)
        scores.append(np.maximum(left, np.maximum(1e-12 * energy, 0.0)) / np.maximum(free, 1e-3) ** 2)
    return np.asarray(_FACTORS[np.argmin(scores, axis=0)])


def _spectrum(gram: np.ndarray, right: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of every Gram matrix of a stack, and the squared length of ``right`` along each vector.

    So many rows have no more eigenvalues than that: where they are few the others, of zero, are not looked for.
    """
    if len(gram) == 1 and 2 * rows <= gram.shape[1]:
        root = pivoted_cholesky(gram[0], rows).factor  # as many rows as there are eigenvalues
        values, vectors = np.linalg.eigh(root @ root.T)
        values = np.maximum(values, np.finfo(float).tiny)
        along = vectors.T @ (root @ right[0])
        return values[None], (np.square(along).sum(axis=1) / values)[None]
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0.0), np.square(vectors.transpose(0, 2, 1) @ right).sum(axis=2)
