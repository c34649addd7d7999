"""Parameters, MACs and bytes against numbers worked out by hand, and what cannot be counted is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import Cost, example_shapes, measure

Case = tuple[onnx.ModelProto, int]


def cost(model: onnx.ModelProto, inputs: dict[str, tuple[int, ...]] | None = None) -> Cost:
    return measure(ir.serde.deserialize_model(model), inputs)


def conv(n: Any) -> Case:
    # 2 images, 5 x 5 positions, 6 outputs, 3 inputs, 3 x 3 kernel
    return n.model({"x": [2, 3, 7, 7]}, n.op("Conv", "x", n.weight(6, 3, 3, 3), n.weight(6))), 2 * 25 * 6 * 3 * 9


def strided(n: Any) -> Case:
    # ceil(7 / 2) = 4 positions a side
    value = n.op("Conv", "x", n.weight(6, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    return n.model({"x": [1, 3, 7, 7]}, value), 16 * 6 * 3 * 9


def dilated(n: Any) -> Case:
    return n.model({"x": [1, 3, 7, 7]}, n.op("Conv", "x", n.weight(6, 3, 3, 3), dilations=[2, 2])), 9 * 6 * 3 * 9


def grouped(n: Any) -> Case:
    return n.model({"x": [1, 4, 7, 7]}, n.op("Conv", "x", n.weight(6, 2, 3, 3), group=2)), 25 * 6 * 2 * 9


def depthwise(n: Any) -> Case:
    return n.model({"x": [1, 4, 7, 7]}, n.op("Conv", "x", n.weight(8, 1, 3, 3), group=4)), 25 * 8 * 9


def conv_1d(n: Any) -> Case:
    return n.model({"x": [1, 3, 10]}, n.op("Conv", "x", n.weight(6, 3, 4))), 7 * 6 * 3 * 4


def conv_3d(n: Any) -> Case:
    return n.model({"x": [1, 3, 4, 5, 6]}, n.op("Conv", "x", n.weight(6, 3, 2, 2, 2))), 3 * 4 * 5 * 6 * 3 * 8


def transposed(n: Any) -> Case:
    # every one of 2 x 7 x 7 inputs of 3 channels meets 6 outputs at 2 x 2 places
    value = n.op("ConvTranspose", "x", n.weight(3, 6, 2, 2), strides=[2, 2])
    return n.model({"x": [2, 3, 7, 7]}, value), 2 * 49 * 3 * 6 * 4


def transposed_grouped(n: Any) -> Case:
    return n.model({"x": [1, 4, 7, 7]}, n.op("ConvTranspose", "x", n.weight(4, 3, 2, 2), group=2)), 49 * 4 * 3 * 4


def gemm(n: Any) -> Case:
    return n.model({"x": [5, 4]}, n.op("Gemm", "x", n.weight(4, 6), n.weight(6))), 5 * 4 * 6


def gemm_both_transposed(n: Any) -> Case:
    return n.model({"x": [4, 5]}, n.op("Gemm", "x", n.weight(6, 4), n.weight(6), transA=1, transB=1)), 5 * 4 * 6


def matmul(n: Any) -> Case:
    return n.model({"x": [2, 3, 5, 4]}, n.op("MatMul", "x", n.weight(4, 6))), 2 * 3 * 5 * 4 * 6


def matmul_of_a_vector(n: Any) -> Case:
    return n.model({"x": [4]}, n.op("MatMul", "x", n.weight(4, 6))), 4 * 6


def matmul_to_a_vector(n: Any) -> Case:
    return n.model({"x": [5, 4]}, n.op("MatMul", "x", n.weight(4))), 5 * 4


def attention(n: Any) -> Case:
    # scores and their product with the values: two times 2 x 7 x 7 x 8
    scores = n.op("Softmax", n.op("MatMul", "x", n.op("Transpose", "x", perm=[0, 2, 1])))
    return n.model({"x": [2, 7, 8]}, n.op("MatMul", scores, "x")), 2 * 2 * 7 * 7 * 8


def lstm(n: Any) -> Case:
    # 6 steps, 2 sequences, one direction: 4 gates of (3 inputs + 5 states) x 5
    out = n.op("LSTM", "x", n.weight(1, 20, 3), n.weight(1, 20, 5), hidden_size=5)
    return n.model({"x": [6, 2, 3]}, out), 6 * 2 * 20 * (3 + 5)


def einsum(n: Any) -> Case:
    return n.model({"x": [2, 5, 4]}, n.op("Einsum", "x", n.weight(6, 4), equation="bij, kj -> bik")), 2 * 5 * 4 * 6


def free(n: Any) -> Case:
    return n.model({"x": [2, 3]}, n.op("Relu", n.op("Add", "x", n.weight(3)))), 0


CASES = [
    conv, strided, dilated, grouped, depthwise, conv_1d, conv_3d, transposed, transposed_grouped, gemm,
    gemm_both_transposed, matmul, matmul_of_a_vector, matmul_to_a_vector, attention, lstm, einsum, free,
]  # fmt: skip


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_macs_by_hand(net: Any, build: Callable[[Any], Case]) -> None:
    model, wanted = build(net())
    found = cost(model)
    assert found.macs == wanted
    assert found.macs == sum(node.macs or 0 for node in found.nodes.values())
    assert found.unknown == {}
    stored = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert found.params == sum(data.size for data in stored)
    assert found.bytes == sum(data.nbytes for data in stored)


def test_batches_count_and_symbols_count_once(net: Any) -> None:
    n = net()
    model = n.model({"x": ["N", 4]}, n.op("Gemm", "x", n.weight(4, 6), n.weight(6)))
    assert cost(model).macs == 24
    assert cost(model, {"x": (10, 4)}).macs == 240


def test_zeros_are_counted_apart(net: Any) -> None:
    n = net()
    weight = n.const(np.array([[1, 0, 2], [0, 0, 3]], np.float32))
    found = cost(n.model({"x": ["N", 2]}, n.op("MatMul", "x", weight, name="m")))
    assert (found.params, found.nonzero, found.bytes) == (6, 3, 24)
    assert (found.nodes["m"].params, found.nodes["m"].nonzero, found.nodes["m"].bytes) == (6, 3, 24)


def test_statistics_are_bytes_but_not_parameters(net: Any) -> None:
    n = net()
    found = cost(n.model({"x": ["N", 6]}, n.norm("x", 6)))
    assert (found.params, found.bytes) == (12, 96)


def test_shared_weights_count_once(net: Any) -> None:
    n = net()
    weight = n.weight(4, 4)
    model = n.model({"x": ["N", 4]}, n.op("MatMul", n.op("MatMul", "x", weight, name="a"), weight, name="b"))
    found = cost(model)
    assert (found.params, found.bytes, found.macs) == (16, 64, 32)
    assert [found.nodes[name].params for name in "ab"] == [16, 0]


def test_half_precision_takes_two_bytes(net: Any) -> None:
    n = net(dtype=np.float16)
    assert cost(n.model({"x": ["N", 4]}, n.op("MatMul", "x", n.weight(4, 6)))).bytes == 48


def test_integers_are_no_parameters(net: Any) -> None:
    n = net()
    found = cost(n.model({"x": ["N", 2, 3]}, n.op("Reshape", "x", n.ints(0, 6))))
    assert (found.params, found.bytes) == (0, 16)


def test_quantised_weights_are_parameters(net: Any) -> None:
    n = net()
    weight = n.op("DequantizeLinear", n.const(np.ones((4, 6), np.int8)), n.const(np.float32(0.1)), name="d")
    found = cost(n.model({"x": ["N", 4]}, n.op("MatMul", "x", weight)))
    assert found.nodes["d"].bytes == 24 + 4
    assert found.macs == 24


def test_constant_nodes_count_like_initialisers(net: Any) -> None:
    """Lifting constants must not look like a change of the model's size."""
    n = net()
    held = numpy_helper.from_array(n.rng.standard_normal((4, 6)).astype(np.float32))
    value = n.op("MatMul", "x", n.op("Constant", value=held), name="m")
    model = n.model({"x": ["N", 4]}, n.op("Add", value, n.op("Constant", value_floats=[1.0, 0.0] * 3)))
    before = cost(model)
    after = measure(finish(prepare(ir.serde.deserialize_model(model))))
    assert (before.params, before.nonzero, before.bytes) == (30, 27, 120)
    assert before.nodes["m"].params == 24
    assert before == after


