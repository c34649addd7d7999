"""``onnxprune train``: train a network of the zoo and export it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.configured import config_option
from onnxprune.cli.learning import data_options, distributed_options, learning_options, log_options, writing_options

if TYPE_CHECKING:
    from onnxprune.models.produce import Produced
    from onnxprune.models.scoring import Scores


def _list(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    if not given or ctx.resilient_parsing:
        return
    from onnxprune.models.zoo import NETWORKS

    click.echo(f"{'network':15} {'input':15} {'outputs':8} what it is")
    for name, network in NETWORKS.items():
        shape = ",".join(map(str, network.input_shape))
        outputs = "1 value" if network.regression else str(network.classes)
        click.echo(f"{name:15} {shape:15} {outputs:8} {network.summary}")
    ctx.exit()


@click.command(
    "train",
    epilog="""\b
Examples:
  onnxprune train lenet5 --data digits --out model.onnx
  onnxprune train resnet20 --data cifar10:data --out resnet20.onnx --epochs 100
  onnxprune train resnet20 --data cifar10:data --out resnet20.onnx --epochs 100 --resume resnet20.last.pth
  onnxprune train lenet300 --data mnist:data --out hs.onnx --from dense.best.pth --reg hs --decay 1e-4
  onnxprune train cnn3d --data voxels --out voxels.onnx
  torchrun --nproc-per-node 2 -m onnxprune train lenet5 --data digits --out model.onnx
""",
)
@click.argument("network", metavar="NET")
@click.option(
    "--list", "listed", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="list the networks"
)
@config_option
@click.option("--eval", "test", metavar="D", help="tested on instead of a part of --data; any of its forms")
@data_options
@click.option("--out", type=click.Path(), help="the ONNX file to write; OUT's .last.pth and .best.pth lie beside it")
@learning_options
@click.option("--from", "start", type=click.Path(), metavar="CKPT", help="start from these weights: a state dict")
@click.option("--trust-pickle", is_flag=True, help="let --from be a whole pickled module, which may run any code")
@click.option("--resume", type=click.Path(), metavar="CKPT", help="go on from the .last.pth of a run that was killed")
@click.option("--evaluate", is_flag=True, help="score the weights of --from on the test data; train nothing")
@log_options
@distributed_options
@writing_options
def command(network: str, **given: Any) -> None:
    """Train NET on labelled data and write it as ONNX, ready for ``onnxprune apply``.

    NET is lenet300, lenet5, mlp2, vgg_small (28x28 grey), resnet20, resnet32, resnet44, resnet56, resnet110, vgg16,
    vgg16_bn (32x32 colour), vgg16_imagenet, resnet18, resnet34, resnet50, mobilenet_v2 (224x224 colour) or cnn3d
    (voxels, a regression); --list shows more. A tenth of the training data picks the best epoch; the test data is read
    once, at the end.
    """
    from onnxprune.models import require_torch

    require_torch("training")
    from onnxprune.cli.learning import launch

    for name in ("data",) if given["evaluate"] else ("data", "out"):
        if given[name] is None:
            raise click.UsageError(f"Missing option '--{name}'.")
    launch(_run, network, given)


def _run(network: str, given: dict[str, Any]) -> None:
    """Run in one process, whether alone or one of several."""
    from pathlib import Path

    from onnxprune.cli.learning import train_options
    from onnxprune.models import distributed
    from onnxprune.models.produce import LearnOptions, WriteOptions, evaluate_weights, train_and_export

    options = train_options(network, given)
    start, resume = (None if given[name] is None else Path(given[name]) for name in ("start", "resume"))
    learn = LearnOptions(
        given["download"], given["val_share"], given["dropped"], start, given["trust_pickle"], resume, given["test"]
    )
    if given["evaluate"]:
        scores = evaluate_weights(network, given["data"], options, learn)
        if distributed.rank() == 0:
            show_scores(scores, given["as_json"])
        return
    writing = WriteOptions(given["opset"], given["keep_bn"], given["force"], given["exporter"])
    with hooked(options.epochs, given) as hooks:
        produced = train_and_export(network, given["data"], given["out"], options, writing, learn=learn, hooks=hooks)
    if distributed.rank() == 0:
        if given["as_json"]:
            click.echo(json.dumps(_document(network, produced), indent=2))
        else:
            _show(network, produced)


@contextlib.contextmanager
def hooked(epochs: int, given: dict[str, Any]) -> Iterator[Any]:
    """Give the loop a progress bar, lines every so many steps, and the logs that were asked for."""
    from onnxprune.models import distributed
    from onnxprune.models.logs import csv_log, tensorboard_log
    from onnxprune.models.train import Epoch, Hooks, Step

    if distributed.rank():
        yield Hooks()
        return
    with contextlib.ExitStack() as stack:
        logs = [] if given["csv"] is None else [csv_log(given["csv"])]
        if given["tensorboard"] is not None:
            logs.append(stack.enter_context(tensorboard_log(given["tensorboard"])))
        shown = stack.enter_context(_progress(epochs))

        def on_epoch(epoch: Epoch) -> None:
            shown(epoch.number, epoch.loss, epoch.validation.words)
            for log in logs:
                log(epoch)

        def on_step(step: Step) -> None:
            if given["print_freq"] and step.number % given["print_freq"] == 0:
                click.echo(
                    f"epoch {step.epoch} step {step.number}/{step.steps} loss {step.loss:.4f} lr {step.lr:.3g}",
                    err=True,
                )

        yield Hooks(epoch=on_epoch, step=on_step)


@contextlib.contextmanager
def _progress(epochs: int) -> Iterator[Any]:
    """Show a bar on stderr while training; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=epochs)

        def show(number: int, loss: float, words: str) -> None:
            bar.update(task, completed=number, description=f"loss {loss:.4f}, held-out {words}")

        yield show


