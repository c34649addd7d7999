"""What depends on constants alone is computed once, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.cleanup import cleanup
from onnxprune.graph.cost import measure


def names(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"value": numpy_helper.from_array(np.array([1, 2, 3], np.float32))}, TensorProto.FLOAT),
        ({"value": numpy_helper.from_array(np.array(2.5, np.float32))}, TensorProto.FLOAT),
        ({"value_float": 1.5}, TensorProto.FLOAT),
        ({"value_floats": [1.5, 2.5, -1.0]}, TensorProto.FLOAT),
        ({"value_int": 3}, TensorProto.INT64),
        ({"value_ints": [3, 4, 5]}, TensorProto.INT64),
    ],
    ids=["tensor", "scalar tensor", "float", "floats", "int", "ints"],
)
@pytest.mark.parametrize("opset", [13, 18, 23])
def test_constant_nodes_of_every_kind(net: Any, tidied: Any, attributes: dict[str, Any], kind: int, opset: int) -> None:
    n = net(opset=opset, ir_version=10)
    value = n.op("Cast", n.op("Constant", **attributes), to=TensorProto.FLOAT)
    direct = n.op("Constant", **attributes)
    model = n.model({"x": ["N", 3]}, n.op("Add", "x", n.op("ReduceSum", value)), direct)
    assert model.graph.output[1].type.tensor_type.elem_type == kind
    result, counts = tidied(model)
    assert sorted(names(result)) == ["Add", "Constant"]
    assert counts["folded"] == 2


def test_string_constants_stay(tidied: Any, run_model: Any) -> None:
    nodes = [
        helper.make_node("Constant", [], ["one"], value_string="a"),
        helper.make_node("Constant", [], ["two"], value_strings=["a", "\u00e9"]),
        helper.make_node("Identity", ["two"], ["same"]),
        helper.make_node("Equal", ["same", "one"], ["equal"]),
        helper.make_node("Not", ["equal"], ["out"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    results = [
        helper.make_tensor_value_info("out", TensorProto.BOOL, [2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
    ]
    stored = [numpy_helper.from_array(np.array(["p", "q"], dtype=object), "words")]
    nodes.append(helper.make_node("Concat", ["words", "words"], ["joined"], axis=0))
    nodes.append(helper.make_node("Identity", ["joined"], ["texts"]))
    results.append(helper.make_tensor_value_info("texts", TensorProto.STRING, [4]))
    graph = helper.make_graph(nodes, "g", given, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    source = ir.serde.deserialize_model(model)
    result = ir.serde.serialize_model(cleanup(source)[0])
    x = {"x": np.ones((1, 3), np.float32)}
    want, got = run_model(model, x), run_model(result, x)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert measure(source).params == 0


def test_folded_scalars_stay_scalars(net: Any, tidied: Any) -> None:
    """An axis too many would make the concatenated shape two-dimensional."""
    n = net()
    rows = n.op("Gather", n.op("Shape", "x"), n.const(np.int64(1)))
    target = n.op("Concat", n.ints(-1), n.op("Unsqueeze", rows, n.ints(0)), axis=0)
    result, _ = tidied(n.model({"x": ["N", 6]}, n.op("Reshape", n.op("Relu", "x"), target)))
    assert names(result) == ["Relu", "Reshape"]


@pytest.mark.parametrize("opset", range(7, 24))
def test_shape_chains_of_old_exporters_at_every_opset(net: Any, tidied: Any, opset: int) -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape: what ``x.view(x.size(0), -1)`` was exported to."""
    n = net(opset=opset, ir_version=3 if opset < 9 else 8)

    def whole(data: Any) -> str:
        held = np.array(data, np.int64)  # before opset 9 a Constant node held floating point numbers only
        return str(n.op("Constant", value=numpy_helper.from_array(held)) if opset >= 9 else n.const(held))

    pooled = n.op("Relu", "x")
    size = n.op("Gather", n.op("Shape", pooled), whole(0), axis=0)
    size = n.op("Unsqueeze", size, n.ints(0)) if opset >= 13 else n.op("Unsqueeze", size, axes=[0])
    flat = n.op("Reshape", pooled, n.op("Concat", size, whole([-1]), axis=0))
    out = n.op("Gemm", n.op("Dropout", n.op("Identity", flat)), n.weight(12, 5), n.weight(5))
    model = n.model({"x": ["N", 3, 2, 2]}, out, sizes=["N", 5])
    result, counts = tidied(model)
    assert counts["identities"] == 2
    assert names(result) == ["Relu", "Reshape", "Gemm"]
    if model.ir_version < 4:
        assert {t.name for t in result.graph.initializer} <= {i.name for i in result.graph.input}
        assert result.graph.input[0].name == "x"


