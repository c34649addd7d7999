"""The weights of linear nodes, one by one: which can be zeroed or coded, and writing them back.

Conv, ConvTranspose, Gemm and MatMul; biases and normalisation parameters are no weights here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import constants, origins
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.selection import Selection

_LINEAR = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


@dataclass(frozen=True, eq=False)
class Weights:
    """Stored weights of a model that single zeros may be made in, each once, and nodes whose weight is left alone."""

    values: tuple[ir.Value, ...]
    skipped: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many single weights there are."""
        return sum(size_of(value) for value in self.values)

    @property
    def nonzero(self) -> int:
        """How many of them are not zero."""
        return sum(int(np.count_nonzero(stored(value))) for value in self.values)

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return (self.count - self.nonzero) / self.count if self.count else 0.0

    def table(self) -> tuple[dict[str, object], ...]:
        """Return a row of a plan per tensor."""
        return tuple(
            {"tensor": str(v.name), "weights": size_of(v), "nonzero": int(np.count_nonzero(stored(v)))}
            for v in self.values
        )

    def rows(self, before: Sequence[int]) -> list[dict[str, object]]:
        """Return a row of the report per tensor; ``before`` holds the non-zero weights each one had."""
        return [
            {
                "tensor": str(value.name),
                "weights": size_of(value),
                "nonzero_before": int(count),
                "nonzero_after": int(np.count_nonzero(stored(value))),
            }
            for value, count in zip(self.values, before, strict=True)
        ]


def weights(model: ir.Model, selection: Selection) -> Weights:
    """Return the weights that may be zeroed in a model from :func:`graph.cleanup.lifted`; a shared one counts once.

    Raises:
        ModelError: One holds NaN or infinity.
    """
    found: dict[ir.Value, None] = {}
    skipped: dict[str, str] = {}
    for node, value in _operands(model):
        if value in found:
            continue
        # A shared weight is treated for all its readers or for none.
        reason = selection.reason([str(use.node.name) for use in value.uses()])
        if reason is not None:
            skipped[str(node.name)] = reason
            continue
        data = constants.array(value)
        if data is None and origins.shows_stored(value):
            skipped[str(node.name)] = "its weight is quantised, converted or transposed by the graph, and left as it is"
            continue
        if data is None or (value.is_graph_input() and model.ir_version >= constants.LISTED_BEFORE):
            skipped[str(node.name)] = "its weight is computed or may be fed by the caller, not stored"
            continue
        if data.ndim < 2 or value.dtype is None or not value.dtype.is_floating_point():
            continue
        if not np.isfinite(data).all():
            raise ModelError(f"weight '{value.name}' of node '{node.name}' holds NaN or infinity; mend the model first")
        if not data.any():
            skipped[str(node.name)] = f"its weight '{value.name}' is all zeros"
            continue
        found[value] = None
    return Weights(tuple(found), skipped)


def stored(value: ir.Value) -> np.ndarray:
    """Return a weight in its own element type."""
    data = constants.array(value)
    assert data is not None
    return data


def size_of(value: ir.Value) -> int:
    """Return how many single weights a value holds."""
    tensor = value.const_value
    assert tensor is not None
    return int(tensor.size)


def input_axis(value: ir.Value) -> int:
    """Return the axis of a weight along which a product's inputs lie: of Conv the input channels."""
    use = next(iter(value.uses()))
    if use.node.op_type == "ConvTranspose":
        return 0
    if use.node.op_type == "Conv":
        return 1
    turned = use.node.op_type == "Gemm" and bool(int_attribute(use.node, "transB" if use.idx else "transA", 0))
    last = stored(value).ndim - 1
    # On the right the inputs are rows, on the left columns; transposition turns that round.
    return last if turned == bool(use.idx) else last - 1


def output_axis(value: ir.Value) -> int:
    """Return the axis of a weight along which a product's outputs lie."""
    first = next(iter(value.uses())).node.op_type in ("Conv", "ConvTranspose")
    # Of the first two axes of a kernel, else of the last two of a matrix, the one that is not the inputs'.
    return (1 if first else 2 * stored(value).ndim - 3) - input_axis(value)


def store(value: ir.Value, new: np.ndarray) -> None:
    """Write new values; one that is too small for the element type keeps its old weight."""
    old = stored(value)
    before = value.const_value
    constants.set_array(value, new)
    now = stored(value)
    lost = (now == 0) & (new != 0.0)
    if lost.any():
        constants.set_array(value, np.where(lost, old, now))
    constants.release(before)


def _operands(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in model.graph:
        positions = _LINEAR.get(node.op_type, ()) if node.domain == "" else ()
        values = [node.inputs[i] for i in positions]
        kept = [value for value in values if value is not None and value.is_initializer()]
        behind = [value for value in values if value is not None and origins.shows_stored(value)]
        given = kept or behind or [value for value in values[-1:] if value is not None and len(positions) == 1]
        for value in given:
            yield node, value
