"""Ridge least squares towards the weights at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.fit import moments, solve
from onnxprune.fit.fold import fold_consumer
from onnxprune.fit.moments import Moments
from onnxprune.fit.solve import Solution, _spectrum, refit


class Case:
    """Correlated features, weights, and targets that are what the weights compute plus what is asked for."""

    def __init__(
        self, *, groups: int = 1, taps: int = 1, channels: int = 8, outputs: int = 5, rows: int = 400,
        noise: float = 0.0, seed: int = 0, zeros: float = 0.0,
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.taps, self.channels, self.groups = taps, channels, groups
        width = taps * channels
        mixed = rng.standard_normal((groups, rows, width)) @ rng.standard_normal((groups, width, width))
        self.x = np.maximum(mixed / np.sqrt(width), 0.0).astype(np.float32)
        self.matrix = rng.standard_normal((groups, width, outputs))
        self.matrix[rng.random(self.matrix.shape) < zeros] = 0.0
        self.shift = rng.standard_normal(groups * outputs)
        self.y = self.computed(self.matrix, self.shift) + noise * rng.standard_normal((rows, groups * outputs))
        self.moments = Moments.empty(groups, width, outputs)
        self.moments.update(self.x, self.y)

    def computed(self, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
        product = self.x.astype(np.float64) @ matrix
        return np.asarray(product.transpose(1, 0, 2).reshape(product.shape[1], -1) + shift)

    def keeping(self, count: int) -> np.ndarray:
        mask = np.isin(np.arange(self.channels), np.arange(self.channels)[-count:] if count else [])
        return np.tile(np.tile(mask, self.taps), (self.groups, 1))

    def refit(self, keep: np.ndarray, **options: Any) -> Solution:
        given = {"taps": self.taps, "ridge": 1e-4, **options}
        return refit(self.moments, self.matrix, self.shift, keep, **given)

    def error(self, matrix: np.ndarray, shift: np.ndarray) -> float:
        return float(np.square(self.y - self.computed(matrix, shift)).sum())

    def folded(self, keep: np.ndarray) -> np.ndarray:
        rows = self.matrix[0].reshape(self.taps, self.channels, -1).transpose(0, 2, 1).reshape(-1, self.channels)
        stay = np.flatnonzero(keep[0, : self.channels])
        found = fold_consumer(rows, self.moments.channel_gram(self.taps), stay, preserve_zeros=True)
        return np.asarray(found.reshape(self.taps, -1, self.channels).transpose(0, 2, 1).reshape(self.matrix.shape))


KINDS = pytest.mark.parametrize(
    "kind", [{}, {"taps": 9}, {"noise": 0.5}, {"taps": 4, "zeros": 0.4}, {"rows": 32, "taps": 9}], ids=str
)


@KINDS
@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1.0])
def test_it_is_never_worse_than_fold_or_truncation(kind: dict[str, Any], ridge: float) -> None:
    for seed in range(3):
        case = Case(**kind, seed=seed)
        for count in (1, 3, 5, 7):
            keep = case.keeping(count)
            found = case.refit(keep, ridge=ridge)
            error = case.error(found.matrix, found.shift)
            cut = np.where(keep[:, :, None], case.matrix, 0.0)
            room = 1e-9 * case.error(np.zeros_like(cut), 0 * case.shift)
            assert error <= case.error(case.folded(keep), case.shift) + room
            assert error <= case.error(cut, case.shift) + room
            assert not found.matrix[~keep].any()
            assert np.isfinite(found.matrix).all() and np.isfinite(found.shift).all()


def test_errors_are_relative_to_the_spread() -> None:
    case = Case(noise=0.3)
    keep = case.keeping(5)
    found = case.refit(keep)
    spread = np.square(case.y - case.y.mean(axis=0)).sum()
    assert found.fitted == pytest.approx(case.error(found.matrix, found.shift) / spread, rel=1e-8)
    assert found.folded == pytest.approx(case.error(case.folded(keep), case.shift) / spread, rel=1e-8)
    assert found.fitted < found.folded


def test_without_a_ridge_it_is_least_squares() -> None:
    case = Case(taps=2, noise=0.3)
    keep = case.keeping(5)
    found = case.refit(keep, ridge=0.0)
    wide = np.concatenate([case.x[0][:, keep[0]], np.ones((400, 1))], axis=1).astype(np.float64)
    best = np.linalg.lstsq(wide, case.y, rcond=None)[0]
    np.testing.assert_allclose(found.matrix[0][keep[0]], best[:-1], atol=1e-6)
    np.testing.assert_allclose(found.shift, best[-1], atol=1e-6)


@KINDS
def test_nothing_changes_where_nothing_is_lost(kind: dict[str, Any]) -> None:
    case = Case(**{**kind, "noise": 0.0})
    found = case.refit(case.keeping(8))
    np.testing.assert_allclose(found.matrix, case.matrix, rtol=0, atol=1e-9 * np.abs(case.matrix).max())
    np.testing.assert_allclose(found.shift, case.shift, rtol=0, atol=1e-7)
    assert found.fitted < 1e-12


def test_a_large_ridge_holds_the_weights() -> None:
    case = Case(noise=1.0)
    keep = case.keeping(5)
    near, far = case.refit(keep, ridge=1e6, shiftable=False), case.refit(keep, ridge=1e-6, shiftable=False)
    start = np.where(keep[:, :, None], case.folded(keep), 0.0)
    assert np.abs(near.matrix - start).max() < 1e-4 < np.abs(far.matrix - start).max()


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_zeros_stay_where_they_are_to_stay(taps: int, groups: int) -> None:
    case = Case(taps=taps, groups=groups, zeros=0.5, noise=0.5)
    keep = case.keeping(6)
    found = case.refit(keep)
    stay = (case.matrix == 0.0) & keep[:, :, None]
    assert stay.any() and not found.matrix[stay].any()
    assert (found.matrix[(case.matrix != 0.0) & keep[:, :, None]] != 0.0).all()
    filled = case.refit(keep, preserve_zeros=False)
    assert filled.matrix[stay].all()
    assert filled.fitted <= found.fitted


def test_support_of_one_output_is_solved_exactly() -> None:
    case = Case(zeros=0.5, noise=0.5)
    keep = case.keeping(8)
    found = case.refit(keep, ridge=1e-9)
    for o in range(5):
        support = case.matrix[0, :, o] != 0.0
        wide = np.concatenate([case.x[0][:, support], np.ones((400, 1))], axis=1).astype(np.float64)
        best = np.linalg.lstsq(wide, case.y[:, o], rcond=None)[0]
        np.testing.assert_allclose(found.matrix[0, support, o], best[:-1], atol=1e-5)


def test_groups_are_problems_of_their_own() -> None:
    case = Case(groups=3, taps=2, noise=0.4)
    keep = case.keeping(5)
    keep[1] = case.keeping(8)[1]
    found = case.refit(keep)
    for group in range(3):
        alone = Moments.empty(1, 16, 5)
        alone.update(case.x[group : group + 1], case.y[:, 5 * group : 5 * group + 5])
        cut = np.where(keep[group][:, None], case.matrix[group], 0.0)[None]
        want = refit(alone, cut, case.shift[5 * group : 5 * group + 5], keep[group : group + 1], taps=2, ridge=1e-4)
        both = np.concatenate([found.matrix[group], found.shift[None, 5 * group : 5 * group + 5]])
        assert alone.error(both[None]) <= 1.01 * want.fitted * alone.spread()


@pytest.mark.parametrize("rows", [4, 12, 30])
def test_few_rows_have_few_eigenvalues(rows: int) -> None:
    case = Case(channels=24, taps=3, rows=rows)
    centred = np.asarray(case.x[0], np.float64) - case.x[0].mean(axis=0)
    gram, right = centred.T @ centred, centred.T @ np.random.default_rng(0).standard_normal((rows, 5))
    values, squares = _spectrum(gram[None], right[None], rows)
    all_values, all_squares = _spectrum(np.stack([gram, gram]), np.stack([right, right]), rows)
    assert values.shape[1] <= rows
    for level in (1e-3, 1.0, 100.0):
        for power in (1, 2):
            few = np.sum(squares[0] / (values[0] + level) ** power)
            assert few == pytest.approx(np.sum(all_squares[0] / (all_values[0] + level) ** power), rel=1e-6)
        few = np.sum(values[0] / (values[0] + level))
        assert few == pytest.approx(np.sum(all_values[0] / (all_values[0] + level)), rel=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_few_examples_of_groups_count_for_each_alone(ridge: float) -> None:
    """Depthwise kernels: the ridge of every channel is its own, and a channel without data stays."""
    case = Case(groups=5, taps=9, channels=1, outputs=1, rows=20, noise=0.5)
    case.x[3] = 0.0
    case.moments = Moments.empty(5, 9, 1)
    case.moments.update(case.x, case.y)
    keep = case.keeping(1)
    keep[1] = False
    found = case.refit(keep, ridge=ridge)
    for group in range(5):
        alone = Moments.empty(1, 9, 1)
        alone.update(case.x[group : group + 1], case.y[:, group : group + 1])
        own = slice(group, group + 1)
        want = refit(alone, case.matrix[own], case.shift[own], keep[own], taps=9, ridge=ridge)
        np.testing.assert_allclose(found.matrix[group], want.matrix[0], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(found.shift[group], want.shift[0], rtol=1e-6)
    np.testing.assert_array_equal(found.matrix[3], case.matrix[3])
    assert not found.matrix[1].any()


def test_a_constant_that_cannot_be_written_stays() -> None:
    case = Case(noise=0.2)
    keep = case.keeping(5)
    found = case.refit(keep, shiftable=False)
    np.testing.assert_array_equal(found.shift, case.shift)
    assert case.refit(keep).fitted <= found.fitted <= found.folded


def test_no_features_leave_the_constant() -> None:
    case = Case()
    found = case.refit(case.keeping(0))
    assert not found.matrix.any()
    np.testing.assert_allclose(found.shift, case.y.mean(axis=0), rtol=1e-6)
    nothing = case.refit(case.keeping(0), shiftable=False)
    np.testing.assert_array_equal(nothing.shift, case.shift)


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_dead_and_duplicate_features(ridge: float) -> None:
    case = Case(noise=0.3)
    case.x[0, :, 7] = 0.0
    case.x[0, :, 6] = case.x[0, :, 5]
    case.moments = Moments.empty(1, 8, 5)
    case.moments.update(case.x, case.y)
    found = case.refit(case.keeping(6), ridge=ridge)
    assert np.isfinite(found.matrix).all() and np.abs(found.matrix).max() < 100
    assert found.fitted <= found.folded


def test_few_examples() -> None:
    """32 examples and 72 features: the fit is finite, and on others about as good as the fold, not fitted to noise."""
    sums = np.zeros(3)
    for seed in range(5):
        case = Case(rows=4032, taps=9, noise=0.5, seed=seed)
        x, y = case.x, case.y
        case.x, case.y = x[:, :32], y[:32]
        case.moments = Moments.empty(1, 72, 5)
        case.moments.update(case.x, case.y)
        keep = case.keeping(5)
        found, folded = case.refit(keep), case.folded(keep)
        assert np.isfinite(found.matrix).all() and np.abs(found.matrix).max() < 10 * np.abs(case.matrix).max()
        assert found.fitted <= found.folded
        case.x, case.y = x[:, 32:], y[32:]
        cut = np.where(keep[:, :, None], case.matrix, 0.0)
        sums += [case.error(found.matrix, found.shift), case.error(folded, case.shift), case.error(cut, case.shift)]
    assert sums[0] < min(1.2 * sums[1], sums[2])


def test_many_rows_keep_the_ridge_that_was_given() -> None:
    case = Case(noise=0.5)
    keep = case.keeping(5)
    small, large = case.refit(keep, ridge=1e-8), case.refit(keep, ridge=1e-2)
    assert small.fitted < large.fitted


@pytest.mark.parametrize("shiftable", [True, False])
@pytest.mark.parametrize("kind", [{}, {"noise": 0.5}, {"taps": 4, "channels": 10}, {"rows": 2}], ids=str)
@pytest.mark.parametrize("ridge", [1e-4, 1e-2])
def test_few_rows_of_many_features_give_what_their_moments_give(
    kind: dict[str, Any], ridge: float, shiftable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"rows": 12, "channels": 40, "noise": 0.1, **kind}
    want = Case(**given)
    # The sums hold their constant back a little, to stay definite; the rows need not.
    monkeypatch.setattr(solve, "_CONSTANT", 1e-12)
    monkeypatch.setattr(moments, "_MANY", 1)
    case = Case(**given)
    assert case.moments.root is not None
    for count in (case.channels, case.channels - 6):
        keep = case.keeping(count)
        new = case.refit(keep, ridge=ridge, shiftable=shiftable)
        old = want.refit(keep, ridge=ridge, shiftable=shiftable)
        near = 1e-6 * np.abs(old.matrix).max()
        np.testing.assert_allclose(new.matrix, old.matrix, atol=near)
        np.testing.assert_allclose(new.shift, old.shift, atol=near)
        assert new.fitted == pytest.approx(old.fitted, abs=1e-7)
        assert new.folded == pytest.approx(old.folded, abs=1e-7)


def test_zeros_stay_with_few_rows_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_MANY", 1)
    case = Case(rows=12, channels=40, noise=0.1, zeros=0.3)
    assert case.moments.root is not None
    found = case.refit(case.keeping(40))
    assert not found.matrix[case.matrix == 0.0].any()
    assert found.fitted < found.folded


def test_few_rows_of_silent_features_leave_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_MANY", 1)
    case = Case(rows=6, channels=20)
    case.moments = Moments.empty(1, 20, 5)
    case.moments.update(np.zeros((1, 6, 20), np.float32), np.tile(np.arange(5.0), (6, 1)))
    found = case.refit(case.keeping(20))
    np.testing.assert_array_equal(found.matrix, case.matrix)
    np.testing.assert_allclose(found.shift, np.arange(5.0), atol=1e-7)
