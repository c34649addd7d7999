"""Low rank for whole models: layers as they stand, or refitted; one kind of pair for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from onnxprune.contract import Context, StepResult
from onnxprune.errors import OptionError
from onnxprune.fit.cutting import fastest_within, part
from onnxprune.fit.offers import Partings
from onnxprune.fit.pairing import Choice, Pairer, partable
from onnxprune.fit.ranking import Score, ranked
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing, reached
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.factorise import Pair
from onnxprune.graph.linear import Unit, add_constants, drop_zero_constants
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes

# Writes a layer's nearest weights of a rank into the unit.
Write = Callable[[str, Unit, Pair], None]
Units = Mapping[str, tuple[Unit, Partings]]


class Plain:
    """A prepared model whose layers are parted as they are: nothing else is refitted."""

    def __init__(self, model: ir.Model, context: Context, selection: Selection, kinds: tuple[str, ...]) -> None:
        self.context = context
        self.work = prepare(model)
        self.added = add_constants(self.work)
        self.analysis = spaces.analyse(self.work)
        self.shapes = concrete_shapes(self.work, example_shapes(self.work, context.inputs))
        self.units, self.skipped = partable(self.work, self.shapes, selection, kinds, one=True)

    def pairs(self, sizing: Sizing, score: Score) -> dict[str, Pair]:
        """Return the pairs that a size asks for, by the layers' spectra."""
        return ranked(self.units, sizing, self.analysis, self.context, score)

    def made(self, pairs: Mapping[str, Pair], write: Write | None = None) -> ir.Model:
        """Return the model with these pairs; it cannot be used for others afterwards."""
        for name, pair in pairs.items():
            if write is not None:
                write(name, self.units[name][0], pair)
        part(self.work, pairs, self.shapes)
        finish(self.work)
        drop_zero_constants(self.work, self.added)
        return self.work


def factored(
    item: Any,
    model: ir.Model,
    context: Context,
    selection: Selection,
    kinds: tuple[str, ...],
    score: Score,
    write: Write | None = None,
) -> StepResult:
    """Return what a pass without refitting does: ranks by ``score``, weights by ``write`` (else truncated)."""
    sizing, plain = Sizing.of(item), Plain(model, context, selection, kinds)
    if sizing.name == "latency":
        raise OptionError(f"{item.name}: latency= needs reconstruct=symmetric or asymmetric")
    pairs = {} if sizing.met_by(model, context) else plain.pairs(sizing, score)
    rows = pair_rows(plain.units, pairs)
    skipped = {**plain.skipped, **left_alone(plain.units, pairs)}
    result = plain.made(pairs, write)
    return StepResult(result, skipped, {"pairs": rows}, reached(item, result, context))


def refitted(item: Any, pairer: Pairer, context: Context, pairs_at: Callable[[Sizing], Choice]) -> StepResult:
    """Return what a pass with refitting does with the choice that ``pairs_at`` makes for its size."""
    sizing = Sizing.of(item)
    got: dict[str, tuple[float, float]] = {}
    if sizing.met_by(pairer.model, context):
        choice = Choice({}, {}, {})
    elif sizing.name == "latency":
        choice = fastest_within(
            sizing.value, pairer, sizing, pairs_at, lambda one: pairer.shrunk(one.widths, one.pairs)
        )
    else:
        choice = pairs_at(sizing)
    cut = pairer.cut(choice.widths, pairs=choice.pairs)
    if sizing.name == "latency":
        from onnxprune.fit.speed import ratio

        got["latency"] = (sizing.value, ratio(context, cut.model))
    numbers: dict[str, Any] = {"pairs": pair_rows(pairer.units, choice.pairs), "refits": cut.refits}
    if pairer.chosen:
        numbers |= {"spaces": len(pairer.chosen), "layers": cut.spaces}
    if choice.places or choice.widths:
        numbers["predicted_agreement"] = pairer.survey.agreement(choice.widths, choice.places)
    got |= reached(item, cut.model, context)
    skipped = {**pairer.skipped, **left_alone(pairer.units, choice.pairs)}
    warnings = sizing.unaligned({row["space"]: row["kept"] for row in cut.spaces})
    return StepResult(cut.model, skipped, numbers, got, warnings)


def pairer_of(model: ir.Model, context: Context, fit: Fit, selection: Selection, kinds: tuple[str, ...]) -> Pairer:
    """Return what refits pairs of the first of some kinds that a node knows, channels left as they are."""
    return Pairer(
        model, context, fit, lambda analysis: ([], {}),
        lambda work, shapes: partable(work, shapes, selection, kinds, one=True),
    )  # fmt: skip


def pair_rows(units: Units, pairs: Mapping[str, Pair]) -> list[dict[str, Any]]:
    """Return a row per node that becomes a pair: how, at which rank of how many, and its MACs before and after."""
    rows = []
    for name, pair in pairs.items():
        way = units[name][1][pair.kind]
        rows.append(
            {
                "node": name,
                "kind": pair.kind,
                "rank": pair.rank,
                "full": way.full,
                "MACs": way.whole,
                "MACs as a pair": pair.rank * way.macs,
            }
        )
    return rows


def left_alone(units: Units, pairs: Mapping[str, Pair]) -> dict[str, str]:
    """Return why layers that could be parted are not."""
    return {name: "the budget leaves it as it is" for name in units if name not in pairs}
