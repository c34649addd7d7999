"""``onnxprune encode``: a whole model as one .surp file, and what other ways to store it take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.shared import DATA_HELP, make_options

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.api import EncodeResult, SizeTable
    from onnxprune.report.grids import Grid


@click.command(
    "encode",
    epilog="""\b
Examples:
  onnxprune encode model.onnx --out model.surp --sparsity 0.6
  onnxprune encode model.onnx --out model.surp --data test.zip --report sizes.md --plot sizes.svg
  onnxprune apply "surp(sparsity=0.7,values=original)" --in model.onnx --out pruned.onnx
  onnxprune encode pruned.onnx --out pruned.surp --values fitted

The code ends at the first stop that is met; without any, at a sparsity of 0.5. --bits and --bytes count the
coded weights; header and graph come on top. Any begin of the file that holds those is a coarser model.
""",
)
@click.argument("model", metavar="M.onnx")
@click.option("--out", required=True, metavar="M.surp", help="where the file goes")
@click.option("--sparsity", type=click.FloatRange(0, 1), metavar="S", help="stop at this share of zeros")
@click.option("--bits", type=click.IntRange(min=0), metavar="N", help="stop within N bits of coded weights")
@click.option("--bytes", type=click.IntRange(min=0), metavar="N", help="stop within N bytes of coded weights")
@click.option("--hits", type=click.IntRange(min=0), metavar="N", help="stop after N announcements")
@click.option("--relative-l1", type=click.FloatRange(0, 1), metavar="F", help="stop at this share of the magnitudes")
@click.option(
    "--alpha", type=click.FloatRange(min=0, min_open=True), metavar="A",
    help="first threshold over the mean magnitude  [default: ln(n / ln n)]",
)  # fmt: skip
@click.option(
    "--decay", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.9, show_default=True,
    help="factor on alpha",
)  # fmt: skip
@click.option("--patience", type=click.IntRange(min=1), default=20, show_default=True, help="levels between two decays")
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True,
    help="of the scan order, and of how --data is shared out",
)  # fmt: skip
@click.option(
    "--centroid", type=click.FloatRange(0, 1), default=0.5, show_default=True,
    help="move decoded magnitudes up by this share of the last threshold; 0: the code's own values",
)  # fmt: skip
@click.option("--no-normalize", is_flag=True, help="do not divide every tensor by its L2 norm")
@click.option(
    "--values", type=click.Choice(["fitted"]),
    help="store the non-zero weights of a pruned model too, in float16; no stop beside it",
)  # fmt: skip
@click.option("--only", metavar="NODES", help="code these nodes' weights alone: names, globs, re:..., parted by ;")
@click.option("--ignore", metavar="NODES", help="keep these nodes' weights as they are")
@click.option("--table", is_flag=True, help="print what other ways to store the model take")
@click.option("--data", metavar="D", help=f"judge the table's rows: a share chooses points; {DATA_HELP}")
@click.option("--calib", metavar="D", help="choose the table's points on these, with --eval")
@click.option("--eval", "judged", metavar="D", help="judge the table's rows on these")
@click.option("--report", "reports", multiple=True, metavar="FILE", help="write the table as .json or .md (repeatable)")
@click.option("--plot", metavar="F.svg", help="draw agreement against bytes; needs --data")
@click.option("--force", is_flag=True, help="overwrite an existing --out")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
@click.option("--providers", metavar="LIST", help="execution providers in order, such as cuda,cpu  [default: auto]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="examples per run")
@click.option("--threads", type=click.IntRange(min=1), help="threads of ONNX Runtime  [default: its own choice]")
@click.option("--eval-examples", type=click.IntRange(min=1), metavar="N", help="judge on N examples  [default: all]")
@click.option("--preprocess", metavar="FILE", help="YAML or JSON file; overrides the model's own metadata")
@click.option("--download", is_flag=True, help="let mnist:, fashion:, cifar10:, cifar100: download what is missing")
def command(
    model: str,
    out: str,
    sparsity: float | None,
    bits: int | None,
    bytes: int | None,
    hits: int | None,
    relative_l1: float | None,
    alpha: float | None,
    decay: float,
    patience: int,
    centroid: float,
    seed: int,
    no_normalize: bool,
    values: str | None,
    only: str | None,
    ignore: str | None,
    table: bool,
    data: str | None,
    calib: str | None,
    judged: str | None,
    reports: tuple[str, ...],
    plot: str | None,
    force: bool,
    as_json: bool,
    **run: Any,
) -> None:
    """Write a whole model as one .surp file: its graph, and its weights in a code whose every prefix is a model."""
    from onnxprune.api import encode, size_table
    from onnxprune.api.coding import check_encode
    from onnxprune.cli.shared import check_reports
    from onnxprune.codec.law import Law, Stop
    from onnxprune.errors import OptionError
    from onnxprune.report.plots import check_plot_path
    from onnxprune.report.sizes import FORMS as SIZE_FORMS
    from onnxprune.report.sizes import write_plot, write_sizes

    fed = any(source is not None for source in (data, calib, judged))
    check_reports(reports, SIZE_FORMS)
    if plot is not None:
        check_plot_path(plot)
        if not fed:
            raise OptionError("--plot shows agreement, which takes examples; give --data")
    options = make_options(seed=seed, **run)
    chosen: dict[str, Any] = {"only": only, "ignore": ignore, "normalize": not no_normalize}
    stops: dict[str, Any] = {
        "sparsity": sparsity,
        "bits": bits,
        "bytes": bytes,
        "hits": hits,
        "relative_l1": relative_l1,
    }
    law = Law(alpha, decay, patience, seed, centroid)
    sizes = None
    if table or fed or reports:
        # First, so that data which cannot be used leaves nothing behind.
        check_encode(model, out, Stop(**stops), values, force=force)
        sizes = size_table(model, data, calib=calib, eval=judged, law=law, options=options, **chosen)
    found = encode(
        model, out, alpha=alpha, decay=decay, patience=patience, seed=seed, centroid=centroid, values=values,
        options=options, force=force, **stops, **chosen,
    )  # fmt: skip
    if as_json:
        _print_json(found, sizes)
    else:
        _show(found, sizes)
    click.echo(f"wrote {out}", err=True)
    if sizes is not None:
        for path in reports:
            write_sizes(sizes, path)
            click.echo(f"wrote {path}", err=True)
        if plot is not None:
            write_plot(sizes, plot)
            click.echo(f"wrote {plot}", err=True)


def _print_json(found: EncodeResult, sizes: SizeTable | None) -> None:
    import dataclasses
    import json

    names = ("ratio", "sparsity", "bits_per_weight", "bits_per_survivor")
    plain = {**dataclasses.asdict(found), **{name: getattr(found, name) for name in names}}
    plain["table"] = None if sizes is None else json.loads(sizes.to_json())
    click.echo(json.dumps(plain, indent=2))


def _show(found: EncodeResult, sizes: SizeTable | None) -> None:
    from rich.console import Console

    from onnxprune.report.figures import amount, number, percent
    from onnxprune.report.grids import Grid
    from onnxprune.report.sizes import legend, sizes_grid
    from onnxprune.report.table import say, show_grid

    def row(name: str, size: int) -> tuple[str, str, str]:
        return name, number(size), percent(size / found.source_bytes)

    console = Console()
    parts = [row(found.source, found.source_bytes), row(found.path, found.bytes)]
    parts += [row("  header and graph", found.header_bytes + found.skeleton_bytes)]
    parts += [row("  fitted values", found.values_bytes)] if found.fitted else []
    parts += [row("  coded weights", found.body_bytes)]
    show_grid(console, Grid(("file", "bytes", "ratio"), tuple(parts)))
    survivor = found.bits_per_survivor
    facts = (
        ("coded weights", f"{number(found.weights)} in {number(found.tensors)} tensors"),
        ("of them not zero", f"{number(found.nonzeros)} (sparsity {percent(found.sparsity)})"),
        ("bits per weight", f"{found.bits_per_weight:.3f}"),
        ("bits per non-zero weight", "-" if survivor is None else f"{survivor:.3f}"),
        ("relative L1 error", "-" if found.relative_l1 is None else number(found.relative_l1)),
        ("hits", number(found.hits)),
    )
    show_grid(console, Grid(("code", ""), facts))
    if found.skipped:
        say(console, f"left in the graph as they were: weights of {amount(len(found.skipped), 'node')}", "dim")
    if sizes is not None:
        _show_sizes(sizes_grid(sizes), console)
        say(console, legend(sizes))
    for warning in (*found.warnings, *(sizes.warnings if sizes is not None else ())):
        say(console, f"warning: {warning}", "yellow")


def _show_sizes(grid: Grid, console: Console) -> None:
    """Print the table closer than others are, since it has many columns."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for place, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
