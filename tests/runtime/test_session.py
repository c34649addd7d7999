"""Sessions: arrays in, arrays out, and one sentence where ONNX Runtime fails."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import BackendError
from onnxprune.graph import io
from onnxprune.runtime.session import Session, Settings, batch_for, batch_of, input_specs, open_session

FEEDS = {"x": np.ones((3, 4), dtype=np.float32)}


def sentence(error: pytest.ExceptionInfo[BackendError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_runs_what_is_asked_for(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings(threads=1), taps=["r", "h", "y"]) as session:
        assert session.inputs == ["x"]
        assert session.outputs == ["y", "r", "h"]
        assert session.fixed_batch is None
        assert session.providers == ("CPUExecutionProvider",)
        assert batch_for(session, Settings(batch_size=9)) == 9
        found = session.run(FEEDS, ["r", "h"])
        assert list(found) == ["r", "h"]
        assert np.array_equal(found["r"], np.maximum(found["h"], 0))
        assert list(session.run(FEEDS)) == ["y", "r", "h"]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_fixed_batch_is_padded_and_cut_back(dense: Callable[..., ir.Model], count: int) -> None:
    rows = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    with open_session(dense(8), Settings()) as session:
        assert session.fixed_batch == 8
        assert batch_for(session, Settings(batch_size=3)) == 8
        whole = session.run({"x": rows})["y"]
        part = session.run({"x": rows[:count]})["y"]
        assert part.shape == (count, 2)
        assert np.array_equal(part, whole[:count])


def scalar_model(batch: int | str) -> ir.Model:
    """y = x * factor, where ``factor`` is a scalar input."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"], "scale")],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.serde.deserialize_model(model)


@pytest.mark.parametrize("batch", ["batch", 8])
def test_a_scalar_input_is_neither_counted_nor_padded(batch: int | str) -> None:
    feeds = {"factor": np.array(2, dtype=np.float32), **FEEDS}
    assert batch_of(feeds) == 3
    assert batch_of({}) == 0
    with open_session(scalar_model(batch), Settings()) as session:
        assert np.array_equal(session.run(feeds)["y"], np.full((3, 4), 2, dtype=np.float32))


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({"x": np.ones((3, 5), np.float32)}, "Got invalid dimensions for input: x"),
        ({"x": np.ones((3, 4, 1), np.float32)}, "Invalid rank for input: x"),
        ({"x": np.ones((3, 4), np.float64)}, "Unexpected input data type"),
        ({"z": np.ones((3, 4), np.float32)}, "x"),
        ({}, "x"),
    ],
)
def test_a_feed_that_does_not_fit_is_a_backend_error(
    dense: Callable[..., ir.Model], feeds: Mapping[str, np.ndarray], words: str
) -> None:
    with open_session(dense("batch"), Settings(), label="model 'a.onnx'") as session:
        with pytest.raises(BackendError) as caught:
            session.run(feeds)
        assert sentence(caught).startswith("ONNX Runtime failed on model 'a.onnx': ")
        assert words in sentence(caught)


def test_more_examples_than_a_fixed_batch_is_a_backend_error(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense(2), Settings()) as session, pytest.raises(BackendError) as caught:
        session.run(FEEDS)
    assert "invalid dimensions" in sentence(caught)


@pytest.mark.parametrize(("op", "domain"), [("Quirk", "my.ops"), ("Quirk", "")])
def test_an_operator_that_the_runtime_does_not_know(dense: Callable[..., ir.Model], op: str, domain: str) -> None:
    model = dense("batch", op=op, domain=domain) if domain else unknown_operator(dense("batch"), op)
    with pytest.raises(BackendError) as caught, open_session(model, Settings(), label="the compressed model"):
        pass
    assert sentence(caught).startswith("ONNX Runtime cannot load the compressed model: ")
    assert "Quirk" in sentence(caught)


def unknown_operator(model: ir.Model, op: str) -> ir.Model:
    next(node for node in model.graph if node.op_type == "Relu").op_type = op
    return model


def test_a_failure_in_mid_run_names_the_node(dense: Callable[..., ir.Model]) -> None:
    model = dense("batch")
    model.graph.initializers["flat_shape"].const_value = ir.tensor(np.array([7], dtype=np.int64))
    with open_session(model, Settings(), taps=["flat"]) as session, pytest.raises(BackendError) as caught:
        session.run(FEEDS)
    assert "flat" in sentence(caught)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, content in (("empty.onnx", b""), ("text.onnx", b"hello"), ("missing.onnx", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(BackendError) as caught:
            Session(tmp_path / name, Settings(), f"'{name}'")
        assert sentence(caught).startswith(f"ONNX Runtime cannot load '{name}': ")


def test_a_disk_that_is_full_is_a_backend_error(
    dense: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "to_scratch", full)
    with pytest.raises(BackendError) as caught, open_session(dense("batch"), Settings()):
        pass
    assert sentence(caught) == "a temporary copy of the model cannot be written: No space left on device"


def test_out_of_memory_names_the_way_out(dense: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hungry:
        def run(self, *_: object) -> None:
            raise MemoryError

    with open_session(dense("batch"), Settings()) as session:
        monkeypatch.setattr(session, "_session", Hungry())
        with pytest.raises(BackendError) as caught:
            session.run(FEEDS)
    assert sentence(caught) == "out of memory while running the model; give a smaller --batch-size"


def test_taps_leave_the_model_alone_and_no_file_behind(
    dense: Callable[..., ir.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = dense("batch")
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    with open_session(model, Settings(), taps=["r", "r"]) as session:
        assert session.outputs == ["y", "r"]
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    assert not list(tmp_path.iterdir())


def test_what_the_model_wants_to_be_fed(
    dense: Callable[..., ir.Model], conv_net: Callable[..., onnx.ModelProto]
) -> None:
    (spec,) = input_specs(dense(8))
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(np.float32), (8, 4))
    (spec,) = input_specs(ir.serde.deserialize_model(conv_net(0)))
    assert spec.shape == ("batch", 1, 12, 12)
    proto = conv_net(0)
    proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    proto.graph.input.append(helper.make_tensor_value_info("c1.w", TensorProto.FLOAT, [8, 1, 3, 3]))
    (spec,) = input_specs(ir.serde.deserialize_model(proto))  # an initialiser need not be fed
    assert spec.shape == (None, 1, 12, 12)


def test_scalar_and_integer_inputs_are_described() -> None:
    specs = {spec.name: spec for spec in input_specs(scalar_model("n"))}
    assert specs["factor"].shape == ()
