"""Axes whose channels form a grid: attention heads times head size, groups times channels, a channel shuffle.

A reshape that parts a channel axis gives each part labels of its own (factors). A position of the whole axis stays
when its row and its column stay, so that what is left is a grid again and the reshape's literal sizes follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.labels import Labels, Product, Tracer

CONFLICT = "two reshapes part the same channels differently"


def part(tracer: Tracer, labels: np.ndarray, sizes: Sequence[int]) -> list[Labels]:
    """Return labels for the axes that a channel axis is parted into.

    Axes along which the labels repeat carry none; a single other axis carries the labels themselves; several
    get factors.
    """
    grid = labels.reshape(sizes)
    varying = [axis for axis, size in enumerate(sizes) if size > 1 and _varies(grid, axis)]
    result: list[Labels] = [None] * len(sizes)
    reduced = grid[tuple(slice(None) if axis in varying else 0 for axis in range(len(sizes)))]
    if len(varying) == 1:
        result[varying[0]] = reduced
        return result
    if not varying:
        return result
    known = next((p for p in tracer.products if np.array_equal(p.fine, reduced)), None)
    factors = known.factors if known is not None else tuple(tracer.fresh(sizes[axis]) for axis in varying)
    if known is None:
        tracer.products.append(Product(reduced, factors))
    for axis, factor in zip(varying, factors, strict=True):
        result[axis] = factor
    return result


def _varies(grid: np.ndarray, axis: int) -> bool:
    return not bool((grid == grid.take([0], axis=axis)).all())


def join(tracer: Tracer, labels: Sequence[Labels], sizes: Sequence[int]) -> Labels:
    """Return the labels of the axis that several axes are merged into, in row-major order."""
    carriers = [axis for axis, known in enumerate(labels) if known is not None]
    if not carriers:
        return None
    if len(carriers) == 1:
        axis = carriers[0]
        known = labels[axis]
        assert known is not None
        inner = int(np.prod(sizes[axis + 1 :], dtype=np.int64))
        outer = int(np.prod(sizes[:axis], dtype=np.int64))
        return np.tile(known.repeat(inner), outer)
    factors = tuple(known for known in labels if known is not None)
    shape = tuple(sizes[axis] for axis in carriers)
    found = next((p for p in tracer.products if _same(p.factors, factors)), None)
    if found is None:
        found = Product(tracer.fresh(int(np.prod(shape, dtype=np.int64))).reshape(shape), factors)
        tracer.products.append(found)
    spread = found.fine.reshape([sizes[axis] if axis in carriers else 1 for axis in range(len(sizes))])
    return np.broadcast_to(spread, tuple(sizes)).ravel()


def _same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, eq=False)
class Grid:
    """A product in terms of components: ``fine`` [f1, f2, ...] and one array of components per axis."""

    fine: np.ndarray
    factors: tuple[np.ndarray, ...]

    def spread(self, axis: int, values: np.ndarray) -> np.ndarray:
        """Return per-component ``values`` of one axis, broadcast over the grid."""
        shape = [len(self.factors[axis]) if i == axis else 1 for i in range(self.fine.ndim)]
        return np.broadcast_to(values[self.factors[axis]].reshape(shape), self.fine.shape)


def grids(tracer: Tracer, component: np.ndarray) -> list[Grid]:
    """Return the products of a trace in terms of components, those first whose factors are positions of others."""
    found = [Grid(component[p.fine], tuple(component[f] for f in p.factors)) for p in tracer.products]
    return _outermost_first(found, int(component.max(initial=-1)) + 1)


def unite_implied(tracer: Tracer, component: np.ndarray) -> bool:
    """Unite factors that united positions make one, in place; return whether there were any.

    Rows of a grid that are the same channels go together, and grids of the same channels have the same axes.
    """
    known: dict[tuple[tuple[int, ...], bytes], Product] = {}
    before = len(tracer.edges)

    def unite(a: np.ndarray, b: np.ndarray) -> None:
        if not np.array_equal(component[a], component[b]):
            tracer.unite(a, b)

    for product in tracer.products:
        fine = component[product.fine]
        first = known.setdefault((fine.shape, fine.tobytes()), product)
        for axis, factor in enumerate(product.factors):
            unite(factor, first.factors[axis])
            rows = np.moveaxis(fine, axis, 0).reshape(len(factor), -1)
            _, start, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
            unite(factor, factor[start[group.ravel()]])
    return len(tracer.edges) > before


def freeze_conflicts(found: Sequence[Grid], frozen: dict[int, str]) -> None:
    """Extend ``frozen`` (component -> reason) by what grids forbid, in place.

    A frozen position freezes its row and column; a component that two grids place differently cannot be cut; of a
    shuffle (one grid read in two orders) only the longer factor is cut.
    """
    placed: dict[int, frozenset[int]] = {}
    for grid in found:
        tuples = np.stack(
            [grid.spread(axis, np.arange(int(grid.factors[axis].max()) + 1)) for axis in range(len(grid.factors))]
        )
        for channel, row in zip(grid.fine.ravel(), tuples.reshape(len(grid.factors), -1).T, strict=True):
            key = frozenset(int(item) for item in row)
            if placed.setdefault(int(channel), key) != key:
                for item in (*key, *placed[int(channel)]):
                    frozen.setdefault(item, CONFLICT)
    _freeze_shuffles(found, frozen)
    changed = True
    while changed:
        changed = False
        for grid in found:
            stuck = np.isin(grid.fine, list(frozen))
            for axis, factor in enumerate(grid.factors):
                others = tuple(i for i in range(grid.fine.ndim) if i != axis)
                for channel in factor[stuck.any(axis=others)]:
                    if int(channel) not in frozen:
                        source = grid.fine[stuck].ravel()[0]
                        frozen[int(channel)] = frozen[int(source)]
                        changed = True


def _freeze_shuffles(found: Sequence[Grid], frozen: dict[int, str]) -> None:
    seen: dict[frozenset[int], tuple[int, ...]] = {}
    for grid in found:
        order = tuple(int(factor[0]) for factor in grid.factors)
        if seen.setdefault(frozenset(order), order) == order:
            continue
        shortest = min(grid.factors, key=len)
        for channel in shortest:
            frozen.setdefault(int(channel), "a channel shuffle is cut along its longer side")


def governed(found: Sequence[Grid], count: int) -> np.ndarray:
    """Return, per component, whether it is a position of a grid and follows its factors."""
    result = np.zeros(count, dtype=bool)
    for grid in found:
        result[grid.fine.ravel()] = True
    return result


def propagate(found: Sequence[Grid], keep: np.ndarray) -> None:
    """Let every grid position go whose row or column goes, in place, until nothing changes."""
    changed = True
    while changed:
        before = int(keep.sum())
        for grid in found:
            for axis in range(len(grid.factors)):
                gone = ~grid.spread(axis, keep)
                keep[grid.fine[gone]] = False
        changed = int(keep.sum()) != before


def owners(found: Sequence[Grid], channels: np.ndarray, count: int) -> np.ndarray:
    """Return, per component, which of ``channels`` it belongs to, itself or as a position of a grid of ``found``.

    ``found`` comes as :func:`grids` orders it; -1 stands for none.
    """
    owner = np.full(count, -1, dtype=np.int64)
    owner[channels] = np.arange(len(channels))
    for grid in found[::-1]:
        for axis in range(len(grid.factors)):
            spread = grid.spread(axis, owner)
            hit = spread >= 0
            owner[grid.fine[hit]] = spread[hit]
    return owner


def _outermost_first(found: Sequence[Grid], count: int) -> list[Grid]:
    """Order grids so that one whose factors are positions of another comes before that other."""
    factors = {id(grid): np.zeros(count, dtype=bool) for grid in found}
    for grid in found:
        factors[id(grid)][np.concatenate(grid.factors)] = True
    outer = {id(grid): [g for g in found if g is not grid and factors[id(g)][grid.fine].any()] for grid in found}
    ordered: list[Grid] = []
    done: set[int] = set()
    while len(ordered) < len(found):
        left = [grid for grid in found if id(grid) not in done]
        ready = [grid for grid in left if all(id(g) in done for g in outer[id(grid)])]
        chosen = ready or left  # a circle, which freeze_conflicts freezes
        ordered += chosen
        done.update(id(grid) for grid in chosen)
    return ordered


def add_signatures(found: Sequence[Grid], signature: np.ndarray) -> None:
    """Add what a grid's positions touch to its factors, in place."""
    for grid in found:
        touched = signature[grid.fine]
        for axis, factor in enumerate(grid.factors):
            others = tuple(i for i in range(grid.fine.ndim) if i != axis)
            np.add.at(signature, factor, touched.sum(axis=others, dtype=np.uint64) * np.uint64(2 * axis + 3))
