"""A part of a model between named tensors: cut out with graphsurgeon, and its rewritten form sewn back in."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import cleanup, constants
from onnxprune.graph.gs import from_gs, to_gs
from onnxprune.graph.names import free_name, take_over, value_names
from onnxprune.graph.shapes import refresh_shapes


@dataclass(frozen=True)
class Part:
    """A part as a model of its own, and the whole that it was cut from (constants folded, nodes named).

    ``shared`` names the part's initialisers that the rest of the whole needs too.
    """

    whole: ir.Model
    model: ir.Model
    nodes: frozenset[str]
    shared: frozenset[str]

    def sew(self, rewritten: ir.Model) -> tuple[ir.Model, Mapping[str, str]]:
        """Return the whole with a rewritten part in place of the old one, and new names of the part's tensors.

        A tensor of the part whose name is taken outside gets another one; the part's inputs and outputs keep theirs.
        Call ``cleanup.finish`` on a result that is to stay: it shares equal initialisers again.

        Raises:
            ModelError: The rewritten part has other inputs or outputs.
        """
        work, piece = _copy(self.whole), _copy(rewritten)
        constants.unlist_initializers(piece)
        renamed = self._rename(work, piece)
        old = [node for node in work.graph if node.name in self.nodes]
        values = _values(work.graph)
        ends = self._detached(piece)
        work.graph.insert_after(old[-1], _taken_nodes(piece.graph))
        for value in ends[0]:
            value.replace_all_uses_with(values[str(value.name)])
        for value in ends[1]:
            take_over(values[str(value.name)], value)
        for node in old:
            for inner in _with_bodies(node):
                for place in range(len(inner.inputs)):
                    inner.replace_input_with(place, None)
        work.graph.remove(old)
        for name in self.model.graph.initializers:
            if name not in self.shared:
                work.graph.initializers.pop(name, None)
        for value in list(piece.graph.initializers.values()):
            piece.graph.initializers.pop(str(value.name))
            if value.uses():
                work.graph.register_initializer(value)
        cleanup.name_nodes(work)
        work.graph.sort()
        for domain, version in rewritten.opset_imports.items():
            work.opset_imports.setdefault(domain, version)
        work.metadata_props.clear()
        work.metadata_props.update(rewritten.metadata_props)
        return work, renamed

    def _rename(self, work: ir.Model, piece: ir.Model) -> dict[str, str]:
        """Give tensors of the piece whose name the rest of the whole needs another one, in place."""
        own = value_names(self.model.graph)
        outside = (value_names(work.graph) - own) | self.shared
        taken = value_names(work.graph) | value_names(piece.graph)
        fixed = {id(value) for value in [*piece.graph.inputs, *piece.graph.outputs]}
        renamed: dict[str, str] = {}
        for name, value in _values(piece.graph).items():
            if name not in outside or id(value) in fixed:
                continue
            renamed[name] = free_name(name, taken)
            if not value.is_initializer():
                value.name = renamed[name]
                continue
            tensor = value.const_value
            assert tensor is not None
            copy = constants.add_tensor(piece.graph, renamed[name], constants.own_tensor(tensor, renamed[name]))
            value.replace_all_uses_with(copy)
            cleanup.note_shared(copy, value)
            piece.graph.initializers.pop(name)
        return renamed

    def _detached(self, piece: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
        """Return the inputs and outputs of a piece, which has none any more."""
        graph = piece.graph
        inputs, outputs = list(graph.inputs), list(graph.outputs)
        for word, found, wanted in (
            ("inputs", inputs, self.model.graph.inputs),
            ("outputs", outputs, self.model.graph.outputs),
        ):
            if {value.name for value in found} != {value.name for value in wanted}:
                raise ModelError(f"the rewritten part has other {word} than the part that was cut out")
        graph.inputs.clear()
        graph.outputs.clear()
        for value in inputs:
            if value.is_initializer():
                graph.initializers.pop(str(value.name))
        return inputs, outputs


def cut(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> Part:
    """Cut out what lies between named tensors; no inputs or outputs named means the model's own.

    Stored tensors that the part reads come along, those that are read outside too as copies.

    Raises:
        ModelError: A tensor is unknown or constant, the outputs do not depend on an input or need a tensor that is
            not named, or something outside reads a tensor inside the part.
    """
    whole = cleanup.folded(model)
    refresh_shapes(whole)
    graph = whole.graph
    before, values = _values(model.graph), _values(graph)
    starts = [_named(name, values, before, "inputs") for name in inputs] or list(graph.inputs)
    ends = [_named(name, values, before, "outputs") for name in outputs]
    ends = ends or [value for value in graph.outputs if value.producer() is not None]
    nodes, read = _between(graph, starts, ends)
    unread = next((value for value in starts if value not in read), None)
    if inputs and unread is not None:
        raise ModelError(f"the outputs of the part do not depend on tensor '{unread.name}' of inputs=; leave it out")
    starts = [value for value in starts if value in read]
    owners = {inner: node for node in graph for inner in _with_bodies(node)}
    _check_closed(nodes, ends, owners)
    for value in [*starts, *ends]:
        if value.type is None or value.shape is None:
            raise ModelError(f"type or shape of tensor '{value.name}' is not known, so nothing can be cut there")
    names = frozenset(str(node.name) for node in nodes)
    part = _as_model(whole, names, starts, ends)
    return Part(whole, part, names, _shared(whole, part, set(nodes), owners))


def _as_model(whole: ir.Model, nodes: frozenset[str], starts: list[ir.Value], ends: list[ir.Value]) -> ir.Model:
    graph = to_gs(whole)
    tensors = graph.tensors()
    graph.nodes = [node for node in graph.nodes if node.name in nodes]
    graph.inputs = [tensors[value.name] for value in starts]
    graph.outputs = [tensors[value.name] for value in ends]
    part = from_gs(graph, whole)
    # The order in which an older IR version lists inputs is the whole's own.
    part.meta.pop(constants.INPUTS, None)
    return part


def _shared(whole: ir.Model, part: ir.Model, nodes: set[ir.Node], owners: Mapping[ir.Node, ir.Node]) -> frozenset[str]:
    """Return the part's initialisers that are read or named outside it too."""
    found = set()
    for name in part.graph.initializers:
        value = whole.graph.initializers[name]
        ends = value.is_graph_input() or value.is_graph_output()
        if ends or not value.uses() or any(owners[use.node] not in nodes for use in value.uses()):
            found.add(name)
    return frozenset(found)


