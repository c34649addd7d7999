"""A model whose channel spaces are narrowed one by one, in place, by interpolative decomposition."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Tap
from onnxprune.errors import DataError
from onnxprune.fit.fold import Folding
from onnxprune.fit.interpolate import gram_of, positions, tap_of
from onnxprune.graph import surgery
from onnxprune.graph.labels import Consumer
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.graph.tally import Tally, Widths
from onnxprune.linalg import PivotedCholesky, pivoted_cholesky
from onnxprune.runtime.observers import Gram, GramResult

SCORES = ("diagonal", "frobenius", "spectral")
READERS = ("once", "each")
# Below this many rows per channel a vanishing residual is the sample's rank, not the layer's.
_ROWS_PER_CHANNEL = 10
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class Candidate:
    """A cut that may come next."""

    space: ChannelSpace
    kept: int
    error: float
    score: float


@dataclass(frozen=True, eq=False)
class _Factored:
    """A space's channels, factored to ``depth``; ``singular`` values, descending, where those are scored."""

    pivots: PivotedCholesky
    depth: int
    rows: int
    singular: np.ndarray | None

    def error(self, kept: int, width: int, score: str) -> float:
        """Return the relative error of keeping so many channels, fewer than ``depth``."""
        taken, residuals = len(self.pivots.pivots), self.pivots.residuals
        at = kept
        if at >= taken:  # nothing is left to lose, as far as the rows tell
            if not taken or self.rows >= _ROWS_PER_CHANNEL * width:
                return 0.0
            at = taken - 1
        if score == "frobenius":
            return float(np.sqrt(residuals[at] / residuals[0]))
        if self.singular is not None:
            return float(self.singular[at] / self.singular[0])
        diagonal = self.pivots.factor[np.arange(taken), self.pivots.pivots]
        return float(diagonal[at] / diagonal[0])


