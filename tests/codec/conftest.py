"""Weights that the code's theory speaks of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def laplacian() -> Callable[..., np.ndarray]:
    """Return seeded signed Laplacian weights, float64 [count]."""
    return lambda seed, count=2000: np.random.default_rng(seed).laplace(size=count)
