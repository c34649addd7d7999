"""Matrices of low rank, as close as data can tell: one linear node's weight as the product of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from onnxprune.fit.moments import Moments
from onnxprune.fit.polyadic import decompose
from onnxprune.fit.solve import Solution
from onnxprune.fit.wide import Wide
from onnxprune.graph.factorise import INPUT, OUTPUT, POLYADIC, TURNED, Pair, factors, refolded, unfold
from onnxprune.graph.polyadic import Factors
from onnxprune.linalg import solve_psd

# Second moments get so much of their mean diagonal: directions without data stay as the weights have them.
_JITTER = 1e-6
# A variance below this share of the energy is rounding.
_NOTHING = 1e-12
# Rounds of alternating least squares, steps of conjugate gradients in each, and less of it for wide nodes.
_ROUNDS, _STEPS = 4, 8
_WIDE, _WIDE_ROUNDS = 1500, 2
# Iterations over what is usual where a sum of products goes on from another one.
_AGAIN = 0.3
# With so many outputs for every row, components are found by the rows.
_FEW = 2


@dataclass(frozen=True, eq=False)
class Metric:
    """What an error in a weight costs: ``tr(E^T G E)`` with second moments G [F, F] about the mean [F].

    ``gram`` None: every entry counts the same (no data). Features are ordered (tap, channel). ``root`` [n, F] has
    G = root^T root where there are few rows.
    """

    gram: np.ndarray | None
    mean: np.ndarray | None
    root: np.ndarray | None = None

    @classmethod
    def of(cls, sums: Moments, *, shiftable: bool) -> Metric:
        """Return the metric of a problem with one group; where no constant can be written, moments about zero."""
        gram, count = sums.gram[0], max(sums.rows, 1)
        root = None if sums.root is None else sums.root[:, :-1]
        total = gram[-1, :-1]
        if not shiftable:
            return cls(gram[:-1, :-1].copy(), None, root)
        energy = gram.diagonal()[:-1]
        centred = gram[:-1, :-1] - np.outer(total, total) / count
        still = centred.diagonal() <= _NOTHING * energy
        centred[still], centred[:, still] = 0.0, 0.0
        if root is not None:
            root = np.where(still, 0.0, root - total / count)
        return cls(centred, total / count, root)

    def part(self, mask: np.ndarray) -> Metric:
        """Return what an error in some features costs; the mean is left out."""
        assert self.gram is not None
        return Metric(self.gram[np.ix_(mask, mask)], None, None if self.root is None else self.root[:, mask])

    def components(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return :func:`components_of` what a matrix [F, O] makes of the data."""
        assert self.gram is not None
        if self.root is not None:
            return components_of(self.root @ matrix)
        return components(matrix.T @ self.gram @ matrix)


def project(matrix: np.ndarray, metric: Metric, pair: Pair, kernel: Sequence[int]) -> np.ndarray:
    """Return the matrix [F, O] of a pair that computes nearly what ``matrix`` does.

    ``output``: the best one, by the principal components of the outputs (Zhang, Zou, He, Sun, 2016, eq. 6). Other
    kinds: alternating least squares on the same error, from the singular vectors of the encoder's features
    whitened; without data, or where only zeros were seen, the truncated singular value decomposition, which is the
    best one then.
    """
    if metric.gram is None or not metric.gram.any() or not matrix.any():
        first, second = factors(unfold(matrix, pair.kind, kernel), pair.rank)
        return refolded(first @ second, pair.kind, kernel, matrix.shape[1])
    if pair.kind == OUTPUT:
        return _onto(matrix, metric.components(matrix)[1], pair.rank)
    # Features in the order (what the decoder runs over, what the encoder runs over and its channels).
    order = _order(len(matrix), pair.kind, kernel)
    blocks = {INPUT: int(np.prod(kernel)), TURNED: kernel[-1]}.get(pair.kind, kernel[0])
    wanted = matrix[order].reshape(blocks, -1, matrix.shape[1])
    found = _alternated(wanted, metric.gram[np.ix_(order, order)], pair.rank)
    result = np.empty_like(matrix)
    result[order] = found.reshape(matrix.shape)
    return result


def components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, descending and not negative, and eigenvectors as columns; signs are fixed."""
    values, vectors = np.linalg.eigh(covariance)
    return np.maximum(values[::-1], 0.0), _signed(vectors[:, ::-1])


def components_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`components` of ``rows^T rows`` [O, O]: of few rows [n, O] all eigenvalues, and n eigenvectors."""
    count, width = rows.shape
    if _FEW * count > width:
        return components(rows.T @ rows)
    _, lengths, vectors = np.linalg.svd(rows, full_matrices=False)
    values = np.zeros(width)
    values[:count] = np.square(lengths)
    return values, _signed(vectors.T)


