"""What one linear node could become: pairs of nodes at several ranks, the error that each leaves, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.fit.links import Link
from onnxprune.fit.lowrank import Metric, components_of, computed, error, project, tails, whitened
from onnxprune.fit.polyadic import WIDEST, decompose
from onnxprune.fit.reconstruct import Sums
from onnxprune.fit.wide import Wide
from onnxprune.graph.factorise import OUTPUT, POLYADIC, Pair, Parting, kernel_of

Partings = Mapping[str, Parting]
# Ranks that are offered of one kind, at most, and how many of them are solved for.
_GRID, _SOLVED = 24, 3
# Shares of the highest rank at which sums of products are solved for, and iterations over what is usual.
_PLACES, _EFFORT = (0.12, 0.3, 0.6, 1.0), 0.4
# A pair must save so much of what the node costs to be worth two kernels.
_WORTH = 0.98


@dataclass(frozen=True)
class Option:
    """A pair of nodes, or the node as it is (``pair`` None), with its MACs and parameters."""

    pair: Pair | None
    macs: int
    params: int

    def cost(self, by: str) -> int:
        """Return the MACs, or ``by="params"`` the parameters."""
        return self.params if by == "params" else self.macs


def ranks(parting: Parting, macs: int, *, by: str = "macs") -> list[int]:
    """Return the ranks worth having, ascending: those that save cost (``macs`` or ``params`` of the node as it is)."""
    each = parting.macs if by == "macs" else parting.params
    whole = macs if by == "macs" else parting.height * parting.width
    highest = min(parting.full - 1, math.ceil(_WORTH * whole / max(1, each)) - 1)
    return [rank for rank in range(1, highest + 1) if parting.floor(rank) == rank]


def offers(link: Link, sums: Sums, partings: Partings, by: str = "macs") -> tuple[list[Option], np.ndarray]:
    """Return options by rising cost, none beaten by a cheaper one, and their errors over the spread of the targets.

    See :func:`front`.
    """
    return front(candidates(link, sums, partings, by), dense(partings), by)


def front(found: Sequence[tuple[float, Option]], whole: Option, by: str = "macs") -> tuple[list[Option], np.ndarray]:
    """Return candidates by rising cost, none beaten by a cheaper one, and their errors.

    The cost is that in MACs, or ``by="params"`` in parameters: kinds that part a strided kernel differ in both. The
    node as it is comes last and has no error.
    """
    best: list[tuple[float, Option]] = []
    for left, option in sorted(found, key=lambda item: (item[1].cost(by), item[0])):
        if not best or left < best[-1][0]:
            if best and best[-1][1].cost(by) == option.cost(by):
                best.pop()
            best.append((left, option))
    return [*(option for _, option in best), whole], np.array([*(left for left, _ in best), 0.0])


def candidates(link: Link, sums: Sums, partings: Partings, by: str = "macs") -> list[tuple[float, Option]]:
    """Return everything that a node could become, with errors over the spread of the targets.

    Ranks of ``output`` have their exact error; of other kinds a few are solved for, and the others follow the
    singular values of the whitened weight between them, or for sums of products a line through logarithms.
    """
    unit = link.unit
    whole = dense(partings)
    found: list[tuple[float, Option]] = []
    spread = sums.spread() or 1.0
    matrix = unit.matrix()[0]
    metric = None if isinstance(sums, Wide) else Metric.of(sums, shiftable=unit.shiftable)
    for kind, parting in partings.items():
        offered = _grid(ranks(parting, whole.macs, by=by))
        if not offered or (metric is None and kind != OUTPUT) or (kind == POLYADIC and len(matrix) > WIDEST):
            continue
        if metric is None:
            assert isinstance(sums, Wide)
            errors = tails(components_of(computed(sums, matrix, shiftable=unit.shiftable))[0])[offered]
        else:
            errors = _errors(matrix, metric, kind, kernel_of(unit), offered)
        for rank, left in zip(offered, errors, strict=True):
            option = Option(Pair(kind, rank), rank * parting.macs, rank * parting.params)
            found.append((float(left) / spread, option))
    return found


def dense(partings: Partings) -> Option:
    """Return the node as it is; any kind of parting tells its size."""
    first = next(iter(partings.values()))
    return Option(None, first.whole, first.height * first.width)


def _grid(offered: list[int]) -> list[int]:
    if len(offered) <= _GRID:
        return offered
    places = np.unique(np.round(np.linspace(0, len(offered) - 1, _GRID)).astype(int))
    return [offered[place] for place in places]


def _errors(matrix: np.ndarray, metric: Metric, kind: str, kernel: tuple[int, ...], offered: list[int]) -> np.ndarray:
    assert metric.gram is not None
    if kind == OUTPUT:
        return np.asarray(tails(metric.components(matrix)[0])[offered])
    if kind == POLYADIC:
        return _errors_of_products(matrix, metric, kernel, offered)
    left = tails(whitened(matrix, metric.gram, kind, kernel))
    rough = np.array([left[min(rank, len(left) - 1)] for rank in offered])
    places = np.unique(np.round(np.linspace(0, len(offered) - 1, _SOLVED + 2)[1:-1]).astype(int))
    exact = [error(matrix, project(matrix, metric, Pair(kind, offered[place]), kernel), metric) for place in places]
    floor = 1e-12 * float(rough.max(initial=0.0)) + 1e-300
    logs = np.log(rough + floor)
    known = sorted(
        (logs[place], np.log(max(got, floor)) - logs[place]) for place, got in zip(places, exact, strict=True)
    )
    shift = np.interp(logs, [x for x, _ in known], [y for _, y in known])
    return np.asarray(np.exp(logs + shift))


def _errors_of_products(matrix: np.ndarray, metric: Metric, kernel: tuple[int, ...], offered: list[int]) -> np.ndarray:
    """Return errors whose logarithm is linear in the rank between ranks that are solved for, and nothing kept."""
    solved = sorted({offered[round(share * (len(offered) - 1))] for share in _PLACES})
    whole = error(matrix, np.zeros_like(matrix), metric)
    floor = 1e-12 * whole + 1e-300
    points = [(0, whole)]
    for rank in solved:
        found = decompose(matrix, metric.gram, math.prod(kernel), rank, effort=_EFFORT)
        points.append((rank, error(matrix, found.matrix(), metric)))
    logs = np.interp(offered, [rank for rank, _ in points], [np.log(max(left, floor)) for _, left in points])
    return np.asarray(np.exp(np.minimum.accumulate(logs)))
