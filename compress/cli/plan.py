"""``onnxprune plan``: what a recipe would touch, what not and why, before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.shared import DATA_HELP, make_options, work_options

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.api.planning import PassPlan


@click.command(
    "plan",
    epilog="""\b
Examples:
  onnxprune plan "id(flops=0.5)" --in model.onnx
  onnxprune plan surp,filters --in model.onnx --target flops=0.7 --json
  onnxprune plan "id(flops=0.5)" --in model.onnx --calib train.zip
""",
)
@click.argument("recipe")
@click.option("--in", "source", required=True, metavar="M.onnx", help="the model to look at")
@click.option("--target", "targets", multiple=True, metavar="SIZE=F", help="a size for passes that name none")
@click.option("--data", metavar="D", help=f"one source, of which apply would calibrate on a share; {DATA_HELP}")
@click.option("--calib", metavar="D", help="calibration examples (labels are never read)")
@click.option(
    "--calib-examples",
    type=click.IntRange(min=1),
    metavar="N",
    help="calibrate on N examples  [default: at most 1000]",
)
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
@work_options
def command(
    recipe: str,
    source: str,
    targets: tuple[str, ...],
    data: str | None,
    calib: str | None,
    calib_examples: int | None,
    as_json: bool,
    **run: object,
) -> None:
    """Show what every pass of RECIPE would cut, what it would leave alone and why, and how far it could go.

    Nothing is written. Every pass is planned on the model as it is. Without --data or --calib no data is read and
    symbolic sizes count as 1; with examples, id predicts the agreement at several sizes, a rough guide.
    """
    from onnxprune.api.planning import plan

    options = make_options(calib_examples=calib_examples, **run)
    found = plan(source, recipe, targets, data=data, calib=calib, options=options)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps([dataclasses.asdict(item) for item in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    for item in found:
        _show(item, console)


def _show(item: PassPlan, console: Console) -> None:
    from onnxprune.report.figures import settings

    console.print(f"{item.name} {settings(item.options)}".strip(), style="bold", markup=False)
    for line in item.notes:
        console.print(line, markup=False)
    _table(item.rows, console)
    # The widths of every size are in the JSON form alone.
    _table([{name: value for name, value in row.items() if name != "widths"} for row in item.curve], console)
    for node, reason in item.skipped.items():
        console.print(f"left alone: {node}: {reason}", style="dim", markup=False)
    console.print()


def _table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    from rich.table import Table

    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        left = isinstance(rows[0][column], str)
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