def _onto(matrix: np.ndarray, directions: np.ndarray, rank: int) -> np.ndarray:
    """Return a matrix [F, O] projected on the first ``rank`` of some orthonormal directions, columns [O, k].

    Where rows had fewer to show than that, those follow that most of what is left of the weights lies in: a random
    range finder with one power iteration (Halko, Martinsson, Tropp, 2011, algorithm 4.3).
    """
    kept = directions[:, :rank]
    near = matrix @ kept @ kept.T
    missing = min(rank, matrix.shape[1]) - kept.shape[1]
    if missing > 0:
        left = matrix - near
        drawn = np.random.default_rng(0).standard_normal((left.shape[1], missing))
        kept = np.linalg.qr(np.hstack([kept, left.T @ (left @ drawn)]))[0]
        near = matrix @ kept @ kept.T
    return np.asarray(near)


def _signed(vectors: np.ndarray) -> np.ndarray:
    largest = np.argmax(np.abs(vectors), axis=0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    return np.asarray(vectors * np.where(signs == 0.0, 1.0, signs))


def computed(sums: Wide, matrix: np.ndarray, *, shiftable: bool) -> np.ndarray:
    """Return what a matrix [F, O] makes of rows, [rows, O]; about their mean where a constant can be."""
    seen = sums.matrix.astype(np.float64) @ matrix
    return np.asarray(seen - seen.mean(axis=0) if shiftable else seen)


def tails(squares: np.ndarray) -> np.ndarray:
    """Return what is left behind every rank, [n + 1]: sums of what follows, of a spectrum in descending order."""
    return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])


def whitened(matrix: np.ndarray, gram: np.ndarray, kind: str, kernel: Sequence[int]) -> np.ndarray:
    """Return the squared singular values of a weight, its encoder's features whitened by their mean moments."""
    order = _order(len(matrix), kind, kernel)
    unfolded = unfold(matrix, kind, kernel)
    height = len(unfolded)
    blocks = len(gram) // height
    own = np.einsum("vavb->ab", gram[np.ix_(order, order)].reshape(blocks, height, blocks, height)) / blocks
    own = own + _JITTER * float(np.mean(own.diagonal())) * np.eye(height)
    try:
        lower = np.linalg.cholesky(own)
    except np.linalg.LinAlgError:
        return np.zeros(min(unfolded.shape))
    return np.asarray(np.linalg.svd(lower.T @ unfolded, compute_uv=False) ** 2)


def error(matrix: np.ndarray, other: np.ndarray, metric: Metric) -> float:
    """Return what using ``other`` in place of ``matrix`` costs."""
    left = matrix - other
    if metric.root is not None:
        left = metric.root @ left
    elif metric.gram is not None:
        return float(np.sum(left * (metric.gram @ left)))
    return float(np.sum(left * left))


def paired(
    solution: Solution,
    sums: Moments | Wide,
    mask: np.ndarray,
    pair: Pair,
    kernel: Sequence[int],
    *,
    shiftable: bool,
    start: Factors | None = None,
    effort: float = 1.0,
) -> Solution:
    """Return a solution of one group as a pair of nodes can compute it; its constant makes up for the mean.

    ``mask`` [F] says which features stay; the others have weights of zero, and keep them. Where there are too many
    features for second moments, ``output`` is the one kind that is known. A sum of products goes on from ``start``;
    its factors have the channels that stay alone.
    """
    matrix = solution.matrix[0]
    near = np.zeros_like(matrix)
    products: Factors | None = None
    mean: np.ndarray | None
    if isinstance(sums, Wide):
        mean = sums.matrix.mean(axis=0, dtype=np.float64) if shiftable else None
        near = _onto(matrix, components_of(computed(sums, matrix, shiftable=shiftable))[1], pair.rank)
    else:
        metric = Metric.of(sums, shiftable=shiftable)
        assert metric.gram is not None
        own = metric.part(mask)
        if pair.kind == POLYADIC:
            effort *= 1.0 if start is None else _AGAIN
            products = decompose(matrix[mask], own.gram, int(np.prod(kernel)), pair.rank, start=start, effort=effort)
            near[mask] = products.matrix()
        else:
            near[mask] = project(matrix[mask], own, pair, kernel)
        mean = metric.mean
    shift = solution.shift
    if mean is not None:
        shift = shift + mean @ (matrix - near)
    left = sums.error(np.vstack([near, shift[None]])[None]) / (sums.spread() or 1.0)
    return replace(solution, matrix=near[None], shift=shift, fitted=left, factors=products)


