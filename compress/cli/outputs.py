"""The files that a verb leaves beside its result: reports, a summary, JUnit XML."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from onnxprune.cli.shared import check_reports

if TYPE_CHECKING:
    from onnxprune.report.bench import BenchResult
    from onnxprune.report.junit import Run
    from onnxprune.report.pictures import Pictures
    from onnxprune.report.report import Report

_OPENED: Final = "onnxprune.outputs"
# Exit statuses that end a run before there is a report, for a reason that a CI system should show.
_SHOWN: Final = (3, 4)


@dataclass(frozen=True)
class Outputs:
    """Paths that were found to be writable, and when the run began."""

    verb: str
    reports: tuple[str, ...]
    junit: str | None
    summary: str | None
    began: float

    @property
    def run(self) -> Run:
        """The run so far."""
        from onnxprune.report.junit import Run

        return Run(self.verb, time.monotonic() - self.began)


def open_outputs(
    ctx: click.Context, *, reports: tuple[str, ...] = (), junit: str | None = None, summary: str | None = None
) -> Outputs:
    """Refuse paths that cannot be written to, before any work; from here on a run that breaks off is told of."""
    began = time.monotonic()
    check_reports(reports)
    if junit is not None:
        from onnxprune.report.junit import check_junit_path

        check_junit_path(junit)
    if summary is not None:
        from onnxprune.report.write import check_summary_path

        check_summary_path(summary)
    outputs = Outputs(str(ctx.info_name), reports, junit, summary, began)
    ctx.meta[_OPENED] = outputs
    return outputs


def write_outputs(outputs: Outputs, report: Report, pictures: Pictures | None) -> None:
    """Write everything asked for and say so on stderr; pictures of examples are for a page only."""
    from onnxprune.report.junit import report_junit, write_junit
    from onnxprune.report.write import append_summary, write_report

    shown: dict[int, str] = {}
    if pictures is not None and any(path.lower().endswith(".html") for path in outputs.reports):
        shown = pictures.of(report)
    for path in outputs.reports:
        write_report(report, path, shown)
        click.echo(f"wrote {path}", err=True)
    if outputs.summary is not None:
        append_summary(report, outputs.summary)
        click.echo(f"appended to {outputs.summary}", err=True)
    if outputs.junit is not None:
        write_junit(report_junit(report, outputs.run), outputs.junit)
        click.echo(f"wrote {outputs.junit}", err=True)


def write_bench(outputs: Outputs, found: BenchResult) -> None:
    """Write the gates of a benchmark, where asked for."""
    from onnxprune.report.junit import bench_junit, write_junit

    if outputs.junit is not None:
        write_junit(bench_junit(found, outputs.run), outputs.junit)
        click.echo(f"wrote {outputs.junit}", err=True)


def write_error(ctx: click.Context, message: str, status: int) -> None:
    """Write the JUnit file of a run that broke off, where one was asked for and its path is good."""
    outputs = ctx.meta.get(_OPENED)
    if status not in _SHOWN or not isinstance(outputs, Outputs) or outputs.junit is None:
        return
    from onnxprune.errors import OnnxPruneError
    from onnxprune.report.junit import error_junit, write_junit

    try:
        write_junit(error_junit(message, outputs.run), outputs.junit)
    except OnnxPruneError as error:
        # What ended the run may well be what ends this: it must not hide the first reason.
        click.echo(f"onnxprune: {error}", err=True)
    else:
        click.echo(f"wrote {outputs.junit}", err=True)
