"""A model in two parts: what comes back is the source, whoever puts it together, and nothing else is let in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import CodecError, ModelError
from onnxprune.graph import io, skeleton


def _written(model: ir.Model, path: Path) -> bytes:
    io.save(model, path)
    return path.read_bytes()


def _split(proto: onnx.ModelProto, folder: Path) -> tuple[ir.Model, dict[str, np.ndarray], bytes]:
    path = folder / "source.onnx"
    onnx.save(proto, path)
    model = io.load(path)
    return model, *skeleton.split(model)


def _rich(conv_net) -> onnx.ModelProto:
    proto = conv_net(0)
    proto.doc_string, proto.producer_name, proto.domain, proto.model_version = "a text", "somebody", "here", 7
    proto.graph.doc_string = "of the graph"
    proto.graph.node[0].doc_string = "of a node"
    proto.graph.initializer[0].doc_string = "of a weight"
    entry = proto.graph.node[1].metadata_props.add()
    entry.key, entry.value = "from", "line 3"
    helper.set_model_props(proto, {"b": "2", "a": "1", "onnxprune.skeleton": "somebody else's"})
    proto.opset_import.append(helper.make_opsetid("spare", 1))
    proto.functions.append(
        helper.make_function(
            "spare", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 18)]
        )
    )
    return proto


def test_both_parts_make_the_source_again(conv_net, tmp_path: Path) -> None:
    model, tensors, graph = _split(_rich(conv_net), tmp_path)
    assert list(tensors) == ["c1.w", "c2.w", "g1.w", "g2.w"]
    before = _written(model, tmp_path / "a.onnx")
    assert _written(skeleton.joined(graph, tensors), tmp_path / "b.onnx") == before
    assert all(array.tobytes() not in graph for array in tensors.values())
    assert _written(model, tmp_path / "c.onnx") == before  # the source is not touched


def test_other_weights_change_nothing_else(conv_net, tmp_path: Path) -> None:
    _, tensors, graph = _split(_rich(conv_net), tmp_path)
    other = {name: np.zeros_like(array) for name, array in tensors.items()}
    io.save(skeleton.joined(graph, other), tmp_path / "zeros.onnx")
    found, source = onnx.load(tmp_path / "zeros.onnx"), onnx.load(tmp_path / "source.onnx")
    for tensor in found.graph.initializer:
        if tensor.name in tensors:
            assert not numpy_helper.to_array(tensor).any()
            tensor.raw_data = tensors[tensor.name].tobytes()
    io.save(io.load(tmp_path / "source.onnx"), tmp_path / "same.onnx")
    assert found == onnx.load(tmp_path / "same.onnx")
    assert found.graph.node == source.graph.node
    assert {e.key: e.value for e in found.metadata_props} == {e.key: e.value for e in source.metadata_props}
    assert found.functions == source.functions


def test_the_skeleton_is_the_same_in_every_process(conv_net, tmp_path: Path) -> None:
    _, _, graph = _split(_rich(conv_net), tmp_path)
    code = (
        "import sys; from onnxprune.graph import io, skeleton; "
        f"sys.stdout.buffer.write(skeleton.split(io.load({str(tmp_path / 'source.onnx')!r}))[1])"
    )
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert done.stdout == graph


def _one(weight: np.ndarray, kind: int, *, constant: bool = False, readers: int = 1) -> onnx.ModelProto:
    """MatMul of x [n, rows] and a weight, once per reader, which share it."""
    tensor = TensorProto(data_type=kind, dims=weight.shape, name="w", raw_data=weight.tobytes())
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], f"m{i}") for i in range(readers)]
    stored = [tensor]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], "c", value=tensor))
        stored = []
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", kind, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info(f"y{i}", kind, ["n", weight.shape[1]]) for i in range(readers)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.float16, TensorProto.FLOAT16),
        (np.float64, TensorProto.DOUBLE),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    ],
)
@pytest.mark.parametrize("constant", [False, True])
def test_element_types_and_constants(dtype, kind: int, constant: bool, tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4)).astype(dtype)
    model, tensors, graph = _split(_one(weight, kind, constant=constant), tmp_path)
    assert tensors["w"].dtype == dtype
    before = _written(model, tmp_path / "a.onnx")
    if kind == TensorProto.BFLOAT16:
        tensors = {"w": tensors["w"].astype(np.float32)}  # as the container gives them
    assert _written(skeleton.joined(graph, tensors), tmp_path / "b.onnx") == before


def test_a_shared_weight_is_there_once_and_zeros_stay(tmp_path: Path) -> None:
    weight = np.eye(4, dtype=np.float32)
    _, tensors, graph = _split(_one(weight, TensorProto.FLOAT, readers=3), tmp_path)
    assert list(tensors) == ["w"]
    assert len(skeleton.joined(graph, tensors).graph.initializers["w"].uses()) == 3
    _, tensors, graph = _split(_one(np.zeros((4, 4), np.float32), TensorProto.FLOAT), tmp_path)
    assert tensors == {}
    assert skeleton.joined(graph, {}).graph.initializers["w"].const_value.numpy().shape == (4, 4)


def test_initialisers_that_are_listed_as_inputs(net, tmp_path: Path) -> None:
    made = net(ir_version=3, opset=8)
    proto = made.model({"x": ["n", 6]}, made.op("MatMul", "x", made.weight(6, 4, name="w")))
    model, tensors, graph = _split(proto, tmp_path)
    assert list(tensors) == ["w"]
    back = skeleton.joined(graph, tensors)
    assert _written(back, tmp_path / "b.onnx") == _written(model, tmp_path / "a.onnx")
    assert [value.name for value in back.graph.inputs] == ["x", "w"]


def test_external_data_is_read_in_and_comes_back_outside(conv_net, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    onnx.save(conv_net(0, hidden=64), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = io.load(folder / "m.onnx")
    tensors, graph = skeleton.split(model)
    tensors = {name: np.array(array) for name, array in tensors.items()}
    before = _written(model, tmp_path / "a.onnx"), (tmp_path / "a.onnx.data").read_bytes()
    del model
    (folder / "w.bin").unlink()
    _written(skeleton.joined(graph, tensors), tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx.data").read_bytes() == before[1]
    onnx.checker.check_model(str(tmp_path / "b.onnx"), full_check=True)


def test_sparse_and_quantised_sources(tmp_path: Path) -> None:
    weight = np.zeros((4, 4), np.float32)
    weight[1, 2] = 2.0
    proto = _one(weight, TensorProto.FLOAT)
    del proto.graph.initializer[:]
    values = numpy_helper.from_array(np.array([2.0], np.float32), "w")
    places = numpy_helper.from_array(np.array([6], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    _, tensors, _ = _split(proto, tmp_path)
    assert np.array_equal(tensors["w"], weight)

    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], "d"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "m"),
    ]
    stored = [numpy_helper.from_array(np.ones((4, 4), np.int8), "q"), numpy_helper.from_array(np.float32(0.5), "s")]
    graph = helper.make_graph(nodes, "q", proto.graph.input, [], stored)
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    quantised = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model, tensors, whole = _split(quantised, tmp_path)
    assert tensors == {}
    assert _written(skeleton.joined(whole, {}), tmp_path / "b.onnx") == _written(model, tmp_path / "a.onnx")


def test_a_source_that_only_passes_the_plain_check_is_remembered(conv_net, tmp_path: Path) -> None:
    model, _, _ = _split(conv_net(0), tmp_path)
    model.meta[io.FULL_CHECK] = False
    tensors, graph = skeleton.split(model)
    assert skeleton.joined(graph, tensors).meta[io.FULL_CHECK] is False


def _reads_a_file(proto: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


def _in_initialiser(proto: onnx.ModelProto) -> None:
    _reads_a_file(proto, next(t for t in proto.graph.initializer if t.name == "c1.b"))


def _in_coded_place(proto: onnx.ModelProto) -> None:
    _reads_a_file(proto, next(t for t in proto.graph.initializer if t.name == "c1.w"))


def _in_function(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=1, dims=[2], name="t")
    _reads_a_file(proto, tensor)
    node = helper.make_node("Constant", [], ["z"], value=tensor)
    proto.functions.append(helper.make_function("d", "F", [], ["z"], [node], [helper.make_opsetid("", 18)]))


def _in_sparse(proto: onnx.ModelProto) -> None:
    values, places = TensorProto(data_type=1, dims=[1], name="s"), TensorProto(data_type=7, dims=[1], name="i")
    _reads_a_file(proto, values)
    proto.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=places, dims=[4]))


def _in_body(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=1, dims=[2], name="t")
    _reads_a_file(proto, tensor)
    body = helper.make_graph([helper.make_node("Identity", ["t"], ["o"])], "b", [], [], [tensor])
    proto.graph.node.append(helper.make_node("If", ["c"], ["u"], then_branch=body, else_branch=body))


def _full_place(proto: onnx.ModelProto) -> None:
    next(t for t in proto.graph.initializer if t.name == "c1.w").raw_data = bytes(4)


def _other_shape(proto: onnx.ModelProto) -> None:
    next(t for t in proto.graph.initializer if t.name == "c1.w").dims[0] = 1 << 40


def _other_type(proto: onnx.ModelProto) -> None:
    next(t for t in proto.graph.initializer if t.name == "c1.w").data_type = TensorProto.INT32


def _no_type(proto: onnx.ModelProto) -> None:
    next(t for t in proto.graph.initializer if t.name == "c1.w").data_type = 999


def _no_place(proto: onnx.ModelProto) -> None:
    next(t for t in proto.graph.initializer if t.name == "c1.w").name = "c9.w"


def _one_place_more(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(TensorProto(data_type=1, dims=[2, 2], name="more"))


def _no_note(proto: onnx.ModelProto) -> None:
    proto.metadata_props.pop()


def _bad_note(proto: onnx.ModelProto) -> None:
    proto.metadata_props[-1].value = "[]"


def _no_graph(proto: onnx.ModelProto) -> None:
    proto.ClearField("graph")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_in_initialiser, "refers to the file 'secret.bin'"),
        (_in_coded_place, "refers to the file 'secret.bin'"),
        (_in_function, "refers to the file 'secret.bin'"),
        (_in_sparse, "refers to the file 'secret.bin'"),
        (_in_body, "refers to the file 'secret.bin'"),
        (_full_place, "place for the coded weight 'c1.w' is not empty"),
        (_other_shape, "its place in the skeleton float32 [1099511627776, 1, 3, 3]"),
        (_other_type, "its place in the skeleton int32"),
        (_no_type, "unknown element type 999"),
        (_no_place, "no place for the coded weight 'c1.w'"),
        (_one_place_more, "tensor 'more' has 0 values of data"),
        (_no_note, "does not end with its entry"),
        (_bad_note, "is not understood"),
        (_no_graph, "holds no graph"),
    ],
)
def test_hostile_skeletons(conv_net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change, said: str) -> None:
    _, tensors, graph = _split(conv_net(0), tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    proto = onnx.ModelProto.FromString(graph)
    change(proto)
    with pytest.raises((CodecError, ModelError)) as caught:
        skeleton.joined(proto.SerializeToString(), tensors)
    assert said in str(caught.value)


def test_what_is_no_model(conv_net, tmp_path: Path) -> None:
    _, tensors, graph = _split(conv_net(0), tmp_path)
    for data in (b"", b"\xff" * 40, graph[: len(graph) // 2], json.dumps({}).encode()):
        with pytest.raises((CodecError, ModelError)):
            skeleton.joined(data, tensors)
