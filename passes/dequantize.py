"""The pass ``dequantize``: a model with QuantizeLinear and DequantizeLinear becomes one in floating point again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options
from onnxprune.graph import constants, origins
from onnxprune.graph.cleanup import finish, lifted, remove_dead
from onnxprune.graph.names import free_name, node_names, value_names
from onnxprune.graph.shapes import refresh_shapes

# Results that are never negative, and nodes that leave it so.
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp")
_SIGN_STAYS = (
    "AveragePool", "Cast", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "Reshape",
    "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
# Where the reader of a stored tensor by ONNX Runtime's quantiser keeps the name that it had.
_SUFFIX = "_quantized"


@dataclass(frozen=True)
class Dequantize:
    """Take pairs of QuantizeLinear and DequantizeLinear out, and store weights as the numbers that they stand for.

    For passes that need floating point, as in ``dequantize,id,int8``. A pair that starts at zero did the work of a
    Relu that quantisers remove: where nothing else does it, a Clip of the same range takes its place.
    """

    name: ClassVar[str] = "dequantize"
    summary: ClassVar[str] = "turns a quantised model (QDQ) back into floating point"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: scales are in the model."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model in floating point; what stays quantised is listed with the reason."""
        work = lifted(model)
        refresh_shapes(work)
        pairs, clips = _unpair(work)
        weights = _restore(work)
        remove_dead(work)
        numbers = {"pairs": pairs, "weights": weights, "clips": clips}
        skipped = {str(node.name): _reason(node) for node in work.graph if _quantised(node)}
        warning = () if pairs + weights else ("dequantize found no QuantizeLinear or DequantizeLinear to take out",)
        return StepResult(finish(work), skipped, numbers, warnings=warning)


def _unpair(work: ir.Model) -> tuple[int, int]:
    """Take every pair out, in place; return how many there were and how many left a Clip."""
    graph, pairs, clips = work.graph, 0, 0
    names, values = set(node_names(graph)), value_names(graph)
    made: dict[ir.Node, ir.Value] = {}
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.domain or node.inputs[0] is None:
            continue
        first, out = node.inputs[0].producer(), node.outputs[0]
        source = first.inputs[0] if first is not None and first.op_type == "QuantizeLinear" else None
        if first is None or source is None or source.dtype not in (None, out.dtype):
            continue
        if not _same(first, node):
            continue
        if first not in made:
            made[first] = source
            done = constants.constant(source) is not None or _positive(source) or _rectified(first)
            limits = None if done else _from_zero(first)
            if limits is not None:
                clips += 1
                made[first] = _clip(graph, first, source, limits, (names, values))
        if out.is_graph_output():
            _hand_over(graph, node, made[first], (names, values))
        else:
            out.replace_all_uses_with(made[first])
        pairs += 1
    return pairs, clips


def _hand_over(graph: ir.Graph, node: ir.Node, value: ir.Value, taken: tuple[set[str], ...]) -> None:
    """Let ``value`` be the graph output that a node made, under the name of that output."""
    names, values = taken
    out = node.outputs[0]
    name, shape, kind = out.name, out.shape, out.type
    out.name = free_name(f"{name}/quantised", values)
    if value.producer() is None or value.is_graph_output():
        copy = ir.Node("", "Identity", [value], name=free_name(f"{node.name}/float", names))
        graph.insert_after(node, copy)
        value = copy.outputs[0]
    value.name, value.shape, value.type = name, shape, kind
    out.replace_all_uses_with(value, replace_graph_outputs=True)


def _same(first: ir.Node, second: ir.Node) -> bool:
    """Return whether two nodes scale alike."""
    for a, b in zip(first.inputs[1:], second.inputs[1:], strict=False):
        if a is b:
            continue
        left, right = constants.array(a), constants.array(b)
        if left is None or right is None or left.shape != right.shape or not np.array_equal(left, right):
            return False
    return len(first.inputs) == len(second.inputs)


def _positive(value: ir.Value) -> bool:
    """Return whether a value is never negative, as far as the nodes that make it tell."""
    node = value.producer()
    while node is not None and node.op_type in (*_SIGN_STAYS, *origins.QUANTISERS) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type == "Clip" and len(node.inputs) > 1:
        low = constants.array(node.inputs[1])
        return low is not None and bool((low >= 0).all())
    return node is not None and node.op_type in _POSITIVE


def _rectified(first: ir.Node) -> bool:
    """Return whether everything that reads a rounded value makes it positive anyway."""
    made = [use.node for use in first.outputs[0].uses()]
    if any(node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output() for node in made):
        return False
    return all(use.node.op_type == "Relu" for node in made for use in node.outputs[0].uses())


def _from_zero(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the range of what a QuantizeLinear lets through where that begins at zero."""
    scale = constants.array(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = np.zeros((), np.uint8) if given is None else constants.array(given)
    if scale is None or zero is None or scale.size != 1 or zero.size != 1 or zero.dtype.kind not in "iu":
        return None
    limits = np.iinfo(zero.dtype)
    if int(zero.reshape(())) != limits.min:
        return None
    high = scale.reshape(()) * (limits.max - limits.min)
    return np.zeros((), scale.dtype), np.asarray(high, dtype=scale.dtype)


def _clip(
    graph: ir.Graph, node: ir.Node, source: ir.Value, limits: tuple[np.ndarray, np.ndarray], taken: tuple[set[str], ...]
) -> ir.Value:
    names, values = taken
    kind = source.dtype or ir.DataType.FLOAT
    stored = [
        constants.add_array(graph, f"{node.name}/{word}", bound, kind, values)
        for word, bound in zip(("low", "high"), limits, strict=True)
    ]
    clip = ir.Node("", "Clip", [source, *stored], name=free_name(f"{node.name}/clip", names))
    out = clip.outputs[0]
    out.name, out.shape, out.type = free_name(f"{source.name}/clipped", values), source.shape, ir.TensorType(kind)
    graph.insert_before(node, clip)
    return out


def _restore(work: ir.Model) -> int:
    """Store what every dequantised stored tensor stands for, in place; return how many there were."""
    graph, count = work.graph, 0
    taken = value_names(graph)
    for node in list(graph):
        if node.op_type != "DequantizeLinear" or node.domain or node.inputs[0] is None:
            continue
        out, held = node.outputs[0], node.inputs[0]
        scale = node.inputs[1]
        data = origins.values(out) if constants.constant(held) is not None else None
        if data is None or out.is_graph_output() or scale is None:
            continue
        kind = out.dtype or scale.dtype or ir.DataType.FLOAT
        name = str(held.name).removesuffix(_SUFFIX)
        value = constants.add_array(graph, name, data.astype(kind.numpy()), kind, taken)
        out.replace_all_uses_with(value)
        count += 1
    return count


def _quantised(node: ir.Node) -> bool:
    word = node.op_type
    return word in (*origins.QUANTISERS, "DynamicQuantizeLinear") or word.endswith("Integer") or "QLinear" in word


def _reason(node: ir.Node) -> str:
    if node.op_type in origins.QUANTISERS:
        return "it stands alone: an input or output of the graph, or a computed tensor, is quantised"
    return f"operator {node.op_type} computes with integers; only QuantizeLinear and DequantizeLinear are taken out"
