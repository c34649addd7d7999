"""What an output is: class scores (rows to take an argmax of), values, or discrete (compared by equality)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.evidence import OutputKind

PROBABILITY_SLACK = 1e-3
"""How far a row of probabilities may sum from 1: a half-precision softmax does not hit it."""


def output_kind(array: NDArray[Any], examples: int | None = None) -> OutputKind:
    """Tell what an output is from one batch of it.

    Class scores are floating, of rank 2 with at least two columns, one row per example (``examples``, where
    the number is known: a table of boxes has rows too). Other floating outputs are values; integers, booleans
    and text are discrete.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return "discrete"
    is_scores = array.ndim == 2 and array.shape[1] >= 2 and examples in (None, array.shape[0])
    return "class scores" if is_scores else "values"


def are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Tell whether all rows (shape [n, classes]) are probabilities: not negative, sums 1 within 1e-3."""
    if not scores.size:
        return True
    return bool((scores >= 0).all() and (abs(scores.sum(axis=1) - 1) <= PROBABILITY_SLACK).all())
