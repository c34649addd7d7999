"""Times of runs that were taken in turns, and what they prove: percentiles and the ratio of two models' medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError

Times = npt.NDArray[np.float64]
# Fewer blocks hold too few combinations for an interval: the extremes of five cover their median 94 times in 100.
INTERVAL_BLOCKS = 6
_RESAMPLES = 1000
# Weights held at once while resampling.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Ratio:
    """A model's median latency over the first model's; ``low`` and ``high`` are None where blocks were too few."""

    value: float
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass over ``runs`` runs at ``batch`` examples.

    ``blocks`` counts what varies by itself: turns, or openings of the models where they were opened several times.
    ``ratio`` is to the first of the models measured together; None for that one itself.
    """

    median_ms: float
    p90_ms: float
    runs: int
    batch: int
    p99_ms: float
    mean_ms: float
    blocks: int
    ratio: Ratio | None = None


def summarise(blocks: Sequence[Times], batch: int, ratio: Ratio | None = None) -> Latency:
    """Return the figures of one model's times, milliseconds [runs] per block."""
    times = np.concatenate(blocks)
    median, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Latency(median, p90, times.size, batch, p99, float(times.mean()), len(blocks), ratio)


def ratio_of_medians(
    first: Sequence[Times], other: Sequence[Times], *, confidence: float = 0.95, seed: int = 0
) -> Ratio | None:
    """Return the ratio of the medians of ``other`` and ``first``, with a bootstrap interval; None if that is 0.

    Both are milliseconds [runs] per block, block by block taken side by side. Runs of one block share the machine's
    state, so whole blocks are drawn anew, the same ones for both models (block bootstrap: Künsch, 1989). The
    percentiles are widened as Student's t is for few blocks (expanded percentile interval: Hesterberg, 2015).

    Raises:
        OptionError: ``confidence`` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise OptionError(f"confidence is {confidence:g}; it must lie strictly between 0 and 1, such as 0.95")
    base = float(np.median(np.concatenate(first)))
    if not base > 0:
        return None
    value = float(np.median(np.concatenate(other))) / base
    count = len(first)
    if count < INTERVAL_BLOCKS:
        return Ratio(value, None, None, confidence)
    # How often each block was drawn, int64 [resamples, blocks].
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    ratios = _medians(other, drawn) / _medians(first, drawn)
    tail = _tail(count, confidence)
    low, high = (float(end) for end in np.quantile(ratios, (tail, 1 - tail)))
    return Ratio(value, low, high, confidence)


def _medians(blocks: Sequence[Times], drawn: npt.NDArray[np.int64]) -> Times:
    """Return the median of every resample: all times are sorted once, and count as often as their block was drawn."""
    times = np.concatenate(blocks)
    order = np.argsort(times, kind="stable")
    owner = np.repeat(np.arange(len(blocks)), [block.size for block in blocks])[order]
    times = times[order]
    found = []
    at_once = max(1, _CHUNK // times.size)
    for start in range(0, len(drawn), at_once):
        up_to = np.cumsum(drawn[start : start + at_once, owner], axis=1)
        half = up_to[:, -1:] / 2
        found.append((times[(up_to < half).sum(axis=1)] + times[(up_to <= half).sum(axis=1)]) / 2)
    return np.concatenate(found)


def _tail(blocks: int, confidence: float) -> float:
    """Return the share of resampled ratios beyond each end of the interval."""
    from scipy import special

    quantile = special.stdtrit(blocks - 1, (1 - confidence) / 2)
    return float(special.ndtr(math.sqrt(blocks / (blocks - 1)) * quantile))
