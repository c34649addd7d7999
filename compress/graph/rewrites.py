"""What must be rewritten beside weights when channels go: stored sizes, bounds, index lists, attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.names import free_name, node_names, value_names

_LOWEST = -(2**63)
Survivors = Callable[[np.ndarray], np.ndarray]
"""Labels to a boolean array: which of these positions stay."""


class Rewrite(Protocol):
    """An edit of the graph that depends on which channels stay."""

    def apply(self, survivors: Survivors) -> None:
        """Edit the graph in place."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Entry ``position`` of a stored integer tensor must equal how many of ``labels`` stay."""

    constant: ir.Value
    position: int
    labels: np.ndarray

    def apply(self, survivors: Survivors) -> None:
        """Rewrite the entry; a tensor that stays equal is not touched."""
        sizes = constants.array(self.constant)
        assert sizes is not None
        changed = sizes.copy()
        changed.flat[self.position] = int(survivors(self.labels).sum())
        if not np.array_equal(changed, sizes):
            constants.set_array(self.constant, changed)


@dataclass(frozen=True, eq=False)
class Indices:
    """A stored list of indices into an axis labelled ``source`` that picks the positions labelled ``picked``."""

    constant: ir.Value
    source: np.ndarray
    picked: np.ndarray

    def apply(self, survivors: Survivors) -> None:
        """Keep the indices of what stays, counted in what stays."""
        indices = constants.array(self.constant)
        assert indices is not None
        stays = survivors(self.source)
        if stays.all():
            return
        position = np.cumsum(stays) - 1
        flat = indices.ravel() % len(self.source)
        constants.set_array(self.constant, position[flat][survivors(self.picked)])


@dataclass(frozen=True, eq=False)
class IntAttribute:
    """An integer attribute must equal how many of ``labels`` stay."""

    node: ir.Node
    name: str
    labels: np.ndarray

    def apply(self, survivors: Survivors) -> None:
        """Rewrite the attribute."""
        self.node.attributes[self.name] = ir.AttrInt64(self.name, int(survivors(self.labels).sum()))


@dataclass(frozen=True, eq=False)
class IntsAttribute:
    """Entry ``position`` of a list attribute must equal how many of ``labels`` stay."""

    node: ir.Node
    name: str
    position: int
    labels: np.ndarray

    def apply(self, survivors: Survivors) -> None:
        """Rewrite the entry."""
        items = [int(item) for item in self.node.attributes[self.name].as_ints()]
        items[self.position] = int(survivors(self.labels).sum())
        self.node.attributes[self.name] = ir.AttrInt64s(self.name, items)


@dataclass(frozen=True, eq=False)
class SplitSizes:
    """A Split that stores no sizes cuts equal parts; once the parts differ, it must store them."""

    graph: ir.Graph
    node: ir.Node
    parts: tuple[np.ndarray, ...]
    as_input: bool

    def apply(self, survivors: Survivors) -> None:
        """Give the node explicit sizes when anything of it went."""
        stays = [survivors(part) for part in self.parts]
        if all(mask.all() for mask in stays):
            return
        sizes = [int(mask.sum()) for mask in stays]
        if not self.as_input:
            self.node.attributes["split"] = ir.AttrInt64s("split", sizes)
            return
        self.node.attributes.pop("num_outputs", None)
        name = f"{self.node.name}/sizes"
        value = constants.add_array(self.graph, name, np.array(sizes, dtype=np.int64), ir.DataType.INT64)
        self.node.resize_inputs(2)
        self.node.replace_input_with(1, value)


@dataclass(frozen=True, eq=False)
class Steps:
    """A Slice takes the positions ``taken`` of an axis labelled ``source``, by a step that is not one.

    What stays of them is taken by a step again where it can be, and else picked by a Gather.
    """

    graph: ir.Graph
    node: ir.Node
    position: int
    axis: int
    source: np.ndarray
    taken: range

    def apply(self, survivors: Survivors) -> None:
        """Rewrite the bounds, or the node."""
        stays = survivors(self.source)
        if stays.all():
            return
        taken = np.array(self.taken)
        places = (np.cumsum(stays) - 1)[taken[stays[taken]]]
        steps = np.unique(np.diff(places))
        starts = constants.array(self.node.inputs[1])
        assert starts is not None
        if len(places) and len(steps) < 2:
            step = int(steps[0]) if len(steps) else 1
            last = int(places[-1]) + step
            # An end of -1 would mean the last position; before the first one is as far below as can be.
            self._bound(int(places[0]), last if last >= 0 else _LOWEST, step)
        elif starts.size == 1:
            self._become_gather(places)
        else:
            _insert_gather(self.graph, self.node, 0, self.axis, places)
            self._bound(0, len(places), 1)

    def _bound(self, *bounds: int) -> None:
        for place, bound in zip((1, 2, 4), bounds, strict=True):
            value = self.node.inputs[place]
            stored = constants.array(value)
            assert value is not None and stored is not None
            changed = stored.copy()
            changed.flat[self.position] = max(bound, int(np.iinfo(stored.dtype).min))
            constants.set_array(value, changed)

    def _become_gather(self, places: np.ndarray) -> None:
        index = constants.add_array(self.graph, f"{self.node.name}/taken", places, ir.DataType.INT64)
        self.node.resize_inputs(2)
        self.node.replace_input_with(1, index)
        self.node.op_type = "Gather"
        self.node.attributes["axis"] = ir.AttrInt64("axis", self.axis)


def _insert_gather(graph: ir.Graph, reader: ir.Node, position: int, axis: int, places: np.ndarray) -> None:
    """Put a Gather of some positions along an axis in front of an input of a node."""
    stem = f"{reader.name}/input{position}"
    index = constants.add_array(graph, f"{stem}/kept", places, ir.DataType.INT64)
    name = free_name(stem, {*value_names(graph), *node_names(graph)})
    picked = ir.Value(name=name)
    given = [reader.inputs[position], index]
    graph.insert_before(reader, ir.Node("", "Gather", given, [ir.AttrInt64("axis", axis)], outputs=[picked], name=name))
    reader.replace_input_with(position, picked)


@dataclass(frozen=True, eq=False)
class Pick:
    """Input ``position`` of a node is of full size, and the node must read only what stays along ``axis``."""

    graph: ir.Graph
    node: ir.Node
    position: int
    axis: int
    labels: np.ndarray

    def apply(self, survivors: Survivors) -> None:
        """Put a Gather in front of the input when anything went."""
        stays = survivors(self.labels)
        if stays.all():
            return
        _insert_gather(self.graph, self.node, self.position, self.axis, np.flatnonzero(stays))
