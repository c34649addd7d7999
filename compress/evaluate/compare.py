"""Two models on the same examples, batch by batch: what compression did to decisions and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.checks import check_scores, check_steady_labels, count_examples, nan_rows, refuse_nan
from onnxprune.evaluate.classes import class_names
from onnxprune.evaluate.decisions import LabelCounts, PairCounts
from onnxprune.evaluate.differences import Differences
from onnxprune.evaluate.evidence import Accuracy, Agreement, ClassAccuracy, Evidence, OutputError, Pair
from onnxprune.evaluate.intervals import check_confidence, mcnemar_p
from onnxprune.evaluate.kinds import output_kind
from onnxprune.evaluate.losses import LossSums
from onnxprune.evaluate.scores import TOP, Rows, checked_labels, decide
from onnxprune.evaluate.surest import SurestFlips

Outputs = Mapping[str, NDArray[Any]]


class Comparison:
    """Streamed comparison of a compressed model with its original, in memory that examples do not grow.

    The original's first output of class scores is judged: its argmax is the decision. A row with NaN in the
    compressed model's scores counts as a changed decision. Without class scores only outputs are compared.
    """

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
        self._differences: dict[str, Differences] = {}
        self._nan: dict[str, int] = {}
        self._unmatched: tuple[str, ...] = ()
        self._judged: _Judged | None = None

    def update(
        self,
        original: Outputs,
        compressed: Outputs,
        labels: NDArray[Any] | None = None,
        *,
        examples: int | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Add one batch.

        Args:
            original: the original's outputs by name, examples on axis 0.
            compressed: the compressed model's outputs on the same examples.
            labels: class indices [n], for all batches or for none.
            examples: number of examples in the batch; by default the rows of the class scores, else of
                the first output.
            rows: indices of the examples [n], to name changed decisions by; by default they are counted from 0.

        Raises:
            ModelError: if an output is missing, class scores change shape, or the original gives NaN.
            DataError: if labels do not fit the examples and classes.
        """
        _check_names(original, compressed)
        if not self._differences:
            self._start(original, compressed, examples)
        count = count_examples(original, self._judged.name if self._judged else None, examples)
        if count == 0:
            return
        refuse_nan("original model", original, self._examples)
        check_steady_labels(self._labelled, labels)
        if self._judged is not None:
            places = np.arange(self._examples, self._examples + count) if rows is None else rows
            self._judged.update(original, compressed, labels, places)
        for name, difference in self._differences.items():
            difference.update(original[name], compressed[name])
            self._nan[name] += int(np.count_nonzero(nan_rows(compressed[name])))
        self._labelled = labels is not None
        self._examples += count

    def result(self) -> Evidence:
        """Return what all batches so far show.

        Raises:
            DataError: if there were no examples.
        """
        if not self._examples:
            raise DataError("no examples were compared; at least one is needed")
        judged = self._judged.name if self._judged else self._first_values()
        outputs = tuple(each.result(judged=each.name == judged) for each in self._differences.values())
        error = None
        for each in outputs:
            if each.judged:
                kl = self._judged.losses.divergence() if self._judged else None
                error = OutputError(each.max_abs, each.mean_abs, each.rel_l2, each.cosine, kl)
        names, naming = class_names(self._class_names, self._judged.classes) if self._judged else ((), ())
        return Evidence(
            examples=self._examples,
            agreement=self._judged.agreement(self._confidence, names) if self._judged else None,
            accuracy=self._judged.accuracy(names) if self._judged and self._labelled else None,
            output_error=error,
            outputs=outputs,
            warnings=(*self._warnings(), *naming),
        )

    def _start(self, original: Outputs, compressed: Outputs, examples: int | None) -> None:
        for name, array in original.items():
            kind = output_kind(array, examples)
            self._differences[name] = Differences(name, kind)
            self._nan[name] = 0
            if kind == "class scores" and self._judged is None:
                self._judged = _Judged(name, array.shape[1])
        self._unmatched = tuple(name for name in compressed if name not in original)

    def _first_values(self) -> str | None:
        return next((name for name, each in self._differences.items() if each.kind == "values"), None)

    def _warnings(self) -> list[str]:
        warnings = []
        if self._labelled and self._judged is None:
            warnings.append("labels were given, but no output holds class scores: accuracy is not judged")
        for name in self._unmatched:
            warnings.append(f"output {name!r} is in the compressed model only: not compared")
        for name, each in self._differences.items():
            if self._nan[name]:
                judged = self._judged is not None and name == self._judged.name
                effect = "counted as changed decisions and " if judged else ""
                warnings.append(
                    f"compressed model: output {name!r} is NaN for {self._nan[name]} of {self._examples} "
                    f"examples; they are {effect}left out of the output errors"
                )
            if each.left_out > self._nan[name]:
                warnings.append(
                    f"output {name!r} is infinite for {each.left_out - self._nan[name]} of {self._examples} "
                    "examples; they are left out of the output errors"
                )
            if each.varying:
                before, after = each.varying
                warnings.append(f"output {name!r} has shape {before} and compressed {after}: not compared")
        return warnings


