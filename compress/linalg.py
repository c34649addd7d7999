"""Factorisations and least squares on float64 arrays: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lstsq, solve_triangular
from scipy.linalg.lapack import dposv

# Diagonals this close to the largest one are ties, and the lowest index wins: rounding must not choose pivots.
_TIE = 1e-12
_RANK = 1e-14
# What is left of a column after projection, squared and over its own square: below this it is rounding.
_LEFT = 1e-12
_BATCH_BYTES = 1 << 26
_DENSE_WIDTH = 6000
_BATCHED_WIDTH = 64
# A matrix with ones on its diagonal is solved without a ridge where its least eigenvalue is above this.
_SAFE = 1e-12
_PIVOT_BLOCK = 128


@dataclass(frozen=True)
class PivotedCholesky:
    """The first k steps of G = R^T R with diagonal pivoting.

    ``pivots`` [k] in order; ``factor`` [k, C] has rows of R over the original columns; ``residuals`` [k + 1] holds
    ``||Z - Z_I T||_F^2`` before the first and after every step (the trace of the Schur complement).
    """

    pivots: np.ndarray
    factor: np.ndarray
    residuals: np.ndarray


def pivoted_cholesky(gram: np.ndarray, k: int) -> PivotedCholesky:
    """Factor a Gram matrix Z^T Z with pivoting, equal to pivoted QR of Z; stops at ``k`` steps or at full rank.

    The pivot is the largest remaining diagonal, the lowest index among ties (Chee et al., 2022, section 3; the
    Gram form is equal in exact arithmetic). O(C k^2).
    """
    size = len(gram)
    factor = np.zeros((min(k, size), size))
    diagonal = gram.diagonal().astype(np.float64).copy()
    floor = _RANK * size * max(float(diagonal.max(initial=0.0)), 0.0)
    pivots: list[int] = []
    residuals = [float(diagonal.sum())]
    # What earlier blocks of rows leave of the matrix is worked out a block at a time: a product of matrices.
    rest, begun = gram, 0
    for step in range(min(k, size)):
        largest = float(diagonal.max())
        if largest <= floor:
            break
        if step - begun == _PIVOT_BLOCK:
            rest, begun = rest - factor[begun:step].T @ factor[begun:step], step
        pivot = int(np.argmax(diagonal >= largest * (1 - _TIE)))
        row = (rest[pivot] - factor[begun:step, pivot] @ factor[begun:step]) / np.sqrt(diagonal[pivot])
        row[pivots] = 0.0
        factor[step] = row
        diagonal = np.maximum(diagonal - row * row, 0.0)
        pivots.append(pivot)
        diagonal[pivots] = 0.0
        residuals.append(float(diagonal.sum()))
    taken = len(pivots)
    return PivotedCholesky(np.array(pivots, dtype=np.int64), factor[:taken], np.array(residuals))


def pivoted_qr(factor: np.ndarray, k: int) -> PivotedCholesky:
    """Factor R (or Z itself) [M, C] by Householder QR with column pivoting; stops at ``k`` steps or at full rank.

    The result is that of :func:`pivoted_cholesky` of R^T R, ties included, but nothing is squared: singular values
    down to about 1e-13 of the largest count, where a Gram matrix in float64 ends at 5e-9. O(M C k).
    """
    work = np.array(factor, dtype=np.float64)
    height, size = work.shape
    squares = np.sum(work * work, axis=0)
    floor = (_RANK * size) ** 2 * float(squares.max(initial=0.0))
    pivots: list[int] = []
    residuals = [float(squares.sum())]
    for step in range(min(k, height, size)):
        largest = float(squares.max())
        if largest <= floor:
            break
        pivot = int(np.argmax(squares >= largest * (1 - _TIE)))
        mirror = work[step:, pivot].copy()
        length = float(np.linalg.norm(mirror))
        mirror[0] += np.copysign(length, mirror[0])
        mirror /= np.linalg.norm(mirror)
        work[step:] -= 2 * np.outer(mirror, mirror @ work[step:])
        work[step] *= np.copysign(1.0, work[step, pivot])
        work[step, pivot] = length
        work[step + 1 :, pivot] = 0.0
        work[step, pivots] = 0.0
        pivots.append(pivot)
        # Summed anew: taking each row's squares off would leave rounding of the first, largest ones.
        squares = np.sum(work[step + 1 :] ** 2, axis=0)
        residuals.append(float(squares.sum()))
    return PivotedCholesky(np.array(pivots, dtype=np.int64), work[: len(pivots)], np.array(residuals))


def interpolation(gram: np.ndarray, kept: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Return T [k, C] with ``Z ~ Z[:, kept] T``, least squares on the Gram matrix; T at ``kept`` is the identity.

    Chee et al. (2022): T = [I, R11^-1 R12] P^T. ``ridge`` is relative to every diagonal entry of G.
    """
    size = len(gram)
    dropped = np.setdiff1d(np.arange(size), kept)
    result = np.zeros((len(kept), size))
    result[np.arange(len(kept)), kept] = 1.0
    if len(dropped):
        result[:, dropped] = solve_psd(gram[np.ix_(kept, kept)], gram[np.ix_(kept, dropped)], ridge)
    return result


