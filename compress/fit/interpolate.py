"""Interpolative decomposition as published: pivots of the activations, the interpolation folded into the readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from onnxprune.contract import Tap
from onnxprune.fit.fold import Folding
from onnxprune.graph import surgery
from onnxprune.graph.labels import Consumer
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.linalg import (
    PivotedCholesky,
    interpolation,
    interpolation_error,
    interpolation_from_factor,
    pivoted_cholesky,
    pivoted_qr,
    swapped,
)
from onnxprune.runtime.observers import Gram, GramResult, Triangular, TriangularResult

# Below this many rows per channel second moments say little about rank.
_ROWS_PER_CHANNEL = 10
_RIDGE = 1e-10
# Entries of T above this are swapped away (Gu and Eisenstat, 1996).
_BOUND = 10.0

Statistics = Mapping[Tap, Any]


class Reduced(NamedTuple):
    """One space's kept channels (ascending), its row of the report, and T of consumers that read nothing else.

    ``tables`` holds T [k, C] by the consumer's ``id``: what the report was made from need not be solved for again.
    """

    kept: np.ndarray
    row: dict[str, Any]
    tables: dict[int, np.ndarray]


def tap_of(consumer: Consumer) -> Tap:
    """Return the tensor that a consumer reads, and the axis of its channels."""
    return Tap(str(consumer.value.name), consumer.axis)


def observer(analysis: Analysis, consumer: Consumer, factor: str) -> Gram | Triangular:
    """Return what has to be known of the tensor that a consumer reads: its Gram matrix or its triangular factor."""
    shape = surgery.layout(analysis, consumer)
    assert shape is not None
    kind = Triangular if factor == "tsqr" else Gram
    return kind(consumer.axis, len(shape.channels), shape.outer, shape.inner)


def foldable(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> bool:
    """Return whether an interpolation of ``space`` can be folded into a consumer's weight."""
    regular = consumer.groups == 1 and surgery.layout(analysis, consumer) is not None
    return regular and positions(analysis, space, consumer) is not None


def positions(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> np.ndarray | None:
    """Return where the space's channels stand among the channels that the consumer reads, int64 [width, times].

    A row or column of a grid (an attention head, a place of every group) stands there several times, in the same
    order for all; None where the consumer does not read all of them equally often.
    """
    shape = surgery.layout(analysis, consumer)
    assert shape is not None
    owner = analysis.owners(space)[shape.channels]
    times = np.bincount(owner[owner >= 0], minlength=space.width)
    if times.min() != times.max():
        return None
    return np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :].reshape(space.width, -1)


def reduce_space(
    analysis: Analysis, space: ChannelSpace, width: int, statistics: Statistics, *, swap: bool = False
) -> Reduced:
    """Choose the channels that one space keeps.

    Several consumers share one set of channels: pivots of the sum of their Gram matrices, each scaled by its trace
    (methods 12.4). Where there are too few rows to tell a rank, the norms of the producers' weights fill up.
    """
    grams = [_space_gram(analysis, space, consumer, statistics) for consumer in space.consumers]
    rows = min(count for _, count in grams)
    factored = _factored(analysis, space, statistics, grams, width)
    pivots = factored.pivots
    note = None
    if rows < _ROWS_PER_CHANNEL * space.width:
        pivots = _fill(pivots, space, analysis, width)
        note = f"only {rows} rows for {space.width} channels; give more calibration examples"
    elif len(pivots) < width:
        note = f"numerical rank {len(pivots)} is below {width}: the rest is redundant"
    kept = np.sort(pivots if len(pivots) else np.zeros(1, dtype=np.int64))
    if swap and len(kept) < space.width:
        kept = swapped(_summed(grams), kept, _BOUND)
    tables = [interpolation(gram, kept, _RIDGE) for gram, _ in grams]
    errors = [interpolation_error(gram, kept, table) for (gram, _), table in zip(grams, tables, strict=True)]
    row: dict[str, Any] = {
        "space": space.name,
        "width": space.width,
        "kept": len(kept),
        "relative_error": max(errors),
        "largest_entry": max(float(np.abs(table).max(initial=0.0)) for table in tables),
    }
    whole = {
        id(consumer): table
        for consumer, table in zip(space.consumers, tables, strict=True)
        if _reads_alone(analysis, space, consumer)
    }
    return Reduced(kept, row if note is None else {**row, "note": note}, whole)


