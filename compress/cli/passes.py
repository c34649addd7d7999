"""``onnxprune passes``: the passes and their options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

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


def _described(item: Any) -> dict[str, Any]:
    """Return all there is to say of a pass, from its class and its options."""
    from onnxprune.contract import Searcher, options_of

    options = [
        {
            "name": spec.name,
            "accepted": spec.accepted,
            "choices": list(spec.choices),
            "default": spec.default,
            "help": spec.help,
        }
        for spec in options_of(item)
    ]
    size = getattr(item, "default_size", None)
    return {
        "name": item.name,
        "summary": item.summary,
        "lossless": item.lossless,
        "needs": sorted(item.needs),
        "uses": sorted(getattr(item, "uses", ())),
        "default_size": None if size is None else {size[0]: size[1]},
        "searches": size is not None and issubclass(item, Searcher),
        "positional": getattr(item, "positional", None),
        "example": _example(item),
        "options": options,
    }


def _example(item: Any) -> str:
    """Return a recipe step with the pass: the class's own, or its name with the size it takes where none is given."""
    size = getattr(item, "default_size", None)
    derived = item.name if size is None else f"{item.name}({size[0]}={size[1]:g})"
    return str(getattr(item, "example", derived))


def _show_all(items: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("pass", "what it does", "needs"):
        table.add_column(column, overflow="fold")
    for item in items:
        described = _described(item)
        needs, uses = described["needs"], described["uses"]
        wishes = [*needs, *(f"{use}, if any" for use in uses if use not in needs)]
        table.add_row(described["name"], described["summary"], ", ".join(wishes) or "-")
    Console().print(table)


def _show_one(item: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from onnxprune.contract import options_of

    console = Console()
    console.print(f"[bold]{item.name}[/]: {escape(item.summary)}\n")
    for paragraph in inspect.cleandoc(item.__doc__ or "").split("\n\n"):
        console.print(escape(" ".join(paragraph.split())) + "\n", soft_wrap=False)
    for line in _facts(_described(item)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
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


def _facts(described: Mapping[str, Any]) -> Iterator[str]:
    yield f"lossless: {'yes' if described['lossless'] else 'no'}"
    uses = [f"{use}, if there is any" for use in described["uses"] if use not in described["needs"]]
    yield f"needs: {'; '.join([*described['needs'], *uses]) or 'nothing'}"
    if described["default_size"]:
        ((name, value),) = described["default_size"].items()
        searched = "searched for; where there is nothing to choose by, " if described["searches"] else ""
        yield f"size, where none is given: {searched}{name}={value:g}"
    if described["positional"]:
        yield f"the first value needs no name: it is {described['positional']}"
    yield f'example: onnxprune apply "{_shell(described["example"])}" --in model.onnx --out pruned.onnx'


def _shell(text: str) -> str:
    """Return text as it stands within double quotes of a shell."""
    return text.replace('"', "'")
