"""Names inside a graph: every node has one of its own, and new values never take one that is in use."""

from __future__ import annotations

import itertools

import onnx_ir as ir


def node_names(graph: ir.Graph) -> list[str]:
    """Return a unique name for every node, in order: its own where it has one, else ``<operator>_<number>``.

    Of several nodes with one name the first keeps it.
    """
    taken = {node.name for node in graph if node.name}
    seen: set[str] = set()
    names = []
    for node in graph:
        name = node.name or ""
        if not name or name in seen:
            stem = name or node.op_type
            name = next(n for i in itertools.count() if (n := f"{stem}_{i}") not in taken)
            taken.add(name)
        seen.add(name)
        names.append(name)
    return names


def value_names(graph: ir.Graph) -> set[str]:
    """Return the names of all values of a graph and of the bodies inside it."""
    taken = {str(out.name) for node in graph.all_nodes() for out in node.outputs}
    for inner in [graph, *graph.subgraphs()]:
        taken |= {str(value.name) for value in inner.inputs} | set(inner.initializers)
    return taken


def free_name(stem: str, taken: set[str]) -> str:
    """Return ``stem``, or ``stem_<number>`` where that is taken, and add it to ``taken``."""
    name = next(n for i in itertools.count() if (n := f"{stem}_{i}" if i else stem) not in taken)
    taken.add(name)
    return name


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` be what ``old`` was: its name, its type, and every use of it, graph outputs included."""
    name, shape, kind = old.name, old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = None
    new.name, new.shape, new.type, new.doc_string = name, shape, kind, old.doc_string
    new.metadata_props.clear()
    new.metadata_props.update(old.metadata_props)
    new.meta.clear()
    new.meta.update(old.meta)
