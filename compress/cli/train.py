"""``onnxprune train``: train a network of the zoo and export it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.shared import DATA_HELP

if TYPE_CHECKING:
    from onnxprune.models.produce import Produced
    from onnxprune.models.train import Epoch


@click.command(
    "train",
    epilog="""\b
Examples:
  onnxprune train lenet5 --data digits --out model.onnx
  onnxprune train resnet20 --data cifar10:data --out resnet20.onnx --epochs 100
  onnxprune train lenet300 --data images.zip --out model.onnx --optimizer adam --seed 1
""",
)
@click.argument("network", metavar="NET")
@click.option("--data", required=True, help=f"labelled {DATA_HELP.removesuffix(', random')}")
@click.option("--out", required=True, type=click.Path(), help="the ONNX file to write")
@click.option("--epochs", type=int, help="passes over the training data  [default: 30; ResNets 60]")
@click.option("--batch-size", type=int, help="examples per step  [default: 32; ResNets 128]")
@click.option("--lr", type=float, help="learning rate at the start  [default: 0.02; ResNets 0.1; adam 0.001]")
@click.option("--optimizer", default="sgd", show_default=True, help="sgd or adam")
@click.option("--momentum", type=float, help="momentum of sgd  [default: 0.9]")
@click.option("--weight-decay", type=float, help="factor of the L2 penalty  [default: 0.0005]")
@click.option("--schedule", help="cosine, multistep or none  [default: cosine]")
@click.option(
    "--augment",
    help="auto, none, shift, shift+flip or affine  [default: auto: affine on grey images, shift+flip on colour]",
)
@click.option("--seed", default=0, show_default=True, help="decides weights, order and held-out examples")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--opset", default=20, show_default=True, help="ONNX operator set")
@click.option("--keep-bn", is_flag=True, help="keep BatchNormalization nodes instead of folding them")
@click.option("--download", is_flag=True, help="let torchvision fetch missing data")
@click.option("--force", is_flag=True, help="overwrite an existing --out")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def command(
    network: str,
    data: str,
    out: str,
    epochs: int | None,
    batch_size: int | None,
    lr: float | None,
    optimizer: str,
    momentum: float | None,
    weight_decay: float | None,
    schedule: str | None,
    augment: str | None,
    seed: int,
    device: str,
    opset: int,
    keep_bn: bool,
    download: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train NET on labelled data and write it as ONNX, ready for ``onnxprune apply``.

    NET is lenet300, lenet5 (28x28 grey), resnet20, resnet32, resnet44, resnet56 or resnet110 (32x32 colour).
    A tenth of the training data picks the best epoch; the test data is read once, at the end.
    """
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "momentum": momentum,
    }
    given |= {
        "weight_decay": weight_decay,
        "schedule": schedule,
        "augment": augment,
        "seed": seed,
        "device": device,
    }
    _run(network, data, out, given, {"opset": opset, "keep_bn": keep_bn, "force": force}, download, as_json)


def _run(
    network: str,
    data: str,
    out: str,
    given: dict[str, Any],
    writing: dict[str, Any],
    download: bool,
    as_json: bool,
) -> None:
    from onnxprune.models import require_torch

    require_torch("training")
    from onnxprune.models.options import options_for
    from onnxprune.models.produce import WriteOptions, train_and_export

    options = options_for(network, given)
    with _progress(options.epochs) as on_epoch:
        produced = train_and_export(
            network, data, out, options, WriteOptions(**writing), download=download, on_epoch=on_epoch
        )
    if as_json:
        click.echo(json.dumps(_document(network, produced), indent=2))
    else:
        _show(network, produced)


@contextmanager
def _progress(epochs: int) -> Iterator[Callable[[Epoch], None]]:
    """Show a bar on stderr while training; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=epochs)

        def on_epoch(epoch: Epoch) -> None:
            words = f"loss {epoch.loss:.4f}, held-out accuracy {epoch.validation_accuracy:.2%}"
            bar.update(task, advance=1, description=words)

        yield on_epoch


def _document(network: str, produced: Produced) -> dict[str, Any]:
    trained, data = produced.trained, produced.data
    assert trained is not None and data is not None
    return {
        "network": network,
        "out": str(produced.file.path),
        "bytes": produced.file.bytes,
        "sha256": produced.file.sha256,
        "opset": produced.file.opset,
        "parity_error": produced.file.error,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "accuracy": {
            "train": trained.train_accuracy,
            "validation": trained.validation_accuracy,
            "test": trained.test_accuracy,
        },
        "examples": {"train": data.train.count, "validation": data.validation.count, "test": data.test.count},
        "seconds": round(trained.seconds, 3),
        "metadata": produced.metadata,
        "notes": list(produced.notes),
    }


def _show(network: str, produced: Produced) -> None:
    from rich.console import Console
    from rich.table import Table

    document = _document(network, produced)
    table = Table("data", "examples", "accuracy", title=f"{network}, best of {document['epochs']} epochs")
    for part in ("train", "validation", "test"):
        table.add_row(part, f"{document['examples'][part]:,}", f"{document['accuracy'][part]:.2%}")
    Console(highlight=False).print(table)
    click.echo(f"wrote {document['out']} ({document['bytes']:,} bytes, opset {document['opset']})")
    for note in produced.notes:
        click.echo(f"note: {note}")
