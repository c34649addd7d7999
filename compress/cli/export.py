"""``onnxprune export``: load PyTorch weights and write them as ONNX."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.learning import exporter_option

if TYPE_CHECKING:
    from onnxprune.exporters.to_onnx import Exporter
    from onnxprune.models.produce import Produced


@click.command(
    "export",
    epilog="""\b
Examples:
  onnxprune export resnet20 --weights checkpoint.pth --out resnet20.onnx --data cifar10:data
  onnxprune export model.best.pth --out model.onnx
  onnxprune export net.py:build --weights net.pth --input-shape 3,32,32 --out net.onnx --keep-bn
""",
)
@click.argument("network", metavar="NET")
@click.option("--weights", type=click.Path(), help="a state dict written by torch.save")
@click.option("--trust-pickle", is_flag=True, help="let --weights be a whole pickled module, which may run any code")
@click.option("--out", required=True, type=click.Path(), help="the ONNX file to write")
@click.option("--classes", type=int, help="number of classes  [default: that of the class names, else 10]")
@click.option("--class-names", type=click.Path(), help="a JSON list of class names, in the order of the outputs")
@click.option("--preprocess", type=click.Path(), help="a YAML or JSON file that says how pixels become inputs")
@click.option("--data", help="the data the weights were trained on: digits, or mnist:ROOT with a relative ROOT, …")
@click.option("--input-shape", help="shape of one example, as 3,32,32; for networks from a file")
@click.option("--keep-bn", is_flag=True, help="keep BatchNormalization nodes instead of folding them")
@exporter_option
@click.option("--opset", default=20, show_default=True, help="ONNX operator set")
@click.option("--force", is_flag=True, help="overwrite an existing --out")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def command(
    network: str,
    weights: str | None,
    trust_pickle: bool,
    out: str,
    classes: int | None,
    class_names: str | None,
    preprocess: str | None,
    data: str | None,
    input_shape: str | None,
    keep_bn: bool,
    exporter: Exporter,
    opset: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write NET with the given weights as ONNX: dynamic batch, checked against PyTorch, no local paths.

    NET is a network of the zoo (lenet300, lenet5, mlp2, vgg_small, resnet20, resnet32, resnet44, resnet56, resnet110,
    vgg16, vgg16_bn, vgg16_imagenet, resnet18, resnet34, resnet50, mobilenet_v2, cnn3d), a checkpoint that ``train``
    wrote, or ``file.py:function``, a function without arguments that returns a torch.nn.Module.
    """
    from pathlib import Path

    from onnxprune.models import require_torch

    require_torch("export")
    from onnxprune.data import Preprocess
    from onnxprune.models.produce import ExportSource, WriteOptions, load_and_export, read_class_names

    source = ExportSource(
        network=network,
        weights=None if weights is None else Path(weights),
        input_shape=None if input_shape is None else _shape(input_shape),
        classes=classes,
        class_names=None if class_names is None else read_class_names(class_names),
        preprocess=None if preprocess is None else Preprocess.from_file(preprocess),
        data=data,
        trust_pickle=trust_pickle,
    )
    _show(network, load_and_export(source, out, WriteOptions(opset, keep_bn, force, exporter)), as_json)


def _shape(text: str) -> tuple[int, ...]:
    from onnxprune.errors import OptionError

    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise OptionError(f"--input-shape {text!r}: whole numbers with commas are accepted, as 3,32,32") from error


def _show(network: str, produced: Produced, as_json: bool) -> None:
    file = produced.file
    assert file is not None  # one process exports
    document: dict[str, Any] = {
        "network": network,
        "out": str(file.path),
        "bytes": file.bytes,
        "sha256": file.sha256,
        "opset": file.opset,
        "parity_error": file.error,
        "metadata": produced.metadata,
        "notes": list(produced.notes),
    }
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"wrote {file.path} ({file.bytes:,} bytes, opset {file.opset})")
    click.echo(f"ONNX Runtime agrees with PyTorch within {file.error:.1e} relative")
    for note in produced.notes:
        click.echo(f"note: {note}")
