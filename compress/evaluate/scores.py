"""Pure functions of class scores: decisions, ranks, log-probabilities, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError

UNDECIDED = -1
"""The decision of a row that holds NaN: it equals no class and no label."""

TOP = 5
"""How many first classes a top-5 figure looks at; it is only told for more classes than that."""

Scores = NDArray[np.float64]
Rows = NDArray[np.int64]


def decide(scores: Scores) -> Rows:
    """Return each row's class: the highest score, the lowest index on a tie, ``UNDECIDED`` where a NaN is."""
    undecided = np.isnan(scores).any(axis=1)
    # argmax takes the first maximum, and NaN for a maximum, so the masked rows may hold anything.
    return np.where(undecided, UNDECIDED, scores.argmax(axis=1)).astype(np.int64)


def in_top(scores: Scores, classes: Rows, k: int = TOP) -> NDArray[np.bool_]:
    """Tell for each row if its class is among its ``k`` highest; ties go to the lower index, NaN loses."""
    rows = np.arange(len(scores))
    own = scores[rows, classes][:, None]
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < classes[:, None]))
    answer: NDArray[np.bool_] = (ahead.sum(axis=1) < k) & ~np.isnan(scores).any(axis=1)
    return answer


def log_probabilities(scores: Scores, *, probabilities: bool) -> Scores:
    """Return natural log-probabilities of rows of probabilities or of logits (log-softmax).

    A probability of 0 counts as the smallest normal float32, so that a loss stays finite.
    """
    # Rows that are not finite give NaN, which is the honest answer, without a warning from numpy.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        if probabilities:
            floor = np.finfo(np.float32).tiny
            return np.asarray(np.log(np.maximum(scores, floor)) - np.log(scores.sum(axis=1, keepdims=True)))
        shifted = scores - scores.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def divergence(log_p: Scores, log_q: Scores) -> NDArray[np.float64]:
    """Return each row's KL(p || q) in nats (Kullback & Leibler, 1951) from log-probabilities."""
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


def cross_entropy(log_p: Scores, labels: Rows) -> NDArray[np.float64]:
    """Return each row's loss in nats: minus the log-probability of its label."""
    return np.asarray(-log_p[np.arange(len(labels)), labels])


def checked_labels(labels: NDArray[Any], examples: int, classes: int) -> Rows:
    """Return labels as class indices.

    Raises:
        DataError: if they are not whole numbers, one per example, each naming one of the classes.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels are of type {labels.dtype}; whole numbers (class indices) are wanted")
    if labels.shape != (examples,):
        raise DataError(f"labels have shape {labels.shape} for {examples} examples; ({examples},) is wanted")
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise DataError(
            f"label {labels[outside][0]} is outside the model's {classes} classes; labels must be 0 to {classes - 1}"
        )
    return labels.astype(np.int64)