def test_weights_in_bodies_are_bytes_and_their_macs_are_named_as_missing(net: Any) -> None:
    n = net()
    kind = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 4])
    branches = {}
    for word in ("then_branch", "else_branch"):
        weight = numpy_helper.from_array(np.ones((4, 4), np.float32), f"{word}.w")
        branches[word] = helper.make_graph(
            [helper.make_node("MatMul", ["x", weight.name], ["r"])], word, [], [kind], [weight]
        )
    found = cost(n.model({"x": ["N", 4]}, n.op("If", n.const(np.array(True)), name="choice", **branches)))
    assert found.bytes == 2 * 64 + 1
    assert found.unknown == {"choice": "If has a body of its own, whose MACs are not counted"}


def test_functions_with_macs_are_named(net: Any) -> None:
    n = net()
    n.nodes.append(helper.make_node("Twice", ["x", n.weight(4, 4)], ["y"], "call", domain="my.ops"))
    function = helper.make_function(
        "my.ops",
        "Twice",
        ["a", "w"],
        ["b"],
        [helper.make_node("MatMul", ["a", "w"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(n.nodes, "g", kinds[:1], kinds[1:], n.stored),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my.ops", 1)],
        functions=[function],
        ir_version=9,
    )
    assert list(cost(model).unknown) == ["call"]


def test_unknown_sizes_are_named_with_what_they_depend_on(net: Any) -> None:
    """How many positions NonZero finds depends on the data, so the product behind it cannot be counted."""
    n = net()
    found = n.op("Cast", n.op("NonZero", "x"), to=TensorProto.FLOAT)
    rows = n.op("Transpose", found)
    model = n.model({"x": ["rows", 4]}, n.op("MatMul", rows, n.weight(2, 5), name="m"), sizes=["found", 5])
    counted = cost(model)
    assert counted.macs == 0
    assert counted.unknown == {"m": f"MatMul has sizes that depend on '{rows}' (symbols: rows)"}
    assert counted.nodes["m"].macs is None


def test_input_without_a_shape_is_refused_by_name() -> None:
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", kinds[:1], kinds[1:]))
    with pytest.raises(ModelError, match="input 'x' declares no shape; declare one in the model or give data"):
        measure(ir.serde.deserialize_model(model))
    assert example_shapes(ir.serde.deserialize_model(model), {"x": [2, 3]}) == {"x": (2, 3)}


def test_measuring_does_not_change_the_model(net: Any) -> None:
    n = net(opset=8, ir_version=3)
    model = n.model({"x": ["N", 4]}, n.op("Gemm", "x", n.weight(4, 600), n.weight(600)))
    source = ir.serde.deserialize_model(model)
    before = ir.serde.serialize_model(source).SerializeToString(deterministic=True)
    first = measure(source)
    assert measure(source) == first
    assert ir.serde.serialize_model(source).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("name", "macs", "params", "nonzero"),
    [
        ("resnet20", 40_551_040, 269_034, None),
        # 269,722 parameters, and 688 zeros that the exporter wrote as biases of the convolutions
        ("resnet20-bn", 40_551_040, 269_722 + 688, 269_722),
        ("resnet20-legacy", 40_551_040, None, None),
        ("lenet5", 2_293_000, None, None),
        ("lenet300", 266_200, None, None),
    ],
)
def test_known_models(shared_data: Any, name: str, macs: int, params: int | None, nonzero: int | None) -> None:
    model = io.load(shared_data / "onnx" / f"{name}.onnx")
    before, after = measure(model), measure(finish(prepare(model)))
    for found in (before, after):
        assert found.macs == macs
        assert params is None or found.params == params
        assert nonzero is None or found.nonzero == nonzero
        assert found.unknown == {}
    assert (before.params, before.nonzero) == (after.params, after.nonzero)
    # The old exporter computes pads from stored numbers; folded, only the pads are stored.
    assert abs(before.bytes - after.bytes) <= 1024
