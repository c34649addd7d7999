"""A budget of the whole changes nothing, whatever its currency, also where a refit would add constants."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import compress


def _without_biases() -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name)

    conv = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "c1", **conv),
        helper.make_node("Relu", ["a"], ["b"], "r1"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "c2", **conv),
        helper.make_node("Relu", ["c"], ["d"], "r2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "p"),
        helper.make_node("Flatten", ["e"], ["f"], "f"),
        helper.make_node("MatMul", ["f", "w3"], ["y"], "m"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 5]))]
    weights = [weight("w1", 8, 3, 3, 3), weight("w2", 12, 8, 3, 3), weight("w3", 12, 5)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("currency", ["flops", "params", "bytes"])
@pytest.mark.parametrize(
    "item",
    [
        "id",
        "id(allocate=uniform)",
        "id(mode=iditer)",
        "id(reconstruct=none)",
        "filters",
        "filters(reconstruct=asymmetric)",
        "ispasp",
        "ispasp(reconstruct=asymmetric)",
        "pca",
        "pca(reconstruct=none)",
        "lrank",
        "cp",
        "auto",
    ],
)
def test_a_budget_of_the_whole_changes_nothing(item: str, currency: str) -> None:
    model = _without_biases()
    inputs = np.random.default_rng(1).standard_normal((60, 3, 8, 8)).astype(np.float32)
    done = compress(model, item, calib={"x": inputs[:40]}, eval={"x": inputs[40:]}, targets=[f"{currency}=1"])
    cost = done.report.cost
    assert done.met
    assert (cost.params.ratio, cost.bytes.ratio, cost.macs.ratio) == (1.0, 1.0, 1.0)
    assert done.report.output_error.max_abs <= 1e-5
