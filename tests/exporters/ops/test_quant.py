from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.exporters.to_torch import to_torch

Check = Callable[..., Any]
X = (np.random.default_rng(3).standard_normal((2, 3, 4)) * 40).astype(np.float32)
SCALE = np.array(0.31, np.float32)
SCALES = np.array([0.2, 0.5, 1.1], np.float32)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_quantize(same_as_runtime: Check, kind: type[np.generic]) -> None:
    same_as_runtime("QuantizeLinear", [X, SCALE, np.array(3, kind)])
    same_as_runtime("QuantizeLinear", [X, SCALES, np.array([0, 1, 2], kind)], axis=1)


def test_quantize_without_a_zero_point(same_as_runtime: Check) -> None:
    same_as_runtime("QuantizeLinear", [X, SCALE])


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32])
def test_dequantize(same_as_runtime: Check, kind: type[np.generic]) -> None:
    steps = np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(kind)
    zero = np.zeros(3, kind) if kind is np.int32 else np.array([0, 1, 2], kind)
    same_as_runtime("DequantizeLinear", [steps, SCALES, zero], axis=-2)
    same_as_runtime("DequantizeLinear", [steps, SCALE])


def test_whole_products(same_as_runtime: Check) -> None:
    rng = np.random.default_rng(0)
    # Seven bits on the right: with eight ONNX Runtime saturates on processors without VNNI.
    a, b = rng.integers(0, 255, (3, 4)).astype(np.uint8), rng.integers(-64, 64, (4, 5)).astype(np.int8)
    same_as_runtime("MatMulInteger", [a, b, np.array(12, np.uint8), np.array(-3, np.int8)])
    x, w = rng.integers(0, 255, (1, 2, 5, 5)).astype(np.uint8), rng.integers(0, 255, (3, 2, 3, 3)).astype(np.uint8)
    same_as_runtime("ConvInteger", [x, w, np.array(9, np.uint8)], pads=[1, 0, 1, 2])


def test_dynamic_quantisation(same_as_runtime: Check) -> None:
    same_as_runtime("DynamicQuantizeLinear", [X], outputs=3)


def test_gradients_go_through_the_rounding_but_not_past_the_ends() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("x", "y")]
    held = [numpy_helper.from_array(SCALE, "scale"), numpy_helper.from_array(np.array(0, np.int8), "zero")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], held)
    module = to_torch(ir.serde.deserialize_model(helper.make_model(graph)))
    assert not module.trained()
    x = torch.tensor([0.5, -3.0, 1000.0], requires_grad=True)
    found = module(x)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, torch.tensor([0.62, -3.1, 127 * 0.31]))
    found.sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 0.0]))
