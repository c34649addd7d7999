"""Shapes behind operators that inference knows nothing of."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxprune.graph.cost import measure
from onnxprune.graph.shapes import concrete_shapes, refresh_shapes


@pytest.fixture
def plugged(conv_net: Callable[..., onnx.ModelProto]) -> ir.Model:
    """A network with a plugin in place of its first Relu, whose output the model declares."""
    proto = conv_net(0)
    relu = next(node for node in proto.graph.node if node.name == "relu1")
    relu.op_type, relu.domain = "Swish", "trt.plugins"
    proto.opset_import.append(helper.make_opsetid("trt.plugins", 1))
    proto.graph.value_info.append(helper.make_tensor_value_info("r1", 1, ["batch", 8, 12, 12]))
    return ir.serde.deserialize_model(proto)


def test_what_is_declared_is_bound_to_the_inputs(plugged: ir.Model) -> None:
    found = concrete_shapes(plugged, {"input": (3, 1, 12, 12)})
    assert found["r1"] == (3, 8, 12, 12)
    assert found["c2"] == (3, 12, 4, 4)
    assert measure(plugged).unknown == {}
    assert measure(plugged).macs == 8 * 9 * 144 + 12 * 8 * 9 * 16 + 192 * 20 + 20 * 5


def test_a_symbol_that_no_input_has_stays_unknown(plugged: ir.Model) -> None:
    value = next(node for node in plugged.graph if node.op_type == "Swish").outputs[0]
    value.shape = ir.Shape(["other", 8, None, 12])
    assert concrete_shapes(plugged, {"input": (3, 1, 12, 12)})["r1"] == (None, 8, None, 12)


def test_what_is_declared_survives_a_refresh(plugged: ir.Model) -> None:
    refresh_shapes(plugged)
    values = {str(out.name): out for node in plugged.graph for out in node.outputs}
    assert [str(size) for size in values["r1"].shape or ()] == ["batch", "8", "12", "12"]
    assert [str(size) for size in values["c2"].shape or ()] == ["batch", "12", "4", "4"]
