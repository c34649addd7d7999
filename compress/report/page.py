"""The report as one HTML page that needs nothing else: no network, no script, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report import charts
from onnxprune.report.grids import (
    WORST_CLASSES,
    Grid,
    accuracy_grid,
    agreement_grid,
    class_grid,
    confusion_grid,
    cost_grid,
    data_grid,
    flip_grid,
    latency_grid,
    list_grids,
    margin_grid,
    output_grid,
    pair_grid,
    skipped_grid,
    step_grid,
)
from onnxprune.report.kind_grids import kind_grids
from onnxprune.report.report import SCHEMA, Report, Step
from onnxprune.report.templates import template
from onnxprune.report.verdict import (
    MADE_UP_DATA,
    SMALLER_NOT_FASTER,
    data_sentence,
    flips_sentence,
    latency_sentence,
    margins_sentence,
    only_zeros,
    outcome,
    search_sentence,
    size_sentences,
    speed_sentence,
    worst_class,
)

ROWS = 200
"""How many rows of a table the page shows; the JSON report has them all."""

# Longer tables are folded at first.
_OPEN = 30


def page(report: Report, pictures: Mapping[int, str] | None = None) -> str:
    """Return the report as an HTML document, the same text for the same report and pictures.

    Args:
        report: the report.
        pictures: PNG data URIs by the index of a changed decision (see ``report.pictures``); others have none.
    """
    from markupsafe import Markup

    drawn = {
        "ratios": charts.ratio_chart(report),
        "intervals": charts.interval_chart(report),
        "classes": charts.class_chart(report),
    }
    return template("page.html").render(
        report=report,
        charts={name: None if svg is None else Markup(svg) for name, svg in drawn.items()},
        steps=[_step(step, place) for place, step in enumerate(report.steps, 1)],
        pictures={index: uri for index, uri in (pictures or {}).items() if uri.startswith("data:image/png;base64,")},
        **_verdict(report),
        **_tables(report),
    )


def _verdict(report: Report) -> dict[str, Any]:
    """Return what is said first: gates, decisions, sizes, speed."""
    missed = [gate for gate in report.gates if not gate.met]
    if not report.gates:
        state, headline = "open", "No gate was asked for"
    elif missed:
        state, headline = "missed", f"{len(missed)} of {len(report.gates)} gates NOT met"
        if len(report.gates) == 1:
            headline = "The gate is NOT met"
    else:
        state, headline = "met", "The gate is met" if len(report.gates) == 1 else "All gates are met"
    said = size_sentences(report)
    if only_zeros(report):
        said.append(SMALLER_NOT_FASTER)
    speed = speed_sentence(report)
    said += [] if speed is None else [speed]
    return {
        "state": state,
        "headline": headline,
        "outcome": outcome(report),
        "said": said,
        "warned": [*([MADE_UP_DATA] if report.data.synthetic else []), *report.warnings],
    }


def _tables(report: Report) -> dict[str, Any]:
    agreement, accuracy = report.agreement, report.accuracy
    flips = agreement.flips if agreement is not None else None
    facts = {"providers": ", ".join(report.providers) or "none", "seed": str(report.seed), **report.versions}
    return {
        "cost": cost_grid(report),
        "agreement": None if agreement is None else agreement_grid(agreement),
        "accuracy": None
        if agreement is None or accuracy is None
        else accuracy_grid(accuracy, agreement.examples, agreement.top1.confidence),
        "classes": None if agreement is None else class_grid(agreement, accuracy),
        "classes_left_out": 0 if agreement is None else max(0, len(agreement.per_class) - WORST_CLASSES),
        "decisions": None
        if agreement is None
        else " ".join(filter(None, (flips_sentence(agreement), worst_class(agreement)))),
        "confusion": confusion_grid(agreement) if agreement is not None and flips and flips.confusion else None,
        "closeness": None if agreement is None else margins_sentence(agreement),
        "margins": None if agreement is None else margin_grid(agreement),
        "flips": flip_grid(agreement) if agreement is not None and flips and flips.examples else None,
        "outputs": output_grid(report) if report.outputs else None,
        "kinds": kind_grids(report.outputs),
        "kl": None if report.output_error is None else report.output_error.kl,
        "after_steps": step_grid(report, full=True) if report.steps else None,
        "latency": latency_grid(report),
        "timed": latency_sentence(report),
        "data": data_grid(report.data),
        "data_said": "" if report.data.eval is None else data_sentence(report),
        "made_with": pair_grid("fact", {**facts, "schema": SCHEMA}),
    }


@dataclass(frozen=True)
class _Table:
    """A table of a step, under its name; a long one is cut and folded."""

    name: str
    grid: Grid
    left_out: int
    unfolded: bool


@dataclass(frozen=True)
class _Shown:
    """A step as the page shows it."""

    title: str
    searched: str | None
    chart: Any
    numbers: Grid | None
    tables: tuple[_Table, ...]


def _step(step: Step, place: int) -> _Shown:
    from markupsafe import Markup

    lists = list_grids(step)
    others = {key: value for key, value in step.numbers.items() if key not in lists}
    chart = charts.trial_chart(step, place)
    tables = [_table(name, grid) for name, grid in lists.items()]
    if step.skipped:
        tables.append(_table("left as they were", skipped_grid(step)))
    return _Shown(
        title=f"{place}. {step.recipe or step.pass_name}",
        searched=search_sentence(step),
        chart=None if chart is None else Markup(chart),
        numbers=pair_grid("number", others) if others else None,
        tables=tuple(tables),
    )


def _table(name: str, grid: Grid) -> _Table:
    shown = Grid(grid.columns, grid.rows[:ROWS], grid.words)
    return _Table(name, shown, len(grid.rows) - len(shown.rows), len(shown.rows) <= _OPEN)
