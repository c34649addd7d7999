"""Preparing a graph for surgery and tidying it afterwards, without changing what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants, targets
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.names import free_name, node_names, value_names
from onnxprune.graph.shapes import refresh_shapes

_SHARED = "onnxprune.shared"
# Before this opset Dropout drops unless its attribute is_test says otherwise.
_TRAINING_BY_DEFAULT = 7
# Where onnx-ir keeps a value's quantisation annotation.
_QUANTIZATION = "quant_parameter_tensor_names"


def prepare(model: ir.Model) -> ir.Model:
    """Return a clone ready for surgery: constants lifted and folded, nodes named, no initialiser used twice.

    Tensors are shared with the original, so the clone costs memory only for what is rewritten. Folding shows
    weights behind Transpose or Identity, and the pads and shapes that older exporters compute, as what they are.
    """
    work = _lifted(model)
    fold_constants(work)
    unshare(work)
    return work


def _lifted(model: ir.Model) -> ir.Model:
    """Return a clone with constants lifted and nodes named."""
    work = model.clone()
    work.meta.update(model.meta)
    constants.lift(work)
    name_nodes(work)
    return work


def fold_constants(work: ir.Model) -> int:
    """Fold what depends on constants alone until nothing is left to fold, in place; return how many nodes went."""
    total = 0
    while constants.foldable(work):
        refresh_shapes(work)
        count = constants.fold(work)
        total += count
        written = targets.write_out(work)
        if count or written:
            remove_dead(work)
        if not count and not written:
            break
    return total


def finish(work: ir.Model) -> ir.Model:
    """Merge copies of :func:`prepare` that stayed equal, drop dead parts, infer shapes; return ``work``."""
    reshare(work)
    remove_dead(work)
    constants.list_initializers(work)
    refresh_shapes(work)
    return work


def name_nodes(model: ir.Model) -> None:
    """Give every unnamed or doubly named node of the main graph a unique name, in place."""
    for node, name in zip(list(model.graph), node_names(model.graph), strict=True):
        node.name = name


def unshare(model: ir.Model) -> None:
    """Give every use of a shared initialiser a copy of its own, in place (exporters merge equal ones).

    Initialisers that are graph inputs or outputs, or are read inside a body, stay shared: surgery leaves them be.
    """
    graph = model.graph
    taken = value_names(graph)
    for value in list(graph.initializers.values()):
        uses = list(value.uses())
        private = not value.is_graph_input() and not value.is_graph_output()
        if len(uses) < 2 or not private or any(use.node.graph is not graph for use in uses):
            continue
        for count, use in enumerate(uses[1:], start=1):
            tensor = value.const_value
            assert tensor is not None
            name = free_name(f"{value.name}/{count}", taken)
            copy = constants.add_tensor(graph, name, constants.own_tensor(tensor, name))
            copy.meta[_SHARED] = value.meta.get(_SHARED, value.name)
            use.node.replace_input_with(use.idx, copy)


def reshare(model: ir.Model) -> None:
    """Merge copies made by :func:`unshare` that are still equal back into one initialiser, in place."""
    graph = model.graph
    different: dict[str, list[ir.Value]] = {}
    for value in list(graph.initializers.values()):
        known = different.setdefault(value.meta.get(_SHARED, str(value.name)), [])
        if not value.uses() and _SHARED in value.meta:
            continue  # a dead copy stands for none
        same = next((first for first in known if _equal(first.const_value, value.const_value)), None)
        if same is None or _SHARED not in value.meta:
            known.append(value)
            continue
        value.replace_all_uses_with(same)
        graph.initializers.pop(str(value.name))


def _equal(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    """Return whether two tensors hold the same bits."""
    if a is None or b is None or constants.bare_tensor(a) is constants.bare_tensor(b):
        return a is not None and b is not None
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if a.dtype == ir.DataType.STRING:
        return bool(np.array_equal(a.numpy(), b.numpy()))
    return a.tobytes() == b.tobytes()


def remove_dead(model: ir.Model) -> None:
    """Drop nodes whose results nobody reads and initialisers without uses, in place.

    Initialisers that a quantisation annotation names stay: no node reads them, but tools do.
    """
    graph = model.graph
    annotated = _annotated(graph)
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for value in list(graph.initializers.values()):
        needed = value.is_graph_input() or value.is_graph_output() or value.name in annotated
        if not value.uses() and not needed:
            graph.initializers.pop(str(value.name))


def _annotated(graph: ir.Graph) -> set[str]:
    """Return the names of scales and zero points that quantisation annotations refer to."""
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    return {name for value in values for name in value.meta.get(_QUANTIZATION, {}).values()}


def remove_identities(model: ir.Model) -> int:
    """Bypass Identity and inference-time Dropout nodes, in place; return how many went."""
    count, version = 0, model.opset_imports.get("", 1)
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.domain != "" or not _is_identity(node, version):
            continue
        out = node.outputs[0]
        if out.is_graph_output() or any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
            continue
        out.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)
        count += 1
    return count


def _is_identity(node: ir.Node, version: int) -> bool:
    if node.op_type == "Identity":
        return True
    if node.op_type != "Dropout":
        return False
    if version < _TRAINING_BY_DEFAULT:
        return int_attribute(node, "is_test", 0) == 1
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    training = constants.array(mode)
    return mode is None or (training is not None and not training.any())


def cleanup(model: ir.Model) -> tuple[ir.Model, dict[str, int]]:
    """Return an equal model without identities, constant computations and dead parts, and what went."""
    work = _lifted(model)
    unshare(work)
    before = len(work.graph)
    identities = remove_identities(work)
    folded = fold_constants(work)
    finish(work)
    return work, {"identities": identities, "folded": folded, "nodes_removed": before - len(work.graph)}
