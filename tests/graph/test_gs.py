"""To graphsurgeon and back: equal outputs, and nothing that graphsurgeon drops is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.gs import from_gs, to_gs


@pytest.fixture
def rich_model(conv_net: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    proto = conv_net(3)
    proto.doc_string, proto.graph.doc_string = "the model", "the graph"
    proto.producer_name, proto.producer_version, proto.model_version, proto.domain = "me", "7", 42, "org.example"
    proto.graph.node[0].doc_string = "the first node"
    proto.graph.input[0].doc_string = "an image"
    note = proto.graph.quantization_annotation.add(tensor_name="c1.w")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="c1.b")
    return proto


def test_round_trip_keeps_outputs_and_everything_said_about_them(rich_model: onnx.ModelProto, run_model: Any) -> None:
    model = ir.serde.deserialize_model(rich_model)
    given = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    back = ir.serde.serialize_model(from_gs(to_gs(model), model))
    onnx.checker.check_model(back, full_check=True)
    feeds = {"input": np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32)}
    np.testing.assert_array_equal(run_model(back, feeds)["logits"], run_model(rich_model, feeds)["logits"])
    for field in ("ir_version", "producer_name", "producer_version", "model_version", "domain", "doc_string"):
        assert getattr(back, field) == getattr(rich_model, field)
    assert list(back.metadata_props) == list(rich_model.metadata_props)
    assert list(back.opset_import) == list(rich_model.opset_import)
    assert back.graph.doc_string == "the graph"
    assert back.graph.node[0].doc_string == "the first node"
    assert back.graph.input[0].doc_string == "an image"
    assert list(back.graph.quantization_annotation) == list(rich_model.graph.quantization_annotation)
    assert [o.SerializeToString() for o in back.graph.output] == [
        o.SerializeToString() for o in rich_model.graph.output
    ]
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == given


def test_a_users_edit_survives(rich_model: onnx.ModelProto, run_model: Any) -> None:
    model = ir.serde.deserialize_model(rich_model)
    graph = to_gs(model)
    relu = next(node for node in graph.nodes if node.name == "relu1")
    relu.op = "Sigmoid"
    back = from_gs(graph.cleanup(), model)
    assert [node.op_type for node in back.graph][2] == "Sigmoid"
    assert back.metadata_props == dict(model.metadata_props)


def test_what_is_no_graph_is_refused(rich_model: onnx.ModelProto) -> None:
    model = ir.serde.deserialize_model(rich_model)
    with pytest.raises(ModelError, match=r"an onnx_graphsurgeon\.Graph is expected, not str"):
        from_gs("graph", model)


@pytest.mark.parametrize("name", ["resnet20", "resnet20-bn", "resnet20-legacy", "lenet5", "lenet300"])
def test_trained_models_go_there_and_back(shared_data: Path, name: str, run_model: Any) -> None:
    path = shared_data / "onnx" / f"{name}.onnx"
    model = io.load(path)
    back = from_gs(to_gs(model), model)
    shape = (2, 1, 28, 28) if name.startswith("lenet") else (2, 3, 32, 32)
    feeds = {"input": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    np.testing.assert_array_equal(run_model(back, feeds)["logits"], run_model(path, feeds)["logits"])
    assert back.metadata_props == dict(model.metadata_props)
