"""Pivoted QR of a triangular factor, its interpolation and strong rank-revealing swaps, beside the Gram forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.linalg import (
    interpolation,
    interpolation_from_factor,
    pivoted_cholesky,
    pivoted_qr,
    swapped,
)

GOLDEN = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 2], [0, 0, 0]])


def tall(seed: int, rows: int = 200, channels: int = 12, decay: float = 1.0) -> np.ndarray:
    """Rows of correlated channels whose singular values fall by ``decay`` a step."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels, channels)) * decay ** np.arange(channels)[:, None]
    return rng.standard_normal((rows, channels)) @ mix


def test_golden_case_by_qr_without_a_gram_matrix() -> None:
    found = pivoted_qr(GOLDEN, 3)
    assert found.pivots.tolist() == [2, 0]
    assert np.allclose(found.factor[[0, 1], found.pivots], [np.sqrt(6), np.sqrt(0.5)], atol=1e-14)
    assert np.allclose(found.residuals, [10, 1, 0], atol=1e-14)
    assert np.allclose(interpolation_from_factor(GOLDEN, np.array([0, 2])), [[1, -1, 0], [0, 1, 1]], atol=1e-13)
    assert np.allclose(interpolation_from_factor(GOLDEN, np.array([2])), [[0.5, 0.5, 1.0]], atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.7]), st.integers(0, 12))
def test_qr_and_cholesky_give_one_result_on_well_conditioned_data(seed: int, decay: float, k: int) -> None:
    data = tall(seed, decay=decay)
    upper, gram = np.linalg.qr(data, mode="r"), data.T @ data
    found, squared = pivoted_qr(upper, k), pivoted_cholesky(gram, k)
    assert found.pivots.tolist() == squared.pivots.tolist() == pivoted_qr(data, k).pivots.tolist()
    scale = np.linalg.norm(data)
    assert np.allclose(found.factor, squared.factor, rtol=1e-6, atol=1e-8 * scale)
    assert np.allclose(found.residuals, squared.residuals, rtol=1e-6, atol=1e-10 * scale**2)
    kept = np.sort(found.pivots)
    direct, through = interpolation_from_factor(upper, kept), interpolation(gram, kept)
    assert np.array_equal(direct[:, kept], np.eye(k))
    assert np.allclose(direct, through, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11), st.sampled_from([1.0, 0.4, 0.15]))
def test_error_identity_and_bounds_hold_by_qr_without_a_floor(seed: int, k: int, decay: float) -> None:
    data = tall(seed, decay=decay)
    upper = np.linalg.qr(data, mode="r")
    found = pivoted_qr(upper, 12)
    diagonal = found.factor[np.arange(12), found.pivots]
    assert (np.diff(diagonal) <= 1e-12 * diagonal[:-1]).all()
    assert pivoted_qr(upper, k).pivots.tolist() == found.pivots[:k].tolist()
    kept = np.sort(found.pivots[:k])
    left = data - data[:, kept] @ interpolation_from_factor(upper, kept)
    values = np.linalg.svd(data, compute_uv=False)
    floor = 1e-13 * values[0]
    assert np.linalg.norm(left) == pytest.approx(np.sqrt(found.residuals[k]), rel=1e-6, abs=floor)
    assert np.linalg.norm(left, 2) >= diagonal[k] * (1 - 1e-6) - floor
    assert values[k] - floor <= np.linalg.norm(left, 2) * (1 + 1e-6)
    assert np.linalg.norm(left, 2) <= np.sqrt(12 - k) * diagonal[k] * (1 + 1e-6) + floor
    consumer = np.random.default_rng(seed).standard_normal((5, 12))
    lost = np.linalg.norm(left @ consumer.T)
    assert lost <= np.linalg.norm(consumer, 2) * np.sqrt(found.residuals[k]) * (1 + 1e-6) + floor


def test_qr_sees_at_condition_1e10_what_a_gram_matrix_cannot() -> None:
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((400, 12)))
    right, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    data = left * np.logspace(0, -10, 12) @ right
    upper = np.linalg.qr(data, mode="r")
    found, squared = pivoted_qr(upper, 12), pivoted_cholesky(data.T @ data, 12)
    assert len(found.pivots) == 12 > len(squared.pivots)

    def error(kept: np.ndarray, matrix: np.ndarray) -> float:
        return float(np.linalg.norm(data - data[:, kept] @ matrix))

    kept = np.sort(found.pivots[:11])
    fine, coarse = interpolation_from_factor(upper, kept), interpolation(data.T @ data, kept)
    assert error(kept, fine) == pytest.approx(np.sqrt(found.residuals[11]), rel=1e-3)
    assert error(kept, fine) < 1e-2 * error(kept, coarse)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_qr_stops_at_full_rank_and_loses_nothing_there_whatever_the_scales(rank: int) -> None:
    rng = np.random.default_rng(rank)
    data = rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 12))
    scaled = data * 4.0 ** rng.integers(-3, 4, 12)
    for given_data in (data, scaled):
        found = pivoted_qr(given_data, 12)
        assert len(found.pivots) == rank
        kept = np.sort(found.pivots)
        rebuilt = given_data[:, kept] @ interpolation_from_factor(given_data, kept)
        assert np.linalg.norm(given_data - rebuilt) <= 1e-12 * np.linalg.norm(given_data)
    assert pivoted_qr(4.0 * data, 12).pivots.tolist() == pivoted_qr(data, 12).pivots.tolist()


