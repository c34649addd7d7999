"""``onnxprune decode``: a model out of a .surp file, or out of its begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxprune.cli.shared import make_options

if TYPE_CHECKING:
    from onnxprune.api import DecodeResult


@click.command(
    "decode",
    epilog="""\b
Examples:
  onnxprune decode model.surp --out model.onnx
  onnxprune decode model.surp --out coarse.onnx --fraction 0.25
  onnxprune decode begin.surp --out coarse.onnx          a file that is cut off is a coarser model

--fraction and --bytes count the coded weights behind header and graph, which must be there in full.
""",
)
@click.argument("source", metavar="M.surp")
@click.option("--out", required=True, metavar="M.onnx", help="where the model goes")
@click.option("--fraction", type=click.FloatRange(0, 1), metavar="F", help="stop at this share of the coded weights")
@click.option("--bytes", type=click.IntRange(min=0), metavar="N", help="stop after N bytes of the coded weights")
@click.option("--sparsity", type=click.FloatRange(0, 1), metavar="S", help="stop at this share of zeros")
@click.option("--hits", type=click.IntRange(min=0), metavar="H", help="stop after H announcements")
@click.option("--strict", is_flag=True, help="refuse a file that is cut off: its end cannot be checked")
@click.option("--force", is_flag=True, help="overwrite an existing --out")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
def command(
    source: str,
    out: str,
    fraction: float | None,
    bytes: int | None,
    sparsity: float | None,
    hits: int | None,
    strict: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a .surp file, whole or cut off, into an ONNX model; it ends at the first stop that is met."""
    from onnxprune.api import decode

    found = decode(
        source, out, fraction=fraction, bytes=bytes, sparsity=sparsity, hits=hits,
        strict=strict, options=make_options(), force=force,
    )  # fmt: skip
    if as_json:
        import json

        click.echo(json.dumps(_plain(found), indent=2))
    else:
        _show(found)
    click.echo(f"wrote {out}", err=True)


def _plain(found: DecodeResult) -> dict[str, object]:
    names = (
        "source", "bytes", "file_bytes", "path", "result_bytes", "weights", "nonzeros", "sparsity", "hits", "all_hits",
        "relative_l1", "verified", "fitted", "warnings",
    )  # fmt: skip
    return {name: getattr(found, name) for name in names}


def _show(found: DecodeResult) -> None:
    from rich.console import Console

    from onnxprune.report.figures import number, percent
    from onnxprune.report.grids import Grid
    from onnxprune.report.table import say, show_grid

    share = found.hits / found.all_hits if found.all_hits else 1.0
    rows = (
        (".surp file", f"{number(found.bytes)} bytes of {number(found.file_bytes)}"),
        ("decoded model", f"{number(found.result_bytes)} bytes"),
        ("hits", f"{number(found.hits)} of {number(found.all_hits)} ({percent(share)})"),
        ("coded weights", number(found.weights)),
        ("of them not zero", f"{number(found.nonzeros)} (sparsity {percent(found.sparsity)})"),
        ("relative L1 error", "-" if found.relative_l1 is None else number(found.relative_l1)),
    )
    console = Console()
    show_grid(console, Grid((found.source, ""), rows))
    for warning in found.warnings:
        say(console, f"warning: {warning}", "yellow")
