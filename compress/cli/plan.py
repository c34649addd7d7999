"""``onnxprune plan``: what a recipe would touch, what not and why, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.api.planning import PassPlan


@click.command(
    "plan",
    epilog="""\b
Examples:
  onnxprune plan "id(flops=0.5)" --in model.onnx
  onnxprune plan surp,filters --in model.onnx --target flops=0.7 --json
""",
)
@click.argument("recipe")
@click.option("--in", "source", required=True, metavar="M.onnx", help="the model to look at")
@click.option("--target", "targets", multiple=True, metavar="SIZE=F", help="a size for passes that name none")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
def command(recipe: str, source: str, targets: tuple[str, ...], as_json: bool) -> None:
    """Show what every pass of RECIPE would cut, what it would leave alone and why, and how far it could go.

    No data is read and nothing is written. Every pass is planned on the model as it is; symbolic sizes count as 1.
    """
    from onnxprune.api.planning import plan

    found = plan(source, recipe, targets)
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
    from rich.table import Table

    from onnxprune.report.figures import settings

    console.print(f"{item.name} {settings(item.options)}".strip(), style="bold", markup=False)
    for line in item.notes:
        console.print(line, markup=False)
    if item.rows:
        table = Table(box=None, pad_edge=False)
        for column in item.rows[0]:
            left = isinstance(item.rows[0][column], str)
            table.add_column(column, justify="left" if left else "right", overflow="fold")
        for row in item.rows:
            table.add_row(*(_cell(value) for value in row.values()))
        console.print(table)
    for node, reason in item.skipped.items():
        console.print(f"left alone: {node}: {reason}", style="dim", markup=False)
    console.print()


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
