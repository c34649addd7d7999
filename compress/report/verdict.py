"""The report in one sentence, and the remarks no reader should miss."""

from __future__ import annotations

from onnxprune.evaluate.evidence import Agreement
from onnxprune.report.figures import UNKNOWN, amount, interval, number, percent, settings
from onnxprune.report.kind_grids import kind_sentence
from onnxprune.report.report import Report, Step

SMALLER_NOT_FASTER = (
    "Smaller, not faster: zeros were made, but ONNX Runtime computes with a zero as with any other weight. "
    "They pay off once the model is coded or zipped."
)
MADE_UP_DATA = "The inputs were made up at random: these figures say nothing about real data."


def verdict(report: Report) -> str:
    """Return one sentence: decisions, accuracy, size, gates."""
    parts = [_decisions(report), _accuracy(report), _size(report), _gates(report)]
    return "; ".join(part for part in parts if part) + "."


def outcome(report: Report) -> str:
    """Return one sentence: decisions and accuracy, without sizes and gates."""
    said = "; ".join(part for part in (_decisions(report), _accuracy(report)) if part) + "."
    return said[0].upper() + said[1:]


def remarks(report: Report) -> list[str]:
    """Return what must be said plainly beside the verdict."""
    said = []
    if only_zeros(report):
        said.append(SMALLER_NOT_FASTER)
    if report.data.synthetic:
        said.append(MADE_UP_DATA)
    return said


def only_zeros(report: Report) -> bool:
    """Tell whether the recipe made zeros and nothing that would run faster."""
    if report.cost is None:
        return False
    macs, nonzero = report.cost.macs.ratio, report.cost.nonzero.ratio
    return macs == 1 and nonzero is not None and nonzero < 1


def data_sentence(report: Report) -> str:
    """Say which examples calibrated and which judged."""
    used = report.data
    judged = "" if used.eval is None else f"Evaluated on {amount(used.eval.examples, 'example')} of {used.eval.source}"
    if used.calib is None:
        return f"{judged}; nothing was calibrated."
    return f"{judged}, calibrated on {amount(used.calib.examples, 'example')} of {used.calib.source}."


def flips_sentence(agreement: Agreement) -> str:
    """Return what became of the decisions."""
    flips = agreement.flips
    sentence = f"{flips.kept:,} of {amount(agreement.examples, 'decision')} kept, {flips.count:,} changed"
    if flips.lost is not None and flips.gained is not None and flips.count:
        sentence += f": {flips.lost:,} right to wrong, {flips.gained:,} wrong to right"
        sentence += f", {flips.changed_wrong or 0:,} wrong to another wrong"
    return sentence + "."


def worst_class(agreement: Agreement) -> str | None:
    """Return the class whose decisions changed most often, or None when none changed."""
    if not agreement.flips.count:
        return None
    # The lowest upper bound: one change among two examples is weaker evidence than thirty among a hundred.
    worst = min(agreement.per_class, key=lambda each: (each.high, each.rate))
    kept = f"{percent(worst.rate)} of {amount(worst.count, 'decision')} kept"
    return f"Worst class: {worst.label} ({kept}, {interval(worst.low, worst.high)})."


def margins_sentence(agreement: Agreement) -> str | None:
    """Say how many of the changes were near-ties of the original; None where no decision changed."""
    closest = next(iter(agreement.flips.margins), None)
    changed = sum(each.flipped for each in agreement.flips.margins)
    if closest is None or not changed:
        return None
    return (
        f"{closest.flipped:,} of {amount(changed, 'change')} {'is a near-tie' if changed == 1 else 'are near-ties'}: "
        f"the original's second choice was at most {100 * closest.up_to:g} points behind "
        f"({amount(closest.examples, 'example')} of {agreement.examples:,})."
    )


def search_sentence(step: Step) -> str | None:
    """Return the sizes that a search tried, in order, and what each kept; None where nothing was searched for."""
    if not step.trials:
        return None
    tried = (
        f"{number(t['size'])} {percent(t['agreement'])} ({percent(t['low'])}) {'yes' if t['met'] else 'no'}"
        for t in step.trials
    )
    wanted = percent(step.numbers.get("wanted_agreement"))
    return (
        f"{step.pass_name} searched for {wanted} agreement: {', '.join(tried)}; taken: {settings(step.options)} "
        "(each: size, kept, lower bound, holds)."
    )


