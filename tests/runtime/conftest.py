"""Small models for the runtime's tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper


def _dense(batch: int | str, *, weight: np.ndarray | None = None, op: str = "Relu", domain: str = "") -> ir.Model:
    """Gemm 4 -> 3 (value ``h``), an activation (``r``), Flatten-like Reshape of the batch away (``flat``), logits."""
    rng = np.random.default_rng(0)
    first = (rng.standard_normal((3, 4)) if weight is None else weight).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "first", transB=1),
        helper.make_node(op, ["h"], ["r"], "act", domain=domain),
        helper.make_node("Reshape", ["r", "flat_shape"], ["flat"], "flat"),
        helper.make_node("Gemm", ["r", "v"], ["y"], "second"),
    ]
    stored = [
        numpy_helper.from_array(first, "w"),
        numpy_helper.from_array(rng.standard_normal((3, 2)).astype(np.float32), "v"),
        numpy_helper.from_array(np.array([-1]), "flat_shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        stored,
    )
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if not domain:
        onnx.checker.check_model(model)
    return ir.serde.deserialize_model(model)


@pytest.fixture(scope="session")
def dense() -> Callable[..., ir.Model]:
    """Build a two-layer model on [batch, 4]; ``batch`` may be a number or a symbol."""
    return _dense


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """50 examples for ``dense``."""
    return np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
