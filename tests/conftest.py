"""Fixtures that several rooms share: real data where present, small seeded models, ONNX Runtime as oracle."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Every worker of pytest-xdist has one core, said before numpy is imported: torch, ONNX Runtime and BLAS would start a
# thread per core in each of them otherwise, and wait for one another twice as long as they work.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER.startswith("gw") and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_WORKER[2:]) % len(_cores)]})

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data.digits import load

# The same examples in every run: a change is judged by what it changed. `make test-slow` draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def zoo() -> Iterator[Callable[[str], Any]]:
    """Import a module of benchmarks/zoo, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
        yield lambda name: importlib.import_module(f"benchmarks.zoo.{name}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and trained models beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real images and trained models is not here")
    return folder


@pytest.fixture(scope="session")
def run_model() -> Callable[..., dict[str, np.ndarray]]:
    """Run a model (path, ModelProto or onnx_ir.Model) in ONNX Runtime, optimisations off unless asked for."""

    def run(model: Any, feeds: Mapping[str, np.ndarray], *, optimise: bool = False) -> dict[str, np.ndarray]:
        import onnx_ir as ir
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        if isinstance(model, ir.Model):
            model = ir.serde.serialize_model(model)
        given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        names = [out.name for out in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


def _conv_net(seed: int, *, channels: tuple[int, int] = (8, 12), hidden: int = 20, classes: int = 5) -> onnx.ModelProto:
    """Conv-BN-Relu-MaxPool-Conv-Relu-Flatten-Gemm-Relu-Gemm on [batch, 1, 12, 12], weights from ``seed``."""
    rng = np.random.default_rng(seed)
    first, second = channels

    def weight(name: str, *shape: int) -> TensorProto:
        scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)

    def positive(name: str, size: int) -> TensorProto:
        return numpy_helper.from_array(rng.uniform(0.5, 1.5, size).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "c1.w", "c1.b"], ["c1"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "bn.s", "bn.b", "bn.m", "bn.v"], ["n1"], "norm1"),
        helper.make_node("Relu", ["n1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "c2.w", "c2.b"], ["c2"], "conv2", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("Reshape", ["r2", "flat"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "g1.w", "g1.b"], ["g1"], "fc1", transB=1),
        helper.make_node("Relu", ["g1"], ["r3"], "relu3"),
        helper.make_node("Gemm", ["r3", "g2.w", "g2.b"], ["logits"], "fc2", transB=1),
    ]
    initializers = [
        weight("c1.w", first, 1, 3, 3),
        weight("c1.b", first),
        positive("bn.s", first),
        weight("bn.b", first),
        weight("bn.m", first),
        positive("bn.v", first),
        weight("c2.w", second, first, 3, 3),
        weight("c2.b", second),
        numpy_helper.from_array(np.array([-1, second * 16], dtype=np.int64), "flat"),
        weight("g1.w", hidden, second * 16),
        weight("g1.b", hidden),
        weight("g2.w", classes, hidden),
        weight("g2.b", classes),
    ]
    graph = helper.make_graph(
        nodes,
        "conv_net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"onnxprune.classes": json.dumps([f"class{i}" for i in range(classes)])})
    return model


@pytest.fixture(scope="session")
def conv_net() -> Callable[..., onnx.ModelProto]:
    """Build a small seeded convolutional classifier (input ``input`` [batch, 1, 12, 12], output ``logits``)."""
    return _conv_net


@pytest.fixture
def conv_net_path(tmp_path: Path) -> Path:
    """A small seeded convolutional classifier as a file."""
    path = tmp_path / "model.onnx"
    onnx.save(_conv_net(0), path)
    return path


@pytest.fixture
def examples_path(tmp_path: Path) -> Path:
    """200 examples for ``conv_net`` with labels, as an npz file."""
    rng = np.random.default_rng(1)
    path = tmp_path / "examples.npz"
    images = rng.standard_normal((200, 1, 12, 12)).astype(np.float32)
    np.savez(path, input=images, y=rng.integers(0, 5, 200))
    return path


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load(split)
    return (images.reshape(len(images), -1) / 255).astype(np.float32), labels


def _digits_net(*, outputs: int = 10, useful: int = 48, spare: int = 48) -> onnx.ModelProto:
    """Gemm-Relu-Gemm on [batch, 64]: random features, least squares behind them, and units that hardly matter."""
    rng = np.random.default_rng(0)
    pixels, labels = _digits("train")
    first, bias = rng.standard_normal((64, useful)) / 4, rng.standard_normal(useful) / 4
    features = np.maximum(pixels @ first + bias, 0)
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    solved = np.linalg.solve(rows.T @ rows + 0.01 * np.eye(useful + 1), rows.T @ np.eye(10)[labels])[:, :outputs]
    arrays = {
        "w1": np.concatenate([first, 1e-3 * rng.standard_normal((64, spare))], axis=1),
        "b1": np.concatenate([bias, np.zeros(spare)]),
        "w2": np.concatenate([solved[:-1], 1e-3 * rng.standard_normal((spare, outputs))]),
        "b2": solved[-1],
    }
    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["h"], "fc1"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["out"], "fc2"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(data.astype(np.float32), name) for name, data in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="session")
def digits_net() -> Callable[..., onnx.ModelProto]:
    """Build a classifier of digits (input ``input`` [batch, 64], output ``out``); half of its units are spare."""
    return _digits_net


@pytest.fixture(scope="session")
def digits() -> dict[str, dict[str, np.ndarray]]:
    """1,437 examples to calibrate with, of which 437 are left to choose by, and 360 to judge on, with labels."""
    (calib, _), (judged, labels) = _digits("train"), _digits("test")
    return {"calib": {"input": calib}, "eval": {"input": judged, "y": labels}}
