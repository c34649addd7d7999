"""What has to hold of a result: every gate that was asked for, judged by what the examples and the clock showed."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.api.options import Gates
from onnxprune.budget import (
    MAX_BYTES,
    Gate,
    accuracy_drop_gate,
    agreement_gate,
    below,
    bytes_gate,
    latency_gate,
    verdict,
)
from onnxprune.evaluate.evidence import Evidence
from onnxprune.evaluate.intervals import examples_needed, lower_bound
from onnxprune.report.figures import amount
from onnxprune.runtime.timing import Ratio

_UNJUDGED = "no output holds class scores to judge it by"


def judge_gates(asked: Gates, evidence: Evidence, confidence: float, ratio: Ratio | None = None) -> list[Gate]:
    """Return the gates on decisions and time, judged; that on the file waits until there is one.

    Args:
        asked: what must hold.
        evidence: what the examples showed.
        confidence: of the one-sided lower bounds of agreement, in (0, 1).
        ratio: the latency of the result over the original's; None where none was measured.
    """
    gates = []
    if asked.min_agreement is not None:
        gates.append(_agreement(asked.min_agreement, evidence, confidence))
    if asked.max_accuracy_drop is not None:
        accuracy = evidence.accuracy
        gates.append(accuracy_drop_gate(None if accuracy is None else accuracy.drop, asked.max_accuracy_drop))
    if asked.min_class_agreement is not None:
        gates.append(_class_agreement(asked.min_class_agreement, evidence, confidence))
    if asked.max_class_accuracy_drop is not None:
        gates.append(_class_accuracy_drop(asked.max_class_accuracy_drop, evidence))
    if asked.max_latency_ratio is not None:
        gates.append(_latency(asked.max_latency_ratio, ratio))
    return gates


def judge_file(asked: Gates, size: int) -> list[Gate]:
    """Return the gate on a file of ``size`` bytes, where there is one."""
    return [] if asked.max_bytes is None else [bytes_gate(size, asked.max_bytes)]


def judged_anew(gates: Sequence[Gate], size: int) -> tuple[Gate, ...]:
    """Return the same gates, that on the file judged by ``size`` bytes."""
    return tuple(bytes_gate(size, int(gate.wanted)) if gate.name == MAX_BYTES else gate for gate in gates)


def judges_file(gates: Sequence[Gate]) -> bool:
    """Tell whether a gate is on the file."""
    return any(gate.name == MAX_BYTES for gate in gates)


def _agreement(wanted: float, evidence: Evidence, confidence: float) -> Gate:
    agreement = evidence.agreement
    if agreement is None:
        message = f"agreement at least {wanted:g}: {_unjudged(evidence)}: not met"
        return Gate("min_agreement", wanted, None, False, message)
    hits, count = agreement.flips.kept, agreement.examples
    low, needed = lower_bound(hits, count, confidence), examples_needed(wanted, confidence)
    return agreement_gate(hits, count, wanted, confidence, low=low, needed=needed)


def _unjudged(evidence: Evidence) -> str:
    """Return why there is no agreement."""
    if any(each.judged and each.kind == "class maps" for each in evidence.outputs):
        return "not judged on class maps, whose positions are no independent examples"
    return _UNJUDGED


def _class_agreement(wanted: float, evidence: Evidence, confidence: float) -> Gate:
    """Judge every class of the original's decisions by its own one-sided lower bound.

    No bound needs to be stricter for there being many: whatever the number of classes, a model in which one of them
    is below ``wanted`` passes only where that one's bound misleads (intersection-union test: Berger, 1982).
    """
    name, agreement = "min_class_agreement", evidence.agreement
    said = f"agreement of every class at least {wanted:g}"
    if agreement is None:
        return Gate(name, wanted, None, False, f"{said}: {_unjudged(evidence)}: not met")
    rows = [(each, round(each.rate * each.count)) for each in agreement.per_class]
    found = [(each, kept, lower_bound(kept, each.count, confidence)) for each, kept in rows]
    worst, kept, low = min(found, key=lambda row: row[2])
    short = [each for each, _, bound in found if bound < wanted]
    said += f": lowest lower bound {below(low)} at {100 * confidence:g} % ('{worst.label}': "
    said += f"{amount(worst.count, 'example')}, {kept:,} agree); "
    said += f"{_classes(len(short), len(found))} {'falls' if len(short) == 1 else 'fall'} short: {verdict(not short)}"
    needed = examples_needed(wanted, confidence)
    few = [each for each in short if needed is not None and each.count < needed]
    if short and needed is None:
        said += f"; no number of examples can prove an agreement of {wanted:g}"
    elif few:
        least = min(few, key=lambda each: each.count)
        said += f"; {amount(least.count, 'example')} of '{least.label}' cannot prove it even for an identical model"
        said += f" ({_classes(len(few), len(found))} with too few); at least {needed:,} of each class would"
    said += _left_out(evidence, len(found), "which the original never chose on these examples")
    return Gate(name, wanted, low, not short, said)


def _class_accuracy_drop(wanted: float, evidence: Evidence) -> Gate:
    """Judge the largest drop of accuracy among the true classes, as measured."""
    name, accuracy = "max_class_accuracy_drop", evidence.accuracy
    said = f"accuracy drop of every class at most {wanted:g}"
    if accuracy is None:
        why = _UNJUDGED if evidence.agreement is None else "no labels to judge it by"
        return Gate(name, wanted, None, False, f"{said}: {why}: not met")
    found = []
    for each in accuracy.per_class:
        was, now = (round(share * each.count) for share in (each.original, each.compressed))
        # One division: the difference of two rounded shares could miss a gate that it meets exactly.
        found.append((each, was, now, (was - now) / each.count))
    worst, was, now, drop = max(found, key=lambda row: row[3])
    beyond = sum(row[3] > wanted for row in found)
    said += f": largest {drop:.6g} ('{worst.label}': {amount(worst.count, 'example')}, {was:,} right before, {now:,} "
    said += f"after); {_classes(beyond, len(found))} {'goes' if beyond == 1 else 'go'} beyond: {verdict(not beyond)}"
    said += _left_out(evidence, len(found), "of which there are no examples")
    return Gate(name, wanted, drop, not beyond, said)


def _latency(wanted: float, ratio: Ratio | None) -> Gate:
    if ratio is None:
        return latency_gate(None, wanted, "there is no time of both models that the clock shows")
    if ratio.high is None:
        return latency_gate(None, wanted, f"ratio {ratio.value:.4g}, in too few runs for an interval")
    return latency_gate(ratio.high, wanted, f"ratio {ratio.value:.4g}, {100 * ratio.confidence:g} % interval")


def _left_out(evidence: Evidence, judged: int, why: str) -> str:
    if evidence.classes is None or evidence.classes <= judged:
        return ""
    return f"; {_classes(evidence.classes - judged, evidence.classes)} left out, {why}"


def _classes(count: int, of: int) -> str:
    return f"{count:,} of {of:,} {'class' if of == 1 else 'classes'}"
