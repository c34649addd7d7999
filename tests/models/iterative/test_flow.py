"""Flows: the shortcut against the matrix, order of channels, true links of the graph, real gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from onnxprune.data import Batch, Examples
from onnxprune.errors import ModelError
from onnxprune.exporters.to_torch import OnnxModule, to_torch
from onnxprune.models.iterative.flow import (
    distance,
    gradient_flow,
    information_flow,
    layer_edges,
    layer_weights,
    mean_correlation,
    similarity,
)
from onnxprune.models.teaching import Lesson, Student, Teaching

CPU = torch.device("cpu")


def standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def test_the_shortcut_is_the_mean_of_the_matrix() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((200, 6)), rng.standard_normal((200, 9))
    matrix = np.corrcoef(first.T, second.T)[:6, 6:]
    a, b = standard(first), standard(second)
    assert mean_correlation(a, b, signed=True) == pytest.approx(matrix.mean(), abs=1e-15)
    assert mean_correlation(a, b, signed=False) == pytest.approx(np.abs(matrix).mean(), abs=1e-15)
    order = rng.permutation(6)
    assert mean_correlation(a[:, order], b, signed=True) == pytest.approx(matrix.mean(), abs=1e-15)


RESIDUAL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 3, 6, 6] x, float[4, 3, 3, 3] w0, float[4, 4, 3, 3] w1, float[4, 4, 3, 3] w2, float[4, 5] w3)
  => (float[N, 5] y) {
  c0 = Conv <pads = [1, 1, 1, 1]> (x, w0)
  r0 = Relu(c0)
  c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1)
  r1 = Relu(c1)
  c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
  s = Add(c2, r0)
  r2 = Relu(s)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = MatMul(f, w3)
}"""


@pytest.fixture
def residual() -> ir.Model:
    model = ir.from_onnx_text(RESIDUAL)
    rng = np.random.default_rng(1)
    for value in list(model.graph.inputs)[1:]:
        model.graph.inputs.remove(value)
        shape = tuple(int(side) for side in value.shape)  # type: ignore[union-attr, arg-type]
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32) / 3, name=value.name)
        model.graph.register_initializer(value)
    for place, node in enumerate(model.graph):
        node.name = f"n{place}"
    return model


def examples(count: int = 80) -> Examples:
    rng = np.random.default_rng(2)
    images = rng.standard_normal((count, 3, 6, 6)).astype(np.float32)
    return Examples("noise", count, rng.integers(0, 5, count), lambda rows: {"x": images[rows]})


def labels(module: OnnxModule) -> Teaching:
    return Teaching(Student(module), None, Lesson("labels"), examples())


def test_links_are_those_of_the_graph(residual: ir.Model, conv_net: Callable[..., Any]) -> None:
    edges = layer_edges(residual)
    assert edges.layers == ("n0", "n2", "n4", "n9")
    assert edges.outputs == ("c0", "c1", "c2", "y")
    # The first layer feeds the second, and past it, by the skip connection, the last.
    assert edges.pairs == ((0, 1), (0, 3), (1, 2), (2, 3))
    plain = layer_edges(ir.serde.deserialize_model(conv_net(0)))
    assert plain.pairs == ((0, 1), (1, 2), (2, 3))
    single = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 3] x, float[3, 3] w) => (float[N, 3] y) '
        "{ y = MatMul(x, w) }"
    )
    with pytest.raises(ModelError, match="two layers"):
        layer_edges(single)


@pytest.mark.parametrize("signed", [False, True])
def test_information_flow_is_the_correlation_of_spatial_means(residual: ir.Model, signed: bool) -> None:
    edges, module = layer_edges(residual), to_torch(residual)
    found = information_flow(module.train(), edges, examples(), labels(to_torch(residual)), CPU, signed=signed)
    assert module.training
    values = module.eval().run({"x": torch.from_numpy(examples().fetch(np.arange(80))["x"])}, edges.outputs)
    means = [
        values[name].detach().double().numpy().reshape(80, values[name].shape[1], -1).mean(2) for name in edges.outputs
    ]
    for flow, (first, second) in zip(found, edges.pairs, strict=True):
        a, b = means[first], means[second]
        matrix = np.corrcoef(a.T, b.T)[: a.shape[1], a.shape[1] :]
        assert flow == pytest.approx(matrix.mean() if signed else np.abs(matrix).mean(), abs=1e-6)


def test_equal_networks_are_no_distance_apart_and_cut_ones_some(residual: ir.Model) -> None:
    edges = layer_edges(residual)
    flows = [information_flow(to_torch(residual), edges, examples(), labels(to_torch(residual)), CPU) for _ in range(2)]
    assert distance(*flows) == 0
    cut = to_torch(residual)
    cut.set_masks({"w1": torch.arange(144).reshape(4, 4, 3, 3) % 3 == 0})
    other = information_flow(cut, edges, examples(), labels(to_torch(residual)), CPU)
    assert distance(other, flows[0]) > 0
    assert distance(other, flows[0], relative=True) == pytest.approx(
        distance(other, flows[0]) / float(np.linalg.norm(flows[0]))
    )


def test_similarity_holds_the_links(residual: ir.Model) -> None:
    module, edges = to_torch(residual), layer_edges(residual)
    found = similarity(module, edges, examples(), labels(module), CPU)
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found, found.T)
    flow = information_flow(module, edges, examples(), labels(module), CPU)
    np.testing.assert_allclose([found[pair] for pair in edges.pairs], flow)


def test_a_constant_channel_has_no_correlation(residual: ir.Model) -> None:
    module = to_torch(residual)
    module.set_masks({"w1": torch.zeros(4, 4, 3, 3, dtype=torch.bool)})
    flow = information_flow(module, layer_edges(residual), examples(), labels(to_torch(residual)), CPU)
    assert np.isfinite(flow).all()
    assert flow[0] == 0


def test_gradient_flow_is_a_real_backward_pass(residual: ir.Model) -> None:
    edges, module = layer_edges(residual), to_torch(residual)
    mask = torch.arange(144).reshape(4, 4, 3, 3) % 2 == 0
    module.set_masks({"w1": mask})
    before = {name: parameter.grad for name, parameter in module.trained().items()}
    found = gradient_flow(Student(module), edges, residual, examples(), labels(module), CPU)
    assert {name: parameter.grad for name, parameter in module.trained().items()} == before
    batch: Batch = next(examples().batches(80))
    loss = functional.cross_entropy(module(torch.from_numpy(batch.arrays["x"])), torch.from_numpy(batch.labels))
    loss.backward()
    grads = [parameter.grad.abs().double() for _, parameter in layer_weights(module, edges, residual)]  # type: ignore[union-attr]
    wanted = [float((grad[mask] if place == 1 else grad).mean()) for place, grad in enumerate(grads)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
