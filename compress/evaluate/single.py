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
from onnxprune.evaluate.evidence import ClassScore, MapScore, Performance, ValueScore
from onnxprune.evaluate.figures import targeted
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.kinds import check_asked, judged_kind, judged_scores
from onnxprune.evaluate.losses import LossSums
from onnxprune.evaluate.maps import LabelledMaps, decide_maps, fitting_map
from onnxprune.evaluate.regression import LabelledValues, as_rows, fitting_values
from onnxprune.evaluate.scores import TOP, checked_labels, decide


class Tally:
    """Streamed counts over the first output of class scores, in memory that examples do not grow."""

    def __init__(
        self,
        confidence: float = 0.95,
        classes: Sequence[str] | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        """Start empty.

        Args:
            confidence: confidence of the two-sided intervals, in (0, 1).
            classes: names of the classes, where known.
            kinds: what outputs are to be judged as, by name: words of ``kinds.KINDS``.

        Raises:
            OptionError: if ``confidence`` is not in (0, 1).
        """
        check_confidence(confidence)
        self._confidence = confidence
        self._class_names = classes
        self._examples = 0
        self._labelled: bool | None = None
        self._output: str | None = None
        self._kinds = dict(kinds or {})
        self._targeted: str | None = None
        self._target_score: LabelledMaps | LabelledValues | None = None
        self._unfit: str | None = None
        self._losses = LossSums()
        self._counts = LabelCounts(0)
        self._predicted = np.zeros(0, dtype=np.int64)

    def update(
        self,
        outputs: Mapping[str, NDArray[Any]],
        labels: NDArray[Any] | None = None,
        *,
        examples: int | None = None,
        targets: NDArray[Any] | None = None,
    ) -> None:
        """Add one batch: outputs by name (examples on axis 0) and class indices [n], if there are labels.

        Raises:
            ModelError: if an output is NaN, there is none, or class scores change shape.
            DataError: if labels do not fit the examples and classes.
        """
        if not outputs:
            raise ModelError("model: no outputs were given; at least one is needed")
        if self._output is None and not self._examples:
            self._start(outputs, examples, targets)
        count = count_examples(outputs, self._output, examples)
        if count == 0:
            return
        refuse_nan("model", outputs, self._examples)
        check_steady_labels(self._labelled, labels)
        if self._output is not None:
            self._add(outputs[self._output], labels, count)
        self._add_targets(outputs, targets)
        self._labelled = labels is not None
        self._examples += count

    def result(self) -> Performance:
        """Return what all batches so far show.

        Raises:
            DataError: if there were no examples.
        """
        if not self._examples:
            raise DataError("no examples were evaluated; at least one is needed")
        scored = None if self._target_score is None else self._target_score.score()
        maps = scored if isinstance(scored, MapScore) else None
        values = scored if isinstance(scored, ValueScore) else None
        unfit = () if self._unfit is None else (self._unfit,)
        if self._output is None:
            unjudged = ("no output holds class scores: accuracy is not judged",) if scored is None else ()
            return Performance(
                self._examples, None, None, None, None, None, (), (*unfit, *unjudged), maps=maps, values=values
            )
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
            warnings=(*unfit, *warnings),
            maps=maps,
            values=values,
        )

    def _start(self, outputs: Mapping[str, NDArray[Any]], examples: int | None, targets: NDArray[Any] | None) -> None:
        check_asked(self._kinds, outputs)
        kinds = {name: judged_kind(name, array, examples, self._kinds, targets) for name, array in outputs.items()}
        self._output = judged_scores(kinds, self._kinds)
        if self._output is not None:
            classes = outputs[self._output].shape[1]
            self._counts = LabelCounts(classes)
            self._predicted = np.zeros(classes, dtype=np.int64)
        self._targeted, self._unfit = targeted(kinds, targets, outputs)
        if self._targeted is not None:
            maps = kinds[self._targeted] == "class maps"
            self._target_score = LabelledMaps(outputs[self._targeted].shape[1]) if maps else LabelledValues()

    def _add_targets(self, outputs: Mapping[str, NDArray[Any]], targets: NDArray[Any] | None) -> None:
        if self._targeted is None or targets is None:
            return
        array = outputs[self._targeted]
        if isinstance(self._target_score, LabelledMaps):
            truth = fitting_map(targets, array)
            if truth is not None:
                self._target_score.update(decide_maps(array), truth)
        elif self._target_score is not None:
            truth = fitting_values(targets, array)
            if truth is not None:
                self._target_score.update(as_rows(array), as_rows(truth))

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
