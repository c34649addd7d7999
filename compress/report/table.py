"""The report on a terminal: compact tables that fit 80 columns, plain text where there is no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.report.grids import Grid, accuracy_grid, agreement_grid, cost_grid, step_grid
from onnxprune.report.kind_grids import kind_grids
from onnxprune.report.report import Report
from onnxprune.report.verdict import (
    agreement_sentence,
    data_sentence,
    flips_sentence,
    latency_sentence,
    margins_sentence,
    remarks,
    search_sentence,
    verdict,
    worst_class,
)

if TYPE_CHECKING:
    from rich.console import Console

SKIPPED = 5
"""How many skipped nodes a step names; the Markdown and JSON reports have them all."""


def render(report: Report, console: Console) -> None:
    """Print the report compactly: verdict, cost, decisions, steps, gates, warnings."""
    agreement, accuracy = report.agreement, report.accuracy
    # No line of a report is markup: a node may well be called "[red]".
    say(console, verdict(report), "bold")
    for remark in remarks(report):
        say(console, remark, "yellow")
    cost = cost_grid(report)
    if cost is not None:
        show_grid(console, cost)
    if agreement is not None:
        show_grid(console, agreement_grid(agreement))
        if accuracy is not None:
            show_grid(console, accuracy_grid(accuracy, agreement.examples, agreement.top1.confidence))
        console.print()
        say(
            console,
            " ".join(filter(None, (flips_sentence(agreement), margins_sentence(agreement), worst_class(agreement)))),
        )
    for grid in kind_grids(report.outputs):
        show_grid(console, grid)
    if agreement is None and report.outputs:
        console.print()
    say(console, data_sentence(report))
    timed = latency_sentence(report)
    if timed is not None:
        say(console, timed)
    if report.steps:
        show_grid(console, step_grid(report, full=False))
        kept = agreement_sentence(report)
        if kept is not None:
            say(console, kept)
        for step in report.steps:
            tried = search_sentence(step)
            if tried is not None:
                say(console, tried)
        _skipped(report, console)
    if report.gates:
        console.print()
        for gate in report.gates:
            say(console, gate.message, "green" if gate.met else "bold red")
    if report.warnings:
        console.print()
    for warning in report.warnings:
        say(console, f"warning: {warning}", "yellow")


def _skipped(report: Report, console: Console) -> None:
    for step in report.steps:
        for each in step.skipped[:SKIPPED]:
            say(console, f"{step.pass_name} left {each.node}: {each.reason}", "dim")
        if len(step.skipped) > SKIPPED:
            say(console, f"{step.pass_name} left {len(step.skipped) - SKIPPED} more nodes as they were", "dim")


def show_grid(console: Console, grid: Grid) -> None:
    """Print a table, an empty line in front."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False, header_style="bold")
    for place, column in enumerate(grid.columns):
        is_words = place < grid.words
        table.add_column(Text(column), justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    console.print()
    console.print(table)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line that is no markup: a file may well be called "[red].onnx"."""
    from rich.text import Text

    console.print(Text(text, style=style, overflow="fold"))
