"""``onnxprune apply``: a recipe of passes on a model, judged against the original."""

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
    "apply",
    epilog="""\b
Examples:
  onnxprune apply surp,id --in model.onnx --out pruned.onnx
  onnxprune apply "surp(sparsity=0.8),id(flops=0.5)" --in model.onnx --out pruned.onnx \\
      --calib train.zip --eval test.zip --min-agreement 0.98 --report report.md
  onnxprune apply recipe.yaml --in model.onnx --out pruned.onnx --data images.npz --target flops=0.5

A pass without a size (and without --target) goes as far as --min-agreement allows, 0.99 where none is given,
on examples that calibration leaves; the gate then judges on the evaluation examples.

Without data, the data named in the model's own metadata is used, else random numbers (with a warning).
Exit status: 0 done, 1 a target or gate was not met, 2 usage, 3 unusable model or data, 4 runtime, 130 interrupted.
""",
)
@click.argument("recipe")
@click.option("--in", "source", required=True, metavar="M.onnx", help="the model to compress")
@click.option("--out", "out", required=True, metavar="P.onnx", help="where the result goes")
@click.option("--data", metavar="D", help=f"one source, split into calibration and evaluation; {DATA_HELP}")
@click.option("--calib", metavar="D", help="calibration examples (labels are never read)")
@click.option("--eval", "judged", metavar="D", help="evaluation examples")
@click.option(
    "--calib-examples",
    type=click.IntRange(min=1),
    metavar="N",
    help="calibrate on N examples  [default: at most 1000]",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SIZE=F",
    help="a size for passes that name none, such as flops=0.5; it takes the place of the search",
)
@click.option(
    "--drop-class",
    "dropped",
    multiple=True,
    metavar="C",
    help="leave a class (name or index) out of calibration, to see what that does to it",
)
@gate_options
@click.option("--force", is_flag=True, help="overwrite an existing --out")
@click.option("--keep-failed", is_flag=True, help="write --out even when a target or gate was not met")
@click.option(
    "--sparse-storage", is_flag=True, help="keep weights with many zeros as sparse initialisers: smaller, not faster"
)
@run_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    recipe: str,
    source: str,
    out: str,
    data: str | None,
    calib: str | None,
    judged: str | None,
    calib_examples: int | None,
    targets: tuple[str, ...],
    dropped: tuple[str, ...],
    min_agreement: float | None,
    max_accuracy_drop: float | None,
    reports: tuple[str, ...],
    as_json: bool,
    force: bool,
    keep_failed: bool,
    sparse_storage: bool,
    **run: object,
) -> None:
    """Run RECIPE (pass names with options, or a YAML file) on a model and judge the result.

    RECIPE is a list such as surp,id or "surp(sparsity=0.8),id(flops=0.5)"; `onnxprune passes` lists the passes.
    """
    from onnxprune.api import compress
    from onnxprune.graph.io import check_output

    check_output(out, source=source, force=force)
    check_reports(reports)
    result = compress(
        source,
        recipe,
        data=data,
        calib=calib,
        eval=judged,
        targets=targets,
        gates=make_gates(min_agreement, max_accuracy_drop),
        options=make_options(calib_examples=calib_examples, drop_classes=dropped, **run),
    )
    written = result.met or keep_failed
    if written:
        result = result.save(out, force=force, sparse_storage=sparse_storage)
    write_reports(result.report, reports)
    show_report(result.report, as_json=as_json)
    click.echo(f"wrote {out}" if written else f"nothing was written to {out}: a target or gate was not met", err=True)
    if not result.met:
        ctx.exit(1)
