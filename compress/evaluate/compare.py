"""Two models on the same examples, batch by batch: what compression did to decisions and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.checks import check_steady_labels, count_examples, nan_rows, refuse_nan
from onnxprune.evaluate.classes import class_names
from onnxprune.evaluate.differences import Differences
from onnxprune.evaluate.embedding import EmbeddingSums
from onnxprune.evaluate.evidence import Evidence, OutputError, OutputEvidence
from onnxprune.evaluate.figures import Figures, figures_of, targeted
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.judged import JudgedScores
from onnxprune.evaluate.kinds import check_asked, judged_kind, judged_scores
from onnxprune.evaluate.maps import MapSums
from onnxprune.evaluate.regression import ValueSums
from onnxprune.evaluate.scores import Rows

Outputs = Mapping[str, NDArray[Any]]


class Comparison:
    """Streamed comparison of a compressed model with its original, in memory that examples do not grow.

    The original's first output of class scores is judged (one that was asked for before others): its argmax is the
    decision. A row with NaN in the compressed model's scores counts as a changed decision. Without class scores only
    outputs are compared, each by the figures of its kind.
    """

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
        self._kinds = dict(kinds or {})
        self._figures: dict[str, Figures] = {}
        self._targeted: str | None = None
        self._unfit: str | None = None
        self._examples = 0
        self._labelled: bool | None = None
        self._differences: dict[str, Differences] = {}
        self._nan: dict[str, int] = {}
        self._unmatched: tuple[str, ...] = ()
        self._judged: JudgedScores | None = None

    def update(
        self,
        original: Outputs,
        compressed: Outputs,
        labels: NDArray[Any] | None = None,
        *,
        examples: int | None = None,
        rows: Rows | None = None,
        targets: NDArray[Any] | None = None,
    ) -> None:
        """Add one batch.

        Args:
            original: the original's outputs by name, examples on axis 0.
            compressed: the compressed model's outputs on the same examples.
            labels: class indices [n], for all batches or for none.
            examples: number of examples in the batch; by default the rows of the class scores, else of
                the first output.
            rows: indices of the examples [n], to name changed decisions by; by default they are counted from 0.
            targets: labels that are no class indices: maps [n, ...] of classes, or real numbers [n, ...]; for all
                batches or for none.

        Raises:
            ModelError: if an output is missing, class scores change shape, or the original gives NaN.
            DataError: if labels do not fit the examples and classes.
            OptionError: if an output cannot be what was asked for.
        """
        _check_names(original, compressed)
        if not self._differences:
            self._start(original, compressed, examples, targets)
        count = count_examples(original, self._judged.name if self._judged else None, examples)
        if count == 0:
            return
        refuse_nan("original model", original, self._examples)
        check_steady_labels(self._labelled, labels)
        places = np.arange(self._examples, self._examples + count) if rows is None else rows
        if self._judged is not None:
            self._judged.update(original, compressed, labels, places)
        for name, difference in self._differences.items():
            difference.update(original[name], compressed[name])
            if name in self._figures:
                truth = targets if name == self._targeted else None
                self._figures[name].update(original[name], compressed[name], truth, places)
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
        outputs = tuple(self._output(each, judged) for each in self._differences.values())
        error = None
        for each in outputs:
            if each.judged:
                kl = self._judged.losses.divergence() if self._judged else None
                error = OutputError(each.max_abs, each.mean_abs, each.rel_l2, each.cosine, kl)
        names, naming = class_names(self._class_names, self._judged.classes) if self._judged else ((), ())
        return Evidence(
            examples=self._examples,
            agreement=self._judged.agreement(self._confidence, names) if self._judged else None,
            accuracy=self._judged.accuracy(self._confidence, names) if self._judged and self._labelled else None,
            output_error=error,
            outputs=outputs,
            warnings=(*self._warnings(), *naming),
            classes=self._judged.classes if self._judged else None,
        )

    def _start(
        self, original: Outputs, compressed: Outputs, examples: int | None, targets: NDArray[Any] | None
    ) -> None:
        check_asked(self._kinds, original)
        kinds = {name: judged_kind(name, array, examples, self._kinds, targets) for name, array in original.items()}
        judged = judged_scores(kinds, self._kinds)
        if judged is not None:
            self._judged = JudgedScores(judged, original[judged].shape[1])
        for name, kind in kinds.items():
            self._differences[name] = Differences(name, kind)
            self._nan[name] = 0
            figures = figures_of(name, kind, original[name])
            if figures is not None:
                self._figures[name] = figures
        self._targeted, self._unfit = targeted(kinds, targets, original)
        self._unmatched = tuple(name for name in compressed if name not in original)

    def _first_values(self) -> str | None:
        kinds = {name: each.kind for name, each in self._differences.items()}
        maps = (name for name, kind in kinds.items() if kind == "class maps")
        others = (name for name, kind in kinds.items() if kind in ("values", "embedding"))
        return next(maps, next(others, None))

    def _output(self, difference: Differences, judged: str | None) -> OutputEvidence:
        found = difference.result(judged=difference.name == judged)
        figures = self._figures.get(difference.name)
        match figures:
            case MapSums():
                return replace(found, maps=figures.result(self._confidence))
            case ValueSums():
                return replace(found, values=figures.result())
            case EmbeddingSums():
                return replace(found, embedding=figures.result())
            case _:
                return found

    def _warnings(self) -> list[str]:
        warnings = [] if self._unfit is None else [self._unfit]
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


def _check_names(original: Outputs, compressed: Outputs) -> None:
    if not original:
        raise ModelError("original model: no outputs were given; at least one is needed")
    for name in original:
        if name not in compressed:
            raise ModelError(
                f"compressed model: output {name!r} of the original is missing; "
                f"its outputs are {', '.join(map(repr, compressed)) or 'none'}"
            )