class Narrowing:
    """The model on its way: what every space keeps, what is known of its tensors, and the cuts themselves.

    Nothing is taken out of the graph: weights that read dropped channels become zero. A space with several
    consumers is factored by the sum of its Gram matrices, each over its trace; every consumer gets its own
    least-squares fold (Chee et al., 2022, extended to coupled layers).
    """

    def __init__(
        self,
        analysis: Analysis,
        spaces: Sequence[ChannelSpace],
        tally: Tally,
        context: Context,
        *,
        score: str = "diagonal",
        readers: str = "once",
        preserve_zeros: bool = True,
    ) -> None:
        self.analysis, self.spaces, self.tally, self.context = analysis, spaces, tally, context
        self.score, self.readers, self.preserve_zeros = score, readers, preserve_zeros
        self.kept = {space.name: np.arange(space.width) for space in spaces}
        self._consumers: dict[Tap, Consumer] = {tap_of(c): c for space in spaces for c in space.consumers}
        self._layouts = {c: _layout(analysis, c) for space in spaces for c in space.consumers}
        self._places = {(s.name, c): _places(analysis, s, c) for s in spaces for c in s.consumers}
        self._behind = _taps_behind(analysis.model, [c for space in spaces for c in space.consumers])
        self._factors: dict[str, _Factored] = {}
        self._known: dict[Tap, GramResult] = {
            tap: gram_of(context.statistics[tap]) for tap in self._consumers if tap in context.statistics
        }
        self.collect(set(self._consumers) - set(self._known))

    @property
    def widths(self) -> dict[str, int]:
        """How many channels every space keeps now."""
        return {name: len(kept) for name, kept in self.kept.items()}

    def collect(self, taps: set[Tap]) -> None:
        """Run the calibration data through the present model for the statistics of these tensors."""
        if not taps:
            return
        if self.context.collect is None:
            raise DataError("iditer needs calibration data; give --data or --calib")
        observers: dict[Tap, Observer] = {}
        for tap in sorted(taps):
            consumer = self._consumers[tap]
            shape = self._layouts[consumer]
            observers[tap] = Gram(consumer.axis, len(shape.channels), shape.outer, shape.inner)
        for tap, found in self.context.collect(self.analysis.model, observers).items():
            self._known[tap] = gram_of(found)
        for space in self.spaces:
            if any(tap_of(consumer) in taps for consumer in space.consumers):
                self._factors.pop(space.name, None)

    def behind(self, space: ChannelSpace) -> set[Tap]:
        """Return the tensors that change when the consumers of ``space`` do."""
        return set().union(*(self._behind[consumer.node] for consumer in space.consumers))

    def best(self, step: float) -> Candidate | None:
        """Return the cut with the lowest score, the earlier space on a tie; None where nothing can be narrowed."""
        chosen: Candidate | None = None
        widths = self.widths
        macs = self.tally.macs(widths)
        for space in self.spaces:
            width = widths[space.name]
            if width < 2:
                continue
            found = self._candidate(space, max(1, min(width - 1, math.floor(step * width + 1e-9))), widths, macs)
            if chosen is None or found.score < chosen.score * (1 - _TIE):
                chosen = found
        return chosen

    def resized(self, candidate: Candidate, kept: int) -> Candidate:
        """Return the same cut with another width, at most one channel less than now."""
        if kept == candidate.kept:
            return candidate
        return self._candidate(candidate.space, kept, self.widths, self.tally.macs(self.widths))

    def cut(self, candidate: Candidate) -> None:
        """Drop all but the first pivots of a space and fold them into its consumers, each by least squares."""
        space, before = candidate.space, self.kept[candidate.space.name]
        local = self._factored(space, candidate.kept).pivots.pivots[: candidate.kept]
        chosen = before[local]
        if len(chosen) < candidate.kept:
            chosen = np.concatenate([chosen, self._loudest(space, np.setdiff1d(before, chosen))])[: candidate.kept]
        old = self.analysis.keep_mask(self.kept)
        self.kept[space.name] = np.sort(chosen)
        new = self.analysis.keep_mask(self.kept)
        for consumer in space.consumers:
            shape = self._layouts[consumer]
            live = np.flatnonzero(old[shape.channels])
            gram = self._known[tap_of(consumer)].gram[np.ix_(live, live)]
            staying = np.flatnonzero(new[shape.channels[live]])
            folding = Folding(gram, staying, preserve_zeros=self.preserve_zeros)
            surgery.rewrite_rows(consumer, shape, functools.partial(_folded, folding, live))
        # Spaces that meet in one consumer (a grid, a join) see each other's channels go.
        nodes = {consumer.node for consumer in space.consumers}
        for other in self.spaces:
            if any(consumer.node in nodes for consumer in other.consumers):
                self._factors.pop(other.name, None)

    def mark(self, space: ChannelSpace) -> Callable[[], None]:
        """Return a function that takes back a cut of ``space``, made next and with nothing collected behind it."""
        kept, known, factors = dict(self.kept), dict(self._known), dict(self._factors)
        weights = [(consumer.weight, consumer.weight.const_value) for consumer in space.consumers]

        def back() -> None:
            self.kept, self._known, self._factors = kept, known, factors
            for weight, data in weights:
                weight.const_value = data

        return back

    def _candidate(self, space: ChannelSpace, kept: int, widths: Widths, macs: int) -> Candidate:
        error = self._factored(space, kept).error(kept, widths[space.name], self.score)
        saved = macs - self.tally.macs({**widths, space.name: kept})
        times = len(space.consumers) if self.readers == "each" else 1
        return Candidate(space, kept, error, times * error / max(1, saved))

    def _factored(self, space: ChannelSpace, kept: int) -> _Factored:
        """Return the factored sum of the space's Gram matrices, each over its trace, with one pivot more than kept."""
        found = self._factors.get(space.name)
        if found is None or found.depth <= kept:
            keep = self.analysis.keep_mask(self.kept)
            total = np.zeros((len(self.kept[space.name]),) * 2)
            for consumer in space.consumers:
                gram = self._gram(space, consumer, keep)
                total += gram / max(float(np.trace(gram)), np.finfo(float).tiny)
            rows = min(self._known[tap_of(consumer)].rows for consumer in space.consumers)
            singular = None
            if self.score == "spectral":
                singular = np.sqrt(np.maximum(np.linalg.eigvalsh(total)[::-1], 0.0))
            found = self._factors[space.name] = _Factored(pivoted_cholesky(total, kept + 1), kept + 1, rows, singular)
        return found

    def _gram(self, space: ChannelSpace, consumer: Consumer, keep: np.ndarray) -> np.ndarray:
        """Return second moments of the channels kept, over all places that are left where they stand."""
        live = keep[self._layouts[consumer].channels]
        gram = self._known[tap_of(consumer)].gram
        kept = self._places[space.name, consumer][self.kept[space.name]]
        total = np.zeros((len(kept), len(kept)))
        for at in kept.T:
            if live[at].all():
                total += gram[np.ix_(at, at)]
        return total

    def _loudest(self, space: ChannelSpace, rest: np.ndarray) -> np.ndarray:
        """Order channels that the activations do not tell apart by the norm of their producers' weights."""
        norms = np.zeros(space.width)
        for producer in space.producers:
            channels = self.analysis.positions(space, self.analysis.tracer.labels[producer.weight][producer.axis])
            data = surgery.axis_norms(producer.weight, producer.axis)
            np.add.at(norms, channels[channels >= 0], data[channels >= 0])
        return rest[np.argsort(-norms[rest], kind="stable")]


def _layout(analysis: Analysis, consumer: Consumer) -> surgery.Layout:
    found = surgery.layout(analysis, consumer)
    assert found is not None
    return found


def _places(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> np.ndarray:
    found = positions(analysis, space, consumer)
    assert found is not None
    return found


def _taps_behind(model: ir.Model, consumers: Sequence[Consumer]) -> dict[ir.Node, set[Tap]]:
    """Return, per consuming node, which tensors that consumers read depend on it."""
    own = {node: 1 << i for i, node in enumerate(dict.fromkeys(consumer.node for consumer in consumers))}
    bits: dict[ir.Value, int] = {}
    for node in model.graph:
        behind = own.get(node, 0)
        for value in [*node.inputs, *_captured(node)]:
            behind |= bits.get(value, 0) if value is not None else 0
        for value in node.outputs:
            bits[value] = behind
    return {node: {tap_of(c) for c in consumers if bits.get(c.value, 0) & bit} for node, bit in own.items()}


def _captured(node: ir.Node) -> list[ir.Value | None]:
    """Return what the bodies of a node read."""
    graphs: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs.extend(attribute.as_graphs())
    return [value for graph in graphs for inner in graph.all_nodes() for value in inner.inputs]


def _folded(folding: Folding, live: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return rows whose live channels are folded; the others are zero."""
    result = np.zeros_like(rows)
    result[:, live] = folding(rows[:, live])
    return result
