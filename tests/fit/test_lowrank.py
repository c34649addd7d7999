"""Matrices of low rank: their rank, their error, and that no simpler way does better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.fit import lowrank, moments
from onnxprune.fit.lowrank import Metric, components, components_of, error, paired, project
from onnxprune.fit.moments import Moments
from onnxprune.fit.solve import Solution
from onnxprune.fit.wide import Wide
from onnxprune.graph.factorise import INPUT, KINDS, OUTPUT, SPATIAL, TURNED, Pair, factors, refolded, unfold

KERNEL = (3, 2)
OTHERS = (SPATIAL, TURNED, INPUT)


def problem(seed: int = 0, *, given: int = 3, width: int = 5, kernel: Sequence[int] = KERNEL) -> tuple[
    np.ndarray, np.ndarray
]:  # fmt: skip
    """Draw a weight [F, O] and rows [n, F] whose features are far from white."""
    rng = np.random.default_rng(seed)
    features = given * int(np.prod(kernel))
    mixing = rng.standard_normal((features, features)) * np.logspace(0, -1.5, features)
    rows = rng.standard_normal((60 + 4 * features, features)) @ mixing + 2 * rng.standard_normal(features)
    return rng.standard_normal((features, width)), rows


def metric_of(rows: np.ndarray, *, shiftable: bool = True) -> Metric:
    sums = Moments.empty(1, rows.shape[1], 1)
    sums.update(rows[None], np.zeros((len(rows), 1)))
    return Metric.of(sums, shiftable=shiftable)


def rank_of(matrix: np.ndarray, kind: str, kernel: Sequence[int] = KERNEL) -> int:
    return int(np.linalg.matrix_rank(unfold(matrix, kind, kernel), tol=1e-8 * np.abs(matrix).max()))


def full(kind: str, matrix: np.ndarray, kernel: Sequence[int] = KERNEL) -> int:
    return min(unfold(matrix, kind, kernel).shape)


def truncated(matrix: np.ndarray, kind: str, rank: int, kernel: Sequence[int] = KERNEL) -> np.ndarray:
    first, second = factors(unfold(matrix, kind, kernel), rank)
    return refolded(first @ second, kind, kernel, matrix.shape[1])


def test_a_metric_counts_errors_about_the_mean_where_a_constant_makes_up_for_it() -> None:
    matrix, rows = problem()
    other = matrix + np.random.default_rng(1).standard_normal(matrix.shape)
    off = rows @ (matrix - other)
    assert error(matrix, other, metric_of(rows)) == pytest.approx(np.square(off - off.mean(0)).sum(), rel=1e-9)
    plain = metric_of(rows, shiftable=False)
    assert error(matrix, other, plain) == pytest.approx(np.square(off).sum(), rel=1e-9)
    assert plain.mean is None
    mean = metric_of(rows).mean
    assert mean is not None
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-9)
    assert error(matrix, other, Metric(None, None)) == pytest.approx(np.square(matrix - other).sum())


@pytest.mark.parametrize("shiftable", [True, False])
def test_output_is_the_truncated_solution_of_the_eigenproblem(shiftable: bool) -> None:
    for seed in range(5):
        matrix, rows = problem(seed)
        metric = metric_of(rows, shiftable=shiftable)
        seen = rows @ matrix
        seen -= seen.mean(0) if shiftable else 0.0
        values = np.linalg.eigvalsh(seen.T @ seen)[::-1]
        errors = []
        for rank in range(1, 6):
            near = project(matrix, metric, Pair(OUTPUT, rank), KERNEL)
            assert rank_of(near, OUTPUT) <= rank
            errors.append(error(matrix, near, metric))
            assert errors[-1] == pytest.approx(values[rank:].sum(), rel=1e-9, abs=1e-9 * values.sum())
        assert (np.diff(errors) <= 0).all()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_never_worse_than_truncation(kind: str) -> None:
    gained = []
    for seed in range(12):
        matrix, rows = problem(seed)
        metric = metric_of(rows)
        for rank in range(1, full(kind, matrix)):
            near = project(matrix, metric, Pair(kind, rank), KERNEL)
            assert rank_of(near, kind) <= rank
            plain = error(matrix, truncated(matrix, kind, rank), metric)
            got = error(matrix, near, metric)
            assert got <= plain * (1 + 1e-9)
            gained.append(got / plain)
    assert np.mean(gained) < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_exact(kind: str) -> None:
    for seed in range(4):
        matrix, rows = problem(seed)
        for metric in (metric_of(rows), metric_of(rows, shiftable=False), Metric(None, None)):
            near = project(matrix, metric, Pair(kind, full(kind, matrix)), KERNEL)
            np.testing.assert_allclose(near, matrix, atol=1e-6 * np.abs(matrix).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_low_rank_is_found(kind: str) -> None:
    matrix, rows = problem(3)
    low = truncated(matrix, kind, 2)
    near = project(low, metric_of(rows), Pair(kind, 2), KERNEL)
    np.testing.assert_allclose(near, low, atol=1e-5 * np.abs(low).max())


@pytest.mark.parametrize("kind", KINDS)
def test_without_data_it_is_the_truncated_decomposition(kind: str) -> None:
    matrix, _ = problem(1)
    near = project(matrix, Metric(None, None), Pair(kind, 2), KERNEL)
    np.testing.assert_allclose(near, truncated(matrix, kind, 2), atol=1e-12)
    values = np.linalg.svd(unfold(matrix, kind, KERNEL), compute_uv=False)
    assert error(matrix, near, Metric(None, None)) == pytest.approx(np.square(values[2:]).sum(), rel=1e-9)


def test_white_features_make_data_and_none_the_same() -> None:
    matrix, _ = problem(2)
    white = Metric(7.0 * np.eye(len(matrix)), None)
    for kind in KINDS:
        near = project(matrix, white, Pair(kind, 2), KERNEL)
        np.testing.assert_allclose(near, project(matrix, Metric(None, None), Pair(kind, 2), KERNEL), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_silent_features_give_finite_weights(kind: str) -> None:
    matrix, rows = problem(1)
    rows[:, ::2] = 0.0
    assert np.isfinite(project(matrix, metric_of(rows), Pair(kind, 2), KERNEL)).all()
    nothing = project(matrix, metric_of(0 * rows), Pair(kind, 2), KERNEL)
    np.testing.assert_array_equal(nothing, project(matrix, Metric(None, None), Pair(kind, 2), KERNEL))
    for constant in (1.0, 1e6 / 3):  # about the mean, rounding alone is left
        same = project(matrix, metric_of(np.full_like(rows, constant)), Pair(kind, 2), KERNEL)
        assert np.abs(same).max() < 1e3 * np.abs(matrix).max()
    assert not project(0 * matrix, metric_of(rows), Pair(kind, 2), KERNEL).any()


def test_wide_problems_take_fewer_rounds_and_still_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowrank, "_WIDE", 1)
    matrix, rows = problem(4)
    near = project(matrix, metric_of(rows), Pair(SPATIAL, 3), KERNEL)
    assert error(matrix, near, metric_of(rows)) < error(matrix, truncated(matrix, SPATIAL, 3), metric_of(rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_components_are_orthonormal_and_have_one_sign(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((size + 3, size)) * rng.exponential(1, size)
    covariance = data.T @ data
    values, vectors = components(covariance)
    assert (np.diff(values) <= 1e-9 * values[0]).all() and (values >= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-10)
    np.testing.assert_allclose((vectors * values) @ vectors.T, covariance, atol=1e-9 * values[0])
    largest = np.abs(vectors).argmax(axis=0)
    assert (vectors[largest, np.arange(size)] > 0).all()


def test_components_of_nothing_are_still_a_basis() -> None:
    values, vectors = components(np.zeros((3, 3)))
    assert values.tolist() == [0.0] * 3
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shiftable", [True, False])
def test_a_solution_as_a_pair_computes_it(kind: str, shiftable: bool) -> None:
    matrix, rows = problem(5)
    shift = np.linspace(-1, 1, 5)
    wanted = rows @ matrix + shift + 0.1 * np.random.default_rng(0).standard_normal((len(rows), 5))
    aims = wanted if shiftable else wanted - shift
    sums = Moments.empty(1, rows.shape[1], 5)
    sums.update(rows[None], aims)
    first = Solution(matrix[None], shift if shiftable else 0 * shift, 0.5, 0.1)
    mask = np.ones(len(matrix), dtype=bool)
    mask[1::3] = False  # channel 1 of three, at every tap
    first.matrix[0, ~mask] = 0.0
    got = paired(first, sums, mask, Pair(kind, 2), KERNEL, shiftable=shiftable)
    assert rank_of(got.matrix[0], kind) <= 2
    assert not got.matrix[0, ~mask].any()
    before, after = rows @ first.matrix[0] + first.shift, rows @ got.matrix[0] + got.shift
    if shiftable:
        np.testing.assert_allclose(after.mean(0), before.mean(0), atol=1e-9)
    else:
        np.testing.assert_array_equal(got.shift, first.shift)
    left = np.square(after - aims).sum() / np.square(aims - aims.mean(0)).sum()
    assert got.fitted == pytest.approx(left, rel=1e-6)
    assert got.folded == first.folded


def test_wide_moments_give_what_their_rows_give() -> None:
    matrix, rows = problem(6)
    wanted = rows @ matrix
    sums, wide = Moments.empty(1, rows.shape[1], 5), Wide(rows.shape[1], 5)
    sums.update(rows[None], wanted)
    wide.update(rows[None].astype(np.float32), wanted)
    mask = np.ones(len(matrix), dtype=bool)
    first = Solution(matrix[None], np.zeros(5), 0.0, 0.0)
    found = [paired(first, each, mask, Pair(OUTPUT, 2), KERNEL, shiftable=True) for each in (sums, wide)]
    np.testing.assert_allclose(found[1].matrix, found[0].matrix, atol=1e-4)
    np.testing.assert_allclose(found[1].shift, found[0].shift, atol=1e-3)


def test_components_of_few_rows_are_those_of_their_covariance() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 30)) * [[4.0], [3.0], [2.0], [1.0]]
    values, vectors = components_of(rows)
    wanted, directions = components(rows.T @ rows)
    np.testing.assert_allclose(values, wanted, atol=1e-10 * wanted[0])
    assert vectors.shape == (30, 4)
    np.testing.assert_allclose(vectors, directions[:, :4], atol=1e-8)


@pytest.mark.parametrize("rank", [2, 9, 12, 17])
def test_more_ranks_than_rows_go_to_what_the_weights_have_most_of(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, rows = problem(width=40)
    monkeypatch.setattr(moments, "_MANY", 1)
    metric = metric_of(rows[:9], shiftable=False)
    assert metric.root is not None
    near = project(matrix, metric, Pair(OUTPUT, rank), KERNEL)
    assert np.linalg.matrix_rank(near, tol=1e-8) == rank
    if rank < 9:
        return
    assert error(matrix, near, metric) < 1e-20 * error(matrix, np.zeros_like(matrix), metric)
    seen = np.linalg.qr((rows[:9] @ matrix).T)[0]
    rest = np.linalg.svd(matrix - matrix @ seen @ seen.T, compute_uv=False)
    assert np.square(matrix - near).sum() <= 3 * np.square(rest[rank - 9 :]).sum() + 1e-20


@pytest.mark.parametrize("shiftable", [True, False])
def test_few_rows_give_the_metric_of_their_moments(shiftable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, rows = problem(width=40)
    rows = rows[:9]
    want = metric_of(rows, shiftable=shiftable)
    monkeypatch.setattr(moments, "_MANY", 1)
    found = metric_of(rows, shiftable=shiftable)
    assert found.root is not None
    assert found.gram is not None
    np.testing.assert_allclose(found.root.T @ found.root, found.gram, atol=1e-9 * found.gram.max())
    mask = np.arange(len(matrix)) % 3 > 0
    near = project(matrix[mask], want.part(mask), Pair(OUTPUT, 3), KERNEL)
    np.testing.assert_allclose(project(matrix[mask], found.part(mask), Pair(OUTPUT, 3), KERNEL), near, atol=1e-7)
    full = np.zeros_like(matrix)
    full[mask] = near
    assert error(matrix, full, found) == pytest.approx(error(matrix, full, want), rel=1e-9)
    wanted = want.components(matrix)[0]
    np.testing.assert_allclose(found.components(matrix)[0], wanted, atol=1e-9 * wanted[0])
