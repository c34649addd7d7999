"""Costs by widths against the predicted cost and against models that were really cut."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.tally import Tally

QUIET: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


def chain(net: Any, draw: Any) -> onnx.ModelProto:
    """Convolutions with sums, joins, depthwise parts, halves of them in half precision."""
    dtype = draw(st.sampled_from([np.float32, np.float16]))
    n = net(draw(st.integers(0, 99)), dtype=dtype)
    width, value = 5, n.op("Conv", "x", n.weight(5, 3, 3, 3), n.weight(5), pads=[1] * 4)
    for step in draw(st.lists(st.sampled_from(["conv", "sum", "depth", "norm", "join", "group", "up"]), max_size=6)):
        if step == "conv":
            fresh = draw(st.integers(2, 8))
            value, width = n.op("Conv", value, n.weight(fresh, width, 3, 3), pads=[1] * 4), fresh
        elif step == "sum":
            inner = n.op("Relu", n.op("Conv", value, n.weight(4, width, 1, 1), n.weight(4)))
            value = n.op("Add", value, n.op("Conv", inner, n.weight(width, 4, 3, 3), pads=[1] * 4))
        elif step == "depth":
            value = n.op("Conv", value, n.weight(width, 1, 3, 3), group=width, pads=[1] * 4)
        elif step == "norm":
            value = n.norm(value, width)
        elif step == "join":
            value, width = n.op("Concat", value, n.op("Conv", value, n.weight(3, width, 1, 1)), axis=1), width + 3
        elif step == "group":
            value = n.op("Conv", n.op("Conv", value, n.weight(6, width, 1, 1)), n.weight(8, 3, 1, 1), group=2)
            width = 8
        else:
            value, width = n.op("ConvTranspose", value, n.weight(width, 4, 1, 1), n.weight(4)), 4
    flat = n.op("Flatten", n.op("GlobalAveragePool", value))
    return n.model({"x": ["N", 3, 6, 6]}, n.op("Gemm", flat, n.weight(7, width), n.weight(7), transB=1))


def attention(net: Any, heads: int, size: int, dtype: Any = np.float32) -> onnx.ModelProto:
    n, width = net(5, dtype=dtype), heads * size

    def linear(value: str, given: int, outs: int) -> str:
        return str(n.op("Add", n.op("MatMul", value, n.weight(given, outs)), n.weight(outs)))

    def parted(order: list[int]) -> str:
        grid = n.op("Reshape", linear("x", 8, width), n.ints(0, 5, heads, size))
        return str(n.op("Transpose", grid, perm=order))

    scores = n.op("Softmax", n.op("MatMul", parted([0, 2, 1, 3]), parted([0, 2, 3, 1])), axis=-1)
    mixed = n.op("Transpose", n.op("MatMul", scores, parted([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    value = n.op("Add", "x", linear(n.op("Reshape", mixed, n.ints(0, 5, width)), width, 8))
    return n.model({"x": ["N", 5, 8]}, linear(n.op("Relu", linear(value, 8, 13)), 13, 3))


def check(proto: onnx.ModelProto, rng: np.random.Generator, *, batch: int = 2, rounds: int = 4) -> set[str]:
    """Compare any widths with the prediction and with the cut model."""
    source = ir.serde.deserialize_model(proto)
    name = proto.graph.input[0].name
    shape = tuple(dim.dim_value or batch for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    base = prepare(source)
    analysis = spaces.analyse(base)
    shapes = concrete_shapes(base, example_shapes(base, {name: shape}))
    tally, before = Tally(analysis, shapes), measure(base, {name: shape})
    assert tally.macs({}) == before.macs
    assert tally.params({}) == tally.bytes({}) == 0
    for _ in range(rounds):
        chosen = [space for space in analysis.prunable if rng.random() < 0.8]
        kept = {s.name: np.sort(rng.choice(s.width, int(rng.integers(1, s.width + 1)), replace=False)) for s in chosen}
        widths = {key: len(value) for key, value in kept.items()}
        assert tally.macs(widths) == spaces.predicted_macs(analysis, shapes, kept)
        work = spaces.analyse(prepare(source))
        surgery.cut(work, kept)
        after = measure(work.model, {name: shape})
        assert tally.macs(widths) == after.macs
        assert tally.params(widths) == after.params - before.params
        assert tally.bytes(widths) == after.bytes - before.bytes
    return set(tally.full)


@settings(max_examples=25, **QUIET)
@given(data=st.data())
def test_random_graphs(net: Any, data: Any) -> None:
    found = check(chain(net, data.draw), np.random.default_rng(data.draw(st.integers(0, 99))))
    assert found


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention(net: Any, heads: int, dtype: Any) -> None:
    found = check(attention(net, heads, 4, dtype), np.random.default_rng(heads), rounds=8)
    assert len(found) >= 3


def test_recurrence(net: Any) -> None:
    n = net(3)
    states = n.op("GRU", "x", n.weight(1, 18, 5), n.weight(1, 18, 6), n.weight(1, 36), outputs=2, hidden_size=6)
    flat = n.op("Squeeze", states[1], n.ints(0))
    check(n.model({"x": [4, "N", 5]}, n.op("MatMul", flat, n.weight(6, 3))), np.random.default_rng(0), batch=3)


def test_quantised_weights(net: Any) -> None:
    n = net(4)
    data = n.const(n.rng.integers(-100, 100, (6, 3, 3, 3)), dtype=np.int8)
    scale = n.const(n.rng.uniform(0.01, 0.02, 6), dtype=np.float32)
    value = n.op("Relu", n.op("Conv", "x", n.op("DequantizeLinear", data, scale, axis=0)))
    check(n.model({"x": ["N", 3, 6, 6]}, n.op("Conv", value, n.weight(4, 6, 1, 1))), np.random.default_rng(0))


def test_spaces_of_one_node_conflict(net: Any) -> None:
    n = net(6)
    first = n.op("Relu", n.op("Conv", "x", n.weight(5, 3, 1, 1), name="first"))
    second = n.op("Relu", n.op("Conv", first, n.weight(6, 5, 1, 1), name="second"))
    third = n.op("Relu", n.op("Conv", second, n.weight(7, 6, 1, 1), name="third"))
    base = prepare(
        ir.serde.deserialize_model(n.model({"x": ["N", 3, 4, 4]}, n.op("Conv", third, n.weight(2, 7, 1, 1))))
    )
    found = Tally(spaces.analyse(base), concrete_shapes(base, example_shapes(base))).conflicts()
    assert found == {"first": {"second"}, "second": {"first", "third"}, "third": {"second"}}


def test_costs_are_remembered(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = prepare(ir.serde.deserialize_model(attention(net, 2, 4)))
    analysis = spaces.analyse(base)
    tally = Tally(analysis, concrete_shapes(base, example_shapes(base)))
    widths = {space.name: 1 for space in analysis.prunable}
    first = tally.macs(widths)
    monkeypatch.setattr(sys.modules[Tally.__module__], "node_macs", lambda *_: pytest.fail("counted again"))
    assert tally.macs(widths) == first
