"""Streamed sums: over examples alone, over all positions, of magnitudes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.runtime.sums import Sums


@pytest.mark.parametrize("absolute", [True, False])
def test_batches_do_not_matter(absolute: bool) -> None:
    data = np.random.default_rng(0).standard_normal((7, 3, 4, 5)).astype(np.float32)
    seen = np.abs(data) if absolute else data
    maps, flat = Sums(1, places=True, absolute=absolute), Sums(-1, places=False, absolute=absolute)
    for part in (data[:2], data[2:3], data[3:]):
        maps.update(part)
        flat.update(part)
    assert maps.result().rows == 7
    np.testing.assert_allclose(maps.result().total, seen.astype(np.float64).sum(axis=0), atol=1e-12)
    assert flat.result().rows == 7 * 3 * 4
    np.testing.assert_allclose(flat.result().total, seen.astype(np.float64).sum(axis=(0, 1, 2)), atol=1e-12)
    assert maps.finite()


def test_sums_are_double_precision_and_tell_of_infinity() -> None:
    observer = Sums(1, places=False)
    assert observer.finite()
    observer.update(np.full((1, 2), 1e8, dtype=np.float32))
    for _ in range(100):
        observer.update(np.ones((1, 2), dtype=np.float32))
    assert observer.result().total.tolist() == [1e8 + 100] * 2
    observer.update(np.array([[np.inf, 1.0]], dtype=np.float32))
    assert not observer.finite()