def interpolation_from_factor(factor: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return T [k, C] as :func:`interpolation` does, from R (or Z) [M, C] without squaring its condition number.

    Columns are scaled to one length first; where kept columns depend on one another, T is the shortest solution.
    """
    size = factor.shape[1]
    dropped = np.setdiff1d(np.arange(size), kept)
    result = np.zeros((len(kept), size))
    result[np.arange(len(kept)), kept] = 1.0
    if not len(kept) or not len(dropped):
        return result
    wide = factor.astype(np.float64)
    lengths = np.linalg.norm(wide[:, kept], axis=0)
    scale = np.divide(1.0, lengths, out=np.zeros(len(kept)), where=lengths > 0.0)
    solved = lstsq(wide[:, kept] * scale, wide[:, dropped], cond=_RANK * size, lapack_driver="gelsy")[0]
    result[:, dropped] = solved * scale[:, None]
    return result


def swapped(gram: np.ndarray, kept: np.ndarray, bound: float = 10.0) -> np.ndarray:
    """Return as many kept channels, ascending, for which no entry of T exceeds ``bound`` (strong rank-revealing QR).

    Gu and Eisenstat (1996): exchanging kept i for dropped j multiplies |det R11| by
    ``sqrt(T_ij^2 + (|column j of R22| * |row i of R11^-1|)^2)``. The largest such factor above ``bound`` is carried
    out, the lowest i and j on a tie, until none is left; the determinant rises every time, so that this ends.

    Args:
        gram: second moments G of the channels, positive semi-definite [C, C].
        kept: the channels to start from, as pivots give them.
        bound: at least 1; above 1 the number of exchanges is polynomial in C.
    """
    chosen = np.sort(np.asarray(kept, dtype=np.int64))
    seen: set[bytes] = set()
    while 0 < len(chosen) < len(gram) and chosen.tobytes() not in seen:
        seen.add(chosen.tobytes())  # without rounding no set comes twice
        dropped = np.setdiff1d(np.arange(len(gram)), chosen)
        gains = _exchange_gains(gram, chosen, dropped)
        largest = float(gains.max())
        if not largest > max(bound, 1.0) ** 2 * (1 + 1e-9):
            break
        tied = gains == largest if np.isinf(largest) else gains >= largest * (1 - _TIE)
        i, j = np.unravel_index(int(np.argmax(tied)), gains.shape)
        chosen[i] = dropped[j]
        chosen.sort()
    return chosen


def _exchange_gains(gram: np.ndarray, kept: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Return, per pair of a kept and a dropped channel, by what an exchange multiplies det(G_kept) [k, C - k]."""
    inner = gram[np.ix_(kept, kept)].astype(np.float64)
    both = solve_psd(inner, np.hstack([gram[np.ix_(kept, dropped)], np.eye(len(kept))]))
    table, inverse = both[:, : len(dropped)], both[:, len(dropped) :].diagonal().copy()
    inverse[inner.diagonal() <= 0.0] = np.inf
    own = gram.diagonal()[dropped].astype(np.float64)
    left = own - np.sum(gram[np.ix_(kept, dropped)] * table, axis=0)
    left = np.where(left > _LEFT * own, left, 0.0)
    with np.errstate(invalid="ignore"):
        product = np.where(left > 0.0, inverse[:, None] * left, 0.0)
    return np.asarray(table * table + product)


def solve_psd(matrix: np.ndarray, right: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Solve A X = B for symmetric positive semi-definite A; singular directions get a ridge that shrinks them.

    ``ridge`` is relative to every diagonal entry of A, so that channels of any scale are treated alike.
    """
    balanced, scale = _balanced(matrix)
    wanted = right * scale[:, None]
    for shift in (ridge, 1e-12, 1e-10, 1e-8):
        shifted = balanced + max(shift, ridge) * np.eye(len(matrix))
        try:
            lower = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        if float(lower.diagonal().min(initial=1.0)) ** 2 > 1e-15:
            half = solve_triangular(lower, wanted, lower=True)
            return np.asarray(solve_triangular(lower.T, half, lower=False) * scale[:, None])
    solved = cho_solve(cho_factor(balanced + 1e-6 * np.eye(len(matrix))), wanted)
    return np.asarray(solved * scale[:, None])


def solve_all_psd(matrices: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """Solve A X = B for every A of a stack [n, k, k], as :func:`solve_psd` does for one; rights [n, k, o]."""
    result = np.zeros(rights.shape)
    rest = np.arange(len(matrices))
    if len(matrices) > 1 and matrices.shape[1] <= _BATCHED_WIDTH:
        balanced, roots = _balanced(matrices)
        scale = roots[:, :, None]
        # The least eigenvalue tells whether the plain solution is safe; the others are taken one by one.
        safe = np.linalg.eigvalsh(balanced)[:, 0] > _SAFE
        result[safe] = np.linalg.solve(balanced[safe], rights[safe] * scale[safe]) * scale[safe]
        rest = np.flatnonzero(~safe)
    for place in rest:
        result[place] = solve_psd(matrices[place], rights[place])
    return result


def _balanced(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return D A D with a diagonal of ones, and D, of one matrix or of a stack; D is 0 where a channel is dead."""
    roots = np.sqrt(np.maximum(matrix.diagonal(axis1=-2, axis2=-1), 0.0))
    scale = np.divide(1.0, roots, out=np.zeros(roots.shape), where=roots > 0.0)
    balanced = matrix * scale[..., :, None] * scale[..., None, :]
    index = np.arange(matrix.shape[-1])
    balanced[..., index, index] = 1.0
    return balanced, scale


def interpolation_error(gram: np.ndarray, kept: np.ndarray, matrix: np.ndarray) -> float:
    """Return the relative error ``||Z - Z_I T||_F / ||Z||_F`` from the Gram matrix alone."""
    total = float(np.trace(gram))
    if total <= 0.0:
        return 0.0
    # A kept channel stands for itself; each other one leaves G_jj - 2 t^T G_Ij + t^T G_II t.
    dropped = np.setdiff1d(np.arange(len(gram)), kept)
    table = matrix[:, dropped]
    inner = gram[np.ix_(kept, kept)] @ table - 2 * gram[np.ix_(kept, dropped)]
    square = float(gram.diagonal()[dropped].sum() + np.sum(table * inner))
    return float(np.sqrt(max(square, 0.0) / total))


def masked_least_squares(gram: np.ndarray, right: np.ndarray, mask: np.ndarray, ridge: float = 1e-9) -> np.ndarray:
    """Minimise ``w G w^T - 2 w b^T`` for every row on that row's own support.

    Args:
        gram: G [k, k], positive semi-definite.
        right: rows b [R, k].
        mask: support of every row, bool [R, k]; elsewhere the result is exactly zero.
        ridge: added to the diagonal, relative to every entry of it.

    Returns:
        Rows w [R, k]: batched direct solves for narrow G, a Cholesky factor of each support's own part for wider G,
        masked conjugate gradients for the widest.
    """
    size = len(gram)
    balanced, scale = _balanced(gram)
    np.fill_diagonal(balanced, 1.0 + max(ridge, size * np.finfo(np.float64).eps))
    wanted = np.where(mask, right * scale, 0.0)
    if size > _DENSE_WIDTH:
        return np.asarray(_masked_conjugate_gradients(balanced, wanted, mask) * scale)
    result = np.zeros(right.shape)
    if size > _BATCHED_WIDTH:
        for row, live in enumerate(mask):
            where = np.flatnonzero(live)
            if not len(where):
                continue
            own, aim = balanced[np.ix_(where, where)], wanted[row, where]
            _, solved, info = dposv(own, aim, lower=True)
            # Rounding can leave a part that is not positive definite.
            result[row, where] = solved if info == 0 else lstsq(own, aim)[0]
        return np.asarray(result * scale)
    index = np.arange(size)
    step = max(1, _BATCH_BYTES // (8 * max(1, size * size)))
    for start in range(0, len(right), step):
        part = slice(start, start + step)
        live = mask[part]
        systems = balanced * (live[:, :, None] & live[:, None, :])
        systems[:, index, index] += ~live
        solved = np.linalg.solve(systems, wanted[part][:, :, None])[:, :, 0]
        result[part] = np.where(live, solved, 0.0)
    return np.asarray(result * scale)


def _masked_conjugate_gradients(matrix: np.ndarray, right: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Conjugate gradients on all rows at once (the diagonal is constant); every iterate stays on the support."""
    result = np.zeros(right.shape)
    residual = right.copy()
    direction = right.copy()
    energy = np.sum(residual * residual, axis=1)
    goal = 1e-16 * energy
    for _ in range(4 * len(matrix)):
        active = energy > goal
        if not active.any():
            break
        product = np.where(mask, direction @ matrix, 0.0)
        curvature = np.sum(direction * product, axis=1)
        moving = active & (curvature > 0.0)
        step = np.where(moving, energy / np.where(moving, curvature, 1.0), 0.0)[:, None]
        result += step * direction
        residual -= step * product
        renewed = np.sum(residual * residual, axis=1)
        ratio = np.where(active, renewed / np.where(active, energy, 1.0), 0.0)[:, None]
        direction = residual + ratio * direction
        energy = renewed
    return result
