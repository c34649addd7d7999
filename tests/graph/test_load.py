"""Loading refuses what is no model in one sentence, and reads all that is one."""

from __future__ import annotations

import io as streams
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import io
from onnxprune.graph.cleanup import cleanup


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped() -> bytes:
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model.onnx", b"x" * 100)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty (0 bytes); an .onnx file is expected"),
        (b"this is a text, not a model\n" * 20, "is truncated or not an ONNX file"),
        (b"<html><body>404 Not Found</body></html>", "is truncated or not an ONNX file"),
        (zipped(), "is truncated or not an ONNX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is truncated or not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is truncated or not an ONNX file"),
        (random.Random(0).randbytes(4096), "is truncated or not an ONNX file"),
        (onnx.TensorProto(name="t", dims=[1]).SerializeToString(), "not"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "it holds no graph or no IR version"),
        (onnx.ModelProto(ir_version=8, graph=onnx.GraphProto()).SerializeToString(), "not"),
    ],
    ids=["empty", "text", "html", "zip", "png", "lfs pointer", "random", "tensor", "no graph", "empty graph"],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = write(tmp_path / "model.onnx", data)
    with pytest.raises(ModelError) as caught:
        io.load(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folders_and_impossible_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist; give the path of an \.onnx file"):
        io.load(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match=r"is not a file; give the path of an \.onnx file"):
        io.load(tmp_path)
    with pytest.raises(ModelError, match="cannot be read: File name too long"):
        io.load(tmp_path / ("n" * 300))


def test_every_truncation_is_refused_or_cuts_off_metadata_only(tmp_path: Path, conv_net: Any) -> None:
    model = conv_net(0, channels=(2, 2), hidden=3)
    whole = model.SerializeToString()
    del model.metadata_props[:]
    essential = len(model.SerializeToString())
    path = tmp_path / "model.onnx"
    rng = random.Random(0)
    for size in sorted(
        {*range(1, 200), *(rng.randrange(len(whole)) for _ in range(150)), *range(essential - 40, essential)}
    ):
        write(path, whole[:size])
        with pytest.raises(ModelError):
            io.load(path)
    assert io.load(write(path, whole[:essential])).metadata_props == {}


def test_damaged_bytes_are_refused_or_give_a_model_that_can_be_written(tmp_path: Path, conv_net: Any) -> None:
    whole = conv_net(0, channels=(2, 2), hidden=3).SerializeToString()
    rng = random.Random(1)
    path = tmp_path / "model.onnx"
    accepted = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        write(path, bytes(damaged))
        try:
            model = io.load(path)
        except ModelError:
            continue
        accepted += 1
        ir.serde.serialize_model(cleanup(model)[0])
    assert accepted


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, conv_net: Any) -> None:
    whole = conv_net(0).SerializeToString()
    path = write(tmp_path / "model.onnx", whole.replace(b"relu1", b"\xff\xfe\xfd\xfc\xfb"))
    with pytest.raises(ModelError, match="is damaged: a name in it is not UTF-8 text"):
        io.load(path)


def test_data_that_does_not_fit_the_shape_is_refused(tmp_path: Path, conv_net: Any) -> None:
    for field, count, sentence in (
        ("raw_data", 0, "has 95 bytes of data"),
        ("float_data", 23, "has 23 values of data"),
    ):
        model = conv_net(0)
        bias = next(t for t in model.graph.initializer if t.name == "c1.b")
        data = numpy_helper.to_array(bias)
        bias.ClearField("raw_data")
        bias.dims[:] = [24]
        if field == "raw_data":
            bias.raw_data = bytes(95)
        else:
            bias.float_data.extend([float(data[0])] * count)
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=rf"tensor 'c1\.b' {sentence}, which do not fit its shape \[24\]"):
            io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
@pytest.mark.parametrize("raw", [True, False])
def test_every_element_type_is_read_and_written(tmp_path: Path, kind: int, raw: bool) -> None:
    """Three elements: an odd count, so that packed types have a byte that is not full."""
    if kind == TensorProto.STRING:
        tensor = helper.make_tensor("w", kind, [3], [b"a", b"", "\u00e9".encode()])
    else:
        data = np.array([1, 0, 1]).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor = numpy_helper.from_array(data, "w") if raw else helper.make_tensor("w", kind, [3], data.tolist())
        tensor.data_type = kind
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "g", [], [helper.make_tensor_value_info("y", kind, [3])], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        pytest.skip(f"this onnx does not accept the type: {str(error).splitlines()[0]}")
    onnx.save(model, tmp_path / "m.onnx")
    io.save(cleanup(io.load(tmp_path / "m.onnx"))[0], tmp_path / "r.onnx")
    saved = onnx.load(tmp_path / "r.onnx").graph.initializer[0]
    assert saved.data_type == kind
    got, want = numpy_helper.to_array(saved), numpy_helper.to_array(tensor)
    assert got.tolist() == want.tolist() if kind == TensorProto.STRING else got.tobytes() == want.tobytes()


