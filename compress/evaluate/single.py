"""One model on its own: accuracy, top-5, loss and classes, streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.checks import check_scores, check_steady_labels, count_examples, refuse_nan
from onnxprune.evaluate.classes import class_names
from onnxprune.evaluate.decisions import LabelCounts, rate
from onnxprune.evaluate.evidence import ClassScore, Performance
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.kinds import output_kind
from onnxprune.evaluate.losses import LossSums
from onnxprune.evaluate.scores import TOP, checked_labels, decide


class Tally:
    """Streamed counts over the first output of class scores, in memory that examples do not grow."""

    def __init__(self, confidence: float = 0.95, classes: Sequence[str] | None = None) -> None:
        """Start empty.

        Args:
            confidence: confidence of the two-sided intervals, in (0, 1).
            classes: names of the classes, where known.

        Raises:
            OptionError: if ``confidence`` is not in (0, 1).
        """
        check_confidence(confidence)
        self._confidence = confidence
        self._class_names = classes
        self._examples = 0
        self._labelled: bool | None = None
        self._output: str | None = None
        self._losses = LossSums()
        self._counts = LabelCounts(0)
        self._predicted = np.zeros(0, dtype=np.int64)

    def update(
        self,
        outputs: Mapping[str, NDArray[Any]],
        labels: NDArray[Any] | None = None,
        *,
        examples: int | None = None,
    ) -> None:
        """Add one batch: outputs by name (examples on axis 0) and class indices [n], if there are labels.

        Raises:
            ModelError: if an output is NaN, there is none, or class scores change shape.
            DataError: if labels do not fit the examples and classes.
        """
        if not outputs:
            raise ModelError("model: no outputs were given; at least one is needed")
        if self._output is None and not self._examples:
            self._start(outputs, examples)
        count = count_examples(outputs, self._output, examples)
        if count == 0:
            return
        refuse_nan("model", outputs, self._examples)
        check_steady_labels(self._labelled, labels)
        if self._output is not None:
            self._add(outputs[self._output], labels, count)
        self._labelled = labels is not None
        self._examples += count

    def result(self) -> Performance:
        """Return what all batches so far show.

        Raises:
            DataError: if there were no examples.
        """
        if not self._examples:
            raise DataError("no examples were evaluated; at least one is needed")
        if self._output is None:
            unjudged = ("no output holds class scores: accuracy is not judged",)
            return Performance(self._examples, None, None, None, None, None, (), unjudged)
        classes = len(self._predicted)
        correct, has_top5 = int(self._counts.correct.sum()), classes > TOP
        names, warnings = class_names(self._class_names, classes)
        return Performance(
            examples=self._examples,
            output=self._output,
            classes=classes,
            accuracy=rate(correct, self._examples, self._confidence) if self._labelled else None,
            top5=rate(self._counts.top5, self._examples, self._confidence) if self._labelled and has_top5 else None,
            loss=self._losses.losses()[0],
            per_class=self._per_class(names),
            warnings=warnings,
        )

    def _start(self, outputs: Mapping[str, NDArray[Any]], examples: int | None) -> None:
        for name, array in outputs.items():
            if output_kind(array, examples) == "class scores":
                self._output = name
                self._counts = LabelCounts(array.shape[1])
                self._predicted = np.zeros(array.shape[1], dtype=np.int64)
                return

    def _add(self, array: NDArray[Any], labels: NDArray[Any] | None, count: int) -> None:
        classes = len(self._predicted)
        check_scores("model", self._output or "", array, count, classes)
        scores = np.asarray(array, dtype=np.float64)
        decisions = decide(scores)
        truth = None if labels is None else checked_labels(labels, count, classes)
        self._predicted += np.bincount(decisions, minlength=classes)
        self._losses.update(scores, scores, truth)
        if truth is not None:
            self._counts.update(scores, decisions, truth)

    def _per_class(self, names: Sequence[str]) -> tuple[ClassScore, ...]:
        rows = []
        for label, name in enumerate(names):
            count, predicted = int(self._counts.count[label]), int(self._predicted[label])
            if count:
                share = rate(int(self._counts.correct[label]), count, self._confidence)
                rows.append(ClassScore(name, count, predicted, share.rate, share.low, share.high))
            elif predicted:
                rows.append(ClassScore(name, count, predicted, None, None, None))
        return tuple(rows)
