"""The streamed Gram matrix against a plain float64 sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.runtime import observers
from onnxprune.runtime.observers import Gram


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
