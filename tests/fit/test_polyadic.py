"""Sums of products: what has few is found, the data's metric counts, nothing cancels, the same input gives the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.fit.polyadic import decompose, single_products
from onnxprune.graph.polyadic import Factors


def drawn(channels: int, taps: int, outputs: int, rank: int, seed: int = 0) -> Factors:
    rng = np.random.default_rng(seed)
    sizes = ((channels, rank), (taps, rank), (rank, outputs))
    return Factors(*(rng.standard_normal(size) for size in sizes))


def moments(features: int, seed: int = 1, rows: int | None = None) -> np.ndarray:
    data = np.random.default_rng(seed).standard_normal((rows or 4 * features, features))
    data *= np.linspace(0.2, 3.0, features)
    return np.asarray(data.T @ data)


def error(matrix: np.ndarray, found: Factors, gram: np.ndarray | None = None) -> float:
    """Return what is lost over all there is."""
    weight = np.eye(len(matrix)) if gram is None else gram
    left = matrix - found.matrix()
    return float(np.sum(left * (weight @ left)) / np.sum(matrix * (weight @ matrix)))


def test_a_sum_is_what_its_parts_say() -> None:
    found = drawn(3, 4, 5, 2)
    want = np.einsum("tr,cr,ro->tco", found.taps, found.first, found.last).reshape(12, 5)
    np.testing.assert_allclose(found.matrix(), want, rtol=1e-12)
    even = found.balanced()
    np.testing.assert_allclose(even.matrix(), want, rtol=1e-12, atol=1e-12)
    norms = [np.linalg.norm(even.first, axis=0), np.linalg.norm(even.taps, axis=0), np.linalg.norm(even.last, axis=1)]
    np.testing.assert_allclose(norms[0], norms[1])
    np.testing.assert_allclose(norms[0], norms[2])


@pytest.mark.parametrize("rank", [1, 3])
def test_few_products_are_found_again(rank: int) -> None:
    matrix = drawn(6, 9, 8, rank).matrix()
    assert error(matrix, decompose(matrix, None, 9, rank)) < 1e-4
    gram = moments(54)
    assert error(matrix, decompose(matrix, gram, 9, rank), gram) < 1e-4


def test_single_channels_kernels_are_exact_and_a_start_is_gone_on_from() -> None:
    matrix = np.random.default_rng(3).standard_normal((4 * 9, 5))
    whole = decompose(matrix, moments(36), 9, 4 * 5)
    assert error(matrix, whole) < 1e-20
    squares = single_products(matrix, 9)
    assert len(squares) == 4 * 5 and (np.diff(squares) <= 0).all()
    assert squares.sum() == pytest.approx(np.sum(matrix**2))
    first = decompose(matrix, None, 9, 6, effort=0.1)
    # Fitted, it is better than the best products of single channels, and still better from where it was.
    assert error(matrix, first) < squares[6:].sum() / squares.sum()
    assert error(matrix, decompose(matrix, None, 9, 6, start=first, effort=0.3)) <= error(matrix, first)
    other = decompose(matrix, None, 9, 6, start=whole)  # of another rank: of no use
    assert other.rank == 6 and np.isfinite(other.matrix()).all()


def test_errors_count_as_data_count_them() -> None:
    matrix = np.random.default_rng(4).standard_normal((5 * 9, 7))
    gram = moments(45)
    seen = decompose(matrix, gram, 9, 8)
    blind = decompose(matrix, None, 9, 8)
    assert error(matrix, seen, gram) < 0.9 * error(matrix, blind, gram)
    assert error(matrix, blind) < error(matrix, seen)


def test_what_no_data_reach_is_no_trouble() -> None:
    matrix = np.random.default_rng(5).standard_normal((4 * 9, 6))
    gram = moments(36)
    gram[::4], gram[:, ::4] = 0.0, 0.0  # a dead channel
    found = decompose(matrix, gram, 9, 8)
    assert np.isfinite(found.matrix()).all() and error(matrix, found, gram) < 0.3
    few = moments(36, rows=5)  # of rank 5
    assert error(matrix, decompose(matrix, few, 9, 8), few) < 1e-3
    for metric in (gram, np.zeros((36, 36)), None):
        nothing = decompose(np.zeros((36, 6)), metric, 9, 3)
        assert nothing.rank == 3 and not nothing.matrix().any()
    assert error(matrix, decompose(matrix, np.zeros((36, 36)), 9, 8)) < 0.9


def test_products_do_not_cancel_one_another() -> None:
    # The border of rank 2: products grow without bound as they come nearer (de Silva, Lim, 2008).
    a, b = np.eye(2)
    kernel = sum(np.einsum("t,c,o->tco", *parts) for parts in ((a, a, b), (a, b, a), (b, a, a)))
    matrix = np.asarray(kernel).reshape(4, 2)
    found = decompose(matrix, None, 2, 2)
    products = np.einsum("tr,cr,ro->rtco", found.taps, found.first, found.last)
    assert np.square(products).sum() < 100 * np.square(matrix).sum()
    assert error(matrix, found) < 0.1


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 5), taps=st.integers(2, 9), outputs=st.integers(1, 6), rank=st.integers(1, 12),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_sizes(channels: int, taps: int, outputs: int, rank: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((channels * taps, outputs))
    gram = moments(channels * taps, seed)
    found = decompose(matrix, gram, taps, rank, effort=0.2)
    assert found.first.shape == (channels, rank)
    assert found.taps.shape == (taps, rank)
    assert found.last.shape == (rank, outputs)
    assert error(matrix, found, gram) <= 1 + 1e-9
    again = decompose(matrix, gram, taps, rank, effort=0.2)
    np.testing.assert_array_equal(found.matrix(), again.matrix())
