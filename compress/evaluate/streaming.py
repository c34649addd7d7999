"""Running models over examples batch by batch, feeding the accumulators of this room."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Examples, Fingerprint
from onnxprune.evaluate.checks import check_scores, refuse_nan
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence, Performance
from onnxprune.evaluate.kinds import judged_kind, judged_scores
from onnxprune.evaluate.scores import Rows, decide
from onnxprune.evaluate.single import Tally
from onnxprune.runtime.latency import measure
from onnxprune.runtime.session import Settings, batch_for, open_session
from onnxprune.runtime.timing import Latency

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """What two models did on the same examples; ``fingerprint`` identifies the examples."""

    evidence: Evidence
    fingerprint: Fingerprint
    latency: tuple[Latency, Latency]
    providers: tuple[str, ...]


@dataclass(eq=False)
class Recorded:
    """The original's outputs over all examples, batch by batch, kept for the models that come after the first.

    Nothing is kept beyond ``limit`` bytes: the original is run again then.
    """

    limit: int = 512 * 2**20
    batches: list[Mapping[str, np.ndarray]] = field(default_factory=list)
    whole: bool = False
    _bytes: int = 0

    def of(self, place: int, run: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Return the outputs of a batch, run where they are not known."""
        if self.whole:
            return self.batches[place]
        outputs = run()
        if place == 0:
            self.batches.clear()
            self._bytes = 0
        self._bytes += sum(array.nbytes for array in outputs.values())
        if self._bytes <= self.limit:
            self.batches.append(outputs)
        else:
            self.batches.clear()
        return outputs

    def ended(self, batches: int) -> None:
        """Say that all batches were seen."""
        self.whole = self.whole or len(self.batches) == batches


def judge(
    original: ir.Model,
    compressed: ir.Model,
    examples: Examples,
    settings: Settings,
    *,
    confidence: float = 0.95,
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    advance: Advance | None = None,
    recorded: Recorded | None = None,
    keep: bool = True,
) -> Judged:
    """Run both models on the same batches and compare; time them on one example, in turn.

    ``recorded`` is given where several models are judged against one original on the same examples. With ``keep``
    the fingerprint can be held against others; it takes 16 bytes an example then, and nothing else here grows.
    ``kinds`` says what outputs are judged as, where that was asked for (see ``evaluate.kinds``).

    Raises:
        DataError: Examples or labels are broken.
        BackendError: ONNX Runtime failed on one of the models.
    """
    comparison, seen = Comparison(confidence, classes, kinds), recorded or Recorded(0)
    fingerprint = Fingerprint(keep=keep)
    with (
        open_session(original, settings, label="the original model") as first,
        open_session(compressed, settings, label="the compressed model") as second,
    ):
        count = 0
        for batch in examples.batches(batch_for(first, settings)):
            fingerprint.update(batch.arrays)
            outputs = seen.of(count, functools.partial(first.run, batch.arrays)), second.run(batch.arrays)
            count += 1
            rows = batch.rows if examples.origin is None else examples.origin[batch.rows]
            comparison.update(*outputs, batch.labels, examples=len(batch.rows), rows=rows, targets=batch.targets)
            if advance is not None:
                advance(len(batch.rows))
        seen.ended(count)
        feeds = next(examples.batches(1)).arrays
        times = measure([first, second], feeds, confidence=confidence)
        return Judged(comparison.result(), fingerprint, (times[0], times[1]), second.providers)


@dataclass(frozen=True)
class Scored:
    """What one model did on the examples."""

    performance: Performance
    fingerprint: Fingerprint
    latency: Latency
    providers: tuple[str, ...]


