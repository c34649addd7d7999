"""Second moments streamed batch by batch."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.fit import moments
from onnxprune.fit.moments import Moments


def problem(groups: int = 2, rows: int = 97, features: int = 6, outputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((groups, rows, features)) + 1).astype(np.float32)
    return x, rng.standard_normal((rows, groups * outputs)) + 2


def summed(x: np.ndarray, y: np.ndarray, size: int) -> Moments:
    found = Moments.empty(len(x), x.shape[2], y.shape[1] // len(x))
    for start in range(0, len(y), size):
        found.update(x[:, start : start + size], y[start : start + size])
    return found


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1 << 22, 64])
def test_sums_do_not_depend_on_batches(groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(groups)
    want = summed(x, y, len(y))
    monkeypatch.setattr(moments, "_CHUNK", chunk)
    for size in (1, 7, 32):
        got = summed(x, y, size)
        assert got.rows == want.rows == len(y)
        for name in ("gram", "cross", "energy"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-9)


def test_sums_are_what_they_say() -> None:
    x, y = problem()
    found = summed(x, y, 10)
    wide = np.concatenate([x.astype(np.float64), np.ones((2, len(y), 1))], axis=2)
    parts = y.reshape(len(y), 2, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(found.gram, wide.transpose(0, 2, 1) @ wide, rtol=1e-12)
    np.testing.assert_allclose(found.cross, wide.transpose(0, 2, 1) @ parts, rtol=1e-12)
    np.testing.assert_allclose(found.energy, np.square(parts).sum(axis=1), rtol=1e-12)


def test_error_and_spread_are_direct_computations() -> None:
    x, y = problem()
    found = summed(x, y, 10)
    matrix = np.random.default_rng(1).standard_normal((2, 7, 4))
    wide = np.concatenate([x.astype(np.float64), np.ones((2, len(y), 1))], axis=2)
    left = y.reshape(len(y), 2, -1).transpose(1, 0, 2) - wide @ matrix
    assert found.error(matrix) == pytest.approx(np.square(left).sum(), rel=1e-10)
    assert found.spread() == pytest.approx(np.square(y - y.mean(axis=0)).sum(), rel=1e-10)


def test_constant_targets_have_no_spread() -> None:
    x, _ = problem(1)
    assert summed(x, np.full((97, 4), 1234.567), 13).spread() == 0.0
    assert Moments.empty(1, 3, 2).spread() == 0.0
    assert Moments.empty(1, 3, 2).error(np.zeros((1, 4, 2))) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_told(bad: float) -> None:
    x, y = problem()
    assert summed(x, y, 10).finite()
    for where in (x, y):
        held = where[-1, -1].copy()
        where[-1, -1] = bad
        assert not summed(x, y, 10).finite()
        where[-1, -1] = held


def test_half_precision_is_summed_in_double() -> None:
    x, y = problem(1, rows=500)
    found = summed(np.full_like(x[:, :97], 200.0).astype(np.float16), y[:97], 10)
    np.testing.assert_allclose(found.gram[0, :6, :6], 97 * 200.0**2, rtol=1e-12)


def test_channels_are_summed_over_taps() -> None:
    x, y = problem(1)
    found = summed(x, y, 10)
    taps = x[0].astype(np.float64).reshape(-1, 2, 3)
    np.testing.assert_allclose(found.channel_gram(2), np.einsum("rtc,rtd->cd", taps, taps), rtol=1e-12)
    np.testing.assert_allclose(
        found.block(0, np.array([4, 1])), (x[0].T.astype(np.float64) @ x[0])[np.ix_([4, 1], [4, 1])]
    )


def test_few_rows_of_many_features_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_MANY", 6)
    x, y = problem(1, rows=3)
    found = summed(x, y, 2)
    assert found.root is not None
    assert found.root.shape == (3, 7)
    np.testing.assert_allclose(found.root.T @ found.root, found.gram[0], rtol=1e-12)
    matrix = np.random.default_rng(1).standard_normal((1, 7, 4))
    np.testing.assert_allclose(found.times(matrix), found.gram @ matrix, rtol=1e-9)
    got = found.error(matrix)
    found.held = None
    assert got == pytest.approx(found.error(matrix), rel=1e-9)


def test_more_rows_and_groups_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(1, rows=4)
    assert summed(x, y, 2).root is None  # six features are not many
    monkeypatch.setattr(moments, "_MANY", 6)
    assert summed(x, y, 1).root is None  # more than half of them in rows
    assert Moments.empty(1, 6, 4).root is None
    x, y = problem(2, rows=3)
    assert summed(x, y, 3).root is None
