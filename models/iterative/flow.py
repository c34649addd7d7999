"""How information and gradients flow through a network: one vector that says what a mask has disturbed.

Information flow (InCoP-IF, CIAP): correlations of the outputs of layers that are linked in the graph, skip
connections included. Gradient flow (InCoP-GF, GIAP): the mean gradient of every layer's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.data import Examples
from onnxprune.errors import ModelError
from onnxprune.exporters.to_torch import OnnxModule
from onnxprune.graph import constants
from onnxprune.graph.cost import MACS
from onnxprune.models.objectives import Objective
from onnxprune.models.teaching import Student

__all__ = [
    "Edges", "distance", "gradient_flow", "information_flow", "layer_edges", "layer_weights", "mean_correlation",
    "similarity",
]  # fmt: skip

_FLOOR = 1e-6  # deviations below it count as none
_CHUNK = 256
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Edges:
    """Layers with weights, and which of them feed which.

    Attributes:
        layers: Names of the layers' nodes, in execution order.
        outputs: Names of what they compute.
        pairs: Places of two layers whose values meet with no third between, by execution order.
    """

    layers: tuple[str, ...]
    outputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]


def layer_edges(model: ir.Model) -> Edges:
    """Return the layers of a model and the links between them, as the graph has them.

    A link goes from a layer to every layer that its output reaches without passing another: through activations,
    normalisation, pools, sums of residual branches.

    Raises:
        ModelError: There are fewer than two layers, or none are linked.
    """
    layers = [node for node in model.graph if node.op_type in MACS and _weighty(node)]
    place = {node: index for index, node in enumerate(layers)}
    sources: dict[ir.Value, frozenset[int]] = {}
    pairs: set[tuple[int, int]] = set()
    for node in model.graph:
        before = frozenset().union(*(sources.get(v, frozenset()) for v in node.inputs if v is not None))
        if node in place:
            pairs |= {(source, place[node]) for source in before}
            before = frozenset({place[node]})
        for value in node.outputs:
            sources[value] = before
    if not pairs:
        raise ModelError("information flow needs two layers with weights of which one feeds the other")
    names = tuple(str(node.name) for node in layers)
    return Edges(names, tuple(str(node.outputs[0].name) for node in layers), tuple(sorted(pairs)))


def _weighty(node: ir.Node) -> bool:
    return any(value is not None and constants.constant(value) is not None for value in node.inputs[:2])


def information_flow(
    module: OnnxModule,
    edges: Edges,
    examples: Examples,
    read: Objective,
    device: torch.device,
    *,
    signed: bool = False,
) -> Vector:
    """Return one number per link: the mean of |C|, or with ``signed`` of C, over all pairs of channels.

    C holds Pearson correlations over the examples, between the spatial means of two layers' outputs; a channel that
    is constant has none (0).

    Args:
        module: Runs in evaluation mode, and is left in the mode it was in.
        edges: From :func:`layer_edges`, of the same graph.
        examples: One or two thousand are enough.
        read: What reads a batch.
        device: Where the module is.
        signed: Keep signs, as the authors' code does.
    """
    scores = _scores(module, edges, examples, read, device)
    return np.array([mean_correlation(scores[a], scores[b], signed=signed) for a, b in edges.pairs])


def similarity(
    module: OnnxModule, edges: Edges, examples: Examples, read: Objective, device: torch.device
) -> npt.NDArray[np.float64]:
    """Return the mean of |C| between the outputs of all layers, [layers, layers], as ``information_flow`` has it."""
    scores = _scores(module, edges, examples, read, device)
    return np.array([[mean_correlation(a, b, signed=False) for b in scores] for a in scores])


@torch.no_grad()
def _scores(
    module: OnnxModule, edges: Edges, examples: Examples, read: Objective, device: torch.device
) -> list[Vector]:
    """Return every layer's standardised channel means [n, channels]; the module is left in the mode it was in."""
    training = module.training
    module.eval()
    found: list[list[npt.NDArray[np.float32]]] = [[] for _ in edges.outputs]
    for batch in examples.batches(_CHUNK):
        inputs, _ = read.read(batch)
        feeds = dict(zip(module.inputs, (each.to(device) for each in inputs), strict=True))
        values = module.run(feeds, edges.outputs)
        for kept, name in zip(found, edges.outputs, strict=True):
            kept.append(_channels(values[name], len(batch.rows)))
    module.train(training)
    return [_standard(np.concatenate(kept)) for kept in found]


