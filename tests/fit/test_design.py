"""Rows of a least-squares problem: which positions are taken, and that features and outputs stay paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import BackendError
from onnxprune.fit.design import Design
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.linear import Unit, linear_units
from onnxprune.graph.shapes import concrete_shapes


def unit_of(proto: Any) -> Unit:
    work = prepare(ir.serde.deserialize_model(proto))
    return linear_units(work, concrete_shapes(work, example_shapes(work)))[0]


@pytest.fixture
def conv(net: Any) -> Unit:
    n = net(3, 9, 8)
    return unit_of(n.model(n.conv("x", 3, 4, name="c", strides=[2, 1])))


@pytest.fixture
def product(net: Any) -> Unit:
    n = net(6, 3)
    return unit_of(n.model(n.op("MatMul", "x", n.weight(3, 5), name="m")))


def arrays(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def taken(
    design: Design, value: np.ndarray, out: np.ndarray, size: int, axis: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows and outputs when the examples come ``size`` at a time."""
    rows, outs = [], []
    for start in range(0, value.shape[axis], size):
        index = np.arange(start, min(start + size, value.shape[axis]))
        part, aims = value.take(index, axis), out.take(index, axis)
        rows.append(design.rows(part, aims.shape, index))
        outs.append(design.outputs(aims, index))
    return np.concatenate(rows, axis=1), np.concatenate(outs)


@pytest.mark.parametrize("positions", [0, 1, 7, 40, 1000])
def test_batches_do_not_matter(conv: Unit, positions: int) -> None:
    value, out = arrays(10, 3, 9, 8), arrays(10, 4, 5, 8, seed=1)
    want = taken(Design(conv, positions, 5), value, out, 10)
    assert want[0].shape == (1, 10 * min(positions or 40, 40), 27)
    for size in (1, 3, 4):
        for got, wanted in zip(taken(Design(conv, positions, 5), value, out, size), want, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_other_examples_and_other_sizes_share_a_table(conv: Unit) -> None:
    design = Design(conv, 0, 0)
    for side in (9, 7, 9):
        value = arrays(2, 3, side, 8)
        rows = design.rows(value, (2, 4, (side + 1) // 2, 8), np.arange(2))
        assert rows.shape[1] == 2 * (side + 1) // 2 * 8
        np.testing.assert_array_equal(rows[0, 0].reshape(9, 3)[4], value[0, :, 0, 0])  # the kernel's middle
        assert not rows[0, 0].reshape(9, 3)[0].any()  # padding


def test_positions_are_seeded_and_drawn_per_example(conv: Unit) -> None:
    value, out = arrays(6, 3, 9, 8), np.broadcast_to(np.arange(40.0).reshape(5, 8), (6, 4, 5, 8))
    first = Design(conv, 8, 0).outputs(out, np.arange(6))[:, 0].reshape(6, 8)
    assert len({tuple(row) for row in first}) > 1
    assert all(len(set(row)) == 8 and list(row) == sorted(row) for row in first)
    np.testing.assert_array_equal(first, Design(conv, 8, 0).outputs(out, np.arange(6))[:, 0].reshape(6, 8))
    assert not np.array_equal(first, Design(conv, 8, 1).outputs(out, np.arange(6))[:, 0].reshape(6, 8))
    # Of every example as many positions, all places equally likely.
    counts = np.zeros(40)
    for seed in range(200):
        counts += np.bincount(Design(conv, 8, seed).outputs(out, np.arange(6))[:, 0].astype(int), minlength=40)
    assert abs(counts / counts.mean() - 1).max() < 0.3
    assert value.shape[0] == 6


def test_rows_and_outputs_stay_paired(conv: Unit, run_model: Any, net: Any) -> None:
    n = net(3, 9, 8)
    proto = n.model(n.conv("x", 3, 4, name="c", strides=[2, 1]))
    unit, value = unit_of(proto), arrays(7, 3, 9, 8)
    out = run_model(proto, {"x": value})["c_out"]
    rows, outs = taken(Design(unit, 5, 9), value, out, 3)
    np.testing.assert_allclose(rows[0] @ unit.matrix()[0] + unit.shift, outs, atol=1e-5)


@pytest.mark.parametrize("positions", [0, 2, 4])
def test_tokens_of_a_batch(product: Unit, positions: int) -> None:
    value = arrays(9, 6, 3)
    out = (value @ product.matrix()[0]).astype(np.float32)
    want = taken(Design(product, positions, 1), value, out, 9)
    assert want[0].shape == (1, 9 * (positions or 6), 3)
    np.testing.assert_allclose(want[0][0] @ product.matrix()[0], want[1], atol=1e-5)
    np.testing.assert_array_equal(taken(Design(product, positions, 1), value, out, 2)[0], want[0])


@pytest.mark.parametrize("positions", [0, 2, 4])
def test_sequences_before_the_batch(product: Unit, positions: int) -> None:
    value = arrays(6, 9, 3)  # 6 tokens of 9 examples
    out = (value @ product.matrix()[0]).astype(np.float32)
    design = Design(product, positions, 1, batch=1)
    want = taken(design, value, out, 9, axis=1)
    np.testing.assert_allclose(want[0][0] @ product.matrix()[0], want[1], atol=1e-5)
    for size in (1, 2, 6):
        np.testing.assert_array_equal(taken(design, value, out, size, axis=1)[0], want[0])
    # Whichever axis it lies on, the same tokens of an example are drawn.
    moved = taken(Design(product, positions, 1), value.swapaxes(0, 1), out.swapaxes(0, 1), 4)
    np.testing.assert_array_equal(moved[0], want[0])


def test_windows_folded_into_the_batch(product: Unit) -> None:
    value = arrays(5 * 4, 6, 3)  # 4 windows of 6 tokens of 5 examples
    out = (value @ product.matrix()[0]).astype(np.float32)
    design = Design(product, 7, 2)
    want = design.rows(value, out.shape, np.arange(5)), design.outputs(out, np.arange(5))
    assert want[0].shape == (1, 35, 3)
    np.testing.assert_allclose(want[0][0] @ product.matrix()[0], want[1], atol=1e-5)
    parts = [design.rows(value[4 * i : 4 * i + 4], (4, 6, 5), np.array([i])) for i in range(5)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), want[0])


def test_rows_that_examples_do_not_part_are_all_taken(product: Unit) -> None:
    value = arrays(7, 1, 3)  # 7 rows of 2 examples
    assert Design(product, 1, 0).rows(value, (7, 1, 5), np.arange(2)).shape == (1, 7, 3)


def test_groups_get_features_of_their_own(net: Any) -> None:
    n = net(6, 4, 4)
    unit = unit_of(n.model(n.conv("x", 6, 4, 1, name="c", group=2)))
    value = arrays(2, 6, 4, 4)
    rows = Design(unit, 0, 0).rows(value, (2, 4, 4, 4), np.arange(2))
    np.testing.assert_array_equal(rows[1].reshape(2, 16, 3), value[:, 3:].reshape(2, 3, 16).transpose(0, 2, 1))


def test_the_type_of_the_tensor_is_kept(conv: Unit) -> None:
    assert (
        Design(conv, 3, 0).rows(arrays(2, 3, 9, 8).astype(np.float16), (2, 4, 5, 8), np.arange(2)).dtype == np.float16
    )


def test_axes_that_do_not_fit_the_weight_are_named(conv: Unit) -> None:
    with pytest.raises(BackendError, match="'c' turns 2 spatial axes into 1, but its weight has 2"):
        Design(conv, 0, 0).rows(arrays(2, 3, 9, 8), (2, 4, 5), np.arange(2))