# External data ---------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, conv_net: Any) -> Path:
    """A model with external data beside it, in a folder of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(conv_net(0), path, save_as_external_data=True, location="weights.bin", size_threshold=300)
    return path


def relocate(path: Path, change: Callable[[dict[str, str]], None], tensor: str = "c2.w") -> None:
    model = onnx.load(path, load_external_data=False)
    stored = next(t for t in model.graph.initializer if t.name == tensor)
    entries = {entry.key: entry.value for entry in stored.external_data}
    change(entries)
    del stored.external_data[:]
    for key, value in entries.items():
        stored.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_missing_external_data_is_named(outside: Path) -> None:
    (outside.parent / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps its data in 'weights\.bin', which does not exist; copy it beside"):
        io.load(outside)


def test_short_external_data_is_refused_with_both_sizes(outside: Path) -> None:
    data = outside.parent / "weights.bin"
    write(data, data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"which ends at byte [\d,]+ where the tensor needs [\d,]+"):
        io.load(outside)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: e.update(location="/etc/passwd"), "which is not a path relative to the model's folder"),
        (lambda e: e.update(location=""), "which is not a path relative to the model's folder"),
        (
            lambda e: e.update(location="../weights.bin"),
            "which leaves the model's folder; keep the data beside the model",
        ),
        (lambda e: e.update(location="a/../../weights.bin"), "which leaves the model's folder"),
        (lambda e: e.update(location="link.bin"), "which leaves the model's folder"),
        (lambda e: e.update(location="folder/secret.bin"), "which leaves the model's folder"),
        (lambda e: e.update(location="."), "does not exist"),
        (lambda e: e.update(length="8"), "with a length of 8 bytes where its shape needs 3,456"),
        (lambda e: e.update(length="99999999"), "where the tensor needs"),
        (lambda e: e.pop("length") and e.update(offset="99999999"), "where the tensor needs"),
        (lambda e: e.update(offset="-4"), "at a negative offset or length"),
        (lambda e: e.update(length="many"), "at an offset or length that is not a number"),
    ],
)
def test_external_data_cannot_be_trusted(
    tmp_path: Path, outside: Path, change: Callable[[dict[str, str]], None], sentence: str
) -> None:
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    write(secret / "secret.bin", bytes(1 << 16))
    write(tmp_path / "weights.bin", bytes(1 << 16))
    (outside.parent / "link.bin").symlink_to(secret / "secret.bin")
    (outside.parent / "folder").symlink_to(secret)
    relocate(outside, change)
    with pytest.raises(ModelError) as caught:
        io.load(outside)
    assert sentence in str(caught.value)


# Sparse initialisers ---------------------------------------------------------------------------------------------


def sparse_weight(shape: tuple[int, ...], *, flat: bool, name: str = "w") -> tuple[onnx.SparseTensorProto, np.ndarray]:
    dense = np.zeros(shape, np.float32)
    where = np.sort(np.random.default_rng(0).permutation(dense.size)[:5])
    dense.flat[where] = np.arange(1, 6)
    indices = where if flat else np.stack(np.unravel_index(where, shape), axis=1)
    values = numpy_helper.from_array(dense.flat[where], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "i"), list(shape)), dense


def sparse_model(stored: onnx.SparseTensorProto, *, how: str) -> onnx.ModelProto:
    shape = list(stored.dims)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, s]) for n, s in zip("xy", shape, strict=True)]
    graph = helper.make_graph(nodes, "g", kinds[:1], kinds[1:])
    if how == "initialiser":
        graph.sparse_initializer.append(stored)
    else:
        graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=stored))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("how", ["initialiser", "constant"])
def test_sparse_tensors_become_dense_with_equal_outputs(tmp_path: Path, run_model: Any, flat: bool, how: str) -> None:
    stored, dense = sparse_weight((6, 4), flat=flat)
    path = tmp_path / "m.onnx"
    onnx.save(sparse_model(stored, how=how), path)
    model = io.load(path)
    x = np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
    out = tmp_path / "out.onnx"
    io.save(model, out)
    np.testing.assert_allclose(run_model(out, {"x": x})["y"], x @ dense, rtol=1e-5)
    assert not onnx.load(out).graph.sparse_initializer


def test_sparse_tensor_inside_a_body_becomes_dense_too(tmp_path: Path, run_model: Any) -> None:
    stored, dense = sparse_weight((6, 4), flat=True)
    kind = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    branches = {}
    for word in ("then_branch", "else_branch"):
        branches[word] = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], word, [], [kind])
        branches[word].sparse_initializer.append(stored)
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], **branches)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(np.array(True), "c")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    io.save(io.load(path), tmp_path / "out.onnx")
    x = np.ones((2, 6), np.float32)
    np.testing.assert_allclose(run_model(tmp_path / "out.onnx", {"x": x})["z"], x @ dense, rtol=1e-6)


def test_sparse_indices_outside_the_tensor_are_refused(tmp_path: Path) -> None:
    stored, _ = sparse_weight((6, 4), flat=True)
    bad = np.array([0, 1, 2, 3, 24], np.int64)
    stored.indices.CopyFrom(numpy_helper.from_array(bad, "i"))
    path = tmp_path / "m.onnx"
    onnx.save(sparse_model(stored, how="initialiser"), path)
    with pytest.raises(ModelError):
        io.load(path)


def test_sparse_tensor_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    stored = helper.make_sparse_tensor(values, indices, [1 << 20, 1 << 20])
    path = tmp_path / "m.onnx"
    onnx.save(sparse_model(stored, how="initialiser"), path)
    with pytest.raises(ModelError, match="is over 2 GiB when dense"):
        io.load(path)
