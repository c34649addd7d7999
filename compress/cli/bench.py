"""``onnxprune bench``: latency of models side by side, and what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxprune.cli.outputs import open_outputs, write_bench
from onnxprune.cli.shared import DATA_HELP, junit_option, make_options

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.api import BenchResult


def _counts(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[int, ...]:
    """Read whole numbers from 1, given several times or with commas between them."""
    found = []
    for word in (word.strip() for text in given for word in text.split(",")):
        if not (word.isascii() and word.isdecimal() and int(word) > 0):
            raise click.BadParameter(f"'{word}' is not a whole number from 1; give such as 1 or 1,8", ctx, param)
        found.append(int(word))
    return tuple(dict.fromkeys(found))


@click.command(
    "bench",
    epilog="""\b
Examples:
  onnxprune bench model.onnx pruned.onnx --threads 1,2
  onnxprune bench model.onnx pruned.onnx --batch-size 1,8 --max-latency-ratio 0.6 --json
""",
)
@click.argument("models", metavar="A.onnx [B.onnx ...]", nargs=-1, required=True)
@click.option("--data", metavar="D", help=f"inputs, else seeded random ones; {DATA_HELP}")
@click.option(
    "--batch-size", "batch_sizes", multiple=True, metavar="N[,N...]", callback=_counts,
    help="examples per run (repeatable)  [default: 1, or what the model fixes]",
)  # fmt: skip
@click.option(
    "--threads", multiple=True, metavar="N[,N...]", callback=_counts,
    help="threads of ONNX Runtime (repeatable)  [default: its own choice]",
)  # fmt: skip
@click.option("--providers", metavar="LIST", help="execution providers in order, such as cuda,cpu  [default: auto]")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True,
    help="time per setting, shared by the models",
)  # fmt: skip
@click.option("--memory/--no-memory", default=True, show_default=True, help="measure peak memory, a process per model")
@click.option(
    "--max-latency-ratio", type=click.FloatRange(min=0, min_open=True), metavar="F",
    help="gate: upper end of the interval of every latency ratio to A",
)  # fmt: skip
@click.option(
    "--confidence", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.95, show_default=True,
    help="of every interval",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="seed of random inputs and of resampling"
)
@click.option("--preprocess", metavar="FILE", help="YAML or JSON file; overrides the model's own metadata")
@click.option("--download", is_flag=True, help="let mnist:, fashion:, cifar10:, cifar100: download what is missing")
@junit_option
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    data: str | None,
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float,
    memory: bool,
    max_latency_ratio: float | None,
    junit: str | None,
    as_json: bool,
    **run: object,
) -> None:
    """Time models in turns, at every batch size and number of threads; the others are held against A, the first."""
    from onnxprune.api import bench

    outputs = open_outputs(ctx, junit=junit)
    found = bench(
        list(models), data, batch_sizes=batch_sizes or None, threads=threads or (None,), seconds=seconds,
        memory=memory, max_latency_ratio=max_latency_ratio, options=make_options(**run),
    )  # fmt: skip
    write_bench(outputs, found)
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps({**dataclasses.asdict(found), "met": found.met}, indent=2))
    else:
        from rich.console import Console

        _show(found, Console())
    if not found.met:
        ctx.exit(1)


def _show(found: BenchResult, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from onnxprune.report.bench import ratio_text, share
    from onnxprune.report.figures import number

    def say(text: str, style: str = "") -> None:
        # No line is markup: a file may well be called "[red].onnx".
        console.print(Text(text, style=style, overflow="fold"))

    def known(value: float | None) -> str:
        return "-" if value is None else share(value)

    subjects = {model.name: model for model in found.models}
    for model in found.models:
        say(f"{model.name} = {model.path}")
    say(f"inputs: {found.data}; {', '.join(found.providers)}; times in milliseconds a run")
    console.print()
    level = next((row.latency.ratio.confidence for row in found.rows if row.latency.ratio is not None), None)
    heads = ["", "batch", "threads", "median", "p90", "p99"]
    heads += ["ratio" if level is None else f"ratio, {100 * level:g} % interval", "MACs", "bytes", "memory"]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=place not in (6, 9))
    for row in found.rows:
        model, time = subjects[row.model], row.latency
        table.add_row(
            row.model, str(row.batch), "auto" if row.threads is None else str(row.threads),
            *(number(value) for value in (time.median_ms, time.p90_ms, time.p99_ms)),
            "" if time.ratio is None else ratio_text(time.ratio), known(model.macs_ratio), known(model.bytes_ratio),
            "-" if row.memory is None else f"{row.memory.model / 1e6:,.1f} MB",
        )  # fmt: skip
    console.print(table)
    console.print()
    several = len({row.setting for row in found.rows}) > 1
    for row in found.rows:
        say(f"{row.setting}: {row.meaning}" if several else row.meaning)
    for gate in found.gates:
        say(gate.message, "green" if gate.met else "bold red")
    for warning in found.warnings:
        say(f"warning: {warning}", "yellow")
