"""``onnxprune evaluate``: one model on labelled examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.shared import DATA_HELP, make_options, run_options

if TYPE_CHECKING:
    from onnxprune.api import Evaluation


@click.command(
    "evaluate",
    epilog="""\b
Example:
  onnxprune evaluate model.onnx --data test.zip --json
""",
)
@click.argument("model", metavar="M.onnx")
@click.option("--data", metavar="D", help=f"all of it is used; {DATA_HELP}")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
@run_options
def command(model: str, data: str | None, as_json: bool, **run: object) -> None:
    """Show accuracy, loss, per-class accuracy and latency of one model on all of --data."""
    from onnxprune.api import evaluate

    found = evaluate(model, data, options=make_options(**run))
    if as_json:
        import json

        click.echo(json.dumps(_plain(found), indent=2))
    else:
        _show(found)


def _plain(found: Evaluation) -> dict[str, Any]:
    import dataclasses

    performance = dataclasses.asdict(found.scored.performance)
    performance.pop("warnings")
    cost = found.cost
    return {
        "model": dataclasses.asdict(found.model),
        "data": {
            "source": found.source,
            "examples": performance["examples"],
            "sha256": found.scored.fingerprint.hexdigest(),
        },
        **performance,
        "latency": dataclasses.asdict(found.scored.latency),
        "cost": {"params": cost.params, "nonzero": cost.nonzero, "macs": cost.macs, "bytes": cost.bytes},
        "providers": list(found.scored.providers),
        "warnings": list(found.warnings),
    }


def _show(found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from onnxprune.report.figures import interval, percent

    console, performance = Console(), found.scored.performance
    rows: list[tuple[str, str]] = [("examples", f"{performance.examples:,} ({found.source})")]
    if performance.accuracy is not None:
        rate = performance.accuracy
        rows.append(
            (
                "accuracy",
                f"{percent(rate.rate)} ({100 * rate.confidence:g} % interval {interval(rate.low, rate.high)})",
            )
        )
    if performance.top5 is not None:
        rows.append(("top-5 accuracy", percent(performance.top5.rate)))
    if performance.loss is not None:
        rows.append(("loss (nats)", f"{performance.loss:.4g}"))
    if performance.maps is not None:
        maps = performance.maps
        rows.append(("accuracy of positions", f"{percent(maps.accuracy)} of {maps.positions:,}"))
        rows.append(("mIoU", percent(maps.miou)))
    if performance.values is not None and performance.values.rmse is not None:
        rows.append(("RMSE", f"{performance.values.rmse:.4g}"))
    latency = found.scored.latency
    rows.append(
        (
            "latency",
            f"median {latency.median_ms:.3g} ms, p90 {latency.p90_ms:.3g} ms at batch {latency.batch}",
        )
    )
    rows.append(("parameters", f"{found.cost.params:,}"))
    rows.append(("FLOPs (2 x MACs)", f"{2 * found.cost.macs:,}"))
    summary = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        summary.add_row(*row)
    console.print(summary)
    if any(score.rate is not None for score in performance.per_class):
        table = Table(box=None, pad_edge=False)
        for column in ("class", "examples", "predicted", "accuracy"):
            table.add_column(column, justify="left" if column == "class" else "right")
        for score in performance.per_class:
            table.add_row(score.label, f"{score.count:,}", f"{score.predicted:,}", percent(score.rate))
        console.print()
        console.print(table)
    for warning in found.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
