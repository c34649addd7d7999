"""Ranks by the spectra of layers, under one global budget: the rules of PCA and of LRank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.contract import Context
from onnxprune.fit.offers import Partings
from onnxprune.fit.sizing import Sizing, tally_of
from onnxprune.graph.factorise import Pair, Parting
from onnxprune.graph.linear import Unit
from onnxprune.graph.spaces import Analysis

_HALVINGS = 200
# From a layer (name, unit, kind of pair) to what its ranks are worth and what is lost, see :class:`Spectrum`.
Score = Callable[[str, Unit, str], tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What one layer's ranks are worth and what they cost.

    Attributes:
        scores: what every further rank is worth, descending, float64 [n].
        tails: what is lost at ranks 0 to n, None where losing is not weighed against leaving the layer as it is.
        each, whole: the cost of one rank, and that of the layer as it is.
    """

    scores: np.ndarray
    tails: np.ndarray | None
    each: float
    whole: float

    @property
    def highest(self) -> int:
        """The largest rank that costs less than the layer as it is."""
        return min(len(self.scores), math.ceil(self.whole / self.each) - 1)

    def rank(self, price: float) -> int | None:
        """Return the best rank when one unit of cost counts ``price``, None for the layer as it is.

        Of ``price * cost + loss`` the least: every singular value with ``s^2 > price * each`` stays (Idelbayev and
        Carreira-Perpinan, 2020, eq. 6); at least one does.
        """
        rank = max(1, int(np.count_nonzero(self.scores > price * self.each)))
        if rank > self.highest:
            return None
        if self.tails is not None and price * self.each * rank + self.tails[rank] >= price * self.whole:
            return None
        return rank

    def cost(self, rank: int | None) -> float:
        """Return what a rank costs."""
        return self.whole if rank is None else rank * self.each


def sensitivities(squares: np.ndarray) -> np.ndarray:
    """Return what every principal component adds to the ones before it: ``l_i / sum of l_j, j <= i`` (torchprune)."""
    total = np.cumsum(squares)
    return np.asarray(np.divide(squares, total, out=np.zeros(len(squares)), where=total > 0.0))


def ranks_within(spectra: Mapping[str, Spectrum], room: float) -> dict[str, int | None]:
    """Return every layer's rank (None: as it is) by one threshold for all, so that the costs' sum is within ``room``.

    What is left is spent rank by rank on the best score per cost that still fits. Where even rank 1 everywhere is
    too much, that is returned.
    """

    def at(price: float) -> dict[str, int | None]:
        return {name: one.rank(price) for name, one in spectra.items()}

    def spent(ranks: Mapping[str, int | None]) -> float:
        return sum(spectra[name].cost(rank) for name, rank in ranks.items())

    least: dict[str, int | None] = {name: 1 if one.highest >= 1 else None for name, one in spectra.items()}
    if spent(least) > room:
        return least
    plain: dict[str, int | None] = dict.fromkeys(spectra)
    if spent(plain) <= room:
        return plain
    high = 1.0
    while spent(at(high)) > room and high < 1e300:
        high *= 16.0
    low, best = 0.0, at(high)
    if spent(best) > room:  # some layer stays as it is at any price
        best = least
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5 if low > 0.0 else high * 1e-3
        found = at(middle)
        if spent(found) <= room:
            high, best = middle, found
        else:
            low = middle
        if high <= 1e-300 or (low > 0.0 and high / low < 1 + 1e-12):
            break
    return _filled(spectra, best, room)


def _filled(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int | None], room: float) -> dict[str, int | None]:
    found = dict(ranks)
    left = room - sum(spectra[name].cost(rank) for name, rank in found.items())
    while True:
        best: tuple[float, str] | None = None
        for name, rank in found.items():
            one = spectra[name]
            if rank is None or rank >= one.highest or one.each > left:
                continue
            worth = float(one.scores[rank]) / one.each
            if best is None or worth > best[0]:
                best = (worth, name)
        if best is None:
            return found
        name = best[1]
        found[name] = (found[name] or 0) + 1
        left -= spectra[name].each


def costs(way: Parting, unit: Unit, currency: str) -> tuple[float, float]:
    """Return what a rank of a pair costs, and what the node as it is does, in MACs, parameters or bytes."""
    if currency not in ("params", "bytes"):
        return float(way.macs), float(way.whole)
    size = 1.0
    if currency == "bytes":
        assert unit.weight.const_value is not None
        size = float(unit.weight.const_value.dtype.itemsize)
    return way.params * size, way.height * way.width * size


def ranked(
    units: Mapping[str, tuple[Unit, Partings]],
    sizing: Sizing,
    analysis: Analysis,
    context: Context,
    score: Score,
) -> dict[str, Pair]:
    """Return the pairs that a size asks for, of the one kind that every unit has; ``score`` gives scores and tails.

    ``keep`` is the same share of every layer's full rank; where that saves nothing, the layer stays.
    """
    if sizing.name == "keep":
        found = {}
        for name, (_, ways) in units.items():
            way = next(iter(ways.values()))
            rank = max(1, math.floor(sizing.value * way.full + 1e-9))
            if rank < way.full and rank * way.macs < way.whole:
                found[name] = Pair(way.kind, rank)
        return found
    budget = sizing.budget(analysis, context, tally_of(analysis, context))
    spectra, kinds = {}, {}
    for name, (unit, ways) in units.items():
        way = kinds[name] = next(iter(ways.values()))
        each, whole = costs(way, unit, sizing.name)
        spectra[name] = Spectrum(*score(name, unit, way.kind), each, whole)
    room = budget.limit - (budget.cost({}) - sum(one.whole for one in spectra.values()))
    ranks = ranks_within(spectra, room)
    return {name: Pair(kinds[name].kind, kinds[name].floor(rank)) for name, rank in ranks.items() if rank is not None}