def test_qr_breaks_ties_and_takes_empty_dead_and_short_matrices() -> None:
    assert pivoted_qr(np.diag([1.0, 1.0 + 1e-15, 1.0]), 3).pivots.tolist() == [0, 1, 2]
    for data in (np.zeros((0, 0)), np.zeros((5, 4)), np.zeros((0, 4))):
        assert pivoted_qr(data, 3).pivots.shape == (0,)
        assert interpolation_from_factor(data, np.arange(0)).shape == (0, data.shape[1])
    short = np.arange(1.0, 9.0).reshape(2, 4)
    assert len(pivoted_qr(short, 4).pivots) == 2
    twins = np.array([[1.0, 1.0, 2.0, 0.0], [2.0, 2.0, 4.0, 0.0]])
    matrix = interpolation_from_factor(twins, np.array([0, 1, 3]))
    assert np.allclose(twins[:, [0, 1, 3]] @ matrix, twins)
    assert not matrix[2, 2]


def kahan(size: int, c: float = 0.6) -> np.ndarray:
    """Kahan's matrix: pivoting keeps its order although the last column is far from its bound."""
    s = np.sqrt(1 - c * c)
    upper = np.eye(size) - c * np.triu(np.ones((size, size)), 1)
    return (s ** np.arange(size))[:, None] * upper * (1 - 1e-6 * np.arange(size))


@pytest.mark.parametrize("bound", [1.0, 2.0, 10.0])
def test_swaps_bound_every_entry_of_the_interpolation(bound: float) -> None:
    data = kahan(24)
    kept = np.sort(pivoted_qr(data, 23).pivots)
    assert np.abs(interpolation_from_factor(data, kept)).max() > 100
    better = swapped(data.T @ data, kept, bound)
    assert np.abs(interpolation_from_factor(data, better)).max() <= bound * (1 + 1e-6)
    assert np.array_equal(better, swapped(data.T @ data, kept, bound))
    error = [np.linalg.norm(data - data[:, k] @ interpolation_from_factor(data, k)) for k in (kept, better)]
    assert error[1] < error[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11), st.sampled_from([1.0, 1.5, 10.0]))
def test_swaps_raise_the_determinant_from_any_start(seed: int, k: int, bound: float) -> None:
    data = tall(seed)
    gram = data.T @ data
    start = np.sort(np.random.default_rng(seed).permutation(12)[:k])
    found = swapped(gram, start, bound)
    assert len(set(found.tolist())) == k
    assert (np.diff(found) > 0).all()
    assert np.abs(interpolation(gram, found)).max() <= bound * (1 + 1e-6)
    before, after = (np.linalg.slogdet(gram[np.ix_(i, i)])[1] for i in (start, found))
    assert after > before + 2 * np.log(bound) * (1 - 1e-9) if found.tolist() != start.tolist() else after == before
    # No exchange of one pair does better than the bound.
    for i in range(k):
        for j in np.setdiff1d(np.arange(12), found):
            other = found.copy()
            other[i] = j
            assert np.linalg.slogdet(gram[np.ix_(other, other)])[1] <= after + 2 * np.log(bound) + 1e-6


def test_swaps_leave_dead_and_repeated_channels_and_end_on_singular_matrices() -> None:
    data = np.random.default_rng(0).standard_normal((60, 5))
    data[:, 1], data[:, 2] = data[:, 0], 0.0
    gram = data.T @ data
    assert {0, 1} - set(swapped(gram, np.array([0, 1, 2])).tolist())
    assert 2 not in swapped(gram, np.array([0, 1, 2]))
    assert swapped(gram, np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert swapped(gram, np.arange(0)).tolist() == []
    assert swapped(np.zeros((3, 3)), np.array([1])).tolist() == [1]


@pytest.mark.parametrize("seed", range(4))
def test_row_order_and_blocks_do_not_change_the_pivots(seed: int) -> None:
    data = tall(seed, rows=300, decay=0.6)
    whole = pivoted_qr(np.linalg.qr(data, mode="r"), 7)
    shuffled = data[np.random.default_rng(seed).permutation(300)]
    blocks = np.concatenate([np.linalg.qr(part, mode="r") for part in np.array_split(data, 16)])
    for other in (np.linalg.qr(shuffled, mode="r"), np.linalg.qr(blocks, mode="r")):
        found = pivoted_qr(other, 7)
        assert found.pivots.tolist() == whole.pivots.tolist()
        kept = np.sort(found.pivots)
        first, second = interpolation_from_factor(data, kept), interpolation_from_factor(other, kept)
        assert np.allclose(first, second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("times", [0.01, 0.25, 100.0])
def test_scaling_a_channel_may_change_the_choice_but_not_that_nothing_is_lost_at_full_rank(times: float) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 9))
    consumer = rng.standard_normal((4, 9))
    data[:, 2] *= times
    consumer[:, 2] /= times
    kept = np.sort(pivoted_qr(np.linalg.qr(data, mode="r"), 9).pivots)
    assert len(kept) == 5
    folded = consumer @ interpolation_from_factor(data, kept).T
    assert np.allclose(data[:, kept] @ folded.T, data @ consumer.T, rtol=1e-9, atol=1e-9)


def test_rounding_in_what_is_left_of_a_copy_is_no_reason_to_give_up_a_faint_channel() -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((60, 1)) * np.concatenate([[1.0], rng.uniform(0.1, 1.0, 20)])
    data = np.hstack([data, 1e-11 * rng.standard_normal((60, 1))])
    assert swapped(data.T @ data, np.array([0, 21]), 1.0).tolist() == [0, 21]
