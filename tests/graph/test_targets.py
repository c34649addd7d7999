"""Shapes that a graph computes are written out exactly, or left as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def ops(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_table_picked_by_a_size_keeps_its_rows(net: Any, tidied: Any) -> None:
    """Row 3 of a stored table, found by a size read off a shape, is a row: not entry 3 of the flattened table."""
    n = net()
    size = n.op("Gather", n.op("Shape", "x"), n.const(np.array(1, np.int64)), axis=0)
    row = n.op("Gather", n.const(np.arange(8, dtype=np.int64).reshape(4, 2)), size, axis=0)
    out = n.op("Add", n.op("Relu", "x"), n.op("Cast", row, to=1))
    tidied(n.model({"x": ["N", 3, 5, 2]}, out))


def test_columns_of_tables_are_not_joined_as_vectors(net: Any, tidied: Any) -> None:
    n = net()
    size = n.op("Unsqueeze", n.op("Shape", "x", start=1), n.ints(1))
    joined = n.op("Concat", size, n.const(np.array([[7], [8]], np.int64)), axis=1)
    out = n.op("Add", n.op("Relu", "x"), n.op("Cast", joined, to=1))
    tidied(n.model({"x": ["N", 2, 2]}, out))


@pytest.mark.parametrize(("rest", "wanted"), [((6,), [-1, 6]), ((3, -1), [0, 3, -1])])
def test_a_batch_read_off_the_input_becomes_a_stored_target(
    net: Any, tidied: Any, rest: tuple[int, ...], wanted: list[int]
) -> None:
    n = net()
    batch = n.op("Shape", "x", start=0, end=1)
    target = n.op("Concat", batch, n.ints(*rest), axis=0)
    result, _ = tidied(n.model({"x": ["N", 3, 2]}, n.op("Relu", n.op("Reshape", "x", target))))
    assert ops(result) == ["Reshape", "Relu"]
    stored = {t.name: t for t in result.graph.initializer}[result.graph.node[0].input[1]]
    assert np.frombuffer(stored.raw_data, np.int64).tolist() == wanted