class _Judged:
    """The sums over the output whose decisions are judged."""

    def __init__(self, name: str, classes: int) -> None:
        self.name = name
        self.classes = classes
        self.losses = LossSums()
        self._pairs = PairCounts(classes)
        self._surest = SurestFlips()
        self._before = LabelCounts(classes)
        self._after = LabelCounts(classes)

    def update(self, original: Outputs, compressed: Outputs, labels: NDArray[Any] | None, rows: Rows) -> None:
        """Add one batch of examples that have these indices."""
        count = len(rows)
        check_scores("original model", self.name, original[self.name], count, self.classes)
        check_scores("compressed model", self.name, compressed[self.name], count, self.classes)
        before = np.asarray(original[self.name], dtype=np.float64)
        after = np.asarray(compressed[self.name], dtype=np.float64)
        truth = None if labels is None else checked_labels(labels, count, self.classes)
        was, now = decide(before), decide(after)
        self._pairs.update(was, now, after, truth)
        self._surest.update(before, was, now, truth, rows)
        self.losses.update(before, after, truth)
        if truth is not None:
            self._before.update(before, was, truth)
            self._after.update(after, now, truth)

    def agreement(self, confidence: float, names: Sequence[str]) -> Agreement:
        """Return how often both models decide alike."""
        found = self._pairs.agreement(confidence, names)
        examples = self._surest.found(names, probabilities=self.losses.probabilities)
        return replace(found, flips=replace(found.flips, examples=examples))

    def accuracy(self, names: Sequence[str]) -> Accuracy:
        """Return both models' accuracy; there must have been labels."""
        before, after = self._before, self._after
        examples = int(before.count.sum())
        was_right, is_right = int(before.correct.sum()), int(after.correct.sum())
        rows = zip(names, before.count.tolist(), before.correct.tolist(), after.correct.tolist(), strict=True)
        return Accuracy(
            original=was_right / examples,
            compressed=is_right / examples,
            # One division: the difference of two rounded shares could miss a gate it meets exactly.
            drop=(was_right - is_right) / examples,
            mcnemar_p=mcnemar_p(self._pairs.lost, self._pairs.gained),
            top5=Pair(before.top5 / examples, after.top5 / examples) if self.classes > TOP else None,
            loss=Pair(*self.losses.losses()),
            per_class=tuple(
                ClassAccuracy(name, count, was / count, now / count) for name, count, was, now in rows if count
            ),
        )


def _check_names(original: Outputs, compressed: Outputs) -> None:
    if not original:
        raise ModelError("original model: no outputs were given; at least one is needed")
    for name in original:
        if name not in compressed:
            raise ModelError(
                f"compressed model: output {name!r} of the original is missing; "
                f"its outputs are {', '.join(map(repr, compressed)) or 'none'}"
            )
