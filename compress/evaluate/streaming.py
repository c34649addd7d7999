"""Running models over examples batch by batch, feeding the accumulators of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.data import Examples, Fingerprint
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence, Performance
from onnxprune.evaluate.single import Tally
from onnxprune.runtime.latency import Latency, measure
from onnxprune.runtime.session import Settings, batch_for, open_session

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """What two models did on the same examples; ``fingerprint`` identifies the examples."""

    evidence: Evidence
    fingerprint: Fingerprint
    latency: tuple[Latency, Latency]
    providers: tuple[str, ...]


def judge(
    original: ir.Model,
    compressed: ir.Model,
    examples: Examples,
    settings: Settings,
    *,
    confidence: float = 0.95,
    classes: Sequence[str] | None = None,
    advance: Advance | None = None,
) -> Judged:
    """Run both models on the same batches and compare; time them on one example, in turn.

    Raises:
        DataError: Examples or labels are broken.
        BackendError: ONNX Runtime failed on one of the models.
    """
    comparison, fingerprint = Comparison(confidence, classes), Fingerprint(keep=True)
    with (
        open_session(original, settings, label="the original model") as first,
        open_session(compressed, settings, label="the compressed model") as second,
    ):
        for batch in examples.batches(batch_for(first, settings)):
            fingerprint.update(batch.arrays)
            outputs = first.run(batch.arrays), second.run(batch.arrays)
            comparison.update(*outputs, batch.labels, examples=len(batch.rows))
            if advance is not None:
                advance(len(batch.rows))
        feeds = next(examples.batches(1)).arrays
        times = measure([first, second], feeds)
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
    advance: Advance | None = None,
) -> Scored:
    """Run one model over the examples and tally its accuracy, loss and latency."""
    tally, fingerprint = Tally(confidence, classes), Fingerprint(keep=False)
    with open_session(model, settings) as session:
        for batch in examples.batches(batch_for(session, settings)):
            fingerprint.update(batch.arrays)
            tally.update(session.run(batch.arrays), batch.labels, examples=len(batch.rows))
            if advance is not None:
                advance(len(batch.rows))
        times = measure([session], next(examples.batches(1)).arrays)
        return Scored(tally.result(), fingerprint, times[0], session.providers)


def fingerprint_of(examples: Examples, size: int = 64) -> Fingerprint:
    """Return the fingerprint of all examples, digests kept (see ``shared_examples``)."""
    found = Fingerprint(keep=True)
    for batch in examples.batches(size):
        found.update(batch.arrays)
    return found


def latency_figures(original: Latency, compressed: Latency) -> dict[str, Any]:
    """Return the report's latency object: milliseconds at one example a run, and the ratio of the medians."""
    ratio = compressed.median_ms / original.median_ms if original.median_ms else None
    return {
        "batch": original.batch,
        "original_ms": original.median_ms,
        "compressed_ms": compressed.median_ms,
        "ratio": ratio,
        "original_p90_ms": original.p90_ms,
        "compressed_p90_ms": compressed.p90_ms,
        "runs": original.runs,
    }
