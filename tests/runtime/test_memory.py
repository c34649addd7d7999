"""Peak memory: a process per model; what is asserted holds on any machine."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import BackendError
from onnxprune.runtime import memory
from onnxprune.runtime.memory import peak_memory
from onnxprune.runtime.session import Settings, write_copy

FEEDS = {"x": np.ones((3, 4), dtype=np.float32)}

needs_figures = pytest.mark.skipif(
    memory._high_water() is None, reason="this system does not tell a process's high-water mark"
)


@pytest.fixture
def file(dense: Callable[..., ir.Model], tmp_path: Path) -> Path:
    return write_copy(dense("batch"), tmp_path, "the model")


@needs_figures
def test_a_large_model_takes_its_weights_and_a_small_one_hardly_anything(file: Path, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.ones((2000, 5000), np.float32)  # 40 MB
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 2000), ("y", 5000))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "wide", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    large = tmp_path / "large.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), large)
    settings = Settings(threads=1)
    small = peak_memory(file, FEEDS, settings, "small")
    wide = peak_memory(large, {"x": np.ones((1, 2000), np.float32)}, settings, "wide")
    assert small is not None
    assert wide is not None
    assert wide.model >= weight.nbytes
    assert 0 <= small.model < weight.nbytes
    assert wide.peak >= wide.model


@needs_figures
def test_this_process_does_not_count(file: Path) -> None:
    ballast = np.ones(40_000_000)  # 320 MB
    found = peak_memory(file, FEEDS, Settings(threads=1), "small")
    assert found is not None
    assert found.model < ballast.nbytes / 4


@needs_figures
def test_what_fails_there_is_told_here(tmp_path: Path, file: Path) -> None:
    with pytest.raises(BackendError) as caught:
        peak_memory(tmp_path / "missing.onnx", FEEDS, Settings(), "model B ('b.onnx')")
    assert str(caught.value).startswith("ONNX Runtime cannot load model B ('b.onnx'): ")
    with pytest.raises(BackendError, match=r"^ONNX Runtime failed on model B: .*x"):
        peak_memory(file, {"x": np.ones((3, 5), np.float32)}, Settings(), "model B")


@needs_figures
def test_text_and_odd_names_are_carried_over(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]) for name in ("a/../b:0", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["a/../b:0"], ["y"])], "text", ends[:1], ends[1:])
    path = tmp_path / "text.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    words = np.array(["one", "two"], dtype=object)
    assert peak_memory(path, {"a/../b:0": words}, Settings(threads=1), "text") is not None


@pytest.mark.parametrize(("status", "printed"), [(-9, ""), (1, ""), (0, "no JSON"), (-9, '{"idle": 1, "peak": 2}')])
def test_a_process_that_was_ended(file: Path, monkeypatch: pytest.MonkeyPatch, status: int, printed: str) -> None:
    monkeypatch.setattr(memory, "_high_water", lambda: 1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status, printed, ""))
    with pytest.raises(BackendError) as caught:
        peak_memory(file, FEEDS, Settings(), "model A")
    assert str(caught.value) == (
        f"the process that measures the memory of model A ended with status {status}; "
        "leave memory out (--no-memory) or give a smaller --batch-size"
    )


def test_a_system_that_does_not_tell(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_high_water", lambda: None)
    assert peak_memory(file, FEEDS, Settings(), "model A") is None