def score(
    model: ir.Model,
    examples: Examples,
    settings: Settings,
    *,
    confidence: float = 0.95,
    classes: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    advance: Advance | None = None,
) -> Scored:
    """Run one model over the examples and tally its accuracy, loss and latency; ``kinds`` as for :func:`judge`."""
    tally, fingerprint = Tally(confidence, classes, kinds), Fingerprint(keep=False)
    with open_session(model, settings) as session:
        for batch in examples.batches(batch_for(session, settings)):
            fingerprint.update(batch.arrays)
            outputs = session.run(batch.arrays)
            tally.update(outputs, batch.labels, examples=len(batch.rows), targets=batch.targets)
            if advance is not None:
                advance(len(batch.rows))
        times = measure([session], next(examples.batches(1)).arrays)
        return Scored(tally.result(), fingerprint, times[0], session.providers)


@dataclass(frozen=True, eq=False)
class Decided:
    """What one model decided: class indices [examples], the output that they were read off, its classes."""

    examples: Examples
    rows: Rows
    output: str
    classes: int
    fingerprint: Fingerprint


def decide_all(
    model: ir.Model,
    examples: Examples,
    settings: Settings,
    *,
    kinds: Mapping[str, str] | None = None,
    advance: Advance | None = None,
) -> Decided | None:
    """Return the decisions of the original model, or None where no output holds class scores.

    ``kinds`` says what outputs are judged as, where that was asked for (see ``evaluate.kinds``).

    Raises:
        ModelError: An output is NaN, or class scores change shape.
        BackendError: ONNX Runtime failed.
    """
    name, classes, found, fingerprint = "", 0, list[Rows](), Fingerprint(keep=True)
    with open_session(model, settings, label="the original model") as session:
        for batch in examples.batches(batch_for(session, settings)):
            count = len(batch.rows)
            outputs = session.run(batch.arrays, [name] if name else None)
            if not name:
                found_kinds = {n: judged_kind(n, array, count, kinds or {}) for n, array in outputs.items()}
                name = judged_scores(found_kinds, kinds or {}) or ""
                if not name:
                    return None
                classes = outputs[name].shape[1]
            refuse_nan("original model", {name: outputs[name]}, fingerprint.count)
            check_scores("original model", name, outputs[name], count, classes)
            found.append(decide(outputs[name].astype(np.float64)))
            fingerprint.update(batch.arrays)
            if advance is not None:
                advance(count)
    return Decided(examples, np.concatenate(found), name, classes, fingerprint)


def decisions(decided: Decided, model: ir.Model, settings: Settings) -> Rows:
    """Return what a model decides on the same examples, read off the same output; scores with NaN decide nothing.

    Raises:
        ModelError: The output has another shape.
        BackendError: ONNX Runtime failed.
    """
    found = []
    with open_session(model, settings, label="the compressed model") as session:
        for batch in decided.examples.batches(batch_for(session, settings)):
            scores = session.run(batch.arrays, [decided.output])[decided.output]
            check_scores("compressed model", decided.output, scores, len(batch.rows), decided.classes)
            found.append(decide(scores.astype(np.float64)))
    return np.concatenate(found)


def count_kept(decided: Decided, model: ir.Model, settings: Settings) -> int:
    """Return on how many examples a model decides as was decided; raises what :func:`decisions` raises."""
    return int((decisions(decided, model, settings) == decided.rows).sum())


def fingerprint_of(examples: Examples, size: int = 64) -> Fingerprint:
    """Return the fingerprint of all examples, digests kept (see ``shared_examples``)."""
    found = Fingerprint(keep=True)
    for batch in examples.batches(size):
        found.update(batch.arrays)
    return found


def latency_figures(original: Latency, compressed: Latency) -> dict[str, Any]:
    """Return the report's latency object: milliseconds at one example a run, the ratio of the medians, its interval."""
    ratio = compressed.ratio
    return {
        "batch": original.batch,
        "original_ms": original.median_ms,
        "compressed_ms": compressed.median_ms,
        "ratio": None if ratio is None else ratio.value,
        "low": None if ratio is None else ratio.low,
        "high": None if ratio is None else ratio.high,
        "confidence": None if ratio is None else ratio.confidence,
        "original_p90_ms": original.p90_ms,
        "compressed_p90_ms": compressed.p90_ms,
        "runs": original.runs,
    }
