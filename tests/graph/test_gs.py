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


def test_what_a_user_adds_or_changes_counts(rich_model: onnx.ModelProto) -> None:
    import onnx_graphsurgeon as gs

    model = ir.serde.deserialize_model(rich_model)
    graph = to_gs(model)
    relu = next(node for node in graph.nodes if node.name == "relu1")
    relu.op, relu.domain = "Swish", "trt.plugins"
    body_in, body_out = gs.Variable("a"), gs.Variable("b")
    graph.functions.append(gs.Function("Twice", "mine", [gs.Node("Add", "", {}, [body_in, body_in], [body_out])],
                                       [body_in], [body_out], opset=18))  # fmt: skip
    graph.opset = 19
    domains = [entry.domain for entry in graph.import_domains]
    back = from_gs(graph, model)
    assert dict(back.opset_imports) == {"": 19, "trt.plugins": 1}
    assert list(back.functions) == [("mine", "Twice", "")]
    assert [entry.domain for entry in graph.import_domains] == domains
    onnx.checker.check_model(ir.serde.serialize_model(back))


def with_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    body = [onnx.helper.make_node("Add", ["a", "a"], ["b"], "sum")]
    function = onnx.helper.make_function("mine", "Twice", ["a"], ["b"], body, [onnx.helper.make_opsetid("", 18)])
    function.doc_string = "twice"
    function.metadata_props.add(key="who", value="me")
    proto.functions.append(function)
    proto.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "Twice", "mine"
    return proto


def test_functions_come_back_as_they_were_unless_the_user_changed_them(rich_model: onnx.ModelProto) -> None:
    model = ir.serde.deserialize_model(with_function(rich_model))
    given = ir.serde.serialize_model(model)
    assert list(ir.serde.serialize_model(from_gs(to_gs(model), model)).functions) == list(given.functions)
    graph = to_gs(model)
    graph.functions[0].nodes[0].op = "Mul"
    changed = ir.serde.serialize_model(from_gs(graph, model))
    assert [node.op_type for node in changed.functions[0].node] == ["Mul"]
    graph.functions = []
    assert not from_gs(graph, model).functions


def test_metadata_of_values_comes_back(rich_model: onnx.ModelProto) -> None:
    for info in (rich_model.graph.input[0], rich_model.graph.output[0]):
        info.metadata_props.add(key="unit", value="mm")
    model = ir.serde.deserialize_model(rich_model)
    back = ir.serde.serialize_model(from_gs(to_gs(model), model))
    assert [p.value for p in back.graph.input[0].metadata_props] == ["mm"]
    assert [p.value for p in back.graph.output[0].metadata_props] == ["mm"]


@pytest.mark.parametrize("version", [3, 8])
def test_initialisers_that_are_inputs_come_back(rich_model: onnx.ModelProto, run_model: Any, version: int) -> None:
    rich_model.ir_version, rich_model.opset_import[0].version = version, 8 if version == 3 else 18
    for tensor in rich_model.graph.initializer:
        if version == 3 or tensor.name == "c2.b":
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            rich_model.graph.input.insert(0, info)
    # Nobody reads this one, and yet it is part of what a caller may feed.
    spare = onnx.numpy_helper.from_array(np.ones(2, dtype=np.float32), "spare")
    rich_model.graph.initializer.append(spare)
    rich_model.graph.input.append(onnx.helper.make_tensor_value_info("spare", 1, [2]))
    model = ir.serde.deserialize_model(rich_model)
    back = ir.serde.serialize_model(from_gs(to_gs(model), model))
    onnx.checker.check_model(back)
    assert [info.name for info in back.graph.input] == [info.name for info in rich_model.graph.input]
    feeds = {"input": np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32)}
    np.testing.assert_array_equal(run_model(back, feeds)["logits"], run_model(rich_model, feeds)["logits"])


def test_scales_that_only_an_annotation_names_come_back(rich_model: onnx.ModelProto) -> None:
    rich_model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "r1.scale"))
    note = rich_model.graph.quantization_annotation.add(tensor_name="r1")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="r1.scale")
    model = ir.serde.deserialize_model(rich_model)
    back = from_gs(to_gs(model), model)
    assert back.graph.initializers["r1.scale"].const_value.numpy() == np.float32(0.1)


def test_a_graph_of_its_own_needs_no_model(run_model: Any) -> None:
    import onnx_graphsurgeon as gs

    x, y = gs.Variable("x", np.float32, ("n", 3)), gs.Variable("y", np.float32, ("n", 3))
    back = from_gs(gs.Graph([gs.Node("Gelu", "gelu", {}, [x], [y])], [x], [y], opset=20))
    assert dict(back.opset_imports) == {"": 20}
    assert run_model(back, {"x": np.ones((2, 3), dtype=np.float32)})["y"].shape == (2, 3)


def test_what_graphsurgeon_cannot_write_is_one_sentence(rich_model: onnx.ModelProto, capsys: Any) -> None:
    model = ir.serde.deserialize_model(rich_model)
    graph = to_gs(model)
    graph.outputs[0].dtype = None
    with pytest.raises(ModelError, match=r"graphsurgeon cannot write the graph: .*dtype") as caught:
        from_gs(graph, model)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")