def _copy(model: ir.Model) -> ir.Model:
    copied = model.clone()
    copied.meta.update(model.meta)
    return copied


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the values of a graph by name, without those of the bodies inside it."""
    found = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    return {str(value.name): value for value in found if value.name}


def _named(name: str, values: Mapping[str, ir.Value], before: Mapping[str, ir.Value], option: str) -> ir.Value:
    if name in values and constants.constant(values[name]) is None:
        return values[name]
    if name in values or name in before:
        raise ModelError(f"{option}=: tensor '{name}' is a constant; name one that is computed from the model's inputs")
    close = difflib.get_close_matches(name, values, n=1)
    hint = f": did you mean '{close[0]}'?" if close else "; give names of tensors (edges), not of nodes"
    raise ModelError(f"{option}=: the model has no tensor '{name}'{hint}")


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """Yield a node and the nodes of its bodies."""
    yield node
    for attribute in node.attributes.values():
        if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPHS:
            yield from (inner for graph in attribute.as_graphs() for inner in graph.all_nodes())


def _between(
    graph: ir.Graph, starts: Sequence[ir.Value], ends: Sequence[ir.Value]
) -> tuple[list[ir.Node], set[ir.Value]]:
    """Return the nodes that compute ``ends`` from ``starts``, in the graph's order, and the starts that they read."""
    given, read, found = set(starts), set[ir.Value](), set[ir.Node]()
    waiting = list(ends)
    for value in ends:
        if value in given:
            raise ModelError(f"tensor '{value.name}' is an input and an output of the part, so nothing lies between")
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in given:
            read.add(value)
        elif node is not None and node.graph is graph and node not in found:
            found.add(node)
            waiting += [v for inner in _with_bodies(node) for v in inner.inputs if v is not None]
        elif value.is_graph_input() and value.graph is graph:
            raise ModelError(
                f"the part needs tensor '{value.name}' too, which inputs= leaves outside; name it there, or a tensor "
                "on the way from it"
            )
    return [node for node in graph if node in found], read


def _check_closed(nodes: list[ir.Node], ends: Sequence[ir.Value], owners: Mapping[ir.Node, ir.Node]) -> None:
    """Refuse a part with a tensor that is needed outside it without being one of its outputs."""
    inside = set(nodes)
    for value in (out for node in nodes for out in node.outputs):
        if value in ends:
            continue
        if value.is_graph_output():
            raise ModelError(
                f"tensor '{value.name}' inside the part is an output of the model; name it in outputs= too"
            )
        reader = next((owners[use.node] for use in value.uses() if owners[use.node] not in inside), None)
        if reader is not None:
            raise ModelError(
                f"tensor '{value.name}' inside the part is read by '{reader.name}' outside it; name it in outputs= too"
            )


def _taken_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Take all nodes out of a graph and return them."""
    nodes = list(graph)
    graph.remove(nodes)
    return nodes
