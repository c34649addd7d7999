"""Channel labels: which positions along which axes of which tensors belong to one channel.

Every prunable axis carries an integer array, one label per position. An operator's rule (the tables in
``graph/rules_*.py``) hands labels on, unites those that must be cut together and freezes those that cannot be
cut, with a reason. Weights carry labels on their own axes, so cutting is the same act for every operator: drop
the positions whose labels go. A flatten repeats labels, a depthwise convolution unites input with output, a
residual sum unites two producers; no operator needs more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import origins
from onnxprune.graph.rewrites import Rewrite
from onnxprune.graph.shapes import Shapes

Labels = np.ndarray | None


@dataclass(frozen=True, eq=False)
class Producer:
    """A linear node whose output channels are rows of ``weight`` along ``axis``."""

    node: ir.Node
    weight: ir.Value
    axis: int


@dataclass(frozen=True, eq=False)
class Consumer:
    """A linear node that sums over channels: axis ``axis`` of ``value`` meets ``weight_axis`` of ``weight``.

    With several groups the weight's axis holds the places of one block, and ``value`` holds ``groups`` blocks.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    weight: ir.Value
    weight_axis: int
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Product:
    """Channels that form a grid: ``fine`` labels of shape [f1, f2, ...] and the labels of every axis of the grid.

    A position of the grid stays when its row and its column stay (see ``graph/factors.py``).
    """

    fine: np.ndarray
    factors: tuple[np.ndarray, ...]