def agreement_sentence(report: Report) -> str | None:
    """Return the agreement after every step; None where there is none to tell beside the verdict's."""
    if all(step.agreement is None for step in report.steps):
        return None
    told = (
        f"{step.pass_name} {UNKNOWN if step.agreement is None else percent(step.agreement.rate)}"
        for step in report.steps
    )
    return f"Agreement after every step: {', '.join(told)}."


def latency_sentence(report: Report) -> str | None:
    """Return both models' time per run, or None where they were not timed."""
    times = report.latency or {}
    before, after = times.get("original_ms"), times.get("compressed_ms")
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return None
    share, batch = percent(after / before), times.get("batch", 1)
    return f"Latency: {number(before)} ms before, {number(after)} ms after ({share}), batch {batch}."


def size_sentences(report: Report) -> list[str]:
    """Say which costs fell, and which did not."""
    cost = report.cost
    if cost is None:
        return []
    named = (
        ("FLOPs", cost.macs.ratio),
        ("parameters", cost.params.ratio),
        ("nonzero weights", cost.nonzero.ratio),
        ("weight bytes", cost.bytes.ratio),
    )
    fell = [f"{percent(ratio)} of the {word}" for word, ratio in named if ratio is not None and ratio < 1]
    stayed = [f"{word} {percent(ratio)}" for word, ratio in named if ratio is not None and ratio >= 1]
    said = [f"Smaller: {', '.join(fell)}."] if fell else []
    return said + ([f"Not smaller: {', '.join(stayed)}."] if stayed else [])


def speed_sentence(report: Report) -> str | None:
    """Say whether the result is faster, as far as the interval of the latency ratio tells; None where not timed."""
    times = report.latency or {}
    before, after = times.get("original_ms"), times.get("compressed_ms")
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return None
    ratio, low, high = after / before, times.get("low"), times.get("high")
    took = f"it takes {percent(ratio)} of the original's time"
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return f"Speed: {took}, in too few runs for an interval."
    ends = f"({percent(times.get('confidence'))} interval {interval(low, high)})"
    if only_zeros(report):
        # That it is not faster has been said: zeros alone change nothing, whichever side the clock takes.
        return f"Measured: {took} {ends}."
    if high < 1:
        return f"Faster: {took} {ends}."
    if low > 1:
        return f"{'Smaller, but slower' if _fell(report) else 'Slower'}: {took} {ends}."
    word = "Smaller, not faster" if _fell(report) else "Neither smaller nor faster"
    return f"{word}: its time cannot be told from the original's: {percent(ratio)} {ends}."


def _fell(report: Report) -> bool:
    cost = report.cost
    if cost is None:
        return False
    changes = (cost.params, cost.nonzero, cost.macs, cost.bytes)
    return any(each.ratio is not None and each.ratio < 1 for each in changes)


def _decisions(report: Report) -> str:
    if report.agreement is not None:
        top1 = report.agreement.top1
        kept = f"{report.agreement.flips.kept:,} of {amount(report.agreement.examples, 'decision')} kept"
        level = percent(top1.confidence)
        return f"{kept} ({percent(top1.rate)}, {level} interval {interval(top1.low, top1.high)})"
    said = [] if (told := kind_sentence(report.outputs)) is None else [told]
    if report.output_error is not None and report.output_error.rel_l2 is not None:
        said.append(f"outputs moved by {percent(report.output_error.rel_l2)} (relative L2)")
    if said:
        return "; ".join(said)
    return "decisions not judged"


def _accuracy(report: Report) -> str:
    if report.accuracy is None:
        return ""
    return f"accuracy {percent(report.accuracy.original)} before, {percent(report.accuracy.compressed)} after"


def _size(report: Report) -> str:
    cost = report.cost
    if cost is None:
        return ""
    named = [("FLOPs", cost.macs.ratio), ("parameters", cost.params.ratio)]
    if cost.nonzero.ratio != cost.params.ratio:
        named.append(("nonzero weights", cost.nonzero.ratio))
    named.append(("bytes", cost.bytes.ratio))
    known = [(word, ratio) for word, ratio in named if ratio is not None]
    if not known:
        return "size unknown"
    if all(ratio == 1 for _, ratio in known):
        return "the same size as the original"
    return ", ".join(f"{percent(ratio)} of the {word}" for word, ratio in known)


def _gates(report: Report) -> str:
    missed = sum(not gate.met for gate in report.gates)
    if not report.gates:
        return ""
    if not missed:
        return "the gate is met" if len(report.gates) == 1 else f"all {len(report.gates)} gates are met"
    if len(report.gates) == 1:
        return "the gate is NOT met"
    return f"{missed} of {len(report.gates)} gates NOT met"
