"""The report's tables as rows of text: what every view (Markdown, terminal, HTML) shows, said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.budget import MAX_BYTES, Gate
from onnxprune.evaluate.evidence import Accuracy, Agreement
from onnxprune.evaluate.intervals import clopper_pearson
from onnxprune.report.figures import UNKNOWN, interval, number, percent, points, settings
from onnxprune.report.report import DataUsed, Report, Step

WORST_CLASSES = 50
"""How many classes a table shows, the worst first; the JSON report has them all."""


@dataclass(frozen=True)
class Grid:
    """A table as text; the first ``words`` columns hold words, the others figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1


def cost_grid(report: Report) -> Grid | None:
    """Return each cost before, after, and their ratio; FLOPs are twice the MACs. None where no models are known."""
    cost = report.cost
    if cost is None:
        return None
    named = (
        ("parameters", cost.params, 1),
        ("nonzero weights", cost.nonzero, 1),
        ("MACs", cost.macs, 1),
        ("FLOPs (2 x MACs)", cost.macs, 2),
        ("weight bytes", cost.bytes, 1),
    )
    rows = []
    for name, change, times in named:
        before, after = (None if figure is None else figure * times for figure in (change.before, change.after))
        rows.append((name, number(before), number(after), percent(change.ratio)))
    return Grid(("cost", "before", "after", "ratio"), tuple(rows))


def agreement_grid(agreement: Agreement) -> Grid:
    """Return top-1 and top-5 agreement with their intervals."""
    named = [("same top-1", agreement.top1)]
    if agreement.top5 is not None:
        named.append(("top-1 still in top-5", agreement.top5))
    rows = [(name, percent(share.rate), interval(share.low, share.high)) for name, share in named]
    if agreement.certified is not None:
        rows.append(("certainly kept", percent(agreement.certified), "-"))
    level = f"{percent(agreement.top1.confidence)} interval"
    return Grid(("agreement", "rate", level), tuple(rows))