def mean_correlation(first: Vector, second: Vector, *, signed: bool) -> float:
    """Return the mean correlation of standardised columns [n, a] and [n, b], or that of its magnitude.

    The signed mean needs no matrix: it is that of the products of the rows' sums.
    """
    count = len(first)
    if signed:
        return float(first.sum(1) @ second.sum(1) / (count * first.shape[1] * second.shape[1]))
    return float(np.abs(first.T @ second).mean() / count)


def gradient_flow(
    network: Student, edges: Edges, model: ir.Model, examples: Examples, task: Objective, device: torch.device
) -> Vector:
    """Return the mean magnitude of every layer's gradient, over weights that are not masked and over the examples.

    One backward pass per batch, in evaluation mode: neither statistics nor random numbers move.

    Args:
        network: Is left in the mode it was in, as are its gradients.
        edges: Its layers.
        model: The graph that it was made from.
        examples: With what the task learns from.
        task: Gives the loss.
        device: Where the module is.
    """
    training, module = network.training, network.module
    network.eval()
    weights = layer_weights(module, edges, model)
    sums, count = np.zeros(len(weights)), 0
    for batch in examples.batches(_CHUNK):
        inputs, answers = task.read(batch)
        inputs = tuple(each.to(device) for each in inputs)
        loss = task.loss(network(*inputs), inputs, None if answers is None else answers.to(device))
        parameters = [parameter for _, parameter in weights]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for place, ((name, _), grad) in enumerate(zip(weights, grads, strict=True)):
            mask = module.masks.get(name)
            left = grad.abs() if mask is None else grad.abs()[mask]
            sums[place] += float(left.double().mean()) * len(batch.rows) if left.numel() else 0.0
        count += len(batch.rows)
    network.train(training)
    return np.asarray(sums / max(1, count))


def layer_weights(module: OnnxModule, edges: Edges, model: ir.Model) -> list[tuple[str, Tensor]]:
    """Return the Parameters of the layers' weights, with the names of their initialisers, each once."""
    nodes = {str(node.name): node for node in model.graph}
    trained = module.trained()
    names = dict.fromkeys(
        str(value.name)
        for layer in edges.layers
        for value in nodes[layer].inputs[:2]
        if value is not None and str(value.name) in trained
    )
    return [(name, trained[name]) for name in names]


def distance(found: Vector, reference: Vector, *, relative: bool = False) -> float:
    """Return the Euclidean distance of two flows; with ``relative`` over the length of the reference."""
    apart = float(np.linalg.norm(found - reference))
    if not relative:
        return apart
    length = float(np.linalg.norm(reference))
    return apart / length if length else (0.0 if apart == 0 else float("inf"))


def _channels(value: Tensor, examples: int) -> npt.NDArray[np.float32]:
    """Return an output's mean over positions, [n, channels]: axis 1 of images, the last one of anything else."""
    if value.ndim == 0 or value.shape[0] != examples:
        value = value.reshape(examples, -1)
    if value.ndim > 3:
        value = value.flatten(2).mean(2)
    elif value.ndim == 3:
        value = value.mean(1)
    return np.asarray(value.reshape(examples, -1).float().cpu().numpy())


def _standard(values: npt.NDArray[np.float32]) -> Vector:
    """Return columns with mean 0 and deviation 1; constant ones are 0."""
    wide = values.astype(np.float64)
    wide -= wide.mean(0)
    spread = wide.std(0)
    return np.asarray(np.where(spread > _FLOOR, wide / np.where(spread > _FLOOR, spread, 1.0), 0.0))
