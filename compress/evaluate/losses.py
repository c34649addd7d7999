"""Mean losses and divergence of two models, streamed, for outputs that may be logits or probabilities."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.kinds import are_probabilities
from onnxprune.evaluate.scores import Rows, Scores, cross_entropy, divergence, log_probabilities


class LossSums:
    """Sums read both ways, as logits and as probabilities, until a row shows which it is.

    Deciding only at the end makes the result the same however the examples are cut into batches.
    """

    def __init__(self) -> None:
        self._probabilities = True
        self._sums = {"logits": np.zeros(3), "probabilities": np.zeros(3)}
        self._rows = 0
        self._compared = 0
        self._labelled = 0

    def update(self, original: Scores, compressed: Scores, labels: Rows | None) -> None:
        """Add one batch of scores; rows not finite in both models count in the losses only."""
        usable = np.asarray(np.isfinite(original).all(axis=1) & np.isfinite(compressed).all(axis=1))
        if not (are_probabilities(original[usable]) and are_probabilities(compressed[usable])):
            self._probabilities = False
        self._compared += int(np.count_nonzero(usable))
        self._labelled += 0 if labels is None else len(labels)
        self._sums["logits"] += _sums(original, compressed, labels, usable, probabilities=False)
        if self._probabilities:
            self._sums["probabilities"] += _sums(original, compressed, labels, usable, probabilities=True)

    @property
    def probabilities(self) -> bool:
        """Whether all rows so far are probabilities."""
        return self._probabilities

    def divergence(self) -> float | None:
        """Return the mean KL(original || compressed) in nats; None where no row could be compared."""
        # Rounding can leave the divergence of equal rows a hair below 0.
        return max(0.0, float(self._chosen()[0]) / self._compared) if self._compared else None

    def losses(self) -> tuple[float | None, float | None]:
        """Return both models' mean cross-entropy in nats; None without labels or where it is no number."""
        original, compressed = (
            float(total) / self._labelled if self._labelled else math.nan for total in self._chosen()[1:]
        )
        return (
            original if math.isfinite(original) else None,
            compressed if math.isfinite(compressed) else None,
        )

    def _chosen(self) -> NDArray[np.float64]:
        return self._sums["probabilities" if self._probabilities else "logits"]


def _sums(
    original: Scores,
    compressed: Scores,
    labels: Rows | None,
    usable: NDArray[np.bool_],
    *,
    probabilities: bool,
) -> NDArray[np.float64]:
    log_p = log_probabilities(original, probabilities=probabilities)
    log_q = log_probabilities(compressed, probabilities=probabilities)
    total = np.zeros(3)
    total[0] = divergence(log_p[usable], log_q[usable]).sum()
    if labels is not None:
        total[1] = cross_entropy(log_p, labels).sum()
        total[2] = cross_entropy(log_q, labels).sum()
    return total
