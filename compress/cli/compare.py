"""``onnxprune compare``: one model judged against another, or the outputs that two of them gave."""

from __future__ import annotations

import click

from onnxprune.cli.outputs import open_outputs, write_outputs
from onnxprune.cli.shared import DATA_HELP, gate_options, make_options, run_options, show_report, take_gates


@click.command(
    "compare",
    epilog="""\b
Examples:
  onnxprune compare model.onnx pruned.onnx --data test.zip --min-agreement 0.99 --report compare.json
  onnxprune compare --outputs-a cpu.npz --outputs-b phone.npz --labels labels.npz --min-agreement 0.99

Outputs are arrays by output name, examples on axis 0, in the same order in both files; an only output may have any
name. Labels may lie in either file under y.
""",
)
@click.argument("original", metavar="[A.onnx]", required=False)
@click.argument("compressed", metavar="[B.onnx]", required=False)
@click.option("--data", metavar="D", help=f"all of it is used (with outputs its labels alone); {DATA_HELP}")
@click.option("--outputs-a", metavar="A.npz", help="outputs that the original gave, in place of A.onnx")
@click.option("--outputs-b", metavar="B.npz", help="outputs to judge, made by any device or runtime")
@click.option("--labels", metavar="FILE", help="labels of the outputs: .npz (under y) or .npy")
@gate_options
@run_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    original: str | None,
    compressed: str | None,
    data: str | None,
    outputs_a: str | None,
    outputs_b: str | None,
    labels: str | None,
    reports: tuple[str, ...],
    junit: str | None,
    summary: str | None,
    as_json: bool,
    **run: object,
) -> None:
    """Judge B.onnx against A.onnx, the original, on all of --data; or --outputs-b against --outputs-a."""
    models, given = (original, compressed), (outputs_a, outputs_b)
    _check(ctx, models, given, labels)
    outputs = open_outputs(ctx, reports=reports, junit=junit, summary=summary)
    gates = take_gates(run)
    options = make_options(**run)
    if outputs_a is not None and outputs_b is not None:
        from onnxprune.api.outputs import compare_outputs

        report, pictures = compare_outputs(outputs_a, outputs_b, labels, data=data, gates=gates, options=options), None
    else:
        from onnxprune.api.comparing import compare_with_pictures

        assert original is not None and compressed is not None
        report, pictures = compare_with_pictures(original, compressed, data, gates=gates, options=options)
    write_outputs(outputs, report, pictures)
    show_report(report, as_json=as_json)
    if not report.met:
        ctx.exit(1)


def _check(
    ctx: click.Context,
    models: tuple[str | None, str | None],
    outputs: tuple[str | None, str | None],
    labels: str | None,
) -> None:
    """Refuse models beside outputs, neither, one alone, and labels where the models' data has them."""
    if any(models) and any(outputs):
        raise click.UsageError("models and --outputs-a, --outputs-b exclude one another: give two of one kind", ctx)
    if not (all(models) or all(outputs)):
        wanted = (
            "--outputs-a and --outputs-b are wanted together"
            if any(outputs)
            else ("two models A.onnx B.onnx are wanted, or --outputs-a and --outputs-b")
        )
        raise click.UsageError(wanted, ctx)
    if labels is not None and not any(outputs):
        raise click.UsageError("--labels goes with --outputs-a and --outputs-b; models have labels in --data", ctx)
