"""``onnxprune prune-tune``: prune a trained network, train on with the zeros fixed, write what is left."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.configured import config_option
from onnxprune.cli.learning import data_options, distributed_options, learning_options, log_options, writing_options

if TYPE_CHECKING:
    from onnxprune.models.prunetune import PruneTuned

# The seed defaults of DeepHoyer's scripts, where they are not the network's own.
DEFAULTS: dict[str, Any] = {"epochs": 100, "optimizer": "adam", "lr": 1e-4}


@click.command(
    "prune-tune",
    epilog="""\b
Examples:
  onnxprune prune-tune hs.best.pth --data mnist:data --std-ratio 0.25 --out sparse.onnx
  onnxprune prune-tune lenet5 --from ghs.pth --data mnist:data --structured --threshold 1e-3 --out small.onnx
""",
)
@click.argument("source", metavar="CKPT|NET")
@click.option(
    "--from", "start", type=click.Path(), metavar="CKPT", help="the weights, where the first word is a network"
)
@click.option(
    "--trust-pickle", is_flag=True, help="let the checkpoint be a whole pickled module, which may run any code"
)
@click.option("--threshold", type=float, metavar="T", help="prune what is below T in magnitude")
@click.option("--std-ratio", type=float, metavar="S", help="prune what is below S standard deviations of its layer")
@click.option("--out", required=True, type=click.Path(), help="the ONNX file to write")
@config_option
@click.option("--eval", "test", metavar="D", help="tested on instead of a part of --data; any of its forms")
@data_options
@partial(
    learning_options,
    epochs=str(DEFAULTS["epochs"]), lr=str(DEFAULTS["lr"]), optimizer=str(DEFAULTS["optimizer"]),
)  # fmt: skip
@click.option("--resume", type=click.Path(), metavar="CKPT", help="go on from the .last.pth of a run that was killed")
@log_options
@distributed_options
@writing_options
def command(source: str, **given: Any) -> None:
    """Prune a checkpoint by a threshold, train on with the zeros fixed, print what is zero, and write ONNX.

    CKPT is a checkpoint that ``train`` wrote; NET is a network of the zoo, with --from. With --structured whole
    filters and channels go, and the graph that is written has none of them. Without other options 100 epochs of adam
    with learning rate 1e-4. Without --data what the checkpoint names.
    """
    from onnxprune.models import require_torch

    require_torch("prune-tune")
    from onnxprune.cli.learning import launch

    launch(_run, source, given)


def _run(source: str, given: dict[str, Any]) -> None:
    from pathlib import Path

    from onnxprune.cli.learning import train_options
    from onnxprune.cli.train import hooked
    from onnxprune.models import distributed
    from onnxprune.models.produce import LearnOptions, WriteOptions
    from onnxprune.models.prunetune import PruneOptions, known_source, prune_tune

    start, resume = (None if given[name] is None else Path(given[name]) for name in ("start", "resume"))
    found = known_source(source, start)
    asked = {name: DEFAULTS.get(name) if value is None else value for name, value in given.items()}
    # Zeros are what --structured is about here; a regulariser may be asked for as well.
    options = train_options(found.network, asked | {"structured": given["structured"] and given["reg"] is not None})
    learn = LearnOptions(
        given["download"], given["val_share"], given["dropped"], None, given["trust_pickle"], resume, given["test"]
    )
    writing = WriteOptions(given["opset"], given["keep_bn"], given["force"], given["exporter"])
    what = PruneOptions(given["threshold"], given["std_ratio"], given["structured"])
    with hooked(options.epochs, given) as hooks:
        done = prune_tune(found, given["data"], given["out"], what, options, writing, learn=learn, hooks=hooks)
    if distributed.rank() == 0:
        if given["as_json"]:
            click.echo(json.dumps(_document(done), indent=2))
        else:
            _show(done)


def _document(done: PruneTuned) -> dict[str, Any]:
    assert done.dense is not None and done.cost is not None
    scores = {"dense": done.before, "pruned": done.pruned, "tuned": done.trained.test}
    return {
        "network": done.network,
        "out": str(done.path),
        "bytes": done.bytes,
        "test": {name: each.known for name, each in scores.items()},
        "validation": done.trained.validation.known,
        "layers": [asdict(row) | {"share": row.share} for row in done.table],
        "compression": done.table[-1].total / max(1, done.table[-1].nonzero),
        "cost": {
            name: {"params": cost.params, "nonzero": cost.nonzero, "macs": cost.macs}
            for name, cost in (("dense", done.dense), ("written", done.cost))
        },
        "removed": done.removed,
        "best_epoch": done.trained.best_epoch,
        "seconds": round(done.trained.seconds, 3),
    }


def _show(done: PruneTuned) -> None:
    from rich.console import Console
    from rich.table import Table

    document = _document(done)
    table = Table("layer", "weights", "nonzero", "share", "rows / filters", "columns / channels", title=done.network)
    for row in done.table:
        rows, columns = f"{row.rows_kept:,} of {row.rows:,}", f"{row.columns_kept:,} of {row.columns:,}"
        table.add_row(row.name, f"{row.total:,}", f"{row.nonzero:,}", f"{row.share:.2%}", rows, columns)
    Console(highlight=False).print(table)
    click.echo(f"{document['compression']:.1f} times fewer weights")
    for name, scores in (("dense", done.before), ("pruned", done.pruned), ("tuned", done.trained.test)):
        click.echo(f"{name:7} test {scores.words}")
    click.echo(f"tuned   held-out {done.trained.validation.words}: what picked the epoch")
    cost = document["cost"]
    macs, left = cost["dense"]["macs"], cost["written"]["macs"]
    if done.removed:
        click.echo(f"zero groups left the graph: {left:,} of {macs:,} MACs, {cost['written']['params']:,} parameters")
    click.echo(f"wrote {document['out']} ({document['bytes']:,} bytes)")
