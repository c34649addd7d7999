"""``onnxprune passes``: the passes and their options."""

from __future__ import annotations

import click


@click.command("passes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
def command(name: str | None, as_json: bool) -> None:
    """List the passes, or the options of the pass NAME."""
    from onnxprune.recipe import PASSES, pass_class

    chosen = [pass_class(name)] if name else [pass_class(key) for key in PASSES]
    if as_json:
        import json

        click.echo(json.dumps([_described(item) for item in chosen], indent=2))
    elif name:
        _show_one(chosen[0])
    else:
        _show_all(chosen)


def _described(item: type) -> dict[str, object]:
    from onnxprune.contract import options_of

    options = [
        {"name": spec.name, "accepted": spec.accepted, "default": spec.default, "help": spec.help}
        for spec in options_of(item)
    ]
    kind = {"name": item.name, "summary": item.summary, "lossless": item.lossless}  # type: ignore[attr-defined]  # a pass class
    wishes = {"needs": sorted(item.needs), "uses": sorted(getattr(item, "uses", ()))}  # type: ignore[attr-defined]  # a pass class
    return {**kind, **wishes, "options": options}


def _show_all(items: list[type]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("pass", "what it does", "needs"):
        table.add_column(column, overflow="fold")
    for item in items:
        described = _described(item)
        needs, uses = described["needs"], described["uses"]
        assert isinstance(needs, list) and isinstance(uses, list)
        wishes = [*needs, *(f"{use}, if any" for use in uses if use not in needs)]
        table.add_row(str(described["name"]), str(described["summary"]), ", ".join(wishes) or "-")
    Console().print(table)


def _show_one(item: type) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from onnxprune.contract import options_of

    console = Console()
    console.print(f"[bold]{item.name}[/]: {escape(item.summary)}\n")  # type: ignore[attr-defined]  # a pass class
    console.print(escape((item.__doc__ or "").split("\n\n")[0].strip()), soft_wrap=False)
    table = Table(box=None, pad_edge=False, title_justify="left")
    for column in ("option", "accepts", "default", "meaning"):
        table.add_column(column, overflow="fold")
    for spec in options_of(item):
        default = (
            "-" if spec.default in (None, ()) else str(spec.default).lower() if spec.kind is bool else str(spec.default)
        )
        table.add_row(spec.name, escape(spec.accepted), default, escape(spec.help))
    if table.row_count:
        console.print()
        console.print(table)
    else:
        console.print("\nIt has no options.")
