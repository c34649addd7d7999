"""``onnxprune compare``: one model judged against another."""

from __future__ import annotations

import click

from onnxprune.cli.shared import (
    DATA_HELP,
    check_reports,
    gate_options,
    make_gates,
    make_options,
    run_options,
    show_report,
    write_reports,
)


@click.command(
    "compare",
    epilog="""\b
Example:
  onnxprune compare model.onnx pruned.onnx --data test.zip --min-agreement 0.99 --report compare.json
""",
)
@click.argument("original", metavar="A.onnx")
@click.argument("compressed", metavar="B.onnx")
@click.option("--data", metavar="D", help=f"all of it is used; {DATA_HELP}")
@gate_options
@run_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    original: str,
    compressed: str,
    data: str | None,
    min_agreement: float | None,
    max_accuracy_drop: float | None,
    reports: tuple[str, ...],
    as_json: bool,
    **run: object,
) -> None:
    """Judge B.onnx against A.onnx, the original, on all of --data."""
    from onnxprune.api.comparing import compare_with_pictures

    check_reports(reports)
    gates = make_gates(min_agreement, max_accuracy_drop)
    report, pictures = compare_with_pictures(original, compressed, data, gates=gates, options=make_options(**run))
    write_reports(report, reports, pictures)
    show_report(report, as_json=as_json)
    if not report.met:
        ctx.exit(1)