def _order(features: int, kind: str, kernel: Sequence[int]) -> np.ndarray:
    index = np.arange(features)
    if kind != TURNED:
        return index
    return np.asarray(index.reshape(kernel[0], kernel[1], -1).transpose(1, 0, 2).ravel())


def _alternated(wanted: np.ndarray, gram: np.ndarray, rank: int) -> np.ndarray:
    """Minimise ``sum (M_v - E D_v)^T G_vw (M_w - E D_w)`` over E [A, r] and D [V, r, O]; return E D [V, A, O]."""
    blocks, height, outputs = wanted.shape
    gram = gram + _JITTER * float(np.mean(gram.diagonal())) * np.eye(len(gram))
    grid = gram.reshape(blocks, height, blocks, height)
    own = np.einsum("vavb->ab", grid) / blocks
    target = (gram @ wanted.reshape(-1, outputs)).reshape(wanted.shape)
    try:
        lower = np.linalg.cholesky(own)
    except np.linalg.LinAlgError:  # nothing but zeros was seen
        lower = np.eye(height)
    flat = wanted.transpose(1, 0, 2).reshape(height, -1)
    left = np.linalg.svd(lower.T @ flat, full_matrices=False)[0]
    encoder = solve_triangular(lower, left[:, :rank], lower=True, trans="T")
    rank = encoder.shape[1]
    wide = height > _WIDE or blocks * rank > _WIDE
    decoder = np.zeros((blocks, rank, outputs))
    for turn in range(_WIDE_ROUNDS if wide else _ROUNDS):
        if turn:
            encoder = _encoder(encoder, decoder, grid, target, lower)
        encoder = np.linalg.qr(encoder)[0]
        inner = np.einsum("vawb,bs->vaws", grid, encoder, optimize=True)
        inner = np.einsum("ar,vaws->vrws", encoder, inner, optimize=True)
        right = np.einsum("ar,vao->vro", encoder, target, optimize=True)
        size = blocks * rank
        decoder = solve_psd(inner.reshape(size, size), right.reshape(size, outputs)).reshape(blocks, rank, outputs)
    return np.asarray(np.einsum("ar,vro->vao", encoder, decoder, optimize=True))


def _encoder(
    start: np.ndarray, decoder: np.ndarray, grid: np.ndarray, target: np.ndarray, lower: np.ndarray
) -> np.ndarray:
    """Return E closer to ``sum_vw G_vw E D_w D_v^T = sum_v T_v D_v^T``: a few preconditioned conjugate gradients."""
    mixed = np.einsum("wro,vso->wrvs", decoder, decoder, optimize=True)
    mean = np.einsum("vrvs->rs", mixed)
    mean = mean + 1e-9 * float(np.mean(mean.diagonal())) * np.eye(len(mean))
    second = np.linalg.cholesky(mean)

    def applied(x: np.ndarray) -> np.ndarray:
        spread = np.einsum("wrvs,ar->wavs", mixed, x, optimize=True)
        return np.asarray(np.einsum("vbwa,wavs->bs", grid, spread, optimize=True))

    def eased(x: np.ndarray) -> np.ndarray:
        half = solve_triangular(lower, x, lower=True)
        half = solve_triangular(lower, half, lower=True, trans="T")
        turned = solve_triangular(second, half.T, lower=True)
        return np.asarray(solve_triangular(second, turned, lower=True, trans="T").T)

    right = np.einsum("vao,vro->ar", target, decoder, optimize=True)
    result = start.copy()
    residual = right - applied(result)
    eased_residual = eased(residual)
    direction, energy = eased_residual, float(np.sum(residual * eased_residual))
    begun = energy
    for _ in range(_STEPS):
        if energy <= 1e-12 * begun or begun <= 0.0:
            break
        product = applied(direction)
        curvature = float(np.sum(direction * product))
        if curvature <= 0.0:
            break
        step = energy / curvature
        result = result + step * direction
        residual = residual - step * product
        eased_residual = eased(residual)
        renewed = float(np.sum(residual * eased_residual))
        direction = eased_residual + (renewed / energy) * direction
        energy = renewed
    return result
