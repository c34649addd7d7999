"""The sums over the class scores whose decisions are judged: one output of two models, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.calibration import CalibrationSums, MarginCounts, sureness
from onnxprune.evaluate.certificate import certified
from onnxprune.evaluate.checks import check_scores
from onnxprune.evaluate.decisions import LabelCounts, PairCounts
from onnxprune.evaluate.evidence import Accuracy, Agreement, ClassAccuracy, Pair
from onnxprune.evaluate.intervals import mcnemar_p, paired_difference
from onnxprune.evaluate.losses import LossSums
from onnxprune.evaluate.scores import TOP, Rows, Scores, checked_labels, decide
from onnxprune.evaluate.surest import SurestFlips


class JudgedScores:
    """Everything that is told of an output of class scores; memory does not grow with the examples."""

    def __init__(self, name: str, classes: int) -> None:
        self.name = name
        self.classes = classes
        self.losses = LossSums()
        self._pairs = PairCounts(classes)
        self._surest = SurestFlips()
        self._before = LabelCounts(classes)
        self._after = LabelCounts(classes)
        self._certified = 0
        # Read both ways, as logits and as probabilities, until it is known which they are.
        self._margins = {False: MarginCounts(), True: MarginCounts()}
        self._calibration = {reading: (CalibrationSums(), CalibrationSums()) for reading in (False, True)}

    def update(
        self,
        original: Mapping[str, NDArray[Any]],
        compressed: Mapping[str, NDArray[Any]],
        labels: NDArray[Any] | None,
        rows: Rows,
    ) -> None:
        """Add one batch of examples that have these indices.

        Raises:
            ModelError: if the scores have another shape than before.
            DataError: if labels do not fit the examples and classes.
        """
        count = len(rows)
        check_scores("original model", self.name, original[self.name], count, self.classes)
        check_scores("compressed model", self.name, compressed[self.name], count, self.classes)
        before = np.asarray(original[self.name], dtype=np.float64)
        after = np.asarray(compressed[self.name], dtype=np.float64)
        truth = None if labels is None else checked_labels(labels, count, self.classes)
        was, now = decide(before), decide(after)
        self._pairs.update(was, now, after, truth)
        self._surest.update(before, was, now, truth, rows)
        self._certified += int(np.count_nonzero(certified(before, after)))
        self.losses.update(before, after, truth)
        self._update_sureness(before, after, was, now, truth)
        if truth is not None:
            self._before.update(before, was, truth)
            self._after.update(after, now, truth)

    def _update_sureness(self, before: Scores, after: Scores, was: Rows, now: Rows, truth: Rows | None) -> None:
        # Scores that were found to be logits never turn into probabilities again.
        for reading in (False, True) if self.losses.probabilities else (False,):
            sure, margins = sureness(before, probabilities=reading)
            self._margins[reading].update(margins, was, now)
            if truth is not None:
                first, second = self._calibration[reading]
                first.update(sure, was == truth)
                second.update(sureness(after, probabilities=reading)[0], now == truth)

    def agreement(self, confidence: float, names: Sequence[str]) -> Agreement:
        """Return how often both models decide alike."""
        reading = self.losses.probabilities
        found = self._pairs.agreement(confidence, names)
        examples = self._surest.found(names, probabilities=reading)
        flips = replace(found.flips, examples=examples, margins=self._margins[reading].bins())
        return replace(found, flips=flips, certified=self._certified / found.examples)

    def accuracy(self, confidence: float, names: Sequence[str]) -> Accuracy:
        """Return both models' accuracy; there must have been labels."""
        before, after = self._before, self._after
        examples = int(before.count.sum())
        was_right, is_right = int(before.correct.sum()), int(after.correct.sum())
        lost, gained = self._pairs.lost, self._pairs.gained
        both = was_right - lost
        low, high = paired_difference(both, lost, gained, examples - both - lost - gained, confidence)
        rows = zip(names, before.count.tolist(), before.correct.tolist(), after.correct.tolist(), strict=True)
        return Accuracy(
            original=was_right / examples,
            compressed=is_right / examples,
            # One division: the difference of two rounded shares could miss a gate it meets exactly.
            drop=(was_right - is_right) / examples,
            mcnemar_p=mcnemar_p(lost, gained),
            top5=Pair(before.top5 / examples, after.top5 / examples) if self.classes > TOP else None,
            loss=Pair(*self.losses.losses()),
            per_class=tuple(
                ClassAccuracy(name, count, was / count, now / count) for name, count, was, now in rows if count
            ),
            drop_low=low,
            drop_high=high,
            calibration_error=Pair(*(sums.error() for sums in self._calibration[self.losses.probabilities])),
        )