class Tracer:
    """The labels of one model while rules walk over it in execution order.

    Nodes named in ``united`` lose the same places of every group, and never a whole group.
    """

    def __init__(self, model: ir.Model, shapes: Shapes, united: frozenset[str] = frozenset()) -> None:
        self.model = model
        self.united = united
        self.version = model.opset_imports.get("", 1)
        self.shapes = shapes
        self.labels: dict[ir.Value, list[Labels]] = {}
        self.edges: list[tuple[np.ndarray, np.ndarray]] = []
        self.frozen: list[tuple[np.ndarray, str]] = []
        self.refused: dict[str, str] = {}
        self.producers: list[Producer] = []
        self.consumers: list[Consumer] = []
        self.rewrites: list[Rewrite] = []
        self.products: list[Product] = []
        self.opaque: list[tuple[np.ndarray, str]] = []
        self.grouped: dict[str, list[np.ndarray]] = {}
        self.count = 0

    def shape(self, value: ir.Value | None) -> tuple[int | None, ...] | None:
        """Return the shape of a value (None where its rank is unknown; None entries where a size is)."""
        return None if value is None else self.shapes.get(str(value.name))

    def axes(self, value: ir.Value | None) -> list[Labels]:
        """Return the labels of every axis of a value (all None where nothing is tracked)."""
        if value is None:
            return []
        if value not in self.labels:
            return [None] * len(self.shape(value) or ())
        return self.labels[value]

    def fresh(self, size: int) -> np.ndarray:
        """Return ``size`` labels that no axis carries yet."""
        start, self.count = self.count, self.count + size
        return np.arange(start, self.count)

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Say that position i of ``a`` and position i of ``b`` are one channel."""
        if a is not b:
            self.edges.append((a, b))

    def freeze(self, labels: Labels, reason: str) -> None:
        """Say that these channels cannot be cut, and why."""
        if labels is not None:
            self.frozen.append((labels, reason))

    def hold(self, node: ir.Node, labels: Labels, reason: str) -> None:
        """Freeze some channels at a node that hands on the others, and list the node with the reason."""
        if labels is not None:
            self.refused[str(node.name)] = reason
            self.freeze(labels, f"'{node.name}': {reason}")

    def mark_opaque(self, labels: Labels, reason: str) -> None:
        """Say that these channels may be cut, but nothing can make up for them where this node reads them."""
        if labels is not None:
            self.opaque.append((labels, reason))

    def give(self, value: ir.Value, labels: Sequence[Labels]) -> None:
        """Set the labels of a computed value."""
        self.labels[value] = list(labels)

    def tie(self, value: ir.Value, axis: int, labels: np.ndarray) -> None:
        """Label one axis of a weight and of all that it is made from, uniting with what they carry already."""
        axes = self.axes(value)
        self.labels[value] = axes
        known = axes[axis]
        if known is not None:
            self.unite(known, labels)
            return
        axes[axis] = labels
        node = None if value.is_initializer() else origins.behind(value)
        if node is not None:
            tied, reason = origins.sources(node, axis, self.shapes)
            for source, along in tied if reason is None else ():
                self.tie(source, along, labels)
            if reason is not None:
                self.freeze(labels, reason)

    def sliceable(self, value: ir.Value | None) -> bool:
        """Return whether :meth:`tie` may label a value: a stored tensor, or one made from such (dequantised)."""
        return origins.is_weight(value, self.shapes)

    def consume(self, node: ir.Node, value: ir.Value, axis: int, weight: ir.Value, weight_axis: int) -> None:
        """Say that a node sums over the channels along an axis of ``value``, each times a slice of ``weight``."""
        labels = self.axes(value)[axis]
        if labels is not None:
            self.tie(weight, weight_axis, labels)
            self.read(Consumer(node, value, axis, weight, weight_axis))

    def read(self, consumer: Consumer) -> None:
        """Note a consumer whose weight is tied already; into one behind nodes nothing can be folded."""
        self.consumers.append(consumer)
        if not consumer.weight.is_initializer():
            reason = f"'{consumer.node.name}' has a quantised or converted weight, which takes no correction"
            self.mark_opaque(self.axes(consumer.weight)[consumer.weight_axis], reason)

    def produce(self, node: ir.Node, weight: ir.Value, axis: int) -> np.ndarray:
        """Label one axis of a weight as channels that a node makes, and return the labels."""
        size = (self.shape(weight) or ())[axis]
        assert size is not None
        labels = self.fresh(size)
        self.tie(weight, axis, labels)
        self.producers.append(Producer(node, weight, axis))
        return labels

    def stored(self, value: ir.Value | None) -> bool:
        """Return whether a value is an initialiser that belongs to one node alone and may be rewritten."""
        if value is None or not value.is_initializer() or value.const_value is None:
            return False
        return not value.is_graph_input() and not value.is_graph_output() and len(value.uses()) == 1

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Freeze everything a node touches: its labelled inputs cannot be cut and its outputs carry no labels."""
        self.refused[str(node.name)] = reason
        for value in node.inputs:
            for labels in self.axes(value):
                self.freeze(labels, f"'{node.name}': {reason}")
        for value in node.outputs:
            self.give(value, [None] * len(self.shape(value) or ()))


Rule = Callable[[Tracer, ir.Node], None]


def trace(model: ir.Model, shapes: Shapes, rules: dict[str, Rule], united: frozenset[str] = frozenset()) -> Tracer:
    """Walk over the main graph and return its labels; what no rule knows is frozen with a reason."""
    tracer = Tracer(model, shapes, united)
    for node in model.graph:
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            tracer.refuse(node, f"{node.op_type} has a body of its own, which is left as it is")
        elif rule is None:
            domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
            tracer.refuse(node, f"operator {domain}{node.op_type} has no rule for cutting channels")
        elif any(tracer.shape(out) is None for out in node.outputs if out.name):
            tracer.refuse(node, "the shape of its output cannot be inferred")
        elif any(tracer.shape(value) is None for value in node.inputs if value is not None):
            tracer.refuse(node, "the shape of its input cannot be inferred")
        else:
            rule(tracer, node)
    for value in model.graph.outputs:
        for labels in tracer.axes(value):
            tracer.freeze(labels, f"graph output '{value.name}'")
    for value, axes in tracer.labels.items():
        if any(use.node.graph is not model.graph for use in value.uses()):
            for labels in axes:
                tracer.freeze(labels, f"'{value.name}' is read inside a body")
    return tracer