def _reads_alone(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> bool:
    """Return whether a consumer reads the channels of this space and nothing else, each once and in their order."""
    shape, where = surgery.layout(analysis, consumer), positions(analysis, space, consumer)
    assert shape is not None and where is not None
    return len(shape.channels) == space.width and np.array_equal(where.T, [np.arange(space.width)])


def _summed(grams: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    tiny = np.finfo(float).tiny
    return np.asarray(sum(gram / max(float(np.trace(gram)), tiny) for gram, _ in grams))


def _factored(
    analysis: Analysis,
    space: ChannelSpace,
    statistics: Statistics,
    grams: Sequence[tuple[np.ndarray, int]],
    width: int,
) -> PivotedCholesky:
    found = statistics[tap_of(space.consumers[0])]
    where = positions(analysis, space, space.consumers[0])
    if len(space.consumers) == 1 and isinstance(found, TriangularResult) and where is not None and where.shape[1] == 1:
        return pivoted_qr(found.factor[:, where[:, 0]], width)
    return pivoted_cholesky(_summed(grams), width)


def fold(
    analysis: Analysis,
    cut: Sequence[ChannelSpace],
    kept: Mapping[str, np.ndarray],
    statistics: Statistics,
    preserve_zeros: bool,
    tables: Mapping[int, np.ndarray],
) -> None:
    """Fold what is about to be dropped into every consumer of a space that is cut, each consumer once.

    ``tables`` holds T of some consumers, by ``id``, as :class:`Reduced` does.
    """
    keep = analysis.keep_mask(kept)
    consumers = {id(c): c for space in cut if space.name in kept for c in space.consumers}
    for consumer in consumers.values():
        shape = surgery.layout(analysis, consumer)
        assert shape is not None
        staying = np.flatnonzero(keep[shape.channels])
        found = statistics[tap_of(consumer)]
        change: Callable[[np.ndarray], np.ndarray]
        if isinstance(found, TriangularResult):
            change = _from_factor(found, staying, preserve_zeros)
        else:
            change = Folding(found.gram, staying, preserve_zeros=preserve_zeros, table=tables.get(id(consumer)))
        surgery.rewrite_rows(consumer, shape, change)


def _from_factor(
    found: TriangularResult, staying: np.ndarray, preserve_zeros: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a fold by the triangular factor; rows with zeros to keep are solved from the Gram matrix."""
    matrix = interpolation_from_factor(found.factor, staying)
    other = Folding(gram_of(found).gram, staying, preserve_zeros=True)

    def change(rows: np.ndarray) -> np.ndarray:
        folded = np.zeros_like(rows)
        folded[:, staying] = rows @ matrix.T
        sparse = (rows[:, staying] == 0.0).any(axis=1)
        if preserve_zeros and sparse.any():
            folded[sparse] = other(rows[sparse])
        return folded

    return change


def gram_of(found: GramResult | TriangularResult) -> GramResult:
    """Return second moments, from the triangular factor where that was kept."""
    if isinstance(found, TriangularResult):
        return GramResult(found.factor.T @ found.factor, found.rows)
    return found


def _space_gram(
    analysis: Analysis, space: ChannelSpace, consumer: Consumer, statistics: Statistics
) -> tuple[np.ndarray, int]:
    """Return the space's Gram matrix, summed over all places where its channels stand, and its number of rows."""
    found = gram_of(statistics[tap_of(consumer)])
    where = positions(analysis, space, consumer)
    assert where is not None
    return sum((found.gram[np.ix_(at, at)] for at in where.T), np.zeros((space.width, space.width))), found.rows


def _fill(pivots: np.ndarray, space: ChannelSpace, analysis: Analysis, width: int) -> np.ndarray:
    """Extend pivots to ``width`` channels by the norm of their producers' weights (too few rows for a rank)."""
    norms = np.zeros(space.width)
    for producer in space.producers:
        channels = analysis.positions(space, analysis.tracer.labels[producer.weight][producer.axis])
        data = surgery.axis_norms(producer.weight, producer.axis)
        np.add.at(norms, channels[channels >= 0], data[channels >= 0])
    rest = [int(i) for i in np.argsort(-norms, kind="stable") if i not in set(pivots.tolist())]
    return np.concatenate([pivots, np.array(rest[: width - len(pivots)], dtype=np.int64)])
