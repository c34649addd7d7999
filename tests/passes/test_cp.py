"""CP decomposition as a pass: three convolutions in place of one, budgets kept, data better than none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import OptionError
from onnxprune.graph.cost import measure
from onnxprune.passes.cp import Cp

Runner = Callable[..., dict[str, np.ndarray]]


def small(net: Any, **options: Any) -> onnx.ModelProto:
    """Return three convolutions, one of them strided and one in a residual branch, a depthwise one, a classifier."""
    build = net(3, 8, 8, **options)
    x = build.relu(build.conv("x", 3, 10, name="stem", strides=[2, 2]))
    inner = build.relu(build.conv(x, 10, 12, name="one"))
    x = build.relu(build.node("Add", build.conv(inner, 12, 10, name="two"), x))
    proto: onnx.ModelProto = build.model(build.head(build.depthwise(x, 10), 10, classes=6))
    return proto


def cost(model: ir.Model | onnx.ModelProto) -> Any:
    return measure(ir.serde.deserialize_model(model) if isinstance(model, onnx.ModelProto) else model)


def lost(run_model: Runner, proto: onnx.ModelProto, result: ir.Model, data: Any) -> float:
    want, got = run_model(proto, data)["head_out"], run_model(result, data)["head_out"]
    return float(np.square(got - want).sum() / np.square(want - want.mean(0)).sum())


@pytest.mark.parametrize("reconstruct", ["none", "symmetric", "asymmetric"])
def test_three_in_place_of_one(reconstruct: str, net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto = small(net)
    text = f"cp(flops=0.6,reconstruct={reconstruct},rectify=0)"
    result, step = apply(proto, text, None if reconstruct == "none" else images(40, 3, 8, 8))
    rows = {row["node"]: row for row in step.result.numbers["pairs"]}
    assert rows and rows.keys() <= {"stem", "one", "two"}
    nodes = {str(node.name): node for node in result.graph}
    for name, row in rows.items():
        enc, mid, dec = (nodes[f"{name}/{end}"] for end in ("enc", "mid", "dec"))
        assert mid.attributes["group"].as_int() == row["rank"] and row["kind"] == "cp"
        assert list(mid.attributes["kernel_shape"].as_ints()) == [3, 3]
        assert len(enc.inputs) == len(mid.inputs) == 2 and len(dec.inputs) == 3
    assert cost(result).macs == cost(proto).macs - sum(row["MACs"] - row["MACs as a pair"] for row in rows.values())
    assert step.result.reached["flops"][1] <= 0.6
    assert "depth" in step.result.skipped and "cannot be parted" in step.result.skipped["head"]
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    assert np.isfinite(run_model(result, images(4, 3, 8, 8))["head_out"]).all()


def test_data_beat_none_and_the_prefix_beats_both(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    found: dict[str, float] = {}
    for seed in range(3):
        proto, data, fresh = small(net, seed=seed), images(200, 3, 8, 8, seed=seed), images(60, 3, 8, 8, seed=90)
        for way in ("none", "symmetric", "asymmetric"):
            result, _ = apply(proto, f"cp(flops=0.6,reconstruct={way})", data)
            found[way] = found.get(way, 0.0) + lost(run_model, proto, result, fresh)
    assert found["asymmetric"] < found["symmetric"] < found["none"]


@pytest.mark.parametrize("size", ["flops", "params", "bytes", "keep"])
@pytest.mark.parametrize("reconstruct", ["none", "asymmetric"])
def test_neutral_sizes_change_nothing(
    size: str, reconstruct: str, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto, fresh = small(net), images(8, 3, 8, 8, seed=9)
    result, _ = apply(proto, f"cp({size}=1,reconstruct={reconstruct})", images(20, 3, 8, 8))
    np.testing.assert_array_equal(run_model(result, fresh)["head_out"], run_model(proto, fresh)["head_out"])


@pytest.mark.parametrize("size", ["flops", "params", "bytes"])
def test_budgets(size: str, net: Any, apply: Any, images: Any) -> None:
    _, step = apply(small(net), f"cp({size}=0.5,rectify=0)", images(30, 3, 8, 8))
    wanted, got = step.result.reached[size]
    assert wanted == 0.5 and 0.4 <= got <= 0.5


def test_keep_is_over_the_rank_at_which_nothing_is_lost(net: Any, apply: Any, images: Any) -> None:
    _, step = apply(small(net), "cp(keep=0.1,rectify=0)", images(30, 3, 8, 8))
    ranks = {row["node"]: (row["rank"], row["full"]) for row in step.result.numbers["pairs"]}
    assert ranks == {"stem": (2, 27), "one": (9, 90), "two": (10, 108)}


def test_other_kernels(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    build = net(4, 12)
    build.store("w", build.rng.standard_normal((8, 4, 5)) / 4)
    x = build.relu(build.node("Conv", "x", "w", name="line", pads=[4, 4], dilations=[2]))
    build.store("v", build.rng.standard_normal((8, 5, 3)) / 4)
    proto = build.model(build.node("ConvTranspose", x, "v", name="up"))
    result, step = apply(proto, "cp(flops=0.8,rectify=0)", images(60, 4, 12))
    (row,) = step.result.numbers["pairs"]
    assert row["node"] == "line" and "cannot be parted" in step.result.skipped["up"]
    data = images(5, 4, 12, seed=8)
    (want,), (got,) = run_model(proto, data).values(), run_model(result, data).values()
    assert want.shape == got.shape and np.square(got - want).sum() < 0.5 * np.square(want).sum()


def test_half_precision_and_the_same_bytes_again(net: Any, apply: Any, images: Any) -> None:
    proto = small(net, dtype=np.float16)
    data = images(30, 3, 8, 8, dtype=np.float16)
    made = [apply(proto, "cp(flops=0.6,rectify=1)", data)[0] for _ in range(2)]
    texts = [ir.serde.serialize_model(one).SerializeToString(deterministic=True) for one in made]
    assert texts[0] == texts[1]
    kinds = {value.dtype for value in made[0].graph.initializers.values() if value.dtype.is_floating_point()}
    assert kinds == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flops": 0.5, "params": 0.5}, "cp: flops and params are both given; one size decides, give one of them"),
        ({"latency": 0.5, "reconstruct": "none"}, "cp: latency= needs reconstruct=symmetric or asymmetric"),
        ({"reconstruct": "some"}, "reconstruct"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        Cp(**options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
