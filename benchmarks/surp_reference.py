"""SuRP's sequential law by direct scan: every hit looks at all residuals. Slow and plain, to check the fast ones by.

Used by ``benchmarks/surp_codec.py`` for the time of a step and by the tests for the distribution of the error.
"""

from __future__ import annotations

import math
import time

import numpy as np


def scan(
    magnitudes: np.ndarray,
    hits: int,
    seed: int,
    *,
    alpha: float | None = None,
    decay: float = 0.9,
    patience: int = 20,
    masked: bool = False,
    paper: bool = False,
) -> np.ndarray:
    """Return the residuals, float64 [n], after ``hits`` announcements; fewer where nothing is left.

    Start: threshold = alpha times the mean. A hit picks one of the residuals above the threshold evenly, takes the
    threshold from it and lets the threshold decay by (n - 1) / n, or (n - kappa) / n. With none above it, the
    threshold becomes alpha times the mean residual, and every ``patience``-th time alpha decays first.
    """
    residual = magnitudes.astype(np.float64)
    n = int(np.count_nonzero(residual)) if masked else len(residual)
    factor = max(1.0, math.log(n / math.log(n))) if n >= 3 else 1.0
    scale = factor if alpha is None else alpha
    rng = np.random.default_rng(seed)
    refreshes = done = 0
    threshold = scale * residual.sum() / n
    while done < hits:
        above = np.flatnonzero(residual > threshold)
        if not len(above):
            refreshes += 1
            scale *= decay if refreshes % patience == 0 else 1.0
            if scale < 1e-6 or residual.max() <= 1e-12 * magnitudes.max():
                break
            threshold = scale * residual.sum() / n
            continue
        residual[rng.choice(above)] -= threshold
        threshold *= 1 - (factor if paper else 1.0) / n
        done += 1
    return residual


def seconds_per_step(magnitudes: np.ndarray, steps: int = 20) -> float:
    """Return the CPU seconds that one hit of :func:`scan` takes."""
    start = time.process_time()
    scan(magnitudes, steps, 0, alpha=3.0)
    return (time.process_time() - start) / steps