def _document(network: str, produced: Produced) -> dict[str, Any]:
    trained, data, file = produced.trained, produced.data, produced.file
    assert trained is not None and data is not None and file is not None
    assert trained.train is not None
    parts = {"train": trained.train, "validation": trained.validation, "test": trained.test}
    metric = "rmse" if data.regression else "accuracy"
    document = {
        "network": network,
        "out": str(file.path),
        "bytes": file.bytes,
        "sha256": file.sha256,
        "opset": file.opset,
        "parity_error": file.error,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        metric: {part: scores.known[metric] for part, scores in parts.items()},
        "scores": {part: scores.known for part, scores in parts.items()},
        "last": {"epoch": trained.last.number, "loss": trained.last.loss, **trained.last.validation.known},
        "checkpoints": {name: str(file.path.with_suffix(f".{name}.pth")) for name in ("best", "last")},
        "examples": {"train": data.train.count, "validation": data.validation.count, "test": data.test.count},
        "seconds": round(trained.seconds, 3),
        "metadata": produced.metadata,
        "notes": list(produced.notes),
    }
    return document


def _show(network: str, produced: Produced) -> None:
    from rich.console import Console
    from rich.table import Table

    document = _document(network, produced)
    figure = "RMSE" if "rmse" in document else "accuracy"
    table = Table("data", "examples", figure, title=f"{network}, best of {document['epochs']} epochs")
    for part in ("train", "validation", "test"):
        value = document[figure.lower()][part]
        table.add_row(
            part, f"{document['examples'][part]:,}", f"{value:.2%}" if figure == "accuracy" else f"{value:.4g}"
        )
    Console(highlight=False).print(table)
    trained = produced.trained
    assert trained is not None
    files = document["checkpoints"]
    click.echo(f"best: epoch {trained.best_epoch}, held-out {trained.validation.words}: {files['best']}")
    click.echo(f"last: epoch {trained.last.number}, held-out {trained.last.validation.words}: {files['last']}")
    click.echo(f"wrote {document['out']} ({document['bytes']:,} bytes, opset {document['opset']})")
    for note in produced.notes:
        click.echo(f"note: {note}")


def show_scores(scores: Scores, as_json: bool) -> None:
    """Print what a network is worth on the test data."""
    if as_json:
        click.echo(json.dumps({"test": scores.known}, indent=2))
    else:
        click.echo(f"test: {scores.words}, loss {scores.loss:.4f}")
