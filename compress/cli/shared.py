"""Options that several verbs share, and how results and progress are shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from onnxprune.api import Gates, Options
    from onnxprune.report.report import Report

Function = TypeVar("Function", bound=Callable[..., Any])

DATA_HELP = (
    "examples: digits[:train|:test], x.npz, x.npy, a folder or zip of class folders, "
    "mnist:ROOT[:split], fashion:ROOT[:split], cifar10:ROOT[:split], cifar100:ROOT[:split], imagenet:ROOT[:split], "
    "voxels[:train|:test], script.py:func, random"
)


def work_options(function: Function) -> Function:
    """Add the options about where and how to run: providers, batch size, threads, seed, preprocessing."""
    return added(
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
        click.option(
            "--download", is_flag=True, help="let mnist:, fashion:, cifar10:, cifar100: download what is missing"
        ),
    )


def run_options(function: Function) -> Function:
    """Add the options of :func:`work_options`, how many examples to evaluate on, and the confidence."""
    judging = added(
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
        output_kind_option,
    )
    return work_options(judging)


def output_kind_option(function: Function) -> Function:
    """Add ``--output-kind``."""
    return click.option(
        "--output-kind",
        "output_kinds",
        multiple=True,
        metavar="NAME=KIND",
        callback=_kinds,
        help="judge an output as scores, maps (segmentation), values or embedding (repeatable)",
    )(function)


def source_options(function: Function) -> Function:
    """Add where the examples of a run come from: one source, or one of each kind."""
    return added(
        function,
        click.option("--data", metavar="D", help=f"one source, split into calibration and evaluation; {DATA_HELP}"),
        click.option("--calib", metavar="D", help="calibration examples (labels are never read)"),
        click.option("--eval", "judged", metavar="D", help="evaluation examples"),
        click.option(
            "--calib-examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="calibrate on N examples  [default: at most 1000]",
        ),
    )


def drop_class_option(function: Function) -> Function:
    """Add ``--drop-class``."""
    return click.option(
        "--drop-class",
        "dropped",
        multiple=True,
        metavar="C",
        help="leave a class (name or index) out of calibration, to see what that does to it (repeatable)",
    )(function)


def gate_options(function: Function) -> Function:
    """Add the gates, the reports and ``--json``."""
    share, ratio = click.FloatRange(0, 1), click.FloatRange(min=0, min_open=True)
    return added(
        function,
        click.option(
            "--min-agreement",
            type=share,
            metavar="A",
            help="gate: lower bound of the agreement with the original; in apply also what passes without a size hold",
        ),
        click.option("--max-accuracy-drop", type=share, metavar="D", help="gate: accuracy lost, as a fraction"),
        click.option(
            "--min-class-agreement",
            type=share,
            metavar="A",
            help="gate: lower bound of the agreement in every class of the original's decisions",
        ),
        click.option(
            "--max-class-accuracy-drop",
            type=share,
            metavar="D",
            help="gate: accuracy lost in any one class of the labels, as a fraction",
        ),
        click.option(
            "--max-latency-ratio",
            type=ratio,
            metavar="F",
            help="gate: upper end of the interval of the latency ratio to the original, one example a run",
        ),
        click.option(
            "--max-bytes",
            metavar="N",
            callback=_bytes,
            help="gate: size of the model's file, external data included, such as 800kB or 1.5MiB",
        ),
        click.option(
            "--report",
            "reports",
            multiple=True,
            metavar="FILE",
            help="write the report as .json, .md or .html (repeatable)",
        ),
        junit_option,
        click.option(
            "--summary",
            metavar="FILE",
            help='append a short Markdown summary to FILE, whose content stays; made for "$GITHUB_STEP_SUMMARY"',
        ),
        click.option("--json", "as_json", is_flag=True, help="print the report as JSON on stdout"),
    )


def junit_option(function: Function) -> Function:
    """Add ``--junit``."""
    return click.option(
        "--junit",
        metavar="FILE.xml",
        help="write the gates as JUnit XML, a test case each; a run that broke off (status 3 or 4) is an error there",
    )(function)


def _kinds(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Read kinds of outputs; a name may hold an equals sign, a kind does not."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, kind = text.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{text}' is not NAME=KIND, such as logits=maps", ctx, param)
        if name in found:
            raise click.BadParameter(f"output '{name}' is given two kinds", ctx, param)
        found[name] = kind
    return found


def _bytes(ctx: click.Context, param: click.Parameter, given: str | None) -> int | None:
    """Read a number of bytes, with a unit or without."""
    from onnxprune.budget import parse_bytes
    from onnxprune.errors import OptionError

    try:
        return None if given is None else parse_bytes(given)
    except OptionError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def added(function: Function, *decorators: Callable[[Function], Function]) -> Function:
    """Decorate a command so that its help lists the options in the order given."""
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def make_options(**given: Any) -> Options:
    """Return the API's options from the command line's, with progress bars on a terminal."""
    from onnxprune.api import Options

    return Options(progress=progress_bars if sys.stderr.isatty() else None, **given)


def take_gates(given: dict[str, Any]) -> Gates:
    """Take the gates out of the options given, by the names of their fields."""
    from dataclasses import fields

    from onnxprune.api import Gates

    return Gates(**{each.name: given.pop(each.name) for each in fields(Gates)})


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


def check_reports(paths: tuple[str, ...], forms: tuple[str, ...] | None = None) -> None:
    """Refuse report paths that cannot be written to, or end in none of the forms' suffixes, before any work."""
    from onnxprune.report.write import FORMS, check_report_path

    for path in paths:
        check_report_path(path, tuple(FORMS) if forms is None else forms)
