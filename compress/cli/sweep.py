"""``onnxprune sweep``: recipes at many sizes, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxprune.cli.shared import check_reports, drop_class_option, make_options, run_options, source_options

if TYPE_CHECKING:
    from onnxprune.report.sweep import Sweep

# Points warn of their widths one by one.
_SHOWN = 4


@click.command(
    "sweep",
    epilog="""\b
Examples:
  onnxprune sweep id --in model.onnx --target flops=0.9,0.7,0.5 --data images.npz
  onnxprune sweep id pca auto --in model.onnx --target flops=0.9,0.75,0.5 \\
      --calib train.zip --eval test.zip --plot curves.svg --report sweep.json --out models/
  onnxprune sweep "id(mode=iditer)" --in model.onnx --target flops=0.9,0.7,0.5 --calib train.zip --eval test.zip \\
      --drop-class cat --class-plot classes.svg

What sizes have in common (examples, statistics, measured sensitivity, steps before the one that takes the size) is
worked out once. Exit status: 0 done, 1 a size was not reached, 2 usage, 3 unusable model or data, 4 runtime,
130 interrupted.
""",
)
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--in", "source", required=True, metavar="M.onnx", help="the model to compress")
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="SIZE=F,F,...",
    help="sizes for the pass that names none, such as flops=0.9,0.7,0.5 (repeatable)",
)
@source_options
@drop_class_option
@click.option("--out", "folder", metavar="DIR", help="write every model into this folder, which exists")
@click.option("--force", is_flag=True, help="overwrite models in --out")
@click.option("--plot", metavar="F.svg", help="draw agreement (or correlation) against FLOPs, bytes and latency")
@click.option("--class-plot", metavar="F.svg", help="draw every class's agreement and accuracy against FLOPs")
@click.option(
    "--report", "reports", multiple=True, metavar="FILE", help="write the table as .json, .md or .html (repeatable)"
)
@click.option("--json", "as_json", is_flag=True, help="print the table as JSON on stdout")
@run_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    recipes: tuple[str, ...],
    source: str,
    targets: tuple[str, ...],
    data: str | None,
    calib: str | None,
    judged: str | None,
    calib_examples: int | None,
    dropped: tuple[str, ...],
    folder: str | None,
    force: bool,
    plot: str | None,
    class_plot: str | None,
    reports: tuple[str, ...],
    as_json: bool,
    **run: object,
) -> None:
    """Run each RECIPE at every size and print what it keeps, costs and takes."""
    from onnxprune.api.sweeping import sweep
    from onnxprune.budget import parse_targets
    from onnxprune.report.plots import check_plot_path
    from onnxprune.report.sweep import FORMS, write_sweep
    from onnxprune.report.sweep_plots import write_class_plot, write_sweep_plot

    check_reports(reports, FORMS)
    plots = [(path, draw) for path, draw in ((plot, write_sweep_plot), (class_plot, write_class_plot)) if path]
    for path, _ in plots:
        check_plot_path(path)
    wanted = [target for text in targets for target in parse_targets(text)]
    options = make_options(calib_examples=calib_examples, drop_classes=dropped, **run)
    found = sweep(
        source, recipes, wanted, data=data, calib=calib, eval=judged, folder=folder, force=force, options=options
    )
    for path in reports:
        write_sweep(found, path)
        click.echo(f"wrote {path}", err=True)
    for path, draw in plots:
        draw(found, path)
        click.echo(f"wrote {path}", err=True)
    _show(found, as_json=as_json)
    if not found.met:
        ctx.exit(1)


def _show(found: Sweep, *, as_json: bool) -> None:
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    from rich.console import Console

    from onnxprune.report.sweep import brief_grid
    from onnxprune.report.table import say, show_grid

    console = Console()
    for recipe in dict.fromkeys(point.recipe for point in found.points):
        console.print()
        say(console, recipe, "bold")
        show_grid(console, brief_grid([point for point in found.points if point.recipe == recipe]))
    console.print()
    if not found.met:
        say(console, "! size not reached", "red")
    for warning in found.warnings[:_SHOWN]:
        say(console, f"warning: {warning}", "yellow")
    if len(found.warnings) > _SHOWN:
        say(console, f"and {len(found.warnings) - _SHOWN} warnings more, of single points: --report has them", "yellow")
