"""Factorisations and least squares, against LAPACK on the full matrices and the methods' golden case."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune import linalg
from onnxprune.linalg import (
    interpolation,
    interpolation_error,
    masked_least_squares,
    pivoted_cholesky,
    solve_all_psd,
    solve_psd,
)

GOLDEN = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 2], [0, 0, 0]])


def tall(seed: int, rows: int = 200, channels: int = 12, decay: float = 1.0) -> np.ndarray:
    """Rows of correlated channels whose singular values fall by ``decay`` a step."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels, channels)) * decay ** np.arange(channels)[:, None]
    return rng.standard_normal((rows, channels)) @ mix


def kept_of(gram: np.ndarray, k: int) -> np.ndarray:
    return np.sort(pivoted_cholesky(gram, k).pivots)


def test_golden_case_of_rank_two() -> None:
    gram = GOLDEN.T @ GOLDEN
    found = pivoted_cholesky(gram, 3)
    # Channels 0 and 1 are tied after the first step; the lowest index wins.
    assert found.pivots.tolist() == [2, 0]
    assert np.allclose(found.factor[[0, 1], found.pivots], [np.sqrt(6), np.sqrt(0.5)], atol=1e-14)
    assert np.allclose(found.residuals, [10, 1, 0], atol=1e-14)
    matrix = interpolation(gram, np.array([0, 2]))
    assert np.allclose(matrix, [[1, -1, 0], [0, 1, 1]], atol=1e-9)
    assert interpolation_error(gram, np.array([0, 2]), matrix) < 1e-7


def test_golden_case_with_one_channel_attains_the_bound() -> None:
    gram = GOLDEN.T @ GOLDEN
    found = pivoted_cholesky(gram, 1)
    assert found.pivots.tolist() == [2]
    assert found.residuals[-1] == pytest.approx(1.0)
    matrix = interpolation(gram, np.array([2]))
    assert np.allclose(matrix, [[0.5, 0.5, 1.0]])
    left = GOLDEN - GOLDEN[:, [2]] @ matrix
    values = np.linalg.svd(GOLDEN, compute_uv=False)
    assert np.linalg.norm(left, 2) == pytest.approx(1.0)
    assert np.linalg.norm(left, 2) == pytest.approx(values[1])
    dropped = np.sqrt(0.5)  # |r_22|
    assert np.linalg.norm(left, 2) == pytest.approx(np.sqrt(2) * dropped)


@pytest.mark.parametrize("seed", range(4))
def test_gram_form_equals_pivoted_qr_of_the_matrix(seed: int) -> None:
    data = tall(seed)
    _, upper, order = scipy.linalg.qr(data, mode="economic", pivoting=True)
    found = pivoted_cholesky(data.T @ data, 12)
    assert found.pivots.tolist() == order.tolist()
    diagonal = found.factor[np.arange(12), found.pivots]
    assert np.allclose(diagonal, np.abs(np.diag(upper)), rtol=1e-8)
    for k in (1, 5, 12):
        exact = np.linalg.solve(upper[:k, :k], upper[:k])
        scattered = np.zeros((k, 12))
        scattered[:, order] = exact
        rank = np.argsort(order[:k])
        assert np.allclose(interpolation(data.T @ data, np.sort(order[:k])), scattered[rank], atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 11), st.sampled_from([1.0, 0.7, 0.4]))
def test_error_identity_and_bounds(seed: int, k: int, decay: float) -> None:
    data = tall(seed, decay=decay)
    gram = data.T @ data
    found = pivoted_cholesky(gram, 12)
    kept = np.sort(found.pivots[:k])
    matrix = interpolation(gram, kept)
    left = data - data[:, kept] @ matrix
    values = np.linalg.svd(data, compute_uv=False)
    floor = 1e-7 * values[0]  # a Gram matrix squares the condition number
    assert np.linalg.norm(left) == pytest.approx(np.sqrt(found.residuals[k]), rel=1e-6, abs=floor)
    relative = np.linalg.norm(left) / np.linalg.norm(data)
    assert interpolation_error(gram, kept, matrix) == pytest.approx(relative, rel=1e-5, abs=2e-7)
    pivot = found.factor[k, found.pivots[k]] if k < len(found.pivots) else 0.0
    assert np.linalg.norm(left, 2) >= pivot - floor
    assert values[k] - floor <= np.linalg.norm(left, 2) <= np.sqrt(12 - k) * pivot + floor


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_pivots_nest_and_diagonals_do_not_increase(seed: int) -> None:
    gram = (data := tall(seed, decay=0.8)).T @ data
    whole = pivoted_cholesky(gram, 12)
    diagonal = whole.factor[np.arange(len(whole.pivots)), whole.pivots]
    assert (np.diff(diagonal) <= 1e-12 * diagonal[0]).all()
    assert (np.diff(whole.residuals) <= 0).all()
    for k in range(13):
        part = pivoted_cholesky(gram, k)
        assert part.pivots.tolist() == whole.pivots[:k].tolist()
        assert np.array_equal(part.factor, whole.factor[:k])
        assert len(part.residuals) == len(part.pivots) + 1


