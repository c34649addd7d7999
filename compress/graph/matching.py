"""Where a pattern of operators stands in an onnx-graphsurgeon graph.

graphsurgeon's own ``GraphPattern`` knows neither operators whose inputs may be swapped nor stored numbers, and drops
a match that is read elsewhere without a word; here every place is found, and what bars one is a value with a reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.pattern import Absent, Call, Stored, Term, Variable, plain_domain

_SWAPPABLE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean"})
# Beyond this many inputs a swappable operator is matched in the order written.
_MOST_SWAPPED = 4
# How many ways to read one place are tried.
_MOST_WAYS = 64
# Half precision stores 1.4142135 as 1.4140625.
_TOLERANCE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Match:
    """One place: the tensors that the variables stand for and the nodes, in the graph's order; the last is the root."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    nodes: tuple[Any, ...] = ()

    @property
    def root(self) -> Any:
        """The node that computes the pattern's result."""
        return self.nodes[-1]

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [str(node.name) for node in self.nodes]


class Matcher:
    """Finds a pattern in one graph; ``fed`` names initialisers that a caller may feed, so that they are no numbers."""

    def __init__(self, graph: Any, pattern: Call, fed: frozenset[str] = frozenset()) -> None:
        import onnx_graphsurgeon as gs

        self._constant = gs.Constant
        self.graph, self.pattern, self.fed = graph, pattern, fed
        self.order = {id(node): place for place, node in enumerate(graph.nodes)}
        self.outputs = {id(tensor) for tensor in graph.outputs}

    def ways(self, root: Any) -> list[Match]:
        """Return how the pattern can be read with ``root`` as its last node; none where it does not fit."""
        found = []
        for match in itertools.islice(self._call(self.pattern, root, Match()), _MOST_WAYS):
            inner = {id(node) for node in match.nodes}
            # A variable must still be there when the match is gone.
            if not any(id(node) in inner for tensor in match.variables.values() for node in tensor.inputs):
                found.append(Match(match.variables, tuple(sorted(match.nodes, key=lambda node: self.order[id(node)]))))
        return found

    def barred(self, match: Match) -> str | None:
        """Return why a match cannot be replaced: something else needs a tensor inside it; None where it can."""
        inner = {id(node) for node in match.nodes}
        for node in match.nodes:
            for tensor in node.outputs:
                if tensor is match.root.outputs[0] or tensor.is_empty():
                    continue
                if id(tensor) in self.outputs:
                    return f"'{tensor.name}' inside the match is an output of the model"
                reader = next((reader for reader in tensor.outputs if id(reader) not in inner), None)
                if reader is not None:
                    return f"'{tensor.name}' inside the match is read by '{reader.name}' too"
        return None

    def _call(self, call: Call, node: Any, state: Match) -> Iterator[Match]:
        if (node.op, plain_domain(node.domain)) != (call.op, call.domain) or id(node) not in self.order:
            return
        if not all(self._has(node, *attribute) for attribute in call.attributes):
            return
        inputs = list(node.inputs)
        while len(inputs) > len(call.inputs) and inputs[-1].is_empty():
            inputs.pop()
        if len(inputs) != len(call.inputs):
            return
        seen = any(node is known for known in state.nodes)
        start = state if seen else Match(state.variables, (*state.nodes, node))
        for order in _orders(call, inputs):
            yield from self._terms(tuple(zip(call.inputs, order, strict=True)), start)

    def _terms(self, pairs: tuple[tuple[Term, Any], ...], state: Match) -> Iterator[Match]:
        if not pairs:
            yield state
            return
        for found in self._term(*pairs[0], state):
            yield from self._terms(pairs[1:], found)

    def _term(self, term: Term, tensor: Any, state: Match) -> Iterator[Match]:
        if isinstance(term, Absent) or tensor.is_empty():
            if isinstance(term, Absent) and tensor.is_empty():
                yield state
        elif isinstance(term, Variable):
            known = state.variables.get(term.name)
            if known is None:
                yield Match({**state.variables, term.name: tensor}, state.nodes)
            elif known is tensor:
                yield state
        elif isinstance(term, Stored):
            if self._holds(tensor, term):
                yield state
        elif len(tensor.inputs) == 1 and tensor.inputs[0].outputs[0] is tensor:
            yield from self._call(term, tensor.inputs[0], state)

    def _holds(self, tensor: Any, wanted: Stored) -> bool:
        """Return whether a tensor is stored with the values wanted, as far as its type can tell."""
        if not isinstance(tensor, self._constant) or tensor.name in self.fed:
            return False
        if math.prod(tensor.shape) != len(wanted.values):
            return False  # a large tensor is not even read
        data = np.asarray(tensor.values)
        if wanted.is_list and data.ndim != 1:
            return False
        try:
            flat = [float(value) for value in data.ravel()]
        except (TypeError, ValueError):
            return False  # text and the like
        kind = (
            onnx.TensorProto.DataType.Name(tensor.dtype).lower() if isinstance(tensor.dtype, int) else str(data.dtype)
        )
        tolerance = _TOLERANCE.get(kind, 1e-6)
        return all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(flat, wanted.values, strict=True))

    def _has(self, node: Any, name: str, wanted: Any) -> bool:
        """Return whether a node's attribute, or the default of one that it does not carry, is the one wanted."""
        found = node.attrs[name] if name in node.attrs else self._default(node, name)
        given, asked = (value if isinstance(value, list | tuple) else [value] for value in (found, wanted))
        if isinstance(found, list | tuple) != isinstance(wanted, list | tuple) or len(given) != len(asked):
            return False
        return all(_same(a, b) for a, b in zip(given, asked, strict=True))

    def _default(self, node: Any, name: str) -> Any:
        try:
            schema = onnx.defs.get_schema(node.op, self.graph.opset, node.domain or "")
        except onnx.defs.SchemaError:
            return None
        attribute = schema.attributes.get(name)
        if attribute is None or not attribute.default_value.type:
            return None
        value = onnx.helper.get_attribute_value(attribute.default_value)
        return value.decode() if isinstance(value, bytes) else value


def _orders(call: Call, inputs: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the orders in which a node's inputs may stand for those of a call."""
    if call.domain or call.op not in _SWAPPABLE or len(inputs) > _MOST_SWAPPED:
        yield tuple(inputs)
    else:
        yield from itertools.permutations(inputs)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(isinstance(found, str) and found == wanted)
