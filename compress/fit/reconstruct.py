"""Refitting what a cut touches, front to back: closed-form least squares against what the original computes.

Kept channels alone, or their interpolation, leave an error that adds up from layer to layer. Here every linear
node is solved for anew on calibration data: its inputs come from the compressed prefix, its targets from the
original network; at a residual sum the target is the original sum less the present skip (He, Zhang, Sun, 2017,
for single layers; the asymmetric form after Zhang, Zou, He, Sun, 2016).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.data import Examples
from onnxprune.errors import DataError
from onnxprune.fit.design import Design
from onnxprune.fit.eliminate import Elimination, Problem, eliminate
from onnxprune.fit.links import Flow, Link, find_links, stages, touched
from onnxprune.fit.lowrank import paired
from onnxprune.fit.moments import Moments
from onnxprune.fit.rectified import RectifiedRows, rectifies
from onnxprune.fit.solve import Solution, refit
from onnxprune.fit.wide import FEATURES, ROWS, Wide
from onnxprune.graph.factorise import Pair, kernel_of
from onnxprune.graph.polyadic import Factors
from onnxprune.graph.shapes import Shapes, concrete_shapes, true_inputs
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.linalg import pivoted_cholesky
from onnxprune.runtime.session import Settings
from onnxprune.runtime.staged import Piece, Staged

Sums = Moments | Wide
# Rows of a least-squares problem: positions are sampled beyond this many, or this many per feature.
_ROWS = 60_000
_ROWS_PER_FEATURE = 12
# From so many rows per feature on, channels are chosen without a ridge to speak of.
_ROWS_FOR_RANK = 4
_TINY_RIDGE = 1e-9
# Two batches whose shapes tell which axis of a tensor carries the examples.
_BATCHES = (2, 3)


@dataclass(frozen=True)
class Fit:
    """How to refit: ``asymmetric`` takes inputs from the compressed prefix, otherwise from the original.

    ``ridge`` is relative to the mean diagonal of each Gram matrix; ``rows`` bounds the rows of one problem;
    ``select`` chooses channels by what the readers' ``output`` loses or by the ``pivots`` of the activations;
    ``rounds`` more solutions aim at what a following ReLU lets through (asymmetric only). ``effort`` is what a
    descent to a sum of products may take, over what is usual.
    """

    asymmetric: bool = True
    ridge: float = 1e-4
    preserve_zeros: bool = True
    rows: int = _ROWS
    select: str = "output"
    rounds: int = 3
    effort: float = 1.0


class _Feeds(Mapping[str, np.ndarray]):
    """The inputs of one batch, fetched when one of them is read: most pieces of a model read none."""

    def __init__(self, examples: Examples, rows: np.ndarray) -> None:
        self._examples, self._rows = examples, rows

    @cached_property
    def _arrays(self) -> Mapping[str, np.ndarray]:
        batch = next(self._examples.take(self._rows).batches(len(self._rows)))
        return batch.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass(eq=False)
class Batches:
    """The calibration examples in fixed batches."""

    examples: Examples
    size: int
    rows: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, model: ir.Model, examples: Examples, settings: Settings) -> Batches:
        """Return batches as a model takes them: of the size that it fixes, else of what the settings say."""
        first = next((v for v in model.graph.inputs if v.name not in model.graph.initializers), None)
        size = first.shape[0] if first is not None and first.shape is not None and len(first.shape) else None
        return cls(examples, size if isinstance(size, int) else min(settings.batch_size, examples.count))

    def __post_init__(self) -> None:
        count = self.examples.count
        self.rows = [np.arange(i, min(i + self.size, count)) for i in range(0, count, self.size)]

    def feeds(self, batch: int) -> Mapping[str, np.ndarray]:
        """Return the inputs of one batch, fetched where one is read."""
        return _Feeds(self.examples, self.rows[batch])


@dataclass(frozen=True, eq=False)
class Outcome:
    """What refitting did: kept channels of every cut space (ascending), and a row per refitted node.

    ``factors`` are those of weights that are sums of products, by the node's name: with the input channels that are
    kept, and all outputs.
    """

    kept: dict[str, np.ndarray]
    rows: list[dict[str, Any]]
    factors: dict[str, Factors]


class Reconstruction:
    """One front-to-back run over a prepared model whose spaces are to have given widths.

    The work model is not cut: weights that read dropped channels become zero, and the caller cuts afterwards.
    """

    def __init__(self, original: ir.Model, analysis: Analysis, shapes: Shapes, fit: Fit, context: Context) -> None:
        self.original, self.analysis, self.shapes = original, analysis, shapes
        self.fit, self.context = fit, context
        self.links = find_links(analysis, shapes)
        self.flow = Flow.of(analysis.model, self.links)
        assert context.examples is not None and context.settings is not None
        self.batches = Batches.of(analysis.model, context.examples, context.settings)
        self.settings = context.settings
        self._rectified: dict[ir.Node, RectifiedRows] = {}
        self._factors: dict[str, Factors] = {}

    def order(
        self,
        spaces: Sequence[ChannelSpace],
        widths: Mapping[str, int],
        *,
        everything: bool = False,
        pairs: Mapping[str, Pair] | None = None,
    ) -> list[list[Link]]:
        """Return what is refitted when ``spaces`` get these widths, in groups that are fitted at once.

        With ``everything`` all linear nodes are refitted: the model differed from the original before any cut.
        ``pairs`` are refitted, and what is behind them.
        """
        parted = pairs or {}
        # Which channels go does not matter here, only which nodes are touched.
        keep = self.analysis.keep_mask({s.name: np.arange(widths[s.name]) for s in spaces})
        losing = touched(self.flow, keep, parted)
        if not self.fit.asymmetric:
            own = (i for i in losing if self.links[i].unit.name in parted or not self.links[i].keeps(keep).all())
            losing = list(own)
        elif everything:
            losing = list(range(len(self.links)))
        return stages(self.flow, losing)

    def run(
        self,
        spaces: Sequence[ChannelSpace],
        widths: Mapping[str, int],
        fixed: Mapping[str, np.ndarray],
        *,
        everything: bool = False,
        pairs: Mapping[str, Pair] | None = None,
    ) -> Outcome:
        """Cut ``spaces`` to ``widths`` and refit what :meth:`order` says.

        ``fixed`` names the channels of spaces that are chosen already; the others are chosen on the way, from what
        their readers lose, when their readers' turn comes. Nodes named in ``pairs`` get weights that such a pair of
        nodes can compute.
        """
        parted = pairs or {}
        cut = [space for space in spaces if widths[space.name] < space.width]
        kept = {name: np.asarray(indices) for name, indices in fixed.items()}
        order = self.order(cut, widths, everything=everything, pairs=parted)
        open_spaces = [space for space in cut if space.name not in kept]
        stage_nodes = [{link.unit.node for link in stage} for stage in order]
        spread = [s.name for s in open_spaces if not any({c.node for c in s.consumers} <= n for n in stage_nodes)]
        if spread:
            raise ValueError(f"the readers of {', '.join(spread)} are not refitted at once: fix the channels")
        found: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(Staged(self.original, self.settings))
            current = stack.enter_context(Staged(self.analysis.model, self.settings)) if self.fit.asymmetric else source
            advance = stack.enter_context(self.context.progress("refitting", len(order)))
            for stage in order:
                moments = self._moments(stage, current, source)
                nodes = {link.unit.node for link in stage}
                for space in [s for s in open_spaces if {c.node for c in s.consumers} <= nodes]:
                    choice = self.choose(space, stage, moments)
                    kept[space.name] = choice.kept(widths[space.name])
                    open_spaces.remove(space)
                keep = self.analysis.keep_mask(kept)
                for link, sums in zip(stage, moments, strict=True):
                    found.append(self.solve(link, sums, keep, parted.get(link.unit.name)))
                advance(1)
        return Outcome(kept, found, self._factors)

    def choose(self, space: ChannelSpace, links: Sequence[Link], moments: Sequence[Sums]) -> Elimination:
        """Return the order in which channels of ``space`` go, by what the outputs of its consumers lose.

        With ``select`` of ``pivots`` the order is that of the pivots of the readers' activations instead.
        """
        if self.fit.select == "pivots" or any(isinstance(found, Wide) for found in moments):
            return self._pivots(space, links, moments)
        problems = []
        for link, sums in zip(links, moments, strict=True):
            owners = link.owners(self.analysis, space)
            if not (owners >= 0).any() or isinstance(sums, Wide):
                continue
            spread = sums.spread()
            for group in range(len(owners)):
                gram = sums.gram[group].copy()
                width = len(gram) - 1
                # With rows enough a ridge would only make a twin's going look dear.
                few = sums.rows < _ROWS_FOR_RANK * width
                level = (self.fit.ridge if few else _TINY_RIDGE) * float(np.mean(gram.diagonal()[:width]))
                gram[np.arange(width), np.arange(width)] += level
                gram[width, width] *= 1 + 1e-8
                problems.append(
                    Problem(gram, sums.cross[group], np.append(owners[group], -1), 1 / spread if spread else 0.0)
                )
        return eliminate(problems, space.width)

    def _pivots(self, space: ChannelSpace, links: Sequence[Link], moments: Sequence[Sums]) -> Elimination:
        """Return channels from the last pivot to the first; the error is what interpolation leaves (Frobenius)."""
        total = np.zeros((space.width, space.width))
        for link, sums in zip(links, moments, strict=True):
            owners = link.owners(self.analysis, space)
            for group, owner in enumerate(owners):
                live = np.flatnonzero(owner >= 0)
                present = np.unique(owner[live])
                if not len(live) or len(live) % len(present):
                    continue
                # Column j holds the j-th feature of every channel: a tap, a position, a place in a head.
                slots = live[np.argsort(owner[live], kind="stable")].reshape(len(present), -1)
                part = sum((sums.block(group, at) for at in slots.T), np.zeros((len(present), len(present))))
                total[np.ix_(present, present)] += part / max(float(np.trace(part)), np.finfo(float).tiny)
        found = pivoted_cholesky(total, space.width)
        rest = np.setdiff1d(np.arange(space.width), found.pivots)
        order = np.concatenate([rest[::-1], found.pivots[::-1]])
        residuals = np.zeros(space.width + 1)
        residuals[: len(found.residuals)] = found.residuals
        return Elimination(order.astype(np.int64), residuals)

    def own_moments(self, stage: Sequence[Link], source: Staged) -> list[Sums]:
        """Return the moments of a stage in the original network, each node's own output as its target."""
        return self._moments(stage, source, source)

    def _moments(self, stage: Sequence[Link], current: Staged, source: Staged) -> list[Sums]:
        """Run both networks up to a stage, and sum up its least-squares problems."""
        designs = [self._design(link) for link in stage]
        sums: list[Sums] = []
        skips = current is not source
        targets = [link.unit.total if skips and link.unit.other is not None else None for link in stage]
        inputs = [str(link.unit.value.name) for link in stage]
        others = [str(link.unit.other.name) for link in stage if skips and link.unit.other is not None]
        names = [
            str(link.unit.out.name if value is None else value.name) for link, value in zip(stage, targets, strict=True)
        ]
        for present, wanted, rows in self._values(current, source, [*inputs, *others], names):
            for i, (link, design) in enumerate(zip(stage, designs, strict=True)):
                goal = wanted[names[i]]
                part = design.rows(present[inputs[i]], goal.shape, rows)
                aims = design.outputs(goal, rows).astype(np.float64)
                added = np.zeros_like(aims)
                if skips and link.unit.other is not None:
                    added += design.outputs(np.broadcast_to(present[str(link.unit.other.name)], goal.shape), rows)
                if not link.unit.shiftable:
                    added += link.unit.shift
                aims = aims - added
                if len(sums) == i:
                    if skips and len(part) == 1 and self.fit.rounds and rectifies(link.unit):
                        self._rectified[link.unit.node] = RectifiedRows()
                    wide = len(part) == 1 and part.shape[2] > FEATURES
                    size = (part.shape[2], aims.shape[1] // len(part))
                    sums.append(Wide(*size) if wide else Moments.empty(len(part), *size))
                sums[i].update(part, aims)
                if link.unit.node in self._rectified:
                    self._rectified[link.unit.node].add(part, aims, added)
                if not sums[i].finite():
                    raise DataError(
                        f"tensor '{inputs[i]}' holds NaN or infinity on '{self.batches.examples.source}'; "
                        "check the model and the data"
                    )
        return sums

    def _values(
        self, current: Staged, source: Staged, inputs: Sequence[str], targets: Sequence[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]]:
        """Yield, batch by batch, present values, original targets, and the examples' rows."""
        with contextlib.ExitStack() as stack:
            pieces: list[Piece] = []
            if current is source:
                pieces = [stack.enter_context(source.piece([*inputs, *targets]))]
            else:
                pieces = [stack.enter_context(current.piece(inputs)), stack.enter_context(source.piece(targets))]
            for batch, rows in enumerate(self.batches.rows):
                feeds = self.batches.feeds(batch)
                results = [piece.run(batch, feeds) for piece in pieces]
                yield results[0], results[-1], rows

    def _design(self, link: Link) -> Design:
        features = link.taps * len(link.channels) // link.unit.groups
        grouped = link.unit.groups > 1  # second moments of a group are kept whatever its width
        rows = max(self.fit.rows, _ROWS_PER_FEATURE * features) if grouped else wanted_rows(features, self.fit.rows)
        positions = -(-rows // self.batches.examples.count)
        return Design(link.unit, positions, self.context.seed, self._axes.get(str(link.unit.value.name), 0))

    @cached_property
    def _axes(self) -> dict[str, int]:
        """The axis that grows with the batch, per value; where none is known, examples come first."""
        inputs = {str(v.name): self.shapes.get(str(v.name), ()) for v in true_inputs(self.analysis.model)}
        sizes = {name: [size for size in shape if size is not None] for name, shape in inputs.items()}
        usable = {name: shape for name, shape in sizes.items() if shape and len(shape) == len(inputs[name])}
        found = [
            concrete_shapes(self.analysis.model, {name: [n, *shape[1:]] for name, shape in usable.items()})
            for n in _BATCHES
        ]
        axes = {}
        for name, first in found[0].items():
            second = found[1].get(name, ())
            grown = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a is not None and a != b]
            if len(grown) == 1:
                axes[name] = grown[0]
        return axes

    def solve(self, link: Link, sums: Sums, keep: np.ndarray, pair: Pair | None = None) -> dict[str, Any]:
        """Refit one linear node for the channels that stay, in place, and return its row of the report.

        With a ``pair`` the weights are such that two nodes can stand for this one.
        """
        unit = link.unit
        mask = link.keeps(keep)
        shift = unit.shift if unit.shiftable else np.zeros_like(unit.shift)
        matrix = unit.matrix()

        begun: Factors | None = None

        def fitted(found: Sums) -> Solution:
            nonlocal begun
            best = refit(
                found, matrix, shift, mask, taps=link.taps, ridge=self.fit.ridge,
                shiftable=unit.shiftable, preserve_zeros=self.fit.preserve_zeros and pair is None,
            )  # fmt: skip
            if pair is None:
                return best
            near = paired(
                best, found, mask[0], pair, kernel_of(unit), shiftable=unit.shiftable, start=begun,
                effort=self.fit.effort,
            )  # fmt: skip
            begun = near.factors
            return near

        solution = fitted(sums)
        rows = self._rectified.pop(unit.node, None)
        if rows is not None and isinstance(sums, Moments):
            solution = rows.improved(sums, solution, fitted, self.fit.rounds, mask[0])
        if solution.factors is not None:
            self._factors[unit.name] = solution.factors
        unit.set_matrix(solution.matrix)
        if unit.shiftable:
            unit.add_shift(solution.shift - unit.shift)
        return {
            "node": unit.name,
            "features": int(mask.size),
            "kept": int(mask.sum()),
            **({} if pair is None else {"kind": pair.kind, "rank": pair.rank}),
            "error_folded": solution.folded**0.5,
            "error_fitted": solution.fitted**0.5,
        }


def wanted_rows(features: int, least: int = _ROWS) -> int:
    """Return how many rows a problem with so many features in one group is given: what there is room and use for."""
    return ROWS if features > FEATURES else max(least, _ROWS_PER_FEATURE * features)
