"""Quantised models: weights behind DequantizeLinear, pairs of QuantizeLinear and DequantizeLinear between layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.graph import origins, spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import measure

Case = tuple[onnx.ModelProto, dict[str, int]]


def scales(n: Any, size: tuple[int, ...], mean: float) -> str:
    return str(n.const(n.rng.uniform(0.5, 1.5, size) * mean, dtype=np.float32))


def quantised(n: Any, *shape: int, axis: int | None = None, dtype: Any = np.int8, zero: bool = True) -> str:
    """Store a random weight in eight bits with one scale, or one for every slice along ``axis``."""
    low, high = (0, 255) if dtype == np.uint8 else (-127, 127)
    data = n.const(n.rng.integers(low, high, shape, endpoint=True).astype(dtype))
    size = () if axis is None else (shape[axis],)
    scale = scales(n, size, 1 / 127 / np.sqrt(max(1, np.prod(shape[1:]))))
    middle = 128 if dtype == np.uint8 else 0
    zeros = [n.const(middle + n.rng.integers(-3, 4, size), dtype=dtype)] if zero else []
    return str(n.op("DequantizeLinear", data, scale, *zeros, **({} if axis is None else {"axis": axis})))


def bias(n: Any, size: int, *, each: bool = True) -> str:
    """Store a bias in 32 bits, as the quantisation of ONNX Runtime does."""
    data = n.const(n.rng.integers(-900, 900, size).astype(np.int32))
    scale = scales(n, (size,) if each else (), 1e-3)
    zero = n.const(np.zeros((size,) if each else (), np.int32))
    return str(n.op("DequantizeLinear", data, scale, zero, axis=0))


def pair(n: Any, value: str, dtype: Any = np.uint8, channels: int = 0, axis: int = 1) -> str:
    """Round activations to eight bits and back, with one scale or one for each of ``channels``."""
    size = (channels,) if channels else ()
    scale, zero = scales(n, size, 0.03), n.const(100 + n.rng.integers(0, 9, size), dtype=dtype)
    attributes = {"axis": axis} if channels else {}
    rounded = n.op("QuantizeLinear", value, scale, zero, **attributes)
    return str(n.op("DequantizeLinear", rounded, scale, zero, **attributes))


def conv(n: Any, value: str, weight: str, *added: str, name: str, **attributes: Any) -> str:
    return str(n.op("Conv", value, weight, *added, name=name, pads=[1] * 4, **attributes))


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": ["N", 3, 8, 8]}, *outputs)
    return model


def head(n: Any, value: str, ins: int) -> str:
    flat = n.op("Flatten", n.op("GlobalAveragePool", value))
    return str(n.op("Gemm", flat, quantised(n, 5, ins, axis=0), bias(n, 5), transB=1, name="head"))


def convolutions(n: Any, axis: int | None, dtype: Any, channels: int = 0) -> Case:
    value = conv(n, pair(n, "x"), quantised(n, 6, 3, 3, 3, axis=axis, dtype=dtype), bias(n, 6), name="a")
    value = pair(n, n.op("Relu", value), channels=6 if channels else 0)
    value = conv(n, value, quantised(n, 8, 6, 3, 3, axis=axis, dtype=dtype), bias(n, 8, each=False), name="b")
    return image(n, head(n, pair(n, n.op("Relu", value)), 8)), {"a": 6, "b": 8}


@pytest.mark.parametrize("axis", [None, 0, 1, -4])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("channels", [0, 1])
def test_convolutions(net: Any, cut_equals_masked: Any, axis: int | None, dtype: Any, channels: int) -> None:
    for seed in range(2):
        model, widths = convolutions(net(), axis, dtype, channels)
        assert cut_equals_masked(model, seed=seed) == widths


def residual(n: Any) -> Case:
    """Every tensor is rounded, the sum as well; BatchNormalization is folded, as quantisation does before."""
    stem = pair(n, conv(n, pair(n, "x"), quantised(n, 6, 3, 3, 3, axis=0), bias(n, 6), name="a"))
    value = pair(n, n.op("Relu", conv(n, stem, quantised(n, 4, 6, 3, 3, axis=0), bias(n, 4), name="b")))
    value = pair(n, conv(n, value, quantised(n, 6, 4, 3, 3, axis=0), bias(n, 6), name="c"))
    return image(n, head(n, pair(n, n.op("Add", stem, value)), 6)), {"a": 6, "b": 4}


def grouped_and_depthwise(n: Any) -> Case:
    value = conv(n, "x", quantised(n, 6, 3, 3, 3, axis=0), bias(n, 6), name="a")
    value = conv(n, pair(n, value), quantised(n, 6, 1, 3, 3, axis=0), bias(n, 6), name="d", group=6)
    value = conv(n, pair(n, value), quantised(n, 8, 3, 3, 3, axis=0), name="g", group=2)
    return image(n, head(n, pair(n, value), 8)), {"a": 2, "a#2": 3, "g": 4}


def transposed(n: Any) -> Case:
    value = conv(n, "x", quantised(n, 6, 3, 3, 3), name="a")
    value = n.op(
        "ConvTranspose", pair(n, value), quantised(n, 6, 4, 2, 2, axis=1), bias(n, 4), strides=[2, 2], name="t"
    )
    return image(n, head(n, pair(n, value), 4)), {"a": 6, "t": 4}


def matrices(n: Any) -> Case:
    """Gemm and MatMul; a weight that is transposed or copied behind its scales, and half precision made single."""
    value = n.op("Gemm", pair(n, "x"), quantised(n, 6, 4, axis=0), bias(n, 6), transB=1, name="a")
    weight = n.op("Identity", n.op("Transpose", quantised(n, 7, 6, axis=0)))
    value = n.op("MatMul", pair(n, value, channels=6, axis=-1), weight, name="b")
    value = n.op("Add", pair(n, value), bias(n, 7))
    big = n.const(n.rng.standard_normal((7, 6000)).astype(np.float16) / 2)
    value = n.op("MatMul", value, n.op("Cast", big, to=TensorProto.FLOAT), name="c")
    return n.model({"x": ["N", 4]}, n.op("MatMul", value, quantised(n, 6000, 2, axis=1), name="e")), {
        "a": 6,
        "b": 7,
        "c": 6000,
    }


def rounded_in_the_graph(n: Any) -> Case:
    """Training with rounding stores single precision and rounds it anew on every run."""
    weight = n.op("QuantizeLinear", n.weight(6, 3, 3, 3), n.const(np.full(6, 0.01, np.float32)), axis=0)
    value = conv(n, "x", n.op("DequantizeLinear", weight, n.const(np.full(6, 0.01, np.float32)), axis=0), name="a")
    return image(n, head(n, pair(n, value, np.int8), 6)), {"a": 6}


def lookup(n: Any) -> Case:
    """A quantised table of embeddings."""
    rows = n.op("Gather", quantised(n, 10, 6, axis=1), n.op("Cast", "ids", to=TensorProto.INT64), name="table")
    return n.model({"ids": [2, 5]}, n.op("MatMul", rows, quantised(n, 6, 3), name="b")), {"table": 6}


def other_constants(n: Any) -> Case:
    """Stored operands of element-wise operators and normalisations may be quantised as well."""
    value = conv(n, "x", quantised(n, 6, 3, 3, 3), name="a")
    value = n.op("Mul", value, quantised(n, 6, 1, 1, axis=0))
    value = n.op("InstanceNormalization", value, quantised(n, 6, axis=0), bias(n, 6))
    return image(n, head(n, n.op("PRelu", value, quantised(n, 1, 6, 1, 1, axis=1)), 6)), {"a": 6}


CASES: list[Callable[[Any], Case]] = [
    residual, grouped_and_depthwise, transposed, matrices, rounded_in_the_graph, lookup, other_constants,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_cut_equals_the_masked_model(net: Any, cut_equals_masked: Any, build: Callable[[Any], Case], seed: int) -> None:
    model, widths = build(net())
    assert cut_equals_masked(model, seed=seed) == widths


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
def test_opsets(net: Any, cut_equals_masked: Any, opset: int) -> None:
    n = net(opset=opset, ir_version=11 if opset == 23 else 8)
    model, widths = convolutions(n, None if opset < 13 else 0, np.int8) if opset >= 13 else plain(n)
    assert cut_equals_masked(model) == widths


def plain(n: Any) -> Case:
    """Before opset 13 one scale serves a whole tensor, and no axis is named."""
    value = pair(n, conv(n, pair(n, "x"), quantised(n, 6, 3, 3, 3), name="a"))
    value = n.op("Flatten", n.op("GlobalAveragePool", conv(n, value, quantised(n, 8, 6, 3, 3), name="b")))
    return image(n, n.op("MatMul", value, quantised(n, 8, 5), name="head")), {"a": 6, "b": 8}


def blocked(n: Any, axis: int) -> onnx.ModelProto:
    """Four bits with a scale for every block of 4 along one axis of W[8, 6]."""
    value = n.op("MatMul", "x", n.weight(5, 8), name="a")
    shape = [8, 6]
    shape[axis] //= 3 if axis else 4
    data = helper.make_tensor("w", TensorProto.INT4, [8, 6], n.rng.integers(-8, 8, 48).tolist())
    n.stored.append(data)
    scale = scales(n, tuple(shape), 0.07)
    weight = n.op("DequantizeLinear", "w", scale, axis=axis, block_size=3 if axis else 4, name="d")
    model: onnx.ModelProto = n.model(
        {"x": ["N", 5]}, n.op("MatMul", n.op("MatMul", value, weight, name="b"), n.weight(6, 3), name="c")
    )
    return model


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_are_not_parted(net: Any, cut_equals_masked: Any, axis: int) -> None:
    """Along the blocks channels stay; along the other axis they go with their scales."""
    n = net(opset=21, ir_version=10)
    shape = (2, 6) if axis == 0 else (8, 2)
    model = blocked(n, axis)
    assert shape in [tuple(t.dims) for t in model.graph.initializer]
    refused = spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused
    assert refused["b" if axis else "a"] == "'d' quantises them in blocks, which a cut would part"
    assert cut_equals_masked(model) == ({"a": 8} if axis else {"b": 6})


def test_what_goes_and_what_stays(net: Any) -> None:
    model, _ = convolutions(net(), 0, np.int8, 1)
    work = prepare(ir.serde.deserialize_model(model))
    node = next(node for node in work.graph if node.name == "a")
    behind = node.inputs[1].producer()  # type: ignore[union-attr]
    assert behind is not None
    before = [value.const_value.numpy().copy() for value in behind.inputs]  # type: ignore[union-attr]
    surgery.cut(spaces.analyse(work), {"a": [1, 4]})
    for value, old in zip(behind.inputs, before, strict=True):
        assert value is not None and value.const_value is not None
        assert value.const_value.numpy().dtype == old.dtype
        np.testing.assert_array_equal(value.const_value.numpy(), old[[1, 4]])
    result = ir.serde.serialize_model(finish(work))
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_values_are_those_of_the_graph(net: Any, run_model: Any, axis: int | None, dtype: Any) -> None:
    n = net()
    weight = n.op("Transpose", quantised(n, 6, 4, axis=axis, dtype=dtype), name="w")
    model = n.model({"x": ["N", 4]}, n.op("MatMul", "x", weight, name="a"))
    work = prepare(ir.serde.deserialize_model(model))
    found = origins.values(next(node for node in work.graph if node.name == "a").inputs[1])
    (got,) = run_model(model, {"x": np.eye(4, dtype=np.float32)}).values()
    np.testing.assert_allclose(found, got, rtol=1e-6)
    norms = surgery.axis_norms(next(node for node in work.graph if node.name == "a").inputs[1], 1)
    np.testing.assert_allclose(norms, np.linalg.norm(got, axis=0), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocked_values_are_those_of_the_graph(net: Any, run_model: Any, axis: int) -> None:
    n = net(opset=21, ir_version=10)
    blocked(n, axis)
    n.nodes = [node for node in n.nodes if node.name == "d"]
    model = n.model({"y": ["N", 8]}, n.op("MatMul", "y", n.nodes[0].output[0], name="only"))
    work = prepare(ir.serde.deserialize_model(model))
    found = origins.values(next(node for node in work.graph if node.name == "only").inputs[1])
    (got,) = run_model(model, {"y": np.eye(8, dtype=np.float32)}).values()
    np.testing.assert_allclose(found, got, rtol=1e-6)


def test_quantised_readers_are_opaque(net: Any) -> None:
    model, _ = convolutions(net(), 0, np.int8)
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(model)))
    assert {space.name: analysis.opaque(space) for space in analysis.prunable} == {
        "a": "'b' has a quantised or converted weight, which takes no correction",
        "b": "'head' has a quantised or converted weight, which takes no correction",
    }


def shared_weight(n: Any) -> onnx.ModelProto:
    """Exporters merge equal tensors, so that one dequantised weight and one bias serve several nodes."""
    weight, added = n.op("Transpose", quantised(n, 6, 6, axis=0), name="t"), bias(n, 6)
    value = n.op("MatMul", "x", n.weight(4, 6), name="a")
    for name in ("b", "c"):
        value = n.op("Relu", n.op("Add", n.op("MatMul", value, weight, name=name), added))
    model: onnx.ModelProto = n.model({"x": ["N", 4]}, n.op("MatMul", value, n.weight(6, 3), name="d"))
    return model


def test_weights_read_twice_are_cut_apart(net: Any, cut_equals_masked: Any) -> None:
    for seed in range(2):
        assert cut_equals_masked(shared_weight(net()), seed=seed) == {"a": 6, "b": 6, "c": 6}


def test_nodes_read_twice_are_one_again_where_they_are_equal(net: Any) -> None:
    model = shared_weight(net())
    for kept, copies in (({}, 1), ({"a": [0, 2], "b": [0, 2]}, 2), ({"a": [1, 3], "b": [1, 3], "c": [1, 3]}, 1)):
        work = prepare(ir.serde.deserialize_model(model))
        surgery.cut(spaces.analyse(work), kept)
        result = ir.serde.serialize_model(finish(work))
        kinds = [node.op_type for node in result.graph.node]
        assert (kinds.count("Transpose"), kinds.count("DequantizeLinear")) == (copies, 2 * copies)
        if not kept:
            assert [node.name for node in result.graph.node] == [node.name for node in model.graph.node]
            assert {t.name for t in result.graph.initializer} == {t.name for t in model.graph.initializer}


def test_weights_that_the_graph_returns_stay(net: Any) -> None:
    n = net()
    weight = quantised(n, 6, 6)
    value = n.op("MatMul", n.op("MatMul", "x", n.weight(4, 6), name="a"), weight, name="b")
    model = n.model({"x": ["N", 4]}, n.op("MatMul", value, n.weight(6, 3), name="c"), weight)
    refused = spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused
    assert refused["b"] == "it sums over channels of which one operand's cannot be cut"


def test_scales_per_channel_that_are_fed_hold_the_channels(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    value = conv(n, "x", n.weight(6, 3, 3, 3), name="a")
    scaled = n.op("QuantizeLinear", value, "s", axis=1, name="q")
    value = n.op("DequantizeLinear", scaled, n.const(np.full(6, 0.02, np.float32)), axis=1)
    model = n.model({"x": ["N", 3, 8, 8], "s": [6]}, head(n, value, 6))
    refused = spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused
    assert refused["q"] == "its scales are computed, shared with a body, or may be fed by the caller"


def test_parameters_are_weights_and_biases(net: Any) -> None:
    """As many as the model had before it was quantised; bytes and MACs follow what is stored and computed."""
    model, _ = convolutions(net(), 0, np.uint8)
    source = ir.serde.deserialize_model(model)
    found = measure(source)
    sizes = [6 * 3 * 9 + 6, 8 * 6 * 9 + 8, 5 * 8 + 5]
    assert found.params == sum(sizes)
    assert found.macs == 64 * (6 * 3 * 9 + 8 * 6 * 9) + 40
    work = prepare(source)
    analysis = spaces.analyse(work)
    kept = {"a": [0, 2, 3], "b": [1, 5]}
    predicted = spaces.parameter_counter(analysis)(kept)
    surgery.cut(analysis, kept)
    assert measure(finish(work)).params == predicted == (3 * 27 + 3) + (2 * 27 + 2) + (5 * 2 + 5)


def test_zeros_are_counted_at_the_zero_point(net: Any) -> None:
    n = net()
    data = n.const(np.array([[7, 0], [7, 9]], np.uint8))
    weight = n.op("DequantizeLinear", data, n.const(np.float32(0.1)), n.const(np.array(7, np.uint8)), name="d")
    found = measure(ir.serde.deserialize_model(n.model({"x": ["N", 2]}, n.op("MatMul", "x", weight))))
    assert (found.params, found.nonzero) == (4, 2)


@pytest.mark.parametrize("each", [False, True])
def test_what_onnx_runtime_quantises(
    conv_net: Any, cut_equals_masked: Any, tmp_path: Any, each: bool, run_model: Any
) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            draw = np.random.default_rng(0).standard_normal
            self.left = [{"input": draw((4, 1, 12, 12)).astype(np.float32)} for _ in range(3)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    onnx.save(conv_net(0), tmp_path / "float.onnx")
    quantization.quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Reader(), per_channel=each,
        quant_format=quantization.QuantFormat.QDQ,
    )  # fmt: skip
    model = onnx.load(tmp_path / "int8.onnx")
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) > 10
    widths = cut_equals_masked(model)
    assert sorted(widths.values()) == [8, 12, 20]
