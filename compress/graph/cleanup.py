"""Preparing a graph for surgery and tidying it afterwards, without changing what it computes."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.shapes import refresh_shapes

_SHARED = "onnxprune.shared"


def prepare(model: ir.Model) -> ir.Model:
    """Return a clone ready for surgery: constants lifted, nodes named, no initialiser used twice.

    Tensors are shared with the original, so the clone costs memory only for what is rewritten.
    """
    work = model.clone()
    work.meta.update(model.meta)
    constants.lift(work)
    name_nodes(work)
    unshare(work)
    return work


def finish(work: ir.Model) -> ir.Model:
    """Undo the sharing of :func:`prepare` where copies stayed equal, drop dead parts, infer shapes; return ``work``."""
    reshare(work)
    remove_dead(work)
    refresh_shapes(work)
    return work


def name_nodes(model: ir.Model) -> None:
    """Give every unnamed or doubly named node of the main graph a unique name, in place."""
    taken: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in taken:
            stem = node.name or node.op_type
            node.name = next(n for i in itertools.count() if (n := f"{stem}_{i}") not in taken)
        taken.add(node.name)


def unshare(model: ir.Model) -> None:
    """Give every use of a shared initialiser a copy of its own, in place (exporters merge equal ones).

    Initialisers that are graph inputs or outputs, or are read inside a body, stay shared: surgery leaves them be.
    """
    graph = model.graph
    for value in list(graph.initializers.values()):
        uses = list(value.uses())
        private = not value.is_graph_input() and not value.is_graph_output()
        if len(uses) < 2 or not private or any(use.node.graph is not graph for use in uses):
            continue
        for count, use in enumerate(uses[1:], start=1):
            name = next(
                n for i in itertools.count(count) if (n := f"{value.name}/{i}") not in graph.initializers
            )
            tensor = value.const_value
            assert tensor is not None
            copy = ir.Value(name=name, shape=value.shape, type=value.type, const_value=tensor)
            copy.meta[_SHARED] = value.name
            graph.register_initializer(copy)
            use.node.replace_input_with(use.idx, copy)


def reshare(model: ir.Model) -> None:
    """Merge copies made by :func:`unshare` that are still equal back into one initialiser, in place."""
    graph = model.graph
    for copy in [value for value in graph.initializers.values() if _SHARED in value.meta]:
        first = graph.initializers.get(copy.meta[_SHARED])
        if first is None or first.const_value is None or copy.const_value is None:
            continue
        if first.const_value is copy.const_value or _equal(first.const_value, copy.const_value):
            copy.replace_all_uses_with(first)
            graph.initializers.pop(str(copy.name))


def _equal(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    return bool(np.array_equal(np.asarray(a.numpy()), np.asarray(b.numpy())))


def remove_dead(model: ir.Model) -> None:
    """Drop nodes whose results nobody reads and initialisers without uses, in place."""
    graph = model.graph
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            graph.initializers.pop(str(value.name))


def remove_identities(model: ir.Model) -> int:
    """Bypass Identity and inference-time Dropout nodes, in place; return how many went."""
    count = 0
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.domain != "" or not _is_identity(node):
            continue
        out = node.outputs[0]
        if out.is_graph_output() or any(
            extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]
        ):
            continue
        out.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _is_identity(node: ir.Node) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    training = (
        constants.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    )
    mode = node.attributes.get("is_test")
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    return (not given or (training is not None and not training.any())) and (
        mode is None or mode.as_int() == 1
    )


def cleanup(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    """Return an equal model without identities, constant computations and dead parts, and what went."""
    work = prepare(model)
    before = len(work.graph)
    identities = remove_identities(work)
    refresh_shapes(work)
    folded = 0
    while step := constants.fold(work):
        folded += step
        refresh_shapes(work)
    finish(work)
    return work, {"identities": identities, "folded": folded, "nodes_removed": before - len(work.graph)}