def accuracy_ends(share: float, examples: int, confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of an accuracy, of which the report holds the share alone."""
    return clopper_pearson(round(share * examples), examples, confidence)


def accuracy_grid(accuracy: Accuracy, examples: int, confidence: float) -> Grid:
    """Return both models' accuracy with intervals, top-5 and loss, and the change with its p-value."""
    rows = []
    for name, share in (("original", accuracy.original), ("compressed", accuracy.compressed)):
        ends = accuracy_ends(share, examples, confidence)
        rows.append((f"{name} top-1", percent(share), interval(*ends)))
    # The sign is the reader's: a drop of 0.3 points is a change of -0.3.
    change = "" if accuracy.drop_low is None or accuracy.drop_high is None else change_ends(accuracy)
    rows.append(("change", points(-accuracy.drop), change))
    rows.append(("McNemar p", f"{accuracy.mcnemar_p:.3g}", ""))
    if accuracy.top5 is not None:
        rows.append(("original top-5", percent(accuracy.top5.original), ""))
        rows.append(("compressed top-5", percent(accuracy.top5.compressed), ""))
    rows.append(("original loss (nats)", number(accuracy.loss.original), ""))
    rows.append(("compressed loss (nats)", number(accuracy.loss.compressed), ""))
    if accuracy.calibration_error is not None:
        rows.append(("original calibration error", percent(accuracy.calibration_error.original), ""))
        rows.append(("compressed calibration error", percent(accuracy.calibration_error.compressed), ""))
    return Grid(("accuracy", "figure", f"{percent(confidence)} interval"), tuple(rows))


def change_ends(accuracy: Accuracy) -> str:
    """Return the two ends of the change's paired interval in points; the sign is that of a change, not of a drop."""
    low, high = -(accuracy.drop_high or 0.0), -(accuracy.drop_low or 0.0)
    return " to ".join(points(end).removesuffix(" points") for end in (low, high))


def class_grid(agreement: Agreement, accuracy: Accuracy | None) -> Grid:
    """Return classes, the lowest agreement first; accuracy columns only where there are labels."""
    judged = {each.label: each for each in accuracy.per_class} if accuracy else {}
    columns = ["class", "decisions", "agreement", f"{percent(agreement.top1.confidence)} interval"]
    if accuracy:
        columns += ["labelled", "accuracy before", "after"]
    rows = []
    for each in sorted(agreement.per_class, key=lambda each: each.rate)[:WORST_CLASSES]:
        row = [each.label, number(each.count), percent(each.rate), interval(each.low, each.high)]
        if accuracy:
            own = judged.get(each.label)
            row += [number(own.count), percent(own.original), percent(own.compressed)] if own else ["0", "-", "-"]
        rows.append(tuple(row))
    return Grid(tuple(columns), tuple(rows))


def confusion_grid(agreement: Agreement) -> Grid:
    """Return the most frequent changes of decision."""
    rows = tuple((before, after, number(count)) for before, after, count in agreement.flips.confusion)
    return Grid(("original decided", "compressed decides", "times"), rows, words=2)


def margin_grid(agreement: Agreement) -> Grid | None:
    """Return examples and changed decisions by the original's margin; None where no decision changed."""
    bins = agreement.flips.margins
    if not any(each.flipped for each in bins):
        return None
    rows, before = [], 0.0
    for each in bins:
        share = percent(each.flipped / each.examples) if each.examples else "-"
        rows.append((f"{100 * before:g}-{percent(each.up_to)}", number(each.examples), number(each.flipped), share))
        before = each.up_to
    return Grid(("original's margin", "examples", "changed", "share"), tuple(rows))


def flip_grid(agreement: Agreement) -> Grid:
    """Return the changed decisions that the original was surest of."""
    labelled = any(each.label is not None for each in agreement.flips.examples)
    rows = []
    for each in agreement.flips.examples:
        label = [each.label or "-"] if labelled else []
        rows.append(
            (each.before, each.after, *label, number(each.index), *map(percent, (each.confidence, each.margin)))
        )
    columns = ("original decided", "compressed decides", *(["label"] if labelled else []))
    return Grid((*columns, "example", "original's confidence", "margin"), tuple(rows), words=len(columns))


def latency_grid(report: Report) -> Grid | None:
    """Return both models' times a run; None where they were not measured."""
    times = report.latency
    if times is None or "original_ms" not in times:
        return None
    rows = tuple(
        (name, *(number(times.get(f"{name}_{key}")) for key in ("ms", "p90_ms"))) for name in ("original", "compressed")
    )
    return Grid(("model", "median (ms)", "90 % of the runs within (ms)"), rows)


def output_grid(report: Report) -> Grid:
    """Return how far every output moved."""
    rows = tuple(
        (
            each.name,
            each.kind,
            *map(_dash, (each.max_abs, each.mean_abs, each.rel_l2, each.cosine, each.r2, each.equal)),
        )
        for each in report.outputs
    )
    columns = ("output", "kind", "max abs", "mean abs", "relative L2", "cosine", "R2", "equal")
    return Grid(columns, rows, words=2)


def step_grid(report: Report, *, full: bool) -> Grid:
    """Return the model's cost after every step; ``full`` with options and agreement, which is wide."""
    judged = full and any(step.agreement is not None for step in report.steps)
    rows = []
    for place, step in enumerate(report.steps, 1):
        cost, kept = step.cost, step.agreement
        figures = (cost.params, cost.nonzero, cost.macs, cost.bytes) if cost else (None,) * 4
        name = step.pass_name
        if full:
            name = step.recipe or (f"{name}({settings(step.options)})" if step.options else name)
        rates = [f"{percent(kept.rate)} ({interval(kept.low, kept.high)})" if kept else UNKNOWN] if judged else []
        rows.append((f"{place}. {name}", *map(number, figures), *rates, f"{step.seconds:.1f}"))
    columns = ("after step", "parameters", "nonzero", "MACs", "bytes", *(["agreement"] if judged else []), "seconds")
    return Grid(columns, tuple(rows))


def skipped_grid(step: Step) -> Grid:
    """Return the nodes a step left alone, with its reasons."""
    rows = tuple((each.node, each.reason) for each in step.skipped)
    return Grid(("node", "left as it was because"), rows, words=2)


def layer_grid(step: Step) -> Grid | None:
    """Return a step's figures per layer, columns in the order they first appear; None where it gives none."""
    return _list_grid(step.numbers.get("layers"))


def list_grids(step: Step) -> dict[str, Grid]:
    """Return every list of objects among a step's numbers (layers, pairs, a trajectory) as a table, by its name."""
    found = {}
    for key, value in step.numbers.items():
        grid = search_grid(step) if key == "search" and step.trials else _list_grid(value)
        if grid is not None:
            found[key] = grid
    return found


def _list_grid(value: object) -> Grid | None:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(each, Mapping) for each in value):
        return None
    columns = tuple(dict.fromkeys(str(key) for row in value for key in row))
    return Grid(columns, tuple(tuple(number(row[key]) if key in row else "-" for key in columns) for row in value))


def search_grid(step: Step) -> Grid | None:
    """Return the sizes that a search tried, in order, with what each kept; None where nothing was searched for."""
    if not step.trials:
        return None
    rows = tuple((number(t["size"]), percent(t["agreement"]), percent(t["low"]), _met(t["met"])) for t in step.trials)
    return Grid(("size tried", "agreement", "lower bound", "holds"), rows)


def gate_grid(report: Report) -> Grid:
    """Return every gate, what was wanted and what was got."""
    rows = tuple(
        (gate.name, _bound(gate, gate.wanted), _bound(gate, gate.got), _met(gate.met)) for gate in report.gates
    )
    return Grid(("gate", "wanted", "got", "met"), rows)


def _bound(gate: Gate, figure: float | None) -> str:
    """Write a gate's figure: whole bytes, and six digits elsewhere, so that a near miss shows."""
    if figure is None:
        return UNKNOWN
    return number(round(figure)) if gate.name == MAX_BYTES else f"{figure:.6g}"


def data_grid(data: DataUsed) -> Grid:
    """Return the examples of both sides."""
    named = [("calibration", data.calib), ("evaluation", data.eval)]
    if data.choosing is not None:
        named.insert(1, ("choosing", data.choosing))
    rows = tuple(
        (name, side.source, number(side.examples), side.sha256 or UNKNOWN) if side else (name, "none", "0", "-")
        for name, side in named
    )
    return Grid(("data", "source", "examples", "sha256"), rows, words=2)


def pair_grid(title: str, pairs: Mapping[str, Any]) -> Grid:
    """Return names and values as two columns."""
    return Grid((title, "value"), tuple((name, number(value)) for name, value in pairs.items()), words=2)


def _dash(figure: float | None) -> str:
    return "-" if figure is None else number(figure)


def _met(met: bool) -> str:
    return "yes" if met else "NO"
