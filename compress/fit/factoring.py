"""Low rank for whole models: layers as they stand, or refitted; one kind of pair for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxprune.contract import Context, StepResult
from onnxprune.errors import OptionError
from onnxprune.fit.cutting import part, timed_within
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
from onnxprune.graph.polyadic import Factors
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes

# Writes a layer's nearest weights of a rank into the unit.
Write = Callable[[str, Unit, Pair], None]
# Makes the sum of products that comes nearest to a layer's weights.
Products = Callable[[Unit, Pair], Factors]
Units = Mapping[str, tuple[Unit, Partings]]


def factored(
    item: Any,
    model: ir.Model,
    context: Context,
    selection: Selection,
    kinds: tuple[str, ...],
    score: Score,
    write: Write | None = None,
    products: Products | None = None,
) -> StepResult:
    """Return what a pass without refitting does: ranks by ``score``, weights by ``write`` (else truncated).

    Sums of products are made by ``products``.
    """
    sizing = Sizing.of(item)
    if sizing.name == "latency":
        raise OptionError(f"{item.name}: latency= needs reconstruct=symmetric or asymmetric")
    work = prepare(model)
    added = add_constants(work)
    analysis = spaces.analyse(work)
    shapes = concrete_shapes(work, example_shapes(work, context.inputs))
    units, skipped = partable(work, shapes, selection, kinds, one=True)
    pairs = {} if sizing.met_by(model, context) else ranked(units, sizing, analysis, context, score)
    rows = pair_rows(units, pairs)
    skipped |= left_alone(units, pairs)
    for name, pair in pairs.items():
        if write is not None:
            write(name, units[name][0], pair)
    made = {} if products is None else {name: products(units[name][0], pair) for name, pair in pairs.items()}
    part(work, pairs, shapes, made)
    finish(work)
    drop_zero_constants(work, added)
    return StepResult(work, skipped, {"pairs": rows}, reached(item, work, context))


def refitted(
    item: Any,
    pairer: Pairer,
    context: Context,
    pairs_at: Callable[[Sizing], Choice],
    others: Sequence[Callable[[Sizing], Choice]] = (),
) -> StepResult:
    """Return what a pass with refitting does with the choice that ``pairs_at`` makes for its size.

    Under a latency the ``others`` are tried too: more and smaller layers can be slower.
    """
    sizing = Sizing.of(item)
    if sizing.met_by(pairer.model, context):
        choice = Choice({}, {}, {})
    elif sizing.name == "latency":
        choice = _fastest(pairer, sizing, [pairs_at, *others])
    else:
        choice = pairs_at(sizing)
    cut = pairer.cut(choice.widths, pairs=choice.pairs)
    numbers: dict[str, Any] = {"pairs": pair_rows(pairer.units, choice.pairs), "refits": cut.refits}
    if pairer.chosen:
        numbers |= {"spaces": len(pairer.chosen), "layers": cut.spaces}
    if choice.agreement is not None and (choice.places or choice.widths):
        numbers["predicted_agreement"] = choice.agreement
    skipped = {**pairer.skipped, **left_alone(pairer.units, choice.pairs)}
    warnings = sizing.unaligned({row["space"]: row["kept"] for row in cut.spaces})
    return StepResult(cut.model, skipped, numbers, reached(item, cut.model, context), warnings)


def _fastest(pairer: Pairer, sizing: Sizing, ways: Sequence[Callable[[Sizing], Choice]]) -> Choice:
    """Return the choice of the least predicted loss among those within a latency, or the fastest."""
    found = [
        timed_within(sizing.value, pairer, sizing, way, lambda one: pairer.shrunk(one.widths, one.pairs))
        for way in ways
    ]
    met = [choice for choice, took in found if took <= sizing.value]
    return min(met, key=lambda one: one.loss) if met else min(found, key=lambda one: one[1])[0]


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
