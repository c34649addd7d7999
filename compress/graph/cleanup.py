"""Preparing a graph for surgery and tidying it afterwards, without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants, origins, targets
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.names import free_name, node_names, value_names
from onnxprune.graph.shapes import refresh_shapes

_SHARED = "onnxprune.shared"
# Before this opset Dropout drops unless its attribute is_test says otherwise.
_TRAINING_BY_DEFAULT = 7
# Where onnx-ir keeps a value's quantisation annotation.
_QUANTIZATION = "quant_parameter_tensor_names"

Removable = Callable[[ir.Node], bool]
"""Whether a node may go; asked only of nodes that would go."""


def every_node(node: ir.Node) -> bool:
    """Let every node go."""
    return True


def prepare(model: ir.Model) -> ir.Model:
    """Return a clone ready for surgery: constants lifted and folded, nodes named, no initialiser used twice.

    Tensors are shared with the original, so the clone costs memory only for what is rewritten. Folding shows
    weights behind Transpose or Identity, and the pads and shapes that older exporters compute, as what they are.
    """
    work = folded(model)
    unshare(work)
    # Before IR version 4 ONNX Runtime refuses one that is neither read nor listed as an input.
    remove_unread(work.graph)
    return work


def folded(model: ir.Model) -> ir.Model:
    """Return a clone with constants lifted and folded and nodes named; shared initialisers stay shared."""
    work = lifted(model)
    fold_constants(work)
    return work


def lifted(model: ir.Model) -> ir.Model:
    """Return a clone with constants lifted and nodes named."""
    work = model.clone()
    work.meta.update(model.meta)
    constants.lift(work)
    name_nodes(work)
    return work


def fold_constants(work: ir.Model, removable: Removable = every_node) -> int:
    """Fold what depends on constants alone until nothing is left to fold, in place; return how many nodes went."""
    total = 0
    while constants.foldable(work):
        refresh_shapes(work)
        count = constants.fold(work, removable)
        total += count
        written = targets.write_out(work)
        if count or written:
            remove_dead(work, removable)
        if not count and not written:
            break
    return total


def finish(work: ir.Model, removable: Removable = every_node) -> ir.Model:
    """Merge copies of :func:`prepare` that stayed equal, drop dead parts, infer shapes; return ``work``."""
    reshare(work)
    remove_dead(work, removable)
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
    _unshare_nodes(graph, taken)
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
            note_shared(copy, value)
            use.node.replace_input_with(use.idx, copy)


def note_shared(copy: ir.Value, value: ir.Value) -> None:
    """Note that ``copy`` was made of ``value``, so that :func:`reshare` may merge the two while they are equal."""
    copy.meta[_SHARED] = value.meta.get(_SHARED, value.name)


def _unshare_nodes(graph: ir.Graph, taken: set[str]) -> None:
    """Give every reader of a dequantised, converted or transposed tensor a node of its own that makes it."""
    for node in reversed(list(graph)):
        out = node.outputs[0] if node.outputs else None
        if out is None or out.is_graph_output() or not origins.shows_stored(out):
            continue
        uses = list(out.uses())
        if any(use.node.graph is not graph for use in uses):
            continue
        for count, use in enumerate(uses[1:], start=1):
            name = free_name(f"{node.name}/{count}", taken)
            value = ir.Value(name=name, shape=out.shape, type=out.type)
            attributes = list(node.attributes.values())
            copy = ir.Node(node.domain, node.op_type, node.inputs, attributes, outputs=[value], name=name)
            copy.meta[_SHARED] = node.name
            graph.insert_after(node, copy)
            use.node.replace_input_with(use.idx, value)


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
    _reshare_nodes(graph)


def _reshare_nodes(graph: ir.Graph) -> None:
    """Merge copies of nodes that read the same again into one."""
    different: dict[str, list[ir.Node]] = {}
    for node in list(graph):
        if not node.outputs or not node.outputs[0].uses() or not origins.shows_stored(node.outputs[0]):
            continue
        known = different.setdefault(node.meta.get(_SHARED, str(node.name)), [])
        same = next((first for first in known if list(first.inputs) == list(node.inputs)), None)
        if same is None or _SHARED not in node.meta:
            known.append(node)
            continue
        node.outputs[0].replace_all_uses_with(same.outputs[0])
        graph.remove(node, safe=True)


def _equal(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    """Return whether two tensors hold the same bits."""
    if a is None or b is None or constants.bare_tensor(a) is constants.bare_tensor(b):
        return a is not None and b is not None
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if a.dtype == ir.DataType.STRING:
        return bool(np.array_equal(a.numpy(), b.numpy()))
    return a.tobytes() == b.tobytes()


def remove_dead(model: ir.Model, removable: Removable = every_node) -> None:
    """Drop nodes whose results nobody reads and initialisers without uses, in place."""
    graph = model.graph
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs) and removable(node):
            graph.remove(node, safe=True)
    remove_unread(graph)


def remove_unread(graph: ir.Graph) -> None:
    """Drop initialisers without uses, in place; those that a quantisation annotation names stay, which tools read."""
    quantised = annotated(graph)
    for value in list(graph.initializers.values()):
        needed = value.is_graph_input() or value.is_graph_output() or value.name in quantised
        if not value.uses() and not needed:
            graph.initializers.pop(str(value.name))


def annotated(graph: ir.Graph) -> set[str]:
    """Return the names of scales and zero points that quantisation annotations refer to."""
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    return {name for value in values for name in value.meta.get(_QUANTIZATION, {}).values()}


def remove_identities(model: ir.Model, removable: Removable = every_node) -> int:
    """Bypass Identity and inference-time Dropout nodes, in place; return how many went."""
    count, version = 0, model.opset_imports.get("", 1)
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is None or node.domain != "" or not _is_identity(node, version):
            continue
        out = node.outputs[0]
        if out.is_graph_output() or any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
            continue
        if not removable(node):
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


def cleanup(model: ir.Model, removable: Removable = every_node) -> tuple[ir.Model, dict[str, int]]:
    """Return an equal model without identities, constant computations and dead parts, and what went.

    Constant nodes become initialisers whatever ``removable`` says: that is another form of the same tensor.
    """
    work = lifted(model)
    unshare(work)
    before = len(work.graph)
    identities = remove_identities(work, removable)
    folds = fold_constants(work, removable)
    finish(work, removable)
    return work, {"identities": identities, "folded": folds, "nodes_removed": before - len(work.graph)}
