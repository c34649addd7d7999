"""One budget for all: what is obviously right is taken, whichever family it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from scipy.special import log_softmax

from onnxprune.contract import Context
from onnxprune.data import open_data
from onnxprune.errors import DataError, OptionError
from onnxprune.fit import speed
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.passes.auto import Auto
from onnxprune.runtime.session import Settings, input_specs

Runner = Callable[..., dict[str, np.ndarray]]


def small(net: Any, **options: Any) -> onnx.ModelProto:
    """Return convolutions with a residual branch, and a classifier."""
    build = net(3, 8, 8, **options)
    x = build.relu(build.conv("x", 3, 8, name="stem"))
    inner = build.relu(build.conv(x, 8, 10, name="one"))
    x = build.relu(build.node("Add", build.conv(inner, 10, 8, name="two"), x))
    proto: onnx.ModelProto = build.model(build.head(x, 8))
    return proto


def planted(net: Any, kind: str) -> onnx.ModelProto:
    """Return a chain whose middle layer, by far the dearest, has a flaw: low rank, a separable kernel, or twins."""
    build = net(3, 8, 8, seed=4)
    rng = build.rng
    x = build.relu(build.conv("x", 3, 12, name="stem"))
    weight = rng.standard_normal((12, 12, 3, 3)) / 9
    if kind == "rank":
        weight = np.einsum("or,rikl->oikl", rng.standard_normal((12, 2)), rng.standard_normal((2, 12, 3, 3))) / 6
    elif kind == "separable":  # rank 4 for a kernel in two, full rank for its outputs
        weight = np.einsum("oyr,irx->oiyx", rng.standard_normal((12, 3, 4)), rng.standard_normal((12, 4, 3))) / 9
    elif kind == "dead":
        weight[4:] = 0.0
    build.store("middle.w", weight)
    shift = 0.3 * rng.standard_normal(12)
    if kind == "dead":
        shift[4:] = -1.0
    build.store("middle.b", shift)
    x = build.relu(build.node("Conv", x, "middle.w", "middle.b", name="middle", pads=[1] * 4))
    proto: onnx.ModelProto = build.model(build.head(build.relu(build.conv(x, 12, 6, name="last")), 6))
    return proto


def macs(model: ir.Model | onnx.ModelProto) -> int:
    return measure(ir.serde.deserialize_model(model) if isinstance(model, onnx.ModelProto) else model).macs


@pytest.mark.parametrize(("kind", "budget"), [("rank", 0.62), ("separable", 0.57), ("dead", 0.44)])
def test_what_is_obviously_right_is_taken(
    kind: str, budget: float, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto = planted(net, kind)
    data = images(120, 3, 8, 8)
    result, step = apply(proto, f"auto(flops={budget},rectify=0)", data)
    numbers = step.result.numbers
    pairs = {row["node"]: (row["kind"], row["rank"]) for row in numbers["pairs"]}
    kept = {row["space"]: row["kept"] for row in numbers["layers"]}
    if kind == "rank":
        assert pairs["middle"][0] in ("output", "input") and pairs["middle"][1] <= 3 and not kept
    elif kind == "separable":
        assert pairs["middle"] == ("spatial", 4) and not kept  # 4 of full rank 36
    else:
        assert kept["middle"] == 4 and "middle" not in pairs
    fresh = images(20, 3, 8, 8, seed=9)
    want, got = run_model(proto, fresh)["head_out"], run_model(result, fresh)["head_out"]
    assert np.abs(got - want).max() <= 2e-2 * np.abs(want).max()
    assert numbers["predicted_agreement"] > 0.95
    for method in {"rank": ["id"], "separable": ["id", "pca"], "dead": ["pca", "lrank"]}[kind]:
        worse, _ = apply(proto, f"auto(flops={budget},rectify=0,methods={method})", data)
        left = np.abs(run_model(worse, fresh)["head_out"] - want).max()
        assert left > 2 * np.abs(got - want).max() and left > 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("methods", "kinds", "cuts"),
    [
        ("id", set(), True),
        ("pca", {"output"}, False),
        ("lrank", {"output", "spatial", "turned", "input"}, False),
        ("cp", {"cp"}, False),
        ("id;pca", {"output"}, True),
        (" lrank ; id ", {"output", "spatial", "turned", "input"}, True),
    ],
)
def test_methods(methods: str, kinds: set[str], cuts: bool, net: Any, apply: Any, images: Any) -> None:
    result, step = apply(small(net), [Auto(flops=0.55, methods=methods, rectify=0)], images(40, 3, 8, 8))
    found = {row["kind"] for row in step.result.numbers["pairs"]}
    assert found <= kinds and (found or "id" in methods)
    assert ("spaces" in step.result.numbers) == cuts
    if methods == "id":
        assert read_kept(result) and "stem" not in step.result.skipped
    assert step.result.reached["flops"][1] <= 0.55


@pytest.mark.parametrize("size", ["flops", "params", "bytes"])
@pytest.mark.parametrize("value", [0.8, 0.4])
def test_budgets(size: str, value: float, net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto = small(net)
    result, step = apply(proto, f"auto({size}={value},rectify=0)", images(30, 3, 8, 8))
    wanted, got = step.result.reached[size]
    assert wanted == value and 0.9 * value <= got <= value  # a channel of eight is a large step
    data = images(6, 3, 8, 8)
    for optimise in (False, True):
        assert np.isfinite(run_model(result, data, optimise=optimise)["head_out"]).all()


@pytest.mark.parametrize("size", ["flops", "params"])
def test_wide_layers_meet_the_budget_closely(size: str, net: Any, apply: Any, images: Any) -> None:
    build = net(40)
    x = build.relu(build.gemm(build.relu(build.gemm("x", 40, 64, name="one")), 64, 64, name="two"))
    proto = build.model(build.gemm(x, 64, 30, name="three", last=True))
    for value in (0.8, 0.4):
        _, step = apply(proto, f"auto({size}={value},rectify=0)", images(100, 40))
        assert 0.98 * value <= step.result.reached[size][1] <= value


@pytest.mark.parametrize("size", ["flops", "params", "bytes", "latency"])
def test_neutral_sizes_change_nothing(size: str, net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto = small(net)
    result, _ = apply(proto, f"auto({size}=1)", images(20, 3, 8, 8))
    fresh = images(8, 3, 8, 8, seed=9)
    np.testing.assert_array_equal(run_model(result, fresh)["head_out"], run_model(proto, fresh)["head_out"])


def test_it_does_no_worse_than_one_family_alone(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    left: dict[str, float] = {}
    for seed in range(4):
        proto, data = small(net, seed=seed), images(120, 3, 8, 8, seed=seed)
        want = log_softmax(run_model(proto, data)["head_out"], axis=1)
        for methods in ("id", "pca", "cp", "id;pca;lrank;cp"):
            result, _ = apply(proto, [Auto(flops=0.6, methods=methods)], data)
            got = log_softmax(run_model(result, data)["head_out"], axis=1)
            # What it minimises: divergence of class scores.
            left[methods] = left.get(methods, 0.0) + float((np.exp(want) * (want - got)).sum(1).mean())
    assert left["id;pca;lrank;cp"] <= 1.05 * min(left.values())


def test_latency_is_measured(net: Any, apply: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = small(net)
    whole = macs(proto)
    seen: list[float] = []

    def ratio(context: Context, model: ir.Model) -> float:
        seen.append(macs(model) / whole + 0.02 * (len(list(model.graph)) - 8))
        return seen[-1]

    monkeypatch.setattr(speed, "ratio", ratio)
    _, step = apply(proto, "auto(latency=0.6,rectify=0)", images(24, 3, 8, 8))
    wanted, got = step.result.reached["latency"]
    assert wanted == 0.6 and got == seen[-1] <= 0.6 and len(seen) > 2
    _, step = apply(proto, "auto(latency=0.01,rectify=0)", images(24, 3, 8, 8))
    assert step.result.reached["latency"][1] > 0.01  # the fastest there is, and said so


@pytest.mark.parametrize(("each", "family"), [(0.0, "cp"), (0.06, "none")])
def test_under_a_latency_fewer_nodes_can_be_better(
    each: float, family: str, net: Any, apply: Any, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = small(net)
    whole, nodes = macs(proto), len(list(ir.serde.deserialize_model(proto).graph))

    def ratio(context: Context, model: ir.Model) -> float:
        return macs(model) / whole + each * max(0, len(list(model.graph)) - nodes)

    monkeypatch.setattr(speed, "ratio", ratio)
    _, step = apply(proto, "auto(latency=0.7,rectify=0)", images(40, 3, 8, 8))
    kinds = {row["kind"] for row in step.result.numbers["pairs"]}
    assert step.result.reached["latency"][1] <= 0.7
    assert "cp" in kinds if family == "cp" else not kinds


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flops": 0.5, "bytes": 0.5}, "auto: flops and bytes are both given; one size decides, give one of them"),
        ({"methods": "id;svd"}, "auto: methods=id;svd is not accepted; give some of id, pca, lrank, cp, parted by ;"),
        ({"methods": ";"}, "auto: methods=; is not accepted"),
        ({"align": "some"}, "auto: align=some is not accepted"),
        ({"flops": 0.0}, "flops"),
        ({"ridge": 2.0}, "ridge"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        Auto(**options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_data_is_needed(net: Any, apply: Any) -> None:
    with pytest.raises(DataError, match=r"^auto needs calibration data; give --data or --calib$"):
        apply(small(net), "auto(flops=0.5)")


def test_selections_and_reasons(net: Any, apply: Any, images: Any) -> None:
    build = net(3, 8, 8)
    x = build.relu(build.conv("x", 3, 8, name="stem"))
    x = build.relu(build.depthwise(x, 8))
    x = build.relu(build.conv(x, 8, 10, name="one"))
    proto = build.model(build.head(build.relu(build.conv(x, 10, 8, name="two")), 8))
    result, step = apply(proto, "auto(flops=0.6,only=one;two;depth,rectify=0)", images(30, 3, 8, 8))
    changed = {row["node"] for row in step.result.numbers["pairs"]} | read_kept(result).keys()
    assert changed and changed <= {"one", "two"}
    assert "head" in step.result.skipped and "stem" in step.result.skipped
    assert step.result.skipped["depth"] == "its channels do not mix (8 groups)"


def test_widths_in_blocks(net: Any, apply: Any, images: Any) -> None:
    build = net(3, 8, 8)
    x = build.relu(build.conv(build.relu(build.conv("x", 3, 16, name="one")), 16, 16, name="two"))
    result, step = apply(build.model(build.head(x, 16)), "auto(flops=0.5,align=4,rectify=0)", images(30, 3, 8, 8))
    assert all(len(kept) % 4 == 0 for kept in read_kept(result).values())
    assert step.result.reached["flops"][1] <= 0.5


def test_same_input_and_seed_give_the_same_bytes(net: Any, apply: Any, images: Any) -> None:
    proto, data = small(net), images(24, 3, 8, 8)
    before = proto.SerializeToString(deterministic=True)
    results = [ir.serde.serialize_model(apply(proto, "auto(flops=0.6)", data)[0]) for _ in range(2)]
    assert results[0].SerializeToString(deterministic=True) == results[1].SerializeToString(deterministic=True)
    assert proto.SerializeToString(deterministic=True) == before


def test_plans_and_prepared_sizes(net: Any, images: Any) -> None:
    model = ir.serde.deserialize_model(small(net))
    bare = Context(model, measure(model), {"x": (1, 3, 8, 8)}, 0)
    plan = Auto(flops=0.6).plan(model, bare)
    assert plan.rows == () and "give --data or --calib" in plan.notes[0]
    examples = open_data(images(24, 3, 8, 8), input_specs(model))
    fed = Context(model, measure(model), {"x": (1, 3, 8, 8)}, 0, examples=examples, settings=Settings())
    item = Auto(flops=0.6, rectify=0)
    plan = item.plan(model, fed)
    assert plan.rows and "predicted agreement" in plan.notes[0]
    made = item.prepared(model, fed)
    whole = macs(model)
    for value in (0.8, 0.6):
        assert 0.95 * value * whole <= macs(made(replace(item, flops=value)).model) <= value * whole
    rows = made(replace(item, flops=0.6)).numbers
    planned = {(row["node"], row["kind"], row["rank"]) for row in plan.rows}
    wanted = {(row["node"], row["kind"], row["rank"]) for row in rows["pairs"]}
    wanted |= {(row["space"], "fewer channels", row["kept"]) for row in rows["layers"]}
    assert planned == wanted
