"""Factorisations and least squares on float64 arrays: arrays in, arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

# Diagonals this close to the largest one are ties, and the lowest index wins: rounding must not choose pivots.
_TIE = 1e-12
_RANK = 1e-14
_BATCH_BYTES = 1 << 26
_DENSE_WIDTH = 192


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
    for step in range(min(k, size)):
        largest = float(diagonal.max())
        if largest <= floor:
            break
        pivot = int(np.argmax(diagonal >= largest * (1 - _TIE)))
        row = (gram[pivot] - factor[:step, pivot] @ factor[:step]) / np.sqrt(diagonal[pivot])
        row[pivots] = 0.0
        factor[step] = row
        diagonal = np.maximum(diagonal - row * row, 0.0)
        pivots.append(pivot)
        diagonal[pivots] = 0.0
        residuals.append(float(diagonal.sum()))
    taken = len(pivots)
    return PivotedCholesky(np.array(pivots, dtype=np.int64), factor[:taken], np.array(residuals))


def interpolation(gram: np.ndarray, kept: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Return T [k, C] with ``Z ~ Z[:, kept] T``, least squares on the Gram matrix; T at ``kept`` is the identity.

    Chee et al. (2022): T = [I, R11^-1 R12] P^T. ``ridge`` is relative to the mean diagonal of G.
    """
    size = len(gram)
    dropped = np.setdiff1d(np.arange(size), kept)
    result = np.zeros((len(kept), size))
    result[np.arange(len(kept)), kept] = 1.0
    if len(dropped):
        result[:, dropped] = solve_psd(gram[np.ix_(kept, kept)], gram[np.ix_(kept, dropped)], ridge)
    return result


def solve_psd(matrix: np.ndarray, right: np.ndarray, ridge: float = 0.0) -> np.ndarray:
    """Solve A X = B for symmetric positive semi-definite A; singular directions get a ridge that shrinks them."""
    size = len(matrix)
    mean = float(matrix.diagonal().mean()) if size else 0.0
    if size == 0 or mean <= 0.0:
        return np.zeros((size, right.shape[1]))
    for scale in (ridge, 1e-12, 1e-10, 1e-8):
        shifted = matrix + max(scale, ridge) * mean * np.eye(size)
        try:
            lower = np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        if float(lower.diagonal().min()) ** 2 > 1e-15 * mean:
            half = solve_triangular(lower, right, lower=True)
            return np.asarray(solve_triangular(lower.T, half, lower=False))
    return np.asarray(cho_solve(cho_factor(matrix + 1e-6 * mean * np.eye(size)), right))


def interpolation_error(gram: np.ndarray, kept: np.ndarray, matrix: np.ndarray) -> float:
    """Return the relative error ``||Z - Z_I T||_F / ||Z||_F`` from the Gram matrix alone."""
    total = float(np.trace(gram))
    if total <= 0.0:
        return 0.0
    cross = gram[:, kept] @ matrix
    square = total - 2 * float(np.trace(cross)) + float(np.sum(matrix * (gram[np.ix_(kept, kept)] @ matrix)))
    return float(np.sqrt(max(square, 0.0) / total))


def masked_least_squares(gram: np.ndarray, right: np.ndarray, mask: np.ndarray, ridge: float = 1e-9) -> np.ndarray:
    """Minimise ``w G w^T - 2 w b^T`` for every row on that row's own support.

    Args:
        gram: G [k, k], positive semi-definite.
        right: rows b [R, k].
        mask: support of every row, bool [R, k]; elsewhere the result is exactly zero.
        ridge: added to the diagonal, relative to its mean.

    Returns:
        Rows w [R, k]: batched direct solves for narrow G, masked conjugate gradients for wide G.
    """
    size = len(gram)
    mean = float(gram.diagonal().mean()) if size else 0.0
    if size == 0 or mean <= 0.0:
        return np.zeros_like(right)
    regular = gram + ridge * mean * np.eye(size)
    if size > _DENSE_WIDTH:
        return _masked_conjugate_gradients(regular, np.where(mask, right, 0.0), mask)
    result = np.zeros_like(right)
    step = max(1, _BATCH_BYTES // (8 * size * size))
    for start in range(0, len(right), step):
        part = slice(start, start + step)
        live = mask[part]
        systems = regular * (live[:, :, None] & live[:, None, :])
        index = np.arange(size)
        systems[:, index, index] += np.where(live, 0.0, mean)
        solved = np.linalg.solve(systems, np.where(live, right[part], 0.0)[:, :, None])[:, :, 0]
        result[part] = np.where(live, solved, 0.0)
    return result


def _masked_conjugate_gradients(matrix: np.ndarray, right: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Jacobi-preconditioned conjugate gradients on all rows at once; every iterate stays on the support."""
    inverse = 1.0 / matrix.diagonal()
    result = np.zeros_like(right)
    residual = right.copy()
    direction = residual * inverse
    energy = np.sum(residual * direction, axis=1)
    goal = 1e-16 * energy
    for _ in range(4 * len(matrix)):
        active = energy > goal
        if not active.any():
            break
        product = np.where(mask, direction @ matrix, 0.0)
        curvature = np.sum(direction * product, axis=1)
        step = np.where(active & (curvature > 0), energy / np.where(curvature > 0, curvature, 1.0), 0.0)[:, None]
        result += step * direction
        residual -= step * product
        scaled = residual * inverse
        renewed = np.sum(residual * scaled, axis=1)
        ratio = np.where(active, renewed / np.where(energy > 0, energy, 1.0), 0.0)[:, None]
        direction = scaled + ratio * direction
        energy = renewed
    return result
