"""Greedy backward elimination of channels by what the output of their consumers would lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotri

# Wider spaces lose several channels between two updates, one in so many of those that live.
_WIDE = 64
_SHARE = 32
# They are chosen one by one among so many times as many candidates.
_CANDIDATES = 4
_JITTER = (0.0, 1e-10, 1e-8, 1e-6)
# Rounding must not choose: costs so close to one another, or so far below the largest one, are ties.
_TIE = 1e-9
_NOTHING = 1e-14
# float64 entries of blocks taken out at once.
_CHUNK = 1 << 22
# Q shrinks to its live features once this share of them is left.
_SHRINK = 0.8


@dataclass(frozen=True, eq=False)
class Problem:
    """A ridge problem that reads the channels: ``min ||A m - y||^2 + d ||m||^2`` over the live features.

    Attributes:
        gram: float64 [F, F] with the ridge on its diagonal.
        cross: float64 [F, O].
        owner: which channel each feature belongs to, int64 [F]; -1 for features that always live (the constant).
        scale: what one unit of squared error counts.
    """

    gram: np.ndarray
    cross: np.ndarray
    owner: np.ndarray
    scale: float


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which channels go, and what each one's going costs.

    ``order`` holds channels, first to go first; ``error[k]`` is the summed scaled squared error, above that of all
    channels, when ``k`` channels are kept, float64 [C + 1].
    """

    order: np.ndarray
    error: np.ndarray

    def kept(self, count: int) -> np.ndarray:
        """Return the channels that stay when ``count`` are kept, ascending; nested in ``count``."""
        return np.sort(self.order[len(self.order) - count :])


