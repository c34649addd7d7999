"""Decisions that provably cannot have changed: the scores moved by less than half the original's margin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.scores import Scores


def certified(original: Scores, compressed: Scores) -> NDArray[np.bool_]:
    """Tell for each row [n] whether its decision is certainly kept: 2 max|error| < margin of the original's scores.

    With a the first class, b any other and e the largest error, g_a - g_b >= (f_a - e) - (f_b + e) > 0. This holds in
    floating point, too: margin and error are single differences, doubling is exact, and rounding keeps order.
    Rows that are not finite in both models are not certified.

    Args:
        original: scores f of the original [n, classes], logits or probabilities, at least two classes.
        compressed: scores g of the compressed model [n, classes].
    """
    usable = np.isfinite(original).all(axis=1) & np.isfinite(compressed).all(axis=1)
    kept = np.zeros(len(original), dtype=np.bool_)
    # Differences near the float64 limit overflow to infinity, which certifies nothing that is not so.
    with np.errstate(over="ignore"):
        highest = np.partition(original[usable], -2, axis=1)
        error = np.abs(compressed[usable] - original[usable]).max(axis=1, initial=0.0)
        kept[usable] = 2 * error < highest[:, -1] - highest[:, -2]
    return kept