def test_identity_at_the_kept_channels_is_exact() -> None:
    gram = (data := tall(3)).T @ data
    for k in (1, 4, 11, 12):
        kept = kept_of(gram, k)
        assert np.array_equal(interpolation(gram, kept)[:, kept], np.eye(k))
        assert np.array_equal(interpolation(gram, kept, 1e-10)[:, kept], np.eye(k))


def test_all_channels_lose_nothing() -> None:
    gram = (data := tall(1)).T @ data
    matrix = interpolation(gram, np.arange(12))
    assert np.array_equal(matrix, np.eye(12))
    assert interpolation_error(gram, np.arange(12), matrix) < 1e-7


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_stops_at_full_rank_and_loses_nothing_there(rank: int) -> None:
    rng = np.random.default_rng(rank)
    data = rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 12))
    found = pivoted_cholesky(data.T @ data, 12)
    assert len(found.pivots) == rank
    kept = np.sort(found.pivots)
    matrix = interpolation(data.T @ data, kept)
    assert np.linalg.norm(data - data[:, kept] @ matrix) <= 1e-5 * np.linalg.norm(data)


def test_duplicated_scaled_and_dead_channels_are_free() -> None:
    data = np.random.default_rng(0).standard_normal((100, 8))
    data[:, 3] = data[:, 1]
    data[:, 5] = -4 * data[:, 2]
    data[:, 6] = 0.0
    gram = data.T @ data
    found = pivoted_cholesky(gram, 8)
    assert len(found.pivots) == 5
    assert {3, 2, 6}.isdisjoint(found.pivots.tolist())  # the tie goes to 1, the larger twin is 5
    kept = np.sort(found.pivots)
    matrix = interpolation(gram, kept, 1e-10)
    assert not matrix[:, 6].any()
    assert np.abs(data - data[:, kept] @ matrix).max() < 1e-8


def test_a_faint_channel_is_rebuilt_as_well_as_a_loud_one() -> None:
    data = np.random.default_rng(0).standard_normal((100, 4)) * [1.0, 1.0, 1e-6, 0.0]
    data[:, 3] = 0.5 * data[:, 2]
    matrix = interpolation(data.T @ data, np.array([0, 1, 2]), 1e-10)
    assert matrix[2, 3] == pytest.approx(0.5, rel=1e-8)


def test_row_order_and_blocks_do_not_matter() -> None:
    data = tall(5, rows=300)
    gram = data.T @ data
    shuffled = data[np.random.default_rng(0).permutation(300)]
    blocks = sum(part.T @ part for part in np.array_split(data, 16))
    for other in (shuffled.T @ shuffled, blocks):
        assert np.array_equal(kept_of(gram, 6), kept_of(other, 6))
        kept = kept_of(gram, 6)
        assert np.allclose(interpolation(gram, kept), interpolation(other, kept), rtol=1e-9, atol=1e-11)


def test_ties_go_to_the_lowest_index_despite_rounding() -> None:
    gram = np.diag([1.0, 1.0 + 1e-15, 1.0])
    assert pivoted_cholesky(gram, 3).pivots.tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [0, 1, 4])
def test_an_empty_or_zero_matrix_has_no_pivots(size: int) -> None:
    found = pivoted_cholesky(np.zeros((size, size)), 3)
    assert found.pivots.shape == (0,)
    assert found.factor.shape == (0, size)
    assert found.residuals.tolist() == [0.0]
    assert interpolation_error(np.zeros((size, size)), np.arange(0), np.zeros((0, size))) == 0.0


