"""Which operators ONNX Runtime has."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxprune.runtime.operators import is_known, unknown_operators


def changed(proto: onnx.ModelProto, domain: str, op: str) -> ir.Model:
    node = next(node for node in proto.graph.node if node.name == "relu1")
    node.op_type, node.domain = op, domain
    return ir.serde.deserialize_model(proto)


@pytest.mark.parametrize(
    ("domain", "op", "unknown"),
    [
        ("", "Relu", []),
        ("ai.onnx.ml", "Scaler", []),
        ("com.microsoft", "QuickGelu", []),
        ("com.microsoft", "Swish", ["com.microsoft::Swish"]),
        ("trt.plugins", "Swish", ["trt.plugins::Swish"]),
    ],
)
def test_domains(conv_net: Callable[..., onnx.ModelProto], domain: str, op: str, unknown: list[str]) -> None:
    model = changed(conv_net(0), domain, op)
    assert unknown_operators(model) == unknown
    assert is_known(model, domain, op) == (not unknown)


def test_a_models_own_function_is_known_and_what_it_calls_counts(conv_net: Callable[..., onnx.ModelProto]) -> None:
    proto = conv_net(0)
    body = [helper.make_node("Swish", ["a"], ["b"], "inner", domain="trt.plugins")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("trt.plugins", 1)]
    proto.functions.append(helper.make_function("mine", "Act", ["a"], ["b"], body, opsets))
    model = changed(proto, "mine", "Act")
    assert is_known(model, "mine", "Act")
    assert unknown_operators(model) == ["trt.plugins::Swish"]
