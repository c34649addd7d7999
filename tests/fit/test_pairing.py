"""Widths and pairs under one budget: what they are said to cost is what the model costs that comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.fit import pairing
from onnxprune.fit.cutting import refittable
from onnxprune.fit.pairing import Choice, Pairer, partable
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing
from onnxprune.fit.survey import RankCurve
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.factorise import KINDS, OUTPUT, POLYADIC, SPATIAL, Pair
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes

EVERYTHING = Selection.parse("test", None, None)
CURRENCIES = ("flops", "params", "bytes")


def pairer_for(
    bench: Any, proto: onnx.ModelProto, *, widths: bool = True, kinds: tuple[str, ...] = KINDS, **options: Any
) -> Pairer:
    context = bench(proto, count=options.pop("count", 40)).context

    def treatable(analysis: Any) -> Any:
        return refittable(analysis, EVERYTHING, context.inputs) if widths else ([], {})

    return Pairer(
        context.original, context, Fit(**options), treatable,
        lambda model, shapes: partable(model, shapes, EVERYTHING, kinds),
    )  # fmt: skip


def bill_of(pairer: Pairer, currency: str) -> tuple[pairing._Bill, Mapping[str, RankCurve]]:
    curves = {name: curve for name, curve in pairer.survey.ranks.items() if len(curve.options) > 1}
    budget = Sizing(currency, 0.5, 1).budget(pairer.analysis, pairer.context, pairer.tally)
    return pairing._Bill(pairer.tally, pairer.units, curves, budget.cost, currency), curves


def drawn(pairer: Pairer, curves: Mapping[str, RankCurve], seed: int) -> dict[str, int]:
    """Draw widths of all spaces and options of all nodes, about half of them as they are."""
    rng = np.random.default_rng(seed)
    choice = {s.name: int(rng.integers(1, s.width + 1)) if rng.random() < 0.5 else s.width for s in pairer.chosen}
    for name, curve in curves.items():
        last = len(curve.options) - 1
        choice[f"node {name}"] = int(rng.integers(0, last + 1)) if rng.random() < 0.5 else last
    return choice


def figure(model: ir.Model, inputs: Any, currency: str) -> float:
    cost = measure(model, inputs)
    return {"flops": cost.macs, "params": cost.params, "bytes": cost.bytes}[currency]


@pytest.mark.parametrize("network", ["residual", "mlp", "separable", "transformer", "unet"])
def test_the_bill_is_what_the_model_costs(networks: Any, bench: Any, network: str) -> None:
    for kinds in ((OUTPUT,), KINDS[1:], (POLYADIC,)):
        pairer = pairer_for(bench, networks[network](), kinds=kinds)
        for currency in CURRENCIES:
            bill, curves = bill_of(pairer, currency)
            assert curves or kinds != (OUTPUT,)
            assert pairer.families()[0] == pairing.ALL
            for seed in range(5):
                choice = drawn(pairer, curves, seed)
                found = Pairer.choice(choice, curves)
                made = pairer.shrunk(found.widths, found.pairs)
                assert bill(choice) == figure(made, pairer.context.inputs, currency)
                for name, curve in list(curves.items())[:2]:
                    node = f"node {name}"
                    each = [bill({**choice, node: place}) for place in range(len(curve.options))]
                    assert bill.along(node, choice).tolist() == each


def test_a_refitted_model_costs_what_the_bill_says(networks: Any, bench: Any, run_model: Any) -> None:
    for network in ("residual", "transformer"):
        proto = networks[network]()
        pairer = pairer_for(bench, proto)
        bill, curves = bill_of(pairer, "flops")
        for seed in range(2):
            choice = drawn(pairer, curves, seed)
            found = Pairer.choice(choice, curves)
            cut = pairer.cut(found.widths, pairs=found.pairs)
            result = ir.serde.serialize_model(cut.model)
            onnx.checker.check_model(result, full_check=True)
            assert bill(choice) == measure(cut.model, pairer.context.inputs).macs
            names = {str(node.name) for node in cut.model.graph}
            assert all({f"{name}/enc", f"{name}/dec"} <= names and name not in names for name in found.pairs)
            assert all((f"{n}/mid" in names) == (pair.kind == POLYADIC) for n, pair in found.pairs.items())
            x = next(pairer.context.examples.batches(3)).arrays  # type: ignore[union-attr]
            assert all(np.isfinite(array).all() for array in run_model(result, x).values())


@pytest.mark.parametrize("network", ["residual", "unet"])
def test_products_beside_narrower_spaces_compute_what_the_layers_do(
    networks: Any, bench: Any, run_model: Any, network: str
) -> None:
    pairer = pairer_for(bench, networks[network](), kinds=(POLYADIC,), rounds=0)
    widths = {space.name: max(1, space.width // 2) for space in pairer.chosen}
    plain = pairer.cut(widths)
    # At a rank at which nothing is lost.
    pairs = {name: Pair(POLYADIC, ways[POLYADIC].full) for name, (_, ways) in pairer.units.items()}
    cut = pairer.cut(widths, plain.kept, pairs)
    x = next(pairer.context.examples.batches(5)).arrays  # type: ignore[union-attr]
    want, got = run_model(plain.model, x), run_model(cut.model, x)
    for name, array in want.items():
        assert np.abs(got[name] - array).max() <= 1e-3 * np.abs(array).max()
    names = {str(node.name) for node in cut.model.graph}
    assert pairs and all(f"{name}/mid" in names for name in pairs)


def test_costs_depend_on_what_the_conflicts_name(networks: Any, bench: Any) -> None:
    pairer = pairer_for(bench, networks["residual"]())
    bill, curves = bill_of(pairer, "flops")
    conflicts = bill.conflicts()
    names = [s.name for s in pairer.chosen] + [f"node {name}" for name in curves]
    full = {s.name: s.width for s in pairer.chosen} | {f"node {n}": len(c.options) - 1 for n, c in curves.items()}
    least = {name: 1 if name in pairer.tally.full else 0 for name in names}

    def saved(first: str, *held: str) -> int:
        base = {**full, **{name: least[name] for name in held}}
        return bill(base) - bill({**base, first: least[first]})

    for first in names:
        for second in set(names) - {first}:
            if saved(first) != saved(first, second):
                assert second in conflicts[first] and first in conflicts[second]


@pytest.mark.parametrize("currency", CURRENCIES)
@pytest.mark.parametrize("value", [1.0, 0.6])
def test_what_is_shared_out_is_within_the_budget(networks: Any, bench: Any, currency: str, value: float) -> None:
    pairer = pairer_for(bench, networks["residual"]())
    choice = pairer.shared(Sizing(currency, value, 1))
    if value == 1.0:
        assert not choice.pairs and all(choice.widths[s.name] == s.width for s in pairer.chosen)
    before = figure(pairer.context.original, pairer.context.inputs, currency)
    after = figure(pairer.shrunk(choice.widths, choice.pairs), pairer.context.inputs, currency)
    assert 0.93 * value * before <= after <= value * before
    assert set(choice.places) == {name for name, curve in pairer.survey.ranks.items() if len(curve.options) > 1}
    for name, pair in choice.pairs.items():
        near = pairer.survey.ranks[name].options[choice.places[name]].pair
        assert near is not None and near.kind == pair.kind and near.rank <= pair.rank


@pytest.mark.parametrize("value", [0.7, 0.4])
def test_all_on_offer_is_predicted_to_do_no_worse_than_some_of_it(networks: Any, bench: Any, value: float) -> None:
    pairer = pairer_for(bench, networks["residual"]())
    sizing = Sizing("flops", value, 1)
    losses = {family: pairer.shared(sizing, family).loss for family in (pairing.ALL, pairing.WIDTHS)}
    assert losses[pairing.ALL] <= losses[pairing.WIDTHS] * (1 + 1e-9)


@pytest.mark.parametrize("currency", CURRENCIES)
def test_ranks_between_those_on_offer_are_taken_too(net: Any, bench: Any, currency: str) -> None:
    n = net(90)
    pairer = pairer_for(bench, n.model(n.dense(n.relu(n.dense("x", 90, 110, name="one")), 110, 20, name="two")))
    pairer.chosen, pairer.units = [], {"one": pairer.units["one"]}
    whole = figure(pairer.context.original, pairer.context.inputs, currency)
    bill, curves = bill_of(pairer, currency)
    each = bill._change("one", Pair(OUTPUT, 3), {}) - bill._change("one", Pair(OUTPUT, 2), {})
    assert each == 200 * (4 if currency == "bytes" else 1)
    between = False
    for value in (0.85, 0.6, 0.4):
        choice = pairer.shared(Sizing(currency, value, 1))
        after = figure(pairer.shrunk({}, choice.pairs), pairer.context.inputs, currency)
        assert value * whole - each <= after <= value * whole
        offered = {name: {option.pair for option in curve.options} for name, curve in curves.items()}
        between |= any(pair not in offered[name] for name, pair in choice.pairs.items())
    assert between


def test_nodes_alone_and_nothing_to_change(networks: Any, bench: Any) -> None:
    pairer = pairer_for(bench, networks["mlp"](), widths=False, kinds=(OUTPUT,))
    choice = pairer.shared(Sizing("flops", 0.7, 1))
    assert choice.widths == {} and choice.pairs
    same = pairer.cut({}, pairs={})
    assert (
        ir.serde.serialize_model(same.model).graph.node
        == ir.serde.serialize_model(prepare(pairer.context.original)).graph.node
    )
    none = Pairer(
        pairer.context.original, pairer.context, Fit(), lambda analysis: ([], {}), lambda model, shapes: ({}, {})
    )
    assert none.shared(Sizing("flops", 0.5, 1)) == Choice({}, {}, {}, agreement=1.0)


def test_what_can_be_parted_and_why_not(net: Any, networks: Any) -> None:
    n = net(3, 8, 8)
    x = n.relu(n.conv("x", 3, 8, 1, name="point"))
    x = n.relu(n.conv(x, 8, 8, name="depth", group=8))
    x = n.relu(n.conv(x, 8, 8, name="square"))
    proto = n.model(n.pooled(n.relu(n.conv(x, 8, 1, 1, name="thin")), 1))
    work = prepare(ir.serde.deserialize_model(proto))
    shapes = concrete_shapes(work, example_shapes(work))
    found, skipped = partable(work, shapes, EVERYTHING, KINDS)
    assert set(found["square"][1]) == set(KINDS) and set(found["point"][1]) == {OUTPUT}
    assert skipped == {
        "depth": "its channels do not mix (8 groups)",
        "thin": "even a pair of rank 1 costs more",
        "head": "even a pair of rank 1 costs more",
    }
    found, skipped = partable(work, shapes, EVERYTHING, (SPATIAL,), one=True)
    assert list(found) == ["square"] and skipped["point"] == "its kernel cannot be parted this way"
    found, _ = partable(work, shapes, EVERYTHING, (SPATIAL, OUTPUT), one=True)
    assert {name: list(ways) for name, (_, ways) in found.items()} == {"point": [OUTPUT], "square": [SPATIAL]}
    found, skipped = partable(work, shapes, Selection.parse("test", "s*;p*", "point"), KINDS)
    assert list(found) == ["square"] and set(skipped) == {"point", "depth", "thin", "head"}


def test_recurrent_layers_are_named_too(net: Any) -> None:
    n = net(5, 8)
    turned = n.op("Transpose", "x", perm=[1, 0, 2])
    weights = [n.weight(1, 4 * 12, size) for size in (8, 12)]
    states = n.op("LSTM", turned, *weights, name="lstm", outputs=3, hidden_size=12)
    last = n.op("Squeeze", states[1], n.const(np.array([0])))
    work = prepare(ir.serde.deserialize_model(n.model(n.dense(last, 12, 12, name="head"))))
    shapes = concrete_shapes(work, example_shapes(work))
    found, skipped = partable(work, shapes, EVERYTHING, (OUTPUT,))
    assert list(found) == ["head"]
    assert skipped == {"lstm": "it is no convolution or matrix product with a stored weight of its own"}
    _, skipped = partable(work, shapes, Selection.parse("test", "head", None), (OUTPUT,))
    assert skipped == {"lstm": "only= does not name it"}
