"""Label rules of matrix products: Gemm and MatMul, with a weight on either side or of two computed tensors."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.labels import Labels, Rule, Tracer


@dataclass(frozen=True)
class _Side:
    """One operand: the axis that is summed over, and the one that goes to the result (None for a vector)."""

    value: ir.Value
    inner: int
    free: int | None


def gemm(tracer: Tracer, node: ir.Node) -> None:
    """Gemm: A[M, K] (A[K, M] with transA) times B[K, N] (B[N, K] with transB), plus C broadcast to [M, N]."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None
    turned, turned_right = int_attribute(node, "transA", 0) != 0, int_attribute(node, "transB", 0) != 0
    found = _sum(
        tracer,
        node,
        _Side(left, 0 if turned else 1, 1 if turned else 0),
        _Side(right, 1 if turned_right else 0, 0 if turned_right else 1),
    )
    if isinstance(found, str):
        return tracer.refuse(node, found)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        _add(tracer, node, bias, found)
    return tracer.give(node.outputs[0], found)


def _add(tracer: Tracer, node: ir.Node, bias: ir.Value, result: list[Labels]) -> None:
    """C is cut along with the rows and columns that it is added to."""
    shape, out = tracer.shape(bias) or (), tracer.shape(node.outputs[0]) or ()
    for axis in range(-len(shape), 0):
        known, given = result[axis], tracer.axes(bias)[axis]
        if shape[axis] != out[axis] or (known is None and given is None):
            continue
        if known is None:
            tracer.hold(node, given, "it adds them to rows or columns that carry none")
        elif given is not None:
            tracer.unite(known, given)
        elif tracer.sliceable(bias):
            tracer.tie(bias, len(shape) + axis, known)
        else:
            tracer.hold(node, known, f"it adds '{bias.name}', whose channels cannot be cut")


def _sum(tracer: Tracer, node: ir.Node, left: _Side, right: _Side) -> list[Labels] | str:
    """Tie what is summed over; return the labels of the axes that go to the result, or why there are none."""
    sides = (left, right)
    own = [tracer.sliceable(side.value) for side in sides]
    if all(own):
        return "both operands are stored"
    if not any(own):
        a, b = (tracer.axes(side.value)[side.inner] for side in sides)
        if (a is None) != (b is None):
            return "it sums over channels of which one operand's cannot be cut"
        if a is not None and b is not None:
            tracer.unite(a, b)
            tracer.mark_opaque(a, f"'{node.name}' multiplies them with other computed channels")
    else:
        weight, given = sides if own[0] else sides[::-1]
        tracer.consume(node, given.value, given.inner, weight.value, weight.inner)
    result: list[Labels] = []
    for side, weighs in zip(sides, own, strict=True):
        if side.free is not None:
            known = tracer.produce(node, side.value, side.free) if weighs else tracer.axes(side.value)[side.free]
            result.append(known)
    return result


def matmul(tracer: Tracer, node: ir.Node) -> None:
    """MatMul: X[..., M, K] times Y[..., K, N], either of them a weight; vectors have K alone.

    In attention both are computed: what is summed over is cut on both sides, the rest goes through.
    """
    left, right = node.inputs
    assert left is not None and right is not None
    ranks = [len(tracer.shape(value) or ()) for value in (left, right)]
    if min(ranks) < 1:
        return tracer.refuse(node, "an operand is a single number")
    batch = _batch(tracer, left, right)
    if isinstance(batch, str):
        return tracer.refuse(node, batch)
    found = _sum(
        tracer,
        node,
        _Side(left, ranks[0] - 1, ranks[0] - 2 if ranks[0] > 1 else None),
        _Side(right, max(0, ranks[1] - 2), ranks[1] - 1 if ranks[1] > 1 else None),
    )
    if isinstance(found, str):
        return tracer.refuse(node, found)
    return tracer.give(node.outputs[0], [*batch, *found])


def _batch(tracer: Tracer, left: ir.Value, right: ir.Value) -> list[Labels] | str:
    """Return the labels of the axes in front of the matrices, which are broadcast, or why there are none."""
    spans = [(value, tracer.shape(value) or ()) for value in (left, right)]
    batch: list[Labels] = []
    for axis in range(-max(2, *(len(shape) for _, shape in spans)), -2):
        wide = [(value, len(shape) + axis) for value, shape in spans if len(shape) >= -axis and shape[axis] != 1]
        labelled = [known for value, at in wide if (known := tracer.axes(value)[at]) is not None]
        for value, at in wide if labelled else ():
            if tracer.axes(value)[at] is not None:
                continue
            if not tracer.sliceable(value):
                return "a batch axis carries channels of which one operand's cannot be cut"
            tracer.tie(value, at, labelled[0])
        for other in labelled[1:]:
            tracer.unite(labelled[0], other)
        batch.append(labelled[0] if labelled else None)
    return batch


RULES: dict[str, Rule] = {"Gemm": gemm, "MatMul": matmul}
