"""Least squares on rows alone: the dual solution, beside the primal one and beside second moments."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.fit import solve, wide
from onnxprune.fit.moments import Moments
from onnxprune.fit.solve import refit
from onnxprune.fit.wide import Wide


def rows(count: int = 30, features: int = 80, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, features)).astype(np.float32) + 0.5, rng.standard_normal((count, outputs))


def filled(a: np.ndarray, y: np.ndarray, batch: int = 7) -> Wide:
    sums = Wide(a.shape[1], y.shape[1])
    for start in range(0, len(a), batch):
        sums.update(a[None, start : start + batch], y[start : start + batch])
    return sums


def test_sums_equal_those_of_second_moments() -> None:
    a, y = rows()
    sums, moments = filled(a, y), Moments.empty(1, 80, 5)
    moments.update(a[None], y)
    matrix = np.random.default_rng(1).standard_normal((1, 81, 5))
    assert sums.rows == moments.rows == 30
    assert sums.spread() == pytest.approx(moments.spread())
    assert sums.error(matrix) == pytest.approx(moments.error(matrix))
    assert np.allclose(sums.channel_gram(4), moments.channel_gram(4))
    index = np.array([3, 17, 40])
    assert np.allclose(sums.block(0, index), moments.block(0, index))
    assert sums.finite()


@pytest.mark.parametrize("shiftable", [True, False])
def test_the_dual_solution_is_the_ridge_solution(shiftable: bool) -> None:
    a, y = rows()
    sums = filled(a, y)
    start = np.random.default_rng(2).standard_normal((81, 5)) * 0.1
    live = np.append(np.arange(80) % 3 != 0, shiftable)
    start[:-1][~live[:-1]] = 0.0
    found = sums.change(start, live, 1e-2, preserve_zeros=False)
    part = a[:, live[:-1]].astype(np.float64)
    left = y - a.astype(np.float64) @ start[:-1] - start[-1]
    level = 1e-2 * np.square(part).sum() / part.shape[1]
    mean, middle = (part.mean(axis=0), left.mean(axis=0)) if shiftable else (0.0, 0.0)
    centred = part - mean
    wanted = np.linalg.solve(centred.T @ centred + level * np.eye(part.shape[1]), centred.T @ (left - middle))
    assert np.allclose(found[: part.shape[1]], wanted, rtol=1e-6, atol=1e-9)
    if shiftable:
        assert np.allclose(found[-1], middle - mean @ wanted, atol=1e-8)


def test_zeros_stay_and_the_error_falls() -> None:
    a, y = rows()
    sums = filled(a, y)
    matrix = np.random.default_rng(3).standard_normal((1, 80, 5)) * 0.1
    matrix[0, 5:40, 2] = 0.0
    keep = np.ones((1, 80), dtype=bool)
    keep[0, ::4] = False
    done = refit(sums, matrix, np.zeros(5), keep, taps=1, ridge=1e-4)
    assert not done.matrix[0][~keep[0]].any()
    assert not done.matrix[0, 5:40, 2].any()
    assert done.fitted < done.folded
    free = refit(sums, matrix, np.zeros(5), keep, taps=1, ridge=1e-4, preserve_zeros=False)
    assert free.matrix[0, 5:40, 2].any()


def test_rows_beyond_the_room_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "ROWS", 10)
    a, y = rows()
    sums = filled(a, y)
    assert sums.rows == 10
    assert np.array_equal(sums.matrix, a[:10])
    assert np.array_equal(sums.targets, y[:10])


def test_numbers_that_are_not_finite_are_seen() -> None:
    a, y = rows()
    a[3, 3] = np.inf
    assert not filled(a, y, batch=100).finite()


def test_no_gram_matrix_of_more_channels_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # 25,088 channels, as a VGG's first classifier layer has at 224 x 224, would be 5 GB.
    monkeypatch.setattr(solve, "FEATURES", 79)
    monkeypatch.setattr(Wide, "channel_gram", lambda self, taps: pytest.fail(f"a Gram matrix was asked for: {taps}"))
    a, y = rows()
    keep = np.ones((1, 80), dtype=bool)
    keep[0, ::4] = False
    matrix = np.random.default_rng(4).standard_normal((1, 80, 5)) * 0.1
    done = refit(filled(a, y), matrix, np.zeros(5), keep, taps=1, ridge=1e-4)
    assert not done.matrix[0][~keep[0]].any()
    assert done.fitted < done.folded