def test_shape_chain_with_a_fixed_batch_becomes_a_constant(net: Any, run_model: Any) -> None:
    n = net()
    size = n.op("Slice", n.op("Shape", "x"), n.ints(0), n.ints(1), n.ints(0))
    out = n.op("Reshape", n.op("Relu", "x"), n.op("Concat", size, n.ints(-1), axis=0))
    result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(n.model({"x": [2, 3, 2, 2]}, out)))[0])
    assert names(result) == ["Relu", "Reshape"]
    assert run_model(result, {"x": np.ones((2, 3, 2, 2), np.float32)})[out].shape == (2, 12)


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [(None, None, [2, 3, 4]), (1, None, [3, 4]), (-1, None, [4]), (0, -1, [2, 3]), (2, 1, [])],
)
def test_slices_of_shapes(net: Any, tidied: Any, start: int | None, end: int | None, wanted: list[int]) -> None:
    n = net()
    limits = {key: value for key, value in (("start", start), ("end", end)) if value is not None}
    sizes = n.op("Cast", n.op("Shape", "x", **limits), to=TensorProto.FLOAT)
    model = n.model({"x": [2, 3, 4]}, n.op("Add", n.op("ReduceSum", sizes), "x"))
    result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(model))[0])
    assert names(result) == ["Add"]
    assert numpy_helper.to_array(result.graph.initializer[0]) == sum(wanted)


def test_random_and_quantised_nodes_are_not_folded(net: Any, tidied: Any) -> None:
    n = net()
    quantised = n.op("DequantizeLinear", n.const(np.arange(4, dtype=np.int8)), n.const(np.float32(0.5)))
    noise = n.op("Mul", n.op("RandomNormalLike", n.weight(4), seed=1.0), n.const(np.float32(0)))
    result, counts = tidied(n.model({"x": ["N", 4]}, n.op("Add", n.op("Add", "x", quantised), noise)))
    assert counts["folded"] == 0
    assert "DequantizeLinear" in names(result)


def test_large_results_are_left_as_computations(net: Any, tidied: Any) -> None:
    n = net()
    filled = n.op("ConstantOfShape", n.ints(1000, 100), value=numpy_helper.from_array(np.ones(1, np.float32)))
    result, _ = tidied(n.model({"x": [1, 100]}, n.op("Add", "x", filled)))
    assert names(result) == ["ConstantOfShape", "Add"]


def test_defaults_that_the_caller_may_replace_are_not_constants(net: Any, run_model: Any) -> None:
    """From IR version 4 on, an initialiser that is listed as an input is a default."""
    n = net()
    factor = n.const(np.full(3, 2, np.float32), name="factor")
    model = n.model({"x": ["N", 3]}, n.op("Mul", "x", n.op("Neg", n.op("Dropout", factor))))
    model.graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [3]))
    result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(model))[0])
    given = {"x": np.ones((1, 3), np.float32), "factor": np.array([1, 2, 3], np.float32)}
    out = model.graph.output[0].name
    np.testing.assert_array_equal(run_model(result, given)[out], [[-1, -2, -3]])
    assert [i.name for i in result.graph.input] == ["x", "factor"]


def test_optional_outputs_that_are_left_out(net: Any, tidied: Any) -> None:
    n = net()
    values = n.const(np.array([3, 1, 3], np.float32))
    n.nodes.append(helper.make_node("Unique", [values], ["found", "", "", "counts"], "unique"))
    total = n.op("ReduceSum", n.op("Cast", "counts", to=TensorProto.FLOAT))
    result, _ = tidied(n.model({"x": ["N", 2]}, n.op("Sub", "x", n.op("Mul", total, n.op("ReduceMax", "found")))))
    assert names(result) == ["Sub"]
    assert numpy_helper.to_array(result.graph.initializer[0]).tolist() == [9.0]
