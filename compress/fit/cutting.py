"""Cutting a model to any widths with refitting: what all widths share is worked out once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.fit.knapsack import allocate
from onnxprune.fit.links import find_links
from onnxprune.fit.reconstruct import Fit, Outcome, Reconstruction
from onnxprune.fit.sizing import Sizing, tally_of
from onnxprune.fit.support import teacher
from onnxprune.fit.survey import Survey, survey
from onnxprune.graph import polyadic, spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.factorise import POLYADIC, Pair, kernel_of, split
from onnxprune.graph.kept import record_kept
from onnxprune.graph.labels import Consumer
from onnxprune.graph.linear import Unit, add_constants, drop_zero_constants, linear_units
from onnxprune.graph.polyadic import Factors
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import Shapes, concrete_shapes
from onnxprune.graph.spaces import Analysis, ChannelSpace

Treatable = Callable[[Analysis], tuple[list[ChannelSpace], dict[str, str]]]
T = TypeVar("T")


def refittable(
    analysis: Analysis,
    selection: Selection,
    inputs: Mapping[str, Any],
    also: Callable[[Analysis, ChannelSpace, Consumer], bool] | None = None,
) -> tuple[list[ChannelSpace], dict[str, str]]:
    """Return the selected spaces whose readers can all be refitted (and are as ``also`` asks), why others cannot."""
    candidates, skipped = selection.spaces(analysis)
    shapes = concrete_shapes(analysis.model, example_shapes(analysis.model, inputs))
    units = {unit.node for unit in linear_units(analysis.model, shapes)}
    chosen = []
    for space in candidates:
        bad = (c for c in space.consumers if c.node not in units or (also and not also(analysis, space, c)))
        odd, opaque = next(bad, None), analysis.opaque(space)
        if opaque is not None:
            skipped[space.name] = opaque
        elif odd is not None:
            skipped[space.name] = f"'{odd.node.name}' reads its channels in groups or in an irregular order"
        elif not space.consumers:
            skipped[space.name] = "no linear node reads its channels, so nothing can make up for dropped ones"
        else:
            chosen.append(space)
    return chosen, skipped


@dataclass(frozen=True, eq=False)
class Cut:
    """A model cut to some widths: its kept channels by space, and rows for the report."""

    model: ir.Model
    kept: Mapping[str, np.ndarray]
    spaces: list[dict[str, Any]]
    refits: list[dict[str, Any]]


class Cutter:
    """One prepared model that can be cut to many widths, each time from the start.

    ``teacher`` is what the cut model is to compute: the source model, where its values still match the given
    model's by name and channels, so that what earlier passes did is made up for too; else the given model.
    """

    def __init__(self, model: ir.Model, context: Context, fit: Fit, treatable: Treatable) -> None:
        self.model, self.context, self.fit, self.treatable = model, context, fit, treatable
        self.base = prepare(model)
        self.added = add_constants(self.base)
        self.analysis = spaces.analyse(prepare(self.base))
        self.shapes = self._shapes(self.analysis.model)
        self.chosen, self.skipped = treatable(self.analysis)
        self.tally = tally_of(self.analysis, context)
        self.teacher, self.drifted = self._teacher(model)

    @cached_property
    def survey(self) -> Survey:
        """The error curves and sensitivities of all spaces, from one run of the data and a few measured cuts."""
        return survey(self._reconstruction(self.analysis, self.base), self.chosen, self.context)

    @property
    def surveyed(self) -> bool:
        """Whether the data have been run for it."""
        return "survey" in self.__dict__

    @cached_property
    def orders(self) -> Survey:
        """The order in which channels of every space go, from one run of the data; nothing is measured."""
        return survey(self._reconstruction(self.analysis, self.base), self.chosen, self.context, measure=False)

    def allocated(self, sizing: Sizing) -> dict[str, int]:
        """Return the widths whose predicted loss is least under the budget."""
        curves = self.survey.curves
        losses = {name: curve.loss for name, curve in curves.items()}
        choices = sizing.choices({space.name: space.width for space in self.chosen})
        budget = sizing.budget(self.analysis, self.context, self.tally)
        return allocate(losses, choices, budget.cost, self.tally.conflicts(), budget.limit)

    def uniform(self, sizing: Sizing) -> dict[str, int]:
        """Return the same fraction of every space, as far as blocks allow."""
        return sizing.widths(self.analysis, self.chosen, self.context, self.tally)

    def cut(
        self,
        widths: Mapping[str, int],
        kept: Mapping[str, np.ndarray] | None = None,
        pairs: Mapping[str, Pair] | None = None,
    ) -> Cut:
        """Return the model with these widths, refitted; nothing is refitted where nothing is cut.

        ``kept`` names the channels of every narrower space; without it they are chosen by what the readers lose.
        ``pairs`` take the place of the nodes of these names.
        """
        cut = {name for name, width in widths.items() if width < self.tally.full[name]}
        parted = pairs or {}
        if not cut and not parted:
            work = prepare(self.base)
            drop_zero_constants(work, self.added)
            return Cut(finish(work), {}, [], [])
        analysis = spaces.analyse(prepare(self.base))
        chosen = [space for space in self.treatable(analysis)[0] if space.name in cut]
        run = self._reconstruction(analysis, self.teacher)
        fixed = self._fixed(run, chosen, widths, parted) if kept is None else {s.name: kept[s.name] for s in chosen}
        outcome = run.run(chosen, widths, fixed, everything=self.drifted, pairs=parted)
        staying = outcome.kept
        factors = _narrowed(analysis, run, outcome)
        surgery.cut(analysis, staying)
        work = analysis.model
        record_kept(work, surgery.kept_outputs(analysis, staying))
        part(work, parted, self._shapes(work), factors)
        finish(work)
        drop_zero_constants(work, self.added)
        rows = [{"space": s.name, "width": s.width, "kept": len(staying[s.name])} for s in chosen]
        return Cut(work, staying, rows, outcome.rows)

    def shrunk(self, widths: Mapping[str, int], pairs: Mapping[str, Pair] | None = None) -> ir.Model:
        """Return a model with these widths and pairs and any weights, to measure its speed."""
        analysis = spaces.analyse(prepare(self.base))
        surgery.cut(analysis, {name: np.arange(width) for name, width in widths.items()})
        part(analysis.model, pairs or {}, self._shapes(analysis.model))
        return finish(analysis.model)

    def _fixed(
        self, run: Reconstruction, chosen: Sequence[ChannelSpace], widths: Mapping[str, int], pairs: Mapping[str, Pair]
    ) -> dict[str, np.ndarray]:
        """Choose the channels of spaces whose readers are not refitted at once: their order is the original's."""
        order = run.order(chosen, widths, everything=self.drifted, pairs=pairs)
        groups = [{link.unit.node for link in group} for group in order]
        spread = [s for s in chosen if not any({c.node for c in s.consumers} <= group for group in groups)]
        if not spread:
            return {}
        curves = (self.survey if self.surveyed else self.orders).curves
        return {space.name: curves[space.name].elimination.kept(widths[space.name]) for space in spread}

    def _reconstruction(self, analysis: Analysis, original: ir.Model) -> Reconstruction:
        return Reconstruction(original, analysis, self.shapes, self.fit, self.context)

    def _shapes(self, model: ir.Model) -> Shapes:
        return concrete_shapes(model, example_shapes(model, self.context.inputs))

    def _teacher(self, model: ir.Model) -> tuple[ir.Model, bool]:
        """Return the model to follow, and whether it differs from the given one before any cut."""
        if self.context.original is model or not self.fit.asymmetric:
            return self.base, False
        source = teacher(find_links(self.analysis, self.shapes), self.shapes, self.context)
        return (self.base, False) if source is None else (source, True)


