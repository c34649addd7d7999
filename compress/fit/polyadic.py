"""Kernels as sums of few products (CP decomposition), as close as data can tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from onnxprune.graph.polyadic import Factors

# Second moments get so much of their mean diagonal: directions without data stay as the weights have them.
_JITTER = 1e-6
# What the squared norms of all products together cost, over that of the weight, first and then: without it products
# grow that cancel one another (Phan et al., 2020).
_HELD = (1e-3, 1e-5)
# Share of the iterations with the first of the two.
_FIRST = 0.5
# Iterations at least and at most, and floating-point operations that all of them may take.
_FEWEST, _MOST, _WORK = 60, 600, 1e11
# What a start is off the products of single channels, over their root mean square.
_OFF = 0.05
# Pairs of steps and gradients that L-BFGS remembers.
_MEMORY = 20
# Features beyond which one iteration takes too long.
WIDEST = 2400


def decompose(
    matrix: np.ndarray,
    gram: np.ndarray | None,
    taps: int,
    rank: int,
    *,
    start: Factors | None = None,
    effort: float = 1.0,
) -> Factors:
    """Return ``rank`` products whose sum has an error ``tr(E^T G E)`` as small as a descent finds.

    The canonical polyadic decomposition of a kernel (Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, 2015), here in
    the metric of the layer's inputs and by L-BFGS over all three factors at once. It starts from the largest
    singular values of every channel's own kernels, which is exact at ``rank`` of taps times channels, a little off
    it (it can be a saddle) by the same numbers every time.

    Args:
        matrix: float64 [taps * channels, O].
        gram: second moments of the features, float64 [F, F]; None counts every weight the same.
        taps: positions under the kernel.
        rank: number of products, at least 1.
        start: factors to go on from.
        effort: iterations over what is usual.
    """
    if not matrix.any():
        return Factors(np.zeros((len(matrix) // taps, rank)), np.zeros((taps, rank)), np.zeros((rank, matrix.shape[1])))
    target = _Target.of(matrix, gram, taps)
    known = start if start is not None and start.rank == rank else None
    present = known or _first(target, rank)
    each = 2.0 * len(matrix) * matrix.shape[1] * (len(matrix) + 3 * rank)
    rounds = effort * min(_MOST, max(_FEWEST, _WORK / each))
    best, least = present, target.error(present)
    if known is None:
        rng = np.random.default_rng(0)
        parts = (present.first, present.taps, present.last)
        present = Factors(*(p + _OFF * np.sqrt(np.mean(p**2)) * rng.standard_normal(p.shape) for p in parts))
    for held, share in zip(_HELD, (_FIRST, 1 - _FIRST), strict=True):
        present = _descended(target, present, held, max(1, round(share * rounds)))
        left = target.error(present)
        if left < least:
            best, least = present, left
    return best.balanced()


def single_products(matrix: np.ndarray, taps: int) -> np.ndarray:
    """Return the squared singular values of all channels' own kernels, descending: products of single channels.

    Keeping the first of them leaves an error of the others' sum, before any fit.
    """
    kernels = matrix.reshape(taps, -1, matrix.shape[1]).transpose(1, 0, 2)
    return np.asarray(np.sort(np.linalg.svd(kernels, compute_uv=False).ravel() ** 2)[::-1])


@dataclass(frozen=True, eq=False)
class _Target:
    """A matrix [T * C, O], the metric of its error, and what an error of all of it would be."""

    matrix: np.ndarray
    gram: np.ndarray | None
    taps: int
    energy: float

    @classmethod
    def of(cls, matrix: np.ndarray, gram: np.ndarray | None, taps: int) -> _Target:
        held = None
        if gram is not None and gram.any():
            mean = float(np.mean(gram.diagonal()))
            held = gram / mean
            held[np.diag_indices(len(held))] += _JITTER
        found = cls(matrix, held, taps, 1.0)
        return cls(matrix, held, taps, float(np.sum(matrix * found.weighed(matrix))))

    @property
    def channels(self) -> int:
        return len(self.matrix) // self.taps

    def error(self, found: Factors) -> float:
        left = found.matrix() - self.matrix
        return float(np.sum(left * self.weighed(left)))

    def weighed(self, error: np.ndarray) -> np.ndarray:
        return error if self.gram is None else np.asarray(self.gram @ error)


def _first(target: _Target, rank: int) -> Factors:
    """Return the products of largest effect among those of single channels, each alone the best of its channel."""
    taps, channels = target.taps, target.channels
    kernels = target.matrix.reshape(taps, channels, -1).transpose(1, 0, 2)
    lower = np.broadcast_to(np.eye(taps), (channels, taps, taps))
    if target.gram is not None:
        grid = target.gram.reshape(taps, channels, taps, channels)
        own = np.einsum("tcsc->cts", grid)
        level = 1e-9 * np.trace(own, axis1=1, axis2=2) / taps + np.finfo(float).tiny
        lower = np.linalg.cholesky(own + level[:, None, None] * np.eye(taps))
    left, values, right = np.linalg.svd(lower.transpose(0, 2, 1) @ kernels, full_matrices=False)
    spatial = np.linalg.solve(lower.transpose(0, 2, 1), left)
    picked = np.argsort(-values, axis=None, kind="stable")[:rank]
    channel, place = np.divmod(picked, values.shape[1])
    first, each, last = np.zeros((channels, rank)), np.zeros((taps, rank)), np.zeros((rank, kernels.shape[2]))
    here = np.arange(len(picked))
    first[channel, here] = 1.0
    each[:, here] = spatial[channel, :, place].T
    last[here] = values[channel, place][:, None] * right[channel, place]
    return Factors(first, each, last).balanced()


def _descended(target: _Target, start: Factors, held: float, rounds: int) -> Factors:
    """Return factors with a smaller error: L-BFGS (Liu, Nocedal, 1989) on error plus ``held`` times the norms."""
    shapes = [start.first.shape, start.taps.shape, start.last.shape]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    weight = held / float(np.sum(target.matrix**2))

    def parts(flat: np.ndarray) -> Factors:
        return Factors(*(part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)))

    def cost(flat: np.ndarray) -> tuple[float, np.ndarray]:
        found = parts(flat)
        left = found.left()
        error = left @ found.last - target.matrix
        weighed = target.weighed(error)
        value = float(np.sum(error * weighed)) / target.energy
        weighed = weighed * (2.0 / target.energy)
        both = (weighed @ found.last.T).reshape(target.taps, target.channels, -1)
        slopes = [(both * found.taps[:, None]).sum(axis=0), (both * found.first[None]).sum(axis=1), left.T @ weighed]
        squares = [np.sum(found.first**2, axis=0), np.sum(found.taps**2, axis=0), np.sum(found.last**2, axis=1)]
        value += weight * float(np.sum(squares[0] * squares[1] * squares[2]))
        slopes[0] += 2 * weight * found.first * (squares[1] * squares[2])
        slopes[1] += 2 * weight * found.taps * (squares[0] * squares[2])
        slopes[2] += 2 * weight * found.last * (squares[0] * squares[1])[:, None]
        return value, np.concatenate([slope.ravel() for slope in slopes])

    flat = np.concatenate([start.first.ravel(), start.taps.ravel(), start.last.ravel()])
    options = {"maxiter": rounds, "maxfun": 2 * rounds, "maxcor": _MEMORY}
    return parts(minimize(cost, flat, jac=True, method="L-BFGS-B", options=options).x)
