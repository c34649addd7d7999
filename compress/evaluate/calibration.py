"""How far a model's confidence is from its accuracy, and how close changed decisions were: streamed, per bin."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.evidence import MarginBin
from onnxprune.evaluate.scores import Rows, Scores, log_probabilities

BINS: Final = 15
"""Bins of the calibration error, of equal width in the probability of the decision (as in Guo et al., 2017)."""

MARGINS: Final = 10
"""Bins of the margin between the original's first and second probability, of equal width."""

Reading = tuple[NDArray[np.float64], NDArray[np.float64]]


def sureness(scores: Scores, *, probabilities: bool) -> Reading:
    """Return each row's highest probability [n] and how far the second is behind it [n]; NaN where there is none.

    Args:
        scores: class scores [n, classes], at least two classes.
        probabilities: whether they are probabilities, else logits.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.exp(log_probabilities(scores, probabilities=probabilities))
    highest = np.partition(shares, -2, axis=1)[:, -2:]
    finite = np.isfinite(shares).all(axis=1)
    first = np.where(finite, np.clip(highest[:, 1], 0, 1), np.nan)
    return first, np.where(finite, np.clip(highest[:, 1] - highest[:, 0], 0, 1), np.nan)


class CalibrationSums:
    """One model's decisions by their probability: how many, how probable in sum, how many right."""

    def __init__(self) -> None:
        self._count = np.zeros(BINS, dtype=np.int64)
        self._sure = np.zeros(BINS)
        self._right = np.zeros(BINS, dtype=np.int64)
        self._defined = True

    def update(self, sure: NDArray[np.float64], right: NDArray[np.bool_]) -> None:
        """Add one batch: each row's highest probability [n] and whether its decision is the label [n]."""
        if np.isnan(sure).any():
            self._defined = False
            return
        places = _bins(sure, BINS)
        self._count += np.bincount(places, minlength=BINS)
        self._sure += np.bincount(places, weights=sure, minlength=BINS)
        self._right += np.bincount(places[right], minlength=BINS)

    def error(self) -> float | None:
        """Return the expected calibration error (Guo, Pleiss, Sun, Weinberger, 2017); None where it is not defined.

        That is the mean over examples of |accuracy - mean probability| of the example's bin. Rows without
        probabilities (NaN, infinity) leave it undefined.
        """
        total = int(self._count.sum())
        return float(np.abs(self._right - self._sure).sum()) / total if total and self._defined else None


class MarginCounts:
    """Examples and changed decisions by the original's margin."""

    def __init__(self) -> None:
        self._examples = np.zeros(MARGINS, dtype=np.int64)
        self._flipped = np.zeros(MARGINS, dtype=np.int64)

    def update(self, margins: NDArray[np.float64], before: Rows, after: Rows) -> None:
        """Add one batch: the original's margins [n] (NaN rows are left out) and both models' decisions [n]."""
        known = ~np.isnan(margins)
        places = _bins(margins[known], MARGINS)
        self._examples += np.bincount(places, minlength=MARGINS)
        self._flipped += np.bincount(places[(before != after)[known]], minlength=MARGINS)

    def bins(self) -> tuple[MarginBin, ...]:
        """Return all bins, the closest margins first; a bin holds margins above the one before, up to its own."""
        return tuple(
            MarginBin((place + 1) / MARGINS, int(examples), int(flipped))
            for place, (examples, flipped) in enumerate(zip(self._examples, self._flipped, strict=True))
        )


def _bins(shares: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the bin ((k / bins, (k + 1) / bins], 0 in the first) of shares in [0, 1]."""
    return np.clip(np.ceil(shares * bins).astype(np.int64) - 1, 0, bins - 1)
