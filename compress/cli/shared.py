"""Options that several verbs share, and how results and progress are shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from onnxprune.api import Gates, Options
    from onnxprune.report.pictures import Pictures
    from onnxprune.report.report import Report

Function = TypeVar("Function", bound=Callable[..., Any])

DATA_HELP = (
    "examples: digits[:train|:test], x.npz, x.npy, a folder or zip of class folders, "
    "mnist:ROOT[:split], cifar10:ROOT[:split], imagenet:ROOT[:split], script.py:func, random"
)


def work_options(function: Function) -> Function:
    """Add the options about where and how to run: providers, batch size, threads, seed, preprocessing."""
    return _added(
        function,
        click.option(
            "--providers",
            metavar="LIST",
            help="execution providers in order, such as cuda,cpu  [default: auto]",
        ),
        click.option(
            "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="examples per run"
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), help="threads of ONNX Runtime  [default: its own choice]"
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="seed of every random choice",
        ),
        click.option("--preprocess", metavar="FILE", help="YAML or JSON file; overrides the model's own metadata"),
        click.option("--download", is_flag=True, help="let mnist:, cifar10: download what is missing"),
    )


def run_options(function: Function) -> Function:
    """Add the options of :func:`work_options`, how many examples to evaluate on, and the confidence."""
    judging = _added(
        function,
        click.option(
            "--eval-examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="evaluate on N examples  [default: all]",
        ),
        click.option(
            "--confidence",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=0.95,
            show_default=True,
            help="of every interval and bound",
        ),
    )
    return work_options(judging)


def gate_options(function: Function) -> Function:
    """Add the gates, the reports and ``--json``."""
    share = click.FloatRange(0, 1)
    return _added(
        function,
        click.option(
            "--min-agreement",
            type=share,
            metavar="A",
            help="gate: lower bound of the agreement with the original; in apply also what passes without a size hold",
        ),
        click.option("--max-accuracy-drop", type=share, metavar="D", help="gate: accuracy lost, as a fraction"),
        click.option(
            "--report",
            "reports",
            multiple=True,
            metavar="FILE",
            help="write the report as .json, .md or .html (repeatable)",
        ),
        click.option("--json", "as_json", is_flag=True, help="print the report as JSON on stdout"),
    )


def _added(function: Function, *decorators: Callable[[Function], Function]) -> Function:
    """Decorate a command so that its help lists the options in the order given."""
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def make_options(**given: Any) -> Options:
    """Return the API's options from the command line's, with progress bars on a terminal."""
    from onnxprune.api import Options

    return Options(progress=progress_bars if sys.stderr.isatty() else None, **given)


def make_gates(min_agreement: float | None, max_accuracy_drop: float | None) -> Gates:
    """Return the API's gates from the command line's."""
    from onnxprune.api import Gates

    return Gates(min_agreement, max_accuracy_drop)


@contextlib.contextmanager
def progress_bars(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show one progress bar on stderr while a task runs."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total)
        yield lambda count: bars.advance(task, count)


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout: as a table, or as JSON."""
    if as_json:
        click.echo(report.to_json(), nl=False)
        return
    from rich.console import Console

    from onnxprune.report.table import render

    render(report, Console())


def write_reports(report: Report, paths: tuple[str, ...], pictures: Pictures | None) -> None:
    """Write a report to every path asked for and say so on stderr; pictures of examples are for a page only."""
    from onnxprune.report.write import write_report

    shown: dict[int, str] = {}
    if pictures is not None and any(path.lower().endswith(".html") for path in paths):
        shown = pictures.of(report)
    for path in paths:
        write_report(report, path, shown)
        click.echo(f"wrote {path}", err=True)


def check_reports(paths: tuple[str, ...], forms: tuple[str, ...] | None = None) -> None:
    """Refuse report paths that cannot be written to, or end in none of the forms' suffixes, before any work."""
    from onnxprune.report.write import FORMS, check_report_path

    for path in paths:
        check_report_path(path, tuple(FORMS) if forms is None else forms)
