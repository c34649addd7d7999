"""One node of a graph, run in torch and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from onnxprune.exporters.to_torch import to_torch

# The last IR version that the ONNX Runtime of the oldest supported release reads.
IR_VERSION = 10


def model_of(
    op: str,
    inputs: Sequence[np.ndarray | None],
    opset: int,
    outputs: int,
    stored: Sequence[int],
    attributes: dict[str, Any],
) -> onnx.ModelProto:
    """Return a graph of one node ``"node"`` that reads ``x0, x1, ...``; ``stored`` inputs are initialisers."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name="node", **attributes)
    given, held = [], []
    for i, array in enumerate(inputs):
        if array is not None and i in stored:
            held.append(onnx.numpy_helper.from_array(array, f"x{i}"))
        elif array is not None:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            given.append(helper.make_tensor_value_info(f"x{i}", kind, [f"d{i}_{k}" for k in range(array.ndim)]))
    outs = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph([node], "node", given, outs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)


@pytest.fixture(scope="session")
def same_as_runtime(run_model: Callable[..., dict[str, np.ndarray]]) -> Callable[..., list[np.ndarray]]:
    """Compare a node in torch with ONNX Runtime: shapes, types and values; return the values."""

    def check(
        op: str,
        inputs: Sequence[np.ndarray | None],
        opset: int = 20,
        outputs: int = 1,
        stored: Sequence[int] = (),
        tolerance: float = 1e-5,
        **attributes: Any,
    ) -> list[np.ndarray]:
        model = model_of(op, inputs, opset, outputs, stored, attributes)
        fed = {f"x{i}": array for i, array in enumerate(inputs) if array is not None and i not in stored}
        want = run_model(model, fed)
        module = to_torch(ir.serde.deserialize_model(model)).eval()
        with torch.no_grad():
            found = module.run({name: torch.from_numpy(np.array(array)) for name, array in fed.items()})
        assert list(found) == list(want)
        for name, array in want.items():
            ours = found[name].numpy()
            assert (ours.shape, ours.dtype) == (array.shape, array.dtype)
            np.testing.assert_allclose(ours, array, rtol=tolerance, atol=tolerance)
        return list(want.values())

    return check
