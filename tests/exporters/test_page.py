"""docs/training.md on ONNX in PyTorch does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnxprune.graph import io

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"


def test_the_block_runs_and_brings_the_student_nearer(
    conv_net: Callable[..., onnx.ModelProto],
    run_model: Callable[..., dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = PAGE.read_text(encoding="utf-8").split("## ONNX in PyTorch")[1]
    block = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_net(0), "model.onnx")
    pruned = conv_net(0)
    weight = next(tensor for tensor in pruned.graph.initializer if len(tensor.dims) == 4)
    array = onnx.numpy_helper.to_array(weight).copy()
    array[np.abs(array) < np.quantile(np.abs(array), 0.3)] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(pruned, "pruned.onnx")
    torch.manual_seed(0)
    exec(compile(block, str(PAGE), "exec"), {})
    tuned = io.load("tuned.onnx").graph.initializers[weight.name].const_value
    assert tuned is not None
    np.testing.assert_array_equal(tuned.numpy() == 0, array == 0)
    assert not np.array_equal(tuned.numpy(), array)
    name = pruned.graph.input[0].name
    x = np.random.default_rng(0).standard_normal((64, 1, 12, 12)).astype(np.float32)
    want, before, after = (run_model(f"{m}.onnx", {name: x}) for m in ("model", "pruned", "tuned"))
    out = next(iter(want))
    assert np.square(after[out] - want[out]).mean() < np.square(before[out] - want[out]).mean()
