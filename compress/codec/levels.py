"""SuRP's law in level form: successive refinement of magnitudes, one vectorised level at a time.

Isik, Weissman, No (2022): weights are an exponential source under L1 distortion, whose optimal reconstruction
puts a point mass at zero. The greedy code announces "one more coordinate above the threshold" again and again;
every prefix is a sparse model. The level form keeps the threshold fixed inside a level and exhausts it: an equally
valid code whose L1 error at equal hits is within a few percent of the paper's (which decays it after every hit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_SMALLEST_ALPHA = 1e-6
_EXHAUSTED = 1e-12


@dataclass(frozen=True)
class Law:
    """The controls of the code: ``alpha`` scales the first threshold, None means kappa = ln(n / ln n)."""

    alpha: float | None = None
    decay: float = 0.9
    patience: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Refinement:
    """Magnitudes reconstructed by a prefix of the code.

    ``values`` [n] with 0 <= values <= magnitudes; ``hits`` announced so far; ``levels`` begun; ``thresholds`` of
    every level with hits; ``complete``: the wanted number of non-zeros was reached.
    """

    values: np.ndarray
    hits: int
    levels: int
    thresholds: tuple[float, ...]
    complete: bool


def kappa(count: int) -> float:
    """Return ln(n / ln n), at least 1: the factor between mean and first threshold (Isik et al., 2022)."""
    if count < 3:
        return 1.0
    return max(1.0, math.log(count / math.log(count)))


def scan_order(count: int, seed: int) -> np.ndarray:
    """Return the fixed pseudo-random order in which a level is scanned: stable argsort of Philox words."""
    words = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(words, kind="stable")


def refine(magnitudes: np.ndarray, nonzeros: int, law: Law) -> Refinement:
    """Run the code until ``nonzeros`` coordinates are non-zero, exactly, or until nothing is left to refine.

    Args:
        magnitudes: non-negative finite float64 [n]; zeros are never hit.
        nonzeros: wanted number of non-zero coordinates; the last level stops in mid-scan to meet it.
        law: the controls.
    """
    count = len(magnitudes)
    residual = magnitudes.astype(np.float64).copy()
    values = np.zeros(count)
    goal = min(nonzeros, int(np.count_nonzero(residual)))
    alpha = kappa(count) if law.alpha is None else law.alpha
    floor = _EXHAUSTED * float(residual.max(initial=0.0))
    smallest = _SMALLEST_ALPHA * min(1.0, alpha)
    refreshes = hits = levels = found = 0
    thresholds: list[float] = []
    while found < goal and alpha > smallest and float(residual.max(initial=0.0)) > floor:
        if levels:  # the first threshold is alpha times the mean itself; every later one is a refresh
            refreshes += 1
            alpha *= law.decay if refreshes % law.patience == 0 else 1.0
        threshold = alpha * float(residual.sum()) / count
        times = np.maximum(np.ceil(residual / threshold) - 1.0, 0.0)
        levels += 1
        if not times.any():
            # Nothing exceeds the threshold, so refreshes up to the next decay would find nothing either.
            refreshes += law.patience - 1 - refreshes % law.patience
            continue
        thresholds.append(threshold)
        fresh = (values == 0.0) & (times > 0.0)
        if found + int(fresh.sum()) > goal:
            times = _first_scan(times, fresh, goal - found, law.seed)
            fresh &= times > 0.0
        values += times * threshold
        residual = np.maximum(residual - times * threshold, 0.0)
        hits += int(times.sum())
        found += int(fresh.sum())
    return Refinement(values, hits, levels, tuple(thresholds), found >= nonzeros)


def _first_scan(times: np.ndarray, fresh: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Return one hit per coordinate for the part of the first scan that meets ``wanted`` new coordinates."""
    order = scan_order(len(times), seed)
    reached = np.searchsorted(np.cumsum(fresh[order]), wanted)
    part = order[: int(reached) + 1]
    result = np.zeros_like(times)
    result[part] = np.minimum(times[part], 1.0)
    return result
