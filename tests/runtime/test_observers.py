"""The streamed Gram matrix, covariance and triangular factor against plain float64 sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.runtime import observers
from onnxprune.runtime.observers import Gram, Spread, Triangular


def reference(array: np.ndarray, axis: int, channels: int, outer: int, inner: int) -> tuple[np.ndarray, int]:
    """Sum z z^T over every position, one row at a time."""
    gram, rows = np.zeros((channels, channels)), 0
    moved = np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]).astype(np.float64)
    for line in moved:
        for o in range(outer):
            for i in range(inner):
                z = line[[(o * channels + c) * inner + i for c in range(channels)]]
                gram += np.outer(z, z)
                rows += 1
    return gram, rows


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_the_reference_for_every_axis_and_layout(data: st.DataObject) -> None:
    channels, outer, inner = (data.draw(st.integers(1, 4)) for _ in range(3))
    rank = data.draw(st.integers(1, 4))
    axis = data.draw(st.integers(-rank, rank - 1))
    shape = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    shape[axis] = channels * outer * inner
    array = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)
    gram = Gram(axis, channels, outer, inner)
    gram.update(array)
    wanted, rows = reference(array, axis, channels, outer, inner)
    found = gram.result()
    assert found.rows == rows
    assert found.gram.dtype == np.float64
    assert np.allclose(found.gram, wanted, rtol=1e-12, atol=1e-12)
    assert gram.finite()
    factored = Triangular(axis, channels, outer, inner)
    factored.update(array)
    upper = factored.result()
    assert upper.rows == rows
    assert upper.factor.shape == (channels, channels)
    assert np.allclose(upper.factor.T @ upper.factor, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_batches_and_chunks_do_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_CHUNK", chunk)
    array = np.random.default_rng(0).standard_normal((30, 6, 3, 2)).astype(np.float32)
    whole, parts = Gram(1, 6), Gram(1, 6)
    whole.update(array)
    for part in np.array_split(array, [1, 2, 9, 20]):
        parts.update(part)
    assert np.allclose(whole.result().gram, parts.result().gram, rtol=1e-9, atol=0)
    assert whole.result().rows == parts.result().rows == 180


def test_sums_are_float64_even_for_half_precision() -> None:
    array = np.full((4096, 2), 3.0, dtype=np.float16)
    gram = Gram(1, 2)
    gram.update(array)
    assert gram.result().gram.tolist() == [[4096 * 9.0] * 2] * 2  # float16 ends at 65504 and counts to 2048


def test_small_differences_survive_a_large_mean() -> None:
    rng = np.random.default_rng(0)
    array = (1000 + 1e-2 * rng.standard_normal((5000, 2))).astype(np.float32)
    gram = Gram(1, 2)
    gram.update(array)
    wide = array.astype(np.float64)
    assert np.linalg.det(gram.result().gram) == pytest.approx(np.linalg.det(wide.T @ wide), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tells_of_what_is_not_finite_without_a_warning(bad: float) -> None:
    gram = Gram(1, 3)
    gram.update(np.ones((2, 3), dtype=np.float32))
    assert gram.finite()
    array = np.ones((2, 3), dtype=np.float32)
    array[1, 2] = bad
    gram.update(array)
    assert not gram.finite()


def test_a_result_is_a_copy() -> None:
    gram = Gram(0, 2)
    gram.update(np.ones(2))
    first = gram.result()
    gram.update(np.ones(2))
    assert first.gram.tolist() == [[1, 1], [1, 1]]
    assert first.rows == 1
    assert gram.result().rows == 2


def test_an_empty_batch_adds_nothing() -> None:
    gram = Gram(1, 3)
    gram.update(np.zeros((0, 3, 4)))
    assert gram.result().rows == 0
    assert not gram.result().gram.any()


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("channels", [1, 6, 40])
def test_the_factor_does_not_depend_on_batches(chunk: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_CHUNK", chunk * channels)
    rng = np.random.default_rng(0)
    array = (rng.standard_normal((60, channels, 3, 2)) * np.logspace(0, -6, channels)[:, None, None]).astype(np.float32)
    whole, parts = Triangular(1, channels), Triangular(1, channels)
    whole.update(array)
    for part in np.array_split(array, [0, 1, 2, 9, 40]):
        parts.update(part)
        assert parts._height <= 4 * channels
    first, second = whole.result(), parts.result()
    assert first.rows == second.rows == 360
    lengths = np.linalg.norm(first.factor, axis=0)
    off = first.factor.T @ first.factor - second.factor.T @ second.factor
    assert (np.abs(off) <= 1e-9 * np.outer(lengths, lengths)).all()


def test_the_factor_is_upper_triangular_with_a_diagonal_that_is_not_negative() -> None:
    observer = Triangular(1, 5)
    observer.update(np.random.default_rng(1).standard_normal((100, 5)))
    factor = observer.result().factor
    assert factor.dtype == np.float64
    assert np.array_equal(factor, np.triu(factor))
    assert (factor.diagonal() >= 0).all()


def test_the_factor_keeps_directions_that_squaring_loses() -> None:
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((3000, 4)))
    data = left * np.array([1.0, 1e-3, 1e-6, 1e-10])
    gram, factored = Gram(1, 4), Triangular(1, 4)
    turned = data @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    for part in np.array_split(turned, 7):
        gram.update(part)
        factored.update(part)
    found = np.linalg.svd(factored.result().factor, compute_uv=False)
    assert found[-1] == pytest.approx(1e-10, rel=1e-3)
    assert np.sqrt(abs(np.linalg.eigvalsh(gram.result().gram)[0])) > 2e-10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_factor_tells_of_what_is_not_finite_and_ends(bad: float) -> None:
    observer = Triangular(1, 3)
    observer.update(np.ones((9, 3), dtype=np.float16))
    assert observer.finite()
    array = np.ones((9, 3), dtype=np.float32)
    array[1, 2] = bad
    observer.update(array)
    observer.update(np.ones((9, 3)))
    assert not observer.finite()


def test_fewer_rows_than_channels_and_none_give_a_square_factor() -> None:
    observer = Triangular(1, 4)
    assert not observer.result().factor.any()
    observer.update(np.zeros((0, 4)))
    assert observer.result().rows == 0
    observer.update(np.arange(8.0).reshape(2, 4))
    first = observer.result()
    assert first.factor.shape == (4, 4)
    assert first.rows == 2
    assert np.allclose(first.factor.T @ first.factor, np.arange(8.0).reshape(2, 4).T @ np.arange(8.0).reshape(2, 4))
    held = first.factor.copy()
    observer.update(np.ones((50, 4)))
    assert np.array_equal(first.factor, held)
    assert observer.result().rows == 52


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_spread_is_the_mean_and_covariance_of_every_axis(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 4))
    axis = data.draw(st.integers(-rank, rank - 1))
    shape = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    array = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape).astype(np.float32)
    observer = Spread(axis, shape[axis])
    observer.update(array)
    rows = np.moveaxis(array, axis, -1).reshape(-1, shape[axis]).astype(np.float64)
    found = observer.result()
    assert found.rows == len(rows)
    assert found.covariance.dtype == found.mean.dtype == np.float64
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-12)
    centred = rows - rows.mean(0)
    np.testing.assert_allclose(found.covariance, centred.T @ centred, atol=1e-11)
    np.testing.assert_allclose(found.positive, (rows > 0).mean(0))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_a_spread_does_not_depend_on_batches(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_CHUNK", chunk)
    array = (5 + np.random.default_rng(0).standard_normal((30, 6, 3, 2))).astype(np.float32)
    whole, parts = Spread(1, 6), Spread(1, 6)
    whole.update(array)
    for part in np.array_split(array, [0, 1, 2, 9, 20]):
        parts.update(part)
    first, second = whole.result(), parts.result()
    np.testing.assert_allclose(first.covariance, second.covariance, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-12)
    np.testing.assert_allclose(first.positive, second.positive)
    assert first.rows == second.rows == 180


def test_a_spread_survives_a_mean_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    wide = 1e8 + rng.standard_normal((4000, 3)) * np.array([1.0, 1e-3, 1.0])
    observer = Spread(1, 3)
    for part in np.array_split(wide, 5):
        observer.update(part)
    found = observer.result()
    assert found.covariance[1, 1] == pytest.approx(np.square(wide[:, 1] - wide[:, 1].mean()).sum(), rel=1e-3)
    np.testing.assert_allclose(found.covariance, (wide - wide.mean(0)).T @ (wide - wide.mean(0)), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_spread_tells_of_what_is_not_finite(bad: float) -> None:
    observer = Spread(1, 3)
    observer.update(np.ones((2, 3), dtype=np.float16))
    assert observer.finite()
    array = np.ones((2, 3), dtype=np.float32)
    array[1, 2] = bad
    observer.update(array)
    assert not observer.finite()


def test_a_spread_of_nothing_and_of_copies() -> None:
    observer = Spread(0, 2)
    observer.update(np.zeros((2, 0)))
    empty = observer.result()
    assert empty.rows == 0 and not empty.mean.any() and not empty.covariance.any() and not empty.positive.any()
    observer.update(np.ones(2))
    first = observer.result()
    observer.update(np.zeros(2))
    assert first.mean.tolist() == [1.0, 1.0] and first.rows == 1 and first.positive.tolist() == [1.0, 1.0]
    assert observer.result().positive.tolist() == [0.5, 0.5]


def test_maps_with_more_positions_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "_PLACES", 10)
    array = np.random.default_rng(0).standard_normal((3, 2, 5, 5))
    for axis, shape in ((1, array), (3, np.moveaxis(array, 1, 3))):
        observer = Spread(axis, 2)
        observer.update(shape)
        assert observer.result().rows == 30
        again = Spread(axis, 2)
        again.update(shape)
        assert np.array_equal(again.result().covariance, observer.result().covariance)