def _narrowed(analysis: Analysis, run: Reconstruction, outcome: Outcome) -> dict[str, Factors]:
    """Return the products of every node that has some, with the outputs alone that are kept."""
    keep, found = analysis.keep_mask(outcome.kept), dict(outcome.factors)
    for unit in (link.unit for link in run.links if link.unit.name in found):
        labels = analysis.tracer.labels[unit.weight][unit.out_axis]
        if labels is not None:
            own = found[unit.name]
            found[unit.name] = replace(own, last=own.last[:, keep[analysis.channels_of(labels)]])
    return found


def part(
    work: ir.Model, pairs: Mapping[str, Pair], shapes: Shapes, factors: Mapping[str, Factors] | None = None
) -> None:
    """Put pairs in the place of nodes, by name, in place.

    Sums of products have ``factors``; without them their weights are any numbers (for what is but timed).
    """
    known = factors or {}
    for unit in linear_units(work, shapes) if pairs else ():
        pair = pairs.get(unit.name)
        if pair is not None and pair.kind == POLYADIC:
            polyadic.split(work, unit, known.get(unit.name) or _any(unit, pair.rank))
        elif pair is not None:
            split(work, unit, pair)


def _any(unit: Unit, rank: int) -> Factors:
    matrix, taps = unit.matrix()[0], int(np.prod(kernel_of(unit)))
    sizes = (len(matrix) // taps, rank), (taps, rank), (rank, matrix.shape[1])
    return Factors(*(np.full(size, 0.5 / max(size)) for size in sizes))


def fastest_within(
    value: float, cutter: Cutter, sizing: Sizing, choose: Callable[[Sizing], T], shrink: Callable[[T], ir.Model]
) -> T:
    """Return the largest choice whose measured latency is at most ``value`` times the source model's, or the fastest.

    Choices come from FLOPs budgets, bisected; each candidate is timed side by side with the source on one example.
    """
    return timed_within(value, cutter, sizing, choose, shrink)[0]


def timed_within(
    value: float, cutter: Cutter, sizing: Sizing, choose: Callable[[Sizing], T], shrink: Callable[[T], ir.Model]
) -> tuple[T, float]:
    """Return what :func:`fastest_within` does, and its measured latency over the source model's."""
    from onnxprune.fit.speed import ratio

    low, high = 0.0, 1.0
    best: tuple[T, float] | None = None
    fewest: tuple[T, float] | None = None
    for _ in range(7):
        share = (low + high) / 2 if low or high < 1.0 else value
        found = choose(replace(sizing, name="flops", value=share))
        took = ratio(cutter.context, shrink(found))
        if fewest is None or took < fewest[1]:
            fewest = (found, took)
        if took <= value:
            best, low = (found, took), share
        else:
            high = share
        if high - low < 0.02:
            break
    assert fewest is not None
    return fewest if best is None else best
