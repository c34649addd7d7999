"""Reading node attributes with their defaults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute, or its default where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute, or its default where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else float(found.as_float())


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    """Return an attribute of integers, or its default where the node does not carry it."""
    found = node.attributes.get(name)
    return list(default) if found is None else [int(item) for item in found.as_ints()]


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute, or its default where the node does not carry it."""
    found = node.attributes.get(name)
    return default if found is None else str(found.as_string())


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of a node's bodies, and of theirs."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()
