"""Counts of decisions, streamed: one model against labels, and one model against another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.evidence import Agreement, ClassRate, Flips, Rate
from onnxprune.evaluate.intervals import clopper_pearson
from onnxprune.evaluate.scores import TOP, UNDECIDED, Rows, Scores, in_top

CONFUSIONS = 20
"""How many of the most frequent changes a report lists."""


def rate(hits: int, n: int, confidence: float) -> Rate:
    """Return a share with its two-sided exact interval."""
    low, high = clopper_pearson(hits, n, confidence)
    return Rate(hits / n, low, high, confidence)


class LabelCounts:
    """One model's decisions against labels, by class; rows without a decision are never right."""

    def __init__(self, classes: int) -> None:
        self.count = np.zeros(classes, dtype=np.int64)
        self.correct = np.zeros(classes, dtype=np.int64)
        self.top5 = 0

    def update(self, scores: Scores, decisions: Rows, labels: Rows) -> None:
        """Add one batch of scores [n, classes], the decisions made from them, and labels."""
        classes = len(self.count)
        self.count += np.bincount(labels, minlength=classes)
        self.correct += np.bincount(labels[decisions == labels], minlength=classes)
        if classes > TOP:
            self.top5 += int(in_top(scores, labels).sum())


class PairCounts:
    """The compressed model's decisions against the original's; memory grows with the kinds of change only."""

    def __init__(self, classes: int) -> None:
        self.lost = 0
        self.gained = 0
        self._labelled = False
        self._classes = classes
        self._count = np.zeros(classes, dtype=np.int64)
        self._kept = np.zeros(classes, dtype=np.int64)
        self._top5 = 0
        self._changed_wrong = 0
        self._changes: Counter[tuple[int, int]] = Counter()

    def update(self, before: Rows, after: Rows, compressed: Scores, labels: Rows | None) -> None:
        """Add one batch: both models' decisions, the compressed model's scores, labels if there are any."""
        same = before == after
        self._count += np.bincount(before, minlength=self._classes)
        self._kept += np.bincount(before[same], minlength=self._classes)
        if self._classes > TOP:
            self._top5 += int(in_top(compressed, before).sum())
        pairs, counts = np.unique(np.stack([before, after], axis=1)[~same], axis=0, return_counts=True)
        for (source, target), count in zip(pairs.tolist(), counts.tolist(), strict=True):
            self._changes[source, target] += count
        if labels is not None:
            self._add_labels(before == labels, after == labels, ~same)

    def agreement(self, confidence: float, names: Sequence[str]) -> Agreement:
        """Return agreement in all and by the original's class; ``names`` has one name per class."""
        examples, kept = int(self._count.sum()), int(self._kept.sum())
        per_class = []
        for label in np.flatnonzero(self._count).tolist():
            share = rate(int(self._kept[label]), int(self._count[label]), confidence)
            count = int(self._count[label])
            per_class.append(ClassRate(names[label], count, share.rate, share.low, share.high))
        return Agreement(
            examples=examples,
            top1=rate(kept, examples, confidence),
            top5=rate(self._top5, examples, confidence) if self._classes > TOP else None,
            per_class=tuple(per_class),
            flips=self._flips(kept, examples - kept, names),
        )

    def _flips(self, kept: int, count: int, names: Sequence[str]) -> Flips:
        frequent = sorted(self._changes.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
        return Flips(
            kept=kept,
            lost=self.lost if self._labelled else None,
            gained=self.gained if self._labelled else None,
            changed_wrong=self._changed_wrong if self._labelled else None,
            count=count,
            confusion=tuple(
                (names[source], "NaN" if target == UNDECIDED else names[target], times)
                for (source, target), times in frequent
            ),
        )

    def _add_labels(
        self, was_right: NDArray[np.bool_], is_right: NDArray[np.bool_], changed: NDArray[np.bool_]
    ) -> None:
        self._labelled = True
        self.lost += int((was_right & ~is_right).sum())
        self.gained += int((~was_right & is_right).sum())
        self._changed_wrong += int((changed & ~was_right & ~is_right).sum())
