"""The report as Markdown: verdict first, then every table with what it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnxprune.report.figures import amount, number
from onnxprune.report.grids import (
    WORST_CLASSES,
    Grid,
    accuracy_grid,
    agreement_grid,
    class_grid,
    confusion_grid,
    cost_grid,
    data_grid,
    gate_grid,
    layer_grid,
    margin_grid,
    output_grid,
    pair_grid,
    search_grid,
    skipped_grid,
    step_grid,
)
from onnxprune.report.kind_grids import kind_grids
from onnxprune.report.report import SCHEMA, Report, Step
from onnxprune.report.verdict import flips_sentence, latency_sentence, margins_sentence, remarks, verdict, worst_class


def markdown(report: Report) -> str:
    """Return the report as Markdown text (tables in the GitHub form), the same text for the same report."""
    blocks = [
        "# onnxprune report",
        f"**{verdict(report)}**",
        *remarks(report),
        *_models(report),
        *_cost(report),
        *_gates(report),
        *_decisions(report),
        *_outputs(report),
        *_steps(report),
        *_latency(report),
        *_data(report),
        *_warnings(report),
        *_made_with(report),
    ]
    return "\n\n".join(blocks) + "\n"


def summary(report: Report) -> str:
    """Return the report in short, for a place that gathers results such as a job's page: verdict, gates, cost."""
    agreement = report.agreement
    kept = () if agreement is None else (flips_sentence(agreement), worst_class(agreement))
    blocks = [
        f"# onnxprune: {_state(report)}",
        f"**{verdict(report)}**",
        *remarks(report),
        *_models(report),
        *_gates(report),
        *_cost(report),
        _text(" ".join(filter(None, (*kept, latency_sentence(report))))),
        *_warnings(report),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _state(report: Report) -> str:
    if not report.gates:
        return "no gate was asked for"
    count = len(report.gates)
    if report.met:
        return "the gate is met" if count == 1 else f"all {count} gates are met"
    return f"{sum(not gate.met for gate in report.gates)} of {amount(count, 'gate')} NOT met"


def _models(report: Report) -> Iterator[str]:
    source = report.source
    opset = "" if source.opset is None else f", opset {source.opset}"
    lines = [f"- source: {code_text(source.path)}{opset}, sha256 {source.sha256}"]
    if report.result is None:
        lines.append("- result: no model was written")
    else:
        written = f"{number(report.result.bytes)} bytes, sha256 {report.result.sha256}"
        lines.append(f"- result: {code_text(report.result.path)}, {written}")
    if report.recipe is not None:
        lines.append(f"- recipe: {code_text(report.recipe)}")
    yield "\n".join(lines)


def _cost(report: Report) -> Iterator[str]:
    cost = cost_grid(report)
    if cost is not None:
        yield "## Cost"
        yield grid_text(cost)


def _gates(report: Report) -> Iterator[str]:
    if report.gates:
        yield "## Gates"
        yield grid_text(gate_grid(report))
        yield "\n".join(f"- {_text(gate.message)}" for gate in report.gates)


def _decisions(report: Report) -> Iterator[str]:
    agreement, accuracy = report.agreement, report.accuracy
    if agreement is None:
        return
    yield "## Decisions"
    yield grid_text(agreement_grid(agreement))
    yield _text(" ".join(filter(None, (flips_sentence(agreement), worst_class(agreement)))))
    if agreement.flips.confusion:
        yield grid_text(confusion_grid(agreement))
    closeness, margins = margins_sentence(agreement), margin_grid(agreement)
    if closeness is not None and margins is not None:
        yield _text(closeness)
        yield grid_text(margins)
    if accuracy is not None:
        yield "## Accuracy"
        yield grid_text(accuracy_grid(accuracy, agreement.examples, agreement.top1.confidence))
    yield "## Classes"
    if len(agreement.per_class) > WORST_CLASSES:
        total = number(len(agreement.per_class))
        yield f"The {WORST_CLASSES} worst of {total} classes; the JSON report has them all."
    yield grid_text(class_grid(agreement, accuracy))


def _outputs(report: Report) -> Iterator[str]:
    if not report.outputs:
        return
    yield "## Outputs"
    yield grid_text(output_grid(report))
    yield from map(grid_text, kind_grids(report.outputs))
    if report.output_error is not None and report.output_error.kl is not None:
        yield f"Mean KL divergence from the original: {number(report.output_error.kl)} nats."


def _steps(report: Report) -> Iterator[str]:
    if not report.steps:
        return
    yield "## Steps"
    yield grid_text(step_grid(report, full=True))
    for place, step in enumerate(report.steps, 1):
        told = list(_step(step))
        if told:
            yield f"### {place}. {_text(step.pass_name)}"
            yield from told


def _step(step: Step) -> Iterator[str]:
    layers, tried = layer_grid(step), search_grid(step)
    shown = {key for key, grid in (("layers", layers), ("search", tried)) if grid is not None}
    others = {key: value for key, value in step.numbers.items() if key not in shown}
    if others:
        yield grid_text(pair_grid("number", others))
    if tried is not None:
        yield grid_text(tried)
    if layers is not None:
        yield grid_text(layers)
    if step.skipped:
        yield grid_text(skipped_grid(step))


def _latency(report: Report) -> Iterator[str]:
    if report.latency is not None:
        yield "## Latency"
        timed = latency_sentence(report)
        if timed is not None:
            yield timed
        yield grid_text(pair_grid("figure", report.latency))


def _data(report: Report) -> Iterator[str]:
    yield "## Data"
    yield grid_text(data_grid(report.data))


def _warnings(report: Report) -> Iterator[str]:
    if report.warnings:
        yield "## Warnings"
        yield "\n".join(f"- {_text(warning)}" for warning in report.warnings)


def _made_with(report: Report) -> Iterator[str]:
    yield "## Made with"
    facts = {"providers": ", ".join(report.providers) or "none", "seed": report.seed, **report.versions}
    yield grid_text(pair_grid("fact", {**facts, "schema": SCHEMA}))


def grid_text(grid: Grid) -> str:
    """Return a table in the GitHub form."""
    rules = ["---" if place < grid.words else "---:" for place in range(len(grid.columns))]
    lines = [map(_text, grid.columns), rules, *(map(_text, row) for row in grid.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line; underscores within words need no escape."""
    escaped = re.sub(r"([\\|<>*`\[\]])|(?<![^\W_])(_)|(_)(?![^\W_])", r"\\\g<0>", text)
    return " ".join(escaped.split())


def code_text(text: str) -> str:
    """Return text as code; two backticks around it where it holds one itself."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