def test_integer_and_float32_grams_are_factored_in_float64() -> None:
    gram = (GOLDEN.T @ GOLDEN).astype(np.int64)
    assert pivoted_cholesky(gram, 2).pivots.tolist() == [2, 0]
    assert pivoted_cholesky(gram.astype(np.float32), 2).factor.dtype == np.float64


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_solve_psd_solves_singular_systems_that_have_a_solution(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((rank, 6)) * 10.0 ** rng.integers(-3, 4, 6)
    matrix = root.T @ root
    right = matrix @ rng.standard_normal((6, 3)) if rank else np.zeros((6, 3))
    found = solve_psd(matrix, right)
    scale = np.abs(right).max(axis=1, initial=0.0)
    assert np.isfinite(found).all()
    assert (np.abs(matrix @ found - right).max(axis=1) <= 1e-4 * scale + 1e-12).all()


def test_solve_psd_shrinks_with_its_ridge_and_takes_empty_and_dead_systems() -> None:
    assert np.allclose(solve_psd(np.diag([2.0, 8.0]), np.eye(2), 1.0), np.diag([1 / 4, 1 / 16]))
    assert np.array_equal(solve_psd(np.zeros((2, 2)), np.zeros((2, 3))), np.zeros((2, 3)))
    assert np.array_equal(solve_psd(np.diag([4.0, 0.0]), np.ones((2, 1))), [[0.25], [0.0]])
    assert solve_psd(np.zeros((0, 0)), np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("size", [1, 5, 70])
def test_solve_all_psd_solves_each_as_if_it_were_alone(size: int) -> None:
    rng = np.random.default_rng(size)
    roots = rng.standard_normal((6, size, size + 3))
    roots[1, -1] = 0.0  # a dead feature
    roots[2, -1] = roots[2, 0]  # singular where there is more than one
    roots[3] = 0.0
    roots[4] *= 1e-12 ** np.arange(size)[:, None].clip(max=1)
    matrices, rights = roots @ roots.transpose(0, 2, 1), rng.standard_normal((6, size, 2))
    found = solve_all_psd(matrices, rights)
    want = np.stack([solve_psd(a, b) for a, b in zip(matrices, rights, strict=True)])
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-9)
    assert solve_all_psd(matrices[:0], rights[:0]).shape == (0, size, 2)


def test_solve_psd_survives_an_indefinite_matrix_from_rounding() -> None:
    noisy = np.ones((3, 3)) + 1e-9 * np.array([[0, 1, -1], [1, 0, 1], [-1, 1, 0]])
    found = solve_psd(noisy, np.ones((3, 1)))
    assert np.allclose(noisy @ found, 1.0, atol=1e-4)


def problem(seed: int, rows: int, channels: int, density: float) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    data = tall(seed, rows=3 * channels, channels=channels)
    lost = rng.standard_normal((len(data), rows))
    return data, lost, rng.random((rows, channels)) < density


@pytest.mark.parametrize(("channels", "rows"), [(7, 30), (60, 25), (210, 12)])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_masked_least_squares_equals_lstsq_row_by_row(channels: int, rows: int, density: float) -> None:
    data, lost, mask = problem(1, rows, channels, density)
    found = masked_least_squares(data.T @ data, lost.T @ data, mask, ridge=0.0)
    assert (found[~mask] == 0.0).all()
    for row in range(rows):
        live = mask[row]
        wanted = np.linalg.lstsq(data[:, live], lost[:, row], rcond=None)[0]
        error = np.linalg.norm(data[:, live] @ (found[row, live] - wanted))
        assert error <= 1e-6 * np.linalg.norm(lost[:, row])


@pytest.mark.parametrize("wide", [False, True])
def test_masked_least_squares_on_ill_conditioned_grams(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "_DENSE_WIDTH", 8 if wide else 1000)
    data = tall(2, rows=300, channels=40, decay=0.5)
    data[:, 7] = data[:, 3]
    data[:, 9] = 0.0
    data[:, 11] *= 1e-5
    lost, mask = data[:, :20] + 0.1, np.random.default_rng(0).random((20, 40)) < 0.6
    found = masked_least_squares(data.T @ data, lost.T @ data, mask)
    assert np.isfinite(found).all()
    assert (found[~mask] == 0.0).all()
    for row in range(20):
        live = mask[row]
        best = np.linalg.lstsq(data[:, live], lost[:, row], rcond=None)[0]
        least = np.linalg.norm(data[:, live] @ best - lost[:, row])
        got = np.linalg.norm(data @ found[row] - lost[:, row])
        assert got <= least + 1e-2 * np.linalg.norm(lost[:, row])  # what the ridge may cost


def test_both_branches_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data, lost, mask = problem(4, 30, 80, 0.4)
    dense = masked_least_squares(data.T @ data, lost.T @ data, mask)
    monkeypatch.setattr(linalg, "_DENSE_WIDTH", 8)
    assert np.allclose(dense, masked_least_squares(data.T @ data, lost.T @ data, mask), rtol=1e-6, atol=1e-9)


def test_small_batches_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, lost, mask = problem(4, 30, 20, 0.4)
    whole = masked_least_squares(data.T @ data, lost.T @ data, mask)
    monkeypatch.setattr(linalg, "_BATCH_BYTES", 1)
    assert np.array_equal(whole, masked_least_squares(data.T @ data, lost.T @ data, mask))


@pytest.mark.parametrize("channels", [5, 200])
def test_rows_without_support_and_dead_grams_give_zeros(channels: int) -> None:
    data, lost, mask = problem(0, 6, channels, 0.5)
    mask[2] = False
    gram, right = data.T @ data, lost.T @ data
    found = masked_least_squares(gram, right, mask)
    assert not found[2].any()
    assert found[0].any()
    assert not masked_least_squares(np.zeros_like(gram), np.zeros_like(right), mask).any()
    assert masked_least_squares(gram, right[:0], mask[:0]).shape == (0, channels)
    assert masked_least_squares(np.zeros((0, 0)), np.zeros((3, 0)), np.zeros((3, 0), bool)).shape == (3, 0)


def test_integer_right_sides_are_not_truncated() -> None:
    found = masked_least_squares(np.diag([2.0, 4.0]), np.array([[1, 1]]), np.ones((1, 2), bool))
    assert np.allclose(found, [[0.5, 0.25]])
