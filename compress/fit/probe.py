"""Cutting one space of the original alone and measuring what that does to its outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, silent
from onnxprune.data import Examples
from onnxprune.evaluate.kinds import are_probabilities, output_kind
from onnxprune.evaluate.scores import divergence, log_probabilities
from onnxprune.fit.eliminate import Elimination
from onnxprune.fit.links import Link, touched
from onnxprune.fit.reconstruct import Reconstruction, Sums
from onnxprune.graph.cost import node_macs
from onnxprune.graph.factorise import Pair
from onnxprune.graph.spaces import ChannelSpace
from onnxprune.runtime.session import open_session

# Shares of the channels at which a space is cut.
_SHARES = (0.75, 0.5, 0.25)
# Examples to refit with, the most first; rows of every problem then.
_SIZES = (200, 100, 64, 32, 16)
_ROWS = 8_000
# All measurements together may cost this many times the final refit, or so many MACs where that is more.
_TIMES = 2.0
_MACS = 4e12
# What opening one session counts as.
_SESSION = 2e9
# Examples that judge, at most.
_JUDGES = 500
_RUNS = 4.0
# Bytes of examples that stay decoded in memory.
_ROOM = 256 << 20
_FEWEST = 8


class Measured(NamedTuple):
    """One change alone: which (a space's width, a place in a list of options), what it does to the outputs.

    ``loss`` is the divergence per example and output, ``disagreement`` the share of decisions that differ.
    """

    place: int
    loss: float
    disagreement: float


class Probe:
    """Measures cuts of single spaces, and leaves the model as it was.

    ``deep``: everything behind the cut is refitted on a few examples, as the final run will do, and other examples
    judge; what later layers cannot make up for is then what counts. Where that would cost too much, only the
    readers of the space are refitted.
    """

    def __init__(
        self, work: Reconstruction, spaces: Sequence[ChannelSpace], context: Context, nodes: Sequence[str] = ()
    ) -> None:
        self.work, self.spaces, self.context, self.nodes = work, spaces, context, nodes
        examples = work.batches.examples
        plan = self._affordable(examples.count) if work.fit.asymmetric else None
        self.deep = plan is not None
        if plan is not None:
            size, self.shares = plan
            self.small = examples.take(np.arange(size))
            rest = np.arange(size, min(examples.count, size + _JUDGES))
            self.judges = examples.take(rest) if len(rest) >= max(1, size // 2) else self.small
        else:
            allowed = _RUNS * examples.count / max(1, len(spaces) + len(nodes))
            self.shares = _SHARES if allowed / len(_SHARES) >= 4 * _FEWEST else (0.5,)
            each = max(_FEWEST, int(allowed / len(self.shares)))
            self.small = self.judges = examples.take(np.arange(min(examples.count, _SIZES[0], each)))
        self.small, self.judges = self.small.held(_ROOM), self.judges.held(_ROOM)
        self.outputs = self._run(work.original, self.judges)

    @property
    def decides(self) -> bool:
        """Whether the model gives class scores, so that decisions can be told apart."""
        return any(output_kind(array) == "class scores" for array in self.outputs[0].values())

    def alone(self, space: ChannelSpace, found: Elimination, pairs: Sequence[tuple[Link, Sums]]) -> list[Measured]:
        """Measure a space with its readers refitted on the moments at hand."""
        measured = []
        for width in self._widths(space):
            keep = self.work.analysis.keep_mask({space.name: found.kept(width)})
            with self._restored():
                for link, sums in pairs:
                    self.work.solve(link, sums, keep)
                measured.append(self._judged(width))
        return measured

    def refitted(self, space: ChannelSpace, found: Elimination) -> list[Measured]:
        """Measure a space with everything behind it refitted on a few examples."""
        measured = []
        for width in self._widths(space):
            with self._restored():
                self._small_run().run([space], {space.name: width}, {space.name: found.kept(width)})
                measured.append(self._judged(width))
        return measured

    def parted(self, name: str, pairs: Mapping[int, Pair], own: tuple[Link, Sums] | None = None) -> list[Measured]:
        """Measure a node in several forms of a pair, by their places among its options.

        With its ``own`` moments nothing else is refitted.
        """
        measured = []
        for place, pair in pairs.items():
            with self._restored():
                if own is not None:
                    self.work.solve(*own, self.work.analysis.keep_mask({}), pair)
                else:
                    self._small_run().run([], {}, {}, pairs={name: pair})
                measured.append(self._judged(place))
        return measured

    def _small_run(self) -> Reconstruction:
        """Return a run over the few examples that trials are refitted on."""
        context = replace(self.context, examples=self.small, progress=silent)
        fit = replace(self.work.fit, rows=_ROWS, rounds=0)
        return Reconstruction(self.work.original, self.work.analysis, self.work.shapes, fit, context)

    def _judged(self, place: int) -> Measured:
        """Return what the model as it is now does to the outputs."""
        return Measured(place, *self._difference(self._run(self.work.analysis.model, self.judges)))

    def _widths(self, space: ChannelSpace) -> list[int]:
        found = {max(1, round(share * space.width)) for share in self.shares}
        return sorted((width for width in found if width < space.width), reverse=True)

    @contextlib.contextmanager
    def _restored(self) -> Iterator[None]:
        values = [v for link in self.work.links for v in (link.unit.weight, link.unit.constant) if v is not None]
        held = [(value, value.const_value) for value in values]
        try:
            yield
        finally:
            for value, tensor in held:
                value.const_value = tensor

    def _affordable(self, count: int) -> tuple[int, tuple[float, ...]] | None:
        """Return how many examples and which shares refitting behind every cut can take, or None for none."""
        budget = max(_TIMES * self._macs(range(len(self.work.links)), count, self.work.fit.rows), _MACS)
        behind = [
            touched(self.work.flow, self.work.analysis.keep_mask({s.name: np.zeros(1, int)})) for s in self.spaces
        ]
        behind += [touched(self.work.flow, self.work.analysis.keep_mask({}), {name}) for name in self.nodes]
        for shares in (_SHARES, _SHARES[1:2]):
            for size in (s for s in _SIZES if s <= max(count, _SIZES[-1])):
                size = min(size, count)
                if sum(self._macs(links, size, _ROWS) for links in behind) * len(shares) <= budget:
                    return size, shares
        return None

    def _macs(self, links: Sequence[int] | range, examples: int, rows: int) -> float:
        """Return the estimated work of refitting these links: both networks' runs, moments, solutions."""
        shapes = self.work.shapes
        first = min(links, default=0)
        total = 0.0
        for index, link in enumerate(self.work.links):
            if index >= first:
                total += (
                    2 * examples * (node_macs(link.unit.node, lambda v: shapes.get(str(v.name)) if v else None) or 0)
                )
        for index in links:
            link = self.work.links[index]
            features = link.taps * len(link.channels) // link.unit.groups
            out = shapes.get(str(link.unit.out.name)) or ()
            places = int(np.prod([s or 1 for s in out], dtype=float)) // max(1, len(link.unit.scale))
            taken = min(examples * places, max(rows, 12 * features))
            total += link.unit.groups * (taken * features**2 + features**3 / 3) + 2 * _SESSION
        return total

    def _run(self, model: ir.Model, examples: Examples) -> list[dict[str, np.ndarray]]:
        found = []
        with open_session(model, self.work.settings) as session:
            for batch in examples.batches(session.fixed_batch or self.work.settings.batch_size):
                found.append(session.run(batch.arrays))
        return found

    def _difference(self, outputs: Sequence[Mapping[str, np.ndarray]]) -> tuple[float, float]:
        """Return the mean divergence per example and output, and the share of decisions that differ.

        Class scores: KL(original || cut); other floating outputs: half the squared error over their variance.
        """
        loss, off, count, decisions = 0.0, 0, 0, 0
        for before, after in zip(self.outputs, outputs, strict=True):
            rows = max((len(array) for array in before.values() if array.ndim), default=0)
            count += rows
            for name, array in before.items():
                a, b = array.astype(np.float64), after[name].astype(np.float64)
                kind = output_kind(array)
                if kind == "class scores":
                    sure = are_probabilities(a)
                    p, q = log_probabilities(a, probabilities=sure), log_probabilities(b, probabilities=sure)
                    loss += float(divergence(p, q).sum())
                    off += int((a.argmax(axis=1) != b.argmax(axis=1)).sum())
                    decisions += len(a)
                elif kind == "values":
                    spread = float(np.mean(np.square(a - a.mean()))) or 1.0
                    loss += 0.5 * rows * float(np.mean(np.square(a - b))) / spread
        return max(0.0, loss / max(1, count)), off / decisions if decisions else 0.0
