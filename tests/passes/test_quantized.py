"""Passes on quantised models: filters cuts them, id and surp leave what they cannot change well."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.graph.kept import read_kept


def scaled(build: Any, name: str, data: np.ndarray, axis: int) -> str:
    """Store a weight in eight bits with a scale for every slice along ``axis``, and its way back."""
    others = tuple(i for i in range(data.ndim) if i != axis)
    scale = np.abs(data).max(axis=others, keepdims=True) / 127 + 1e-9
    build.store(f"{name}.q", np.rint(data / scale).astype(np.int8))
    build.store(f"{name}.s", scale.ravel())
    build.store(f"{name}.z", np.zeros(scale.size, np.int8))
    return str(build.node("DequantizeLinear", f"{name}.q", f"{name}.s", f"{name}.z", name=f"{name}.w", axis=axis))


def conv(build: Any, x: str, given: int, width: int, name: str, scales: np.ndarray | None = None) -> str:
    weight = build.weight((width, given, 3, 3), 0, given * 9)
    if scales is not None:
        weight *= scales.reshape(-1, 1, 1, 1)
    return str(build.node("Conv", x, scaled(build, name, weight, 0), name=name, pads=[1, 1, 1, 1]))


def rounded(build: Any, x: str) -> str:
    name = f"round{len(build.nodes)}"
    build.store(f"{name}.s", np.array(0.05)), build.store(f"{name}.z", np.array(0, np.int8))
    value = build.node("QuantizeLinear", x, f"{name}.s", f"{name}.z")
    return str(build.node("DequantizeLinear", value, f"{name}.s", f"{name}.z"))


@pytest.fixture
def quantised(net: Any) -> onnx.ModelProto:
    build = net(3, 8, 8)
    # Integers of every channel fill their range, so that only the scales tell which channels are small.
    first = conv(build, rounded(build, "x"), 3, 8, "first", np.array([1, 9, 1, 9, 9, 1, 1, 9]))
    second = conv(build, rounded(build, build.relu(first)), 8, 6, "second")
    value = rounded(build, build.relu(second))
    flat = build.node("Flatten", build.node("GlobalAveragePool", value))
    proto: onnx.ModelProto = build.model(build.gemm(flat, 6, 4, name="head", last=True))
    return proto


def test_filters_ranks_by_what_integers_stand_for(quantised: Any, apply: Any, run_model: Any, images: Any) -> None:
    result, _ = apply(quantised, "filters(keep=0.5)")
    kept = read_kept(result)
    assert kept["first"] == [1, 3, 4, 7] and len(kept["second"]) == 3
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    assert result.graph.initializers["first.q"].const_value.numpy().dtype == np.int8
    assert run_model(result, images(4, 3, 8, 8))["head_out"].shape == (4, 4)


def test_sizes_are_reached(quantised: Any, apply: Any) -> None:
    for text in ("filters(flops=0.4)", "filters(params=0.5)"):
        _, step = apply(quantised, text)
        for wanted, got in step.result.reached.values():
            assert 0.5 * wanted < got <= wanted


def test_id_folds_into_single_precision_alone(quantised: Any, apply: Any, images: Any) -> None:
    result, step = apply(quantised, "id(keep=0.5)", images(64, 3, 8, 8))
    assert step.result.skipped["first"] == "'second' has a quantised or converted weight, which takes no correction"
    assert read_kept(result).keys() == {"second"}


def test_surp_leaves_integers(quantised: Any, apply: Any) -> None:
    result, step = apply(quantised, "surp(sparsity=0.5)")
    reason = "its weight is quantised, converted or transposed by the graph, and left as it is"
    assert {name: step.result.skipped[name] for name in ("first", "second")} == {"first": reason, "second": reason}
    assert [row["tensor"] for row in step.result.numbers["layers"]] == ["head.w"]
    assert np.array_equal(
        result.graph.initializers["first.q"].const_value.numpy(),
        onnx.numpy_helper.to_array(next(t for t in quantised.graph.initializer if t.name == "first.q")),
    )


def test_surp_names_matrices_behind_nodes(net: Any, apply: Any) -> None:
    build = net(5)
    value = build.node("MatMul", "x", scaled(build, "a", build.weight((5, 6), 1, 5), 1), name="a")
    proto = build.model(build.gemm(value, 6, 4, name="head", last=True))
    _, step = apply(proto, "surp(sparsity=0.5)")
    assert "quantised" in step.result.skipped["a"]


@pytest.mark.parametrize("text", ["fold_bn", "cleanup"])
def test_lossless_passes_keep_the_outputs(quantised: Any, apply: Any, run_model: Any, images: Any, text: str) -> None:
    result, _ = apply(quantised, text)
    data = images(4, 3, 8, 8)
    np.testing.assert_array_equal(run_model(result, data)["head_out"], run_model(quantised, data)["head_out"])