def eliminate(problems: Sequence[Problem], channels: int) -> Elimination:
    """Drop channels one after another, each time the one whose loss costs the consumers' outputs least.

    With Q the inverse of the regularised Gram matrix and W = Q B, dropping the features g of a channel raises the
    minimum by ``tr(W_g^T Q_gg^-1 W_g)`` exactly, and Q and W are downdated by a Schur complement (backward
    stepwise regression on groups). Ties go to the lowest channel. Of more than 64 live channels several go between
    two updates, each chosen with the ones before it gone, from the four times as many that were cheapest at the
    last update; the error of every width is exact all the same. O(F^3) per problem.
    """
    states = [_State(problem, channels) for problem in problems]
    live = np.ones(channels, dtype=bool)
    order: list[int] = []
    rises: list[float] = []
    while live.any():
        alive = np.flatnonzero(live)
        costs = _total(states, alive)
        count = max(1, len(alive) // _SHARE)
        if len(alive) <= _WIDE:
            best = _cheapest(costs)
            going, losses = alive[[best]], [max(float(costs[best]), 0.0)]
        else:
            candidates = np.sort(alive[_in_order(costs)[: _CANDIDATES * count]])
            going, losses = _several([state.part(candidates) for state in states], candidates, count)
        for state in states:
            state.drop(going)
        order.extend(int(channel) for channel in going)
        rises.extend(losses)
        live[going] = False
    error = np.zeros(channels + 1)
    error[:channels] = np.cumsum(rises)[::-1]
    return Elimination(np.array(order, dtype=np.int64), error)


def _several(parts: Sequence[_State], candidates: np.ndarray, count: int) -> tuple[np.ndarray, list[float]]:
    """Choose ``count`` of the candidates one by one in the small problems ``parts``; return what each one costs too."""
    going: list[int] = []
    losses: list[float] = []
    left = candidates
    for _ in range(count):
        costs = _total(parts, left)
        best = _cheapest(costs)
        going.append(int(left[best]))
        losses.append(max(float(costs[best]), 0.0))
        for part in parts:
            part.drop(left[[best]])
        left = np.delete(left, best)
    return np.array(going, dtype=np.int64), losses


def _total(states: Sequence[_State], alive: np.ndarray) -> np.ndarray:
    """Return what dropping each of these channels alone costs, over all problems."""
    total = np.zeros(len(alive))
    for state in states:
        total += state.costs(alive)
    return total


def _cheapest(costs: np.ndarray) -> int:
    """Return the first of the least costs."""
    least, largest = float(costs.min()), float(np.abs(costs).max())
    return int(np.argmax(costs <= least + _TIE * abs(least) + _NOTHING * largest))


def _in_order(costs: np.ndarray) -> np.ndarray:
    """Return the order of rising costs, ties by position."""
    order = np.argsort(costs, kind="stable")
    steps = np.diff(costs[order]) > _TIE * np.abs(costs[order][1:]) + _NOTHING * float(np.abs(costs).max(initial=0.0))
    rank = np.concatenate([[0], np.cumsum(steps)])
    return np.asarray(order[np.lexsort((order, rank))])


class _State:
    """Q and W of one problem while channels go; features are sorted by channel, the always live ones last."""

    def __init__(self, problem: Problem, channels: int) -> None:
        keys = np.where(problem.owner < 0, channels, problem.owner)
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.channels = channels
        self.inverse = _inverse(problem.gram[np.ix_(order, order)])
        self.weights = self.inverse @ _narrowed(problem.cross[order])
        self.scale = problem.scale
        self._index()

    def _index(self) -> None:
        """Find every channel's features: ``counts`` of them from ``starts`` on."""
        self.counts = np.bincount(self.keys, minlength=self.channels + 1)[: self.channels]
        self.starts = np.cumsum(self.counts) - self.counts
        self.gone = 0

    def part(self, channels: np.ndarray) -> _State:
        """Return the same problem as far as the costs of these channels (ascending) need it."""
        g = self._features(channels)
        small = object.__new__(_State)
        small.keys, small.channels, small.scale = self.keys[g], self.channels, self.scale
        small.inverse, small.weights = self.inverse[np.ix_(g, g)], self.weights[g]
        small._index()
        return small

    def costs(self, alive: np.ndarray) -> np.ndarray:
        """Return what dropping each of these channels costs; 0 for one that this problem does not read."""
        found = np.zeros(len(alive))
        counts = self.counts[alive]
        for size in np.unique(counts[counts > 0]):
            places = np.flatnonzero(counts == size)
            step = max(1, _CHUNK // int(size * (size + self.weights.shape[1])))
            for start in range(0, len(places), step):
                part = places[start : start + step]
                found[part] = self._costs(self.starts[alive[part]][:, None] + np.arange(size))
        return found * self.scale

    def _costs(self, g: np.ndarray) -> np.ndarray:
        """Return the costs of channels that have equally many features ``g`` [channels, size]."""
        rows = self.weights[g]
        if g.shape[1] == 1:
            diagonal = np.maximum(self.inverse[g[:, 0], g[:, 0]], np.finfo(float).tiny)
            return np.asarray(np.square(rows[:, 0]).sum(axis=1) / diagonal)
        blocks = self.inverse[g[:, :, None], g[:, None, :]]
        try:
            solved = np.linalg.solve(blocks, rows)
        except np.linalg.LinAlgError:
            solved = np.stack([_solve(block, right) for block, right in zip(blocks, rows, strict=True)])
        return np.asarray(np.einsum("cso,cso->c", rows, solved))

    def drop(self, channels: np.ndarray) -> None:
        """Take channels out: Q and W become those of the problem without their features."""
        g = self._features(channels)
        if not len(g):
            return
        lower = _lower(self.inverse[np.ix_(g, g)])
        across = _forward(lower, self.inverse[g])
        self.weights -= across.T @ _forward(lower, self.weights[g])
        self.inverse -= across.T @ across
        self.inverse[g], self.inverse[:, g], self.weights[g] = 0.0, 0.0, 0.0
        self.keys = self.keys.copy()
        self.keys[g] = -1
        self.counts[channels] = 0
        self.gone += len(g)
        if self.gone > (1 - _SHRINK) * len(self.keys):
            stay = self.keys >= 0
            self.inverse, self.weights = self.inverse[np.ix_(stay, stay)], self.weights[stay]
            self.keys = self.keys[stay]
            self._index()

    def _features(self, channels: np.ndarray) -> np.ndarray:
        """Return the features of channels, channel by channel."""
        spans = [np.arange(self.starts[c], self.starts[c] + self.counts[c]) for c in channels]
        return np.concatenate([np.zeros(0, dtype=np.int64), *spans])


def _narrowed(cross: np.ndarray) -> np.ndarray:
    """Return a matrix B of no more columns than rows with the same B B^T, which is all that costs depend on."""
    if cross.shape[1] <= cross.shape[0]:
        return cross
    return np.ascontiguousarray(np.asarray(np.linalg.qr(cross.T, mode="r")).T)


def _forward(lower: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``L^-1 B`` for C-contiguous B, which is overwritten."""
    # X L^T = B^T from the right: BLAS sees B in its own order, and nothing is copied.
    return np.asarray(dtrsm(1.0, lower, right.T, side=1, lower=1, trans_a=1, overwrite_b=1).T)


def _inverse(gram: np.ndarray) -> np.ndarray:
    """Return the inverse of a positive semi-definite matrix; a singular one gets a small ridge."""
    mean = float(np.mean(gram.diagonal())) or 1.0
    for jitter in _JITTER:
        try:
            factor, _ = cho_factor(gram + jitter * mean * np.eye(len(gram)) if jitter else gram, lower=True)
        except np.linalg.LinAlgError:
            continue
        inverse, failed = dpotri(factor, lower=True)
        if not failed:
            inverse = np.tril(inverse)
            return np.asarray(inverse + np.tril(inverse, -1).T)
    return np.asarray(np.linalg.pinv(gram, hermitian=True))


def _lower(block: np.ndarray) -> np.ndarray:
    """Return the Cholesky factor of a block of Q; what rounding has spoilt gets a small ridge."""
    mean = float(np.mean(block.diagonal())) or 1.0
    for jitter in _JITTER:
        try:
            return np.linalg.cholesky(block + jitter * mean * np.eye(len(block)))
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(block)
    raised = (vectors * np.maximum(values, _JITTER[-1] * abs(mean))) @ vectors.T
    return np.linalg.cholesky(raised + _JITTER[-1] * abs(mean) * np.eye(len(block)))


def _solve(block: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(cho_solve(cho_factor(block, lower=True), right))
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(block, right, rcond=None)[0])
