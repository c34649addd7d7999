"""``onnxprune apply``: a recipe of passes on a model, judged against the original."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.outputs import open_outputs, write_outputs
from onnxprune.cli.shared import (
    drop_class_option,
    gate_options,
    make_options,
    run_options,
    show_report,
    source_options,
    take_gates,
)

_RECORDED = {
    "targets": "--target",
    "calib_examples": "--calib-examples",
    "dropped": "--drop-class",
    "seed": "--seed",
    "batch_size": "--batch-size",
}


@click.command(
    "apply",
    epilog="""\b
Examples:
  onnxprune apply surp,id --in model.onnx --out pruned.onnx
  onnxprune apply "surp(sparsity=0.8),id(flops=0.5)" --in model.onnx --out pruned.onnx \\
      --calib train.zip --eval test.zip --min-agreement 0.98 --report report.md
  onnxprune apply "filters(flops=0.5)" --in model.onnx --out pruned.onnx --data images.npz \\
      --min-class-agreement 0.9 --max-latency-ratio 0.7 --max-bytes 2MB --junit gates.xml
  onnxprune apply recipe.yaml --in model.onnx --out pruned.onnx --data images.npz --target flops=0.5
  onnxprune apply --replay pruned.onnx --in model.onnx --out again.onnx --data images.npz

A pass without a size (and without --target) goes as far as --min-agreement allows, 0.99 where none is given,
on examples that calibration leaves; the gate then judges on the evaluation examples.

Without data, the data named in the model's own metadata is used, else random numbers (with a warning).
Exit status: 0 done, 1 a target or gate was not met, 2 usage, 3 unusable model or data, 4 runtime, 130 interrupted.
""",
)
@click.argument("recipe", required=False)
@click.option("--in", "source", required=True, metavar="M.onnx", help="the model to compress")
@click.option("--out", "out", required=True, metavar="P.onnx", help="where the result goes")
@click.option(
    "--replay", "made", metavar="P.onnx", help="make P.onnx again, with the recipe, seed and sizes in its metadata"
)
@source_options
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="SIZE=F",
    help="a size for passes that name none, such as flops=0.5; it takes the place of the search",
)
@drop_class_option
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
    recipe: str | None,
    source: str,
    out: str,
    made: str | None,
    data: str | None,
    calib: str | None,
    judged: str | None,
    calib_examples: int | None,
    targets: tuple[str, ...],
    dropped: tuple[str, ...],
    reports: tuple[str, ...],
    junit: str | None,
    summary: str | None,
    as_json: bool,
    force: bool,
    keep_failed: bool,
    sparse_storage: bool,
    **run: object,
) -> None:
    """Run RECIPE (pass names with options, or a YAML file) on a model and judge the result.

    RECIPE is a list such as surp,id or "surp(sparsity=0.8),id(flops=0.5)"; `onnxprune passes` lists the passes.
    With --replay in its place, a model that was made before is made again, the same bytes from the same data.
    """
    from onnxprune.api import compress, replay
    from onnxprune.graph.io import check_output

    _check_replay(ctx, recipe, made)
    check_output(out, source=source, force=force)
    outputs = open_outputs(ctx, reports=reports, junit=junit, summary=summary)
    gates = take_gates(run)
    options = make_options(calib_examples=calib_examples, drop_classes=dropped, **run)
    if made is not None:
        if Path(out).exists() and Path(made).exists() and Path(out).samefile(made):
            raise click.UsageError(f"--out '{out}' is the model to replay itself; give another path")
        result = replay(made, source, data=data, calib=calib, eval=judged, gates=gates, options=options)
    else:
        assert recipe is not None
        result = compress(
            source, recipe, data=data, calib=calib, eval=judged, targets=targets, gates=gates, options=options
        )
    result = result.save(out, force=force, sparse_storage=sparse_storage, keep_failed=keep_failed)
    written = result.report.result is not None
    write_outputs(outputs, result.report, result.pictures)
    show_report(result.report, as_json=as_json)
    said = f"wrote {out}" if written else f"nothing was written to {out}: a target or gate was not met"
    if result.same_as_made:
        said += f", the same bytes as {made}"
    click.echo(said, err=True)
    if not result.met:
        ctx.exit(1)


def _check_replay(ctx: click.Context, recipe: str | None, made: str | None) -> None:
    """Refuse a recipe beside a replay, or neither, and options that a replay takes from the model."""
    from click.core import ParameterSource

    if made is None and recipe is None:
        raise click.UsageError("a RECIPE is missing, such as surp,id; or give --replay P.onnx", ctx)
    if made is None:
        return
    if recipe is not None:
        raise click.UsageError(f"RECIPE '{recipe}' and --replay exclude one another: '{made}' holds its recipe", ctx)
    given = [flag for name, flag in _RECORDED.items() if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    if given:
        raise click.UsageError(f"{given[0]} and --replay exclude one another: '{made}' says what was used", ctx)
