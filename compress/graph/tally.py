"""MACs, parameters and weight bytes of a model as functions of the widths of its channel spaces, without cutting it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.cost import node_macs
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.spaces import Analysis, counts_as_parameter

Widths = Mapping[str, int]
Sizes = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class _Part:
    """Something whose size follows the widths of a few spaces; its values are remembered."""

    spaces: tuple[str, ...]
    count: Callable[[Mapping[str, int]], int]
    known: dict[tuple[int, ...], int]

    def at(self, widths: Widths) -> int:
        key = tuple(widths[name] for name in self.spaces)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self.count(dict(zip(self.spaces, key, strict=True)))
        return found


class Tally:
    """Cost of an analysed model under any widths; thousands of evaluations a second.

    Channels of one space touch every axis equally often, so widths alone decide; axes that are grids (heads times
    head size) are counted by their rows and columns.
    """

    def __init__(self, analysis: Analysis, shapes: Shapes) -> None:
        self.analysis, self.shapes = analysis, shapes
        self.full = {space.name: space.width for space in analysis.spaces if space.frozen is None}
        self._count = int(analysis.component.max(initial=-1)) + 1
        self._by_name = {space.name: space for space in analysis.spaces if space.frozen is None}
        self._owner: dict[str, np.ndarray] = {
            name: analysis.owners(space) >= 0 for name, space in self._by_name.items()
        }
        self._mac_parts, self._mac_rest = self._nodes()
        self._weights = self._stored()

    def conflicts(self) -> dict[str, set[str]]:
        """Return, per space, the spaces with which it shares a node, so that their costs do not add up."""
        found: dict[str, set[str]] = {name: set() for name in self.full}
        for part in self._mac_parts:
            for name in part.spaces:
                found[name].update(other for other in part.spaces if other != name)
        return found

    def macs(self, widths: Widths) -> int:
        """Return the MACs when the named spaces have these widths and the others their own."""
        known = {**self.full, **widths}
        return self._mac_rest + sum(part.at(known) for part in self._mac_parts)

    def params(self, widths: Widths) -> int:
        """Return how many parameters fewer there are than in the uncut model, as a negative number, or 0."""
        known = {**self.full, **widths}
        return sum(part.at(known) - part.at(self.full) for part, counted, _ in self._weights if counted)

    def bytes(self, widths: Widths) -> int:
        """Return how many bytes of tensors fewer there are than in the uncut model, as a negative number, or 0."""
        known = {**self.full, **widths}
        # Two of four bits share a byte.
        return sum(
            math.ceil(part.at(known) * size) - math.ceil(part.at(self.full) * size) for part, _, size in self._weights
        )

    def spaces_of(self, value: ir.Value) -> tuple[str, ...]:
        """Return the spaces that a value carries channels of."""
        axes = self.analysis.tracer.labels.get(value) or ()
        return self._spaces_of([axis for axis in axes if axis is not None])

    def _spaces_of(self, labels: list[np.ndarray]) -> tuple[str, ...]:
        touched = np.zeros(self._count, dtype=bool)
        for axis in labels:
            touched[self.analysis.component[axis]] = True
        return tuple(name for name, owned in self._owner.items() if owned[touched].any())

    def sizes(self, value: ir.Value, shape: Sizes, widths: Widths) -> Sizes:
        """Return a value's shape when the spaces it touches have these widths."""
        axes = self.analysis.tracer.labels.get(value)
        if axes is None or all(axis is None for axis in axes):
            return shape
        keep = self.analysis.keep_mask({name: np.arange(count) for name, count in widths.items()})
        return tuple(
            size if labels is None else int(keep[self.analysis.component[labels]].sum())
            for size, labels in zip(shape, axes, strict=True)
        )

    def _nodes(self) -> tuple[list[_Part], int]:
        parts, rest = [], 0
        labels = self.analysis.tracer.labels
        for node in self.analysis.model.graph:
            base = node_macs(node, lambda v: None if v is None else self.shapes.get(str(v.name)))
            if not base:
                continue
            values = [v for v in [*node.inputs, *node.outputs] if v is not None and v in labels]
            names = self._spaces_of([axis for v in values for axis in labels[v] if axis is not None])
            if not names:
                rest += base
                continue
            parts.append(_Part(names, self._macs_of(node), {}))
        return parts, rest

    def _macs_of(self, node: ir.Node) -> Callable[[Widths], int]:
        def count(widths: Widths) -> int:
            def shape_of(value: ir.Value | None) -> Sizes | None:
                known = None if value is None else self.shapes.get(str(value.name))
                return None if value is None or known is None else self.sizes(value, known, widths)

            return node_macs(node, shape_of) or 0

        return count

    def _stored(self) -> list[tuple[_Part, bool, float]]:
        found = []
        for value, axes in self.analysis.tracer.labels.items():
            if not value.is_initializer() or value.const_value is None:
                continue
            names = self._spaces_of([axis for axis in axes if axis is not None])
            if not names:
                continue
            shape = tuple(value.const_value.shape.numpy())
            part = _Part(names, self._entries_of(value, shape), {})
            found.append((part, counts_as_parameter(value), float(value.const_value.dtype.itemsize)))
        return found

    def _entries_of(self, value: ir.Value, shape: Sizes) -> Callable[[Widths], int]:
        return lambda widths: math.prod(size or 0 for size in self.sizes(value, shape, widths))
