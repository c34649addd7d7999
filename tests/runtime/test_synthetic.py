"""Synthetic images fitted to the statistics that a BatchNormalization remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.api.opening import matcher, open_model
from onnxprune.api.options import Options
from onnxprune.data import InputSpec, Preprocess, open_data
from onnxprune.data.synthetic import Look, draw, plain_look
from onnxprune.runtime.session import Settings, input_specs
from onnxprune.runtime.synthetic import matched, remembered

ONE = Settings(threads=1)
CHANNELS = 12


def network(
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    kind: int = TensorProto.FLOAT,
    layout: str = "NCHW",
    before: str = "",
    batch: int | str = "n",
    second: bool = False,
) -> ir.Model:
    """Conv-BatchNormalization-Relu-GlobalAveragePool-Flatten on three channels, with something before the Conv."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "w": rng.standard_normal((CHANNELS, 3, 3, 3)).astype(dtype),
        "b": rng.standard_normal(CHANNELS).astype(dtype),
        "one": np.ones(CHANNELS, dtype),
        "zero": np.zeros(CHANNELS, dtype),
        "mean": mean.astype(dtype),
        "variance": variance.astype(dtype),
        "scale": np.array([[[2.0]], [[3.0]], [[4.0]]], dtype),
    }
    nodes, at = [], "x"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [at], ["t"], perm=[0, 3, 1, 2]))
        at = "t"
    if before:
        nodes.append(helper.make_node(before, [at, "scale"] if before == "Mul" else [at], ["p"]))
        at = "p"
    nodes += [
        helper.make_node("Conv", [at, "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "one", "zero", "mean", "variance"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
    ]
    sides = [16, 16, 3] if layout == "NHWC" else [3, 16, 16]
    inputs = [helper.make_tensor_value_info("x", kind, [batch, *sides])]
    if second:
        inputs.append(helper.make_tensor_value_info("side", kind, [batch, CHANNELS]))
        nodes.append(helper.make_node("Add", ["f", "side"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["f"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        [helper.make_tensor_value_info("y", kind, [batch, CHANNELS])],
        [numpy_helper.from_array(data, name) for name, data in arrays.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def look_of(model: ir.Model, preprocess: Preprocess | None = None) -> Look:
    found = plain_look(input_specs(model)[0], preprocess, alone=True)
    assert found is not None
    return found


def answers(model: ir.Model, look: Look, run_model: Callable[..., Any], rows: range) -> np.ndarray:
    """What the BatchNormalization gets of drawn images."""
    proto = ir.to_proto(model)
    proto.graph.output.append(helper.make_tensor_value_info("c", proto.graph.input[0].type.tensor_type.elem_type, None))
    dtype = input_specs(model)[0].dtype
    images = np.stack([draw(look, np.random.default_rng([7, row])) for row in rows]).astype(dtype)
    feeds = {"x": images}
    if len(proto.graph.input) > 1:
        feeds["side"] = np.zeros((len(images), CHANNELS), dtype)
    return np.asarray(run_model(proto, feeds)["c"].astype(np.float64))


def truth(run_model: Callable[..., Any], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Statistics of images of another contrast, colour and brightness than the plain ones."""
    model = network(np.zeros(CHANNELS), np.ones(CHANNELS), **options)
    plain = look_of(model)
    seen = Look(plain.canvas, (2.0, 1.0, 0.3), 0.75, (1.0,) * 3, (1.5, -0.5, 0.25), None, None, "")
    found = answers(model, seen, run_model, range(1000, 1200))
    return found.mean(axis=(0, 2, 3)), found.var(axis=(0, 2, 3))


@pytest.mark.parametrize(
    "options",
    [{}, {"layout": "NHWC"}, {"before": "Mul"}, {"kind": TensorProto.FLOAT16}, {"second": True}],
    ids=["plain", "nhwc", "scaled", "half", "two inputs"],
)
def test_the_statistics_match(options: dict[str, Any], run_model: Callable[..., Any]) -> None:
    mean, variance = truth(run_model, **options)
    model = network(mean, variance, **options)
    plain = look_of(model)
    look = matched(model, ONE, "x", plain)
    found = answers(model, look, run_model, range(200))
    before = answers(model, plain, run_model, range(200))
    off = np.abs(found.mean(axis=(0, 2, 3)) - mean) / np.sqrt(variance)
    assert off.max() < 0.3
    logs = np.abs(np.log(found.var(axis=(0, 2, 3)) / variance))
    assert logs.max() < 0.3
    assert logs.mean() < 0.2 * np.abs(np.log(before.var(axis=(0, 2, 3)) / variance)).mean()
    assert look.offset == pytest.approx((1.5, -0.5, 0.25), abs=0.4)
    assert look.told.startswith("match the statistics that 'norm' remembers: the mean within 0.")


def test_a_fixed_batch_is_filled(run_model: Callable[..., Any]) -> None:
    mean, variance = truth(run_model)
    free = matched(network(mean, variance), ONE, "x", look_of(network(mean, variance)))
    fixed = network(mean, variance, batch=5)
    found = matched(fixed, ONE, "x", look_of(fixed))
    np.testing.assert_allclose(found.colours, free.colours, rtol=1e-3)
    np.testing.assert_allclose(found.offset, free.offset, rtol=1e-2)


def test_the_range_holds_and_contrast_makes_up_for_it(run_model: Callable[..., Any]) -> None:
    mean, variance = truth(run_model)
    model = network(mean, variance)
    preprocess = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    look = matched(model, ONE, "x", look_of(model, preprocess))
    drawn = np.stack([draw(look, np.random.default_rng(row)) for row in range(50)])
    assert drawn.min() >= -2.5 and drawn.max() <= 2.5
    ratio = answers(model, look, run_model, range(200)).var(axis=(0, 2, 3)) / variance
    assert 0.8 < np.exp(np.log(ratio).mean()) < 1.25


def test_a_normalisation_of_the_input_itself() -> None:
    mean, variance = np.array([1.0, 2.0, 3.0]), np.array([4.0, 1.0, 0.25])
    arrays = {"one": np.ones(3), "zero": np.zeros(3), "mean": mean, "variance": variance}
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", "one", "zero", "mean", "variance"], ["y"], "first")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [numpy_helper.from_array(data.astype(np.float32), name) for name, data in arrays.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    look = matched(model, ONE, "x", look_of(model))
    drawn = np.stack([draw(look, np.random.default_rng(row)) for row in range(300)])
    np.testing.assert_allclose(drawn.mean(axis=(0, 2, 3)), mean, atol=0.3)


def test_same_model_same_look(run_model: Callable[..., Any]) -> None:
    model = network(*truth(run_model))
    assert matched(model, ONE, "x", look_of(model)) == matched(model, ONE, "x", look_of(model))


@pytest.mark.parametrize("before", ["Relu", "Sigmoid"])
def test_what_is_not_affine_has_no_statistics(before: str) -> None:
    model = network(np.ones(CHANNELS), np.ones(CHANNELS), before=before)
    assert remembered(model, "x") is None
    assert matched(model, ONE, "x", look_of(model)) == look_of(model)


def test_statistics_that_were_never_written_say_nothing() -> None:
    assert remembered(network(np.zeros(CHANNELS), np.ones(CHANNELS)), "x") is None


def test_dead_channels_do_not_count(run_model: Callable[..., Any]) -> None:
    mean, variance = truth(run_model)
    alive = matched(network(mean, variance), ONE, "x", look_of(network(mean, variance)))
    variance[3] = 1e-12
    model = network(mean, variance)
    look = matched(model, ONE, "x", look_of(model))
    np.testing.assert_allclose(look.colours, alive.colours, rtol=0.3)


def test_open_model_and_random_data_work_together(tmp_path: Path, run_model: Callable[..., Any]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(ir.to_proto(network(*truth(run_model))), path)
    loaded = open_model(path, Options(threads=1))
    specs: list[InputSpec] = input_specs(loaded.model)
    opened = open_data("random", specs, examples=4, match=matcher(loaded, Options(threads=1)))
    again = open_data("random", specs, examples=4, match=matcher(loaded, Options(threads=1)))
    np.testing.assert_array_equal(opened.fetch(np.arange(4))["x"], again.fetch(np.arange(4))["x"])
    assert any("match the statistics that 'norm' remembers" in text for text in opened.warnings)


def test_a_trained_network_is_matched(shared_data: Path) -> None:
    loaded = open_model(shared_data / "onnx" / "resnet20-bn.onnx", Options(threads=1))
    plain = look_of(loaded.model, loaded.preprocess)
    look = matched(loaded.model, ONE, "input", plain)
    assert float(look.told.rpartition(" ")[2]) < 1.3
    folded = open_model(shared_data / "onnx" / "resnet20.onnx", Options(threads=1))
    assert matched(folded.model, ONE, "input", plain) == plain
