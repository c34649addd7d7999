"""From a name to a finished ONNX file in one call: train and export, or load weights and export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from onnxprune.data import Preprocess, named_splits
from onnxprune.data.spec import parse_spec
from onnxprune.errors import OptionError
from onnxprune.exporters.metadata import CLASSES, DATA, PREPROCESS, describe
from onnxprune.exporters.to_onnx import Exported, check_opset, export
from onnxprune.graph.io import check_output
from onnxprune.models.checkpoint import load_weights, module_from_script, trial_output
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData, known_classes, open_training, portable_spec
from onnxprune.models.train import Epoch, Trained, train_network
from onnxprune.models.zoo import build, find

__all__ = [
    "ExportSource",
    "Produced",
    "WriteOptions",
    "load_and_export",
    "read_class_names",
    "train_and_export",
]


@dataclass(frozen=True)
class WriteOptions:
    """How the ONNX file is written: operator set, BatchNormalization kept, existing file overwritten."""

    opset: int = 20
    keep_bn: bool = False
    force: bool = False


@dataclass(frozen=True)
class ExportSource:
    """What to export.

    Attributes:
        network: A name of the zoo, or ``file.py:function``.
        weights: A state dict; a script's function may bring its own weights instead.
        input_shape: Shape of one example, for scripts only.
        classes: Number of classes; None takes that of ``class_names`` or of ``data``, else 10.
        class_names: Names in the order of the outputs.
        preprocess: How pixels become inputs.
        data: The DATA spec the weights were trained on.
    """

    network: str
    weights: Path | None = None
    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    preprocess: Preprocess | None = None
    data: str | None = None


@dataclass(frozen=True)
class Produced:
    """A written model file.

    Attributes:
        file: What ``export`` wrote.
        metadata: The entries it carries.
        notes: Sentences the user should read, such as what the file could not carry.
        trained: How training went, if there was any.
        data: The examples it was trained on, if there were any.
    """

    file: Exported
    metadata: dict[str, str]
    notes: tuple[str, ...]
    trained: Trained | None = None
    data: TrainingData | None = None


def train_and_export(
    network: str,
    spec: str,
    out: str | os.PathLike[str],
    options: TrainOptions,
    write: WriteOptions | None = None,
    *,
    download: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Produced:
    """Train a network of the zoo on a DATA spec and write it with data, preprocessing and classes named.

    Raises:
        OptionError: If the network, an option or the output path is not usable; nothing was trained then.
        DataError: If the data is not usable.
        BackendError: If training diverges or the file cannot be written.
    """
    write = write or WriteOptions()
    shape = find(network).input_shape
    check_output(out, source=None, force=write.force)
    check_opset(write.opset)
    data = open_training(spec, shape, seed=options.seed, download=download)
    trained = train_network(network, data, options, on_epoch)
    metadata = describe(data.preprocess, data.classes, data.spec)
    return Produced(_write(trained.module, shape, out, write, metadata), metadata, _notes(metadata), trained, data)


def load_and_export(source: ExportSource, out: str | os.PathLike[str], write: WriteOptions | None = None) -> Produced:
    """Load weights into a network and write it.

    Raises:
        OptionError: If the network, an option or the output path is not usable.
        ModelError: If the weights do not fit, or torch cannot export the module.
        BackendError: If the file cannot be written.
    """
    write = write or WriteOptions()
    check_output(out, source=None, force=write.force)
    check_opset(write.opset)
    data = None if source.data is None else _checked_spec(source.data)
    names = source.class_names or (None if data is None else known_classes(parse_spec(data)))
    module, shape = _module(source, len(names) if names else None)
    if source.weights is not None:
        load_weights(module, source.weights)
    outputs = trial_output(module, shape, source.network)
    if names and outputs[-1] != len(names):
        raise OptionError(f"{source.network} has {outputs[-1]} outputs, but {len(names)} class names were given")
    metadata = describe(source.preprocess, names, data)
    return Produced(_write(module, shape, out, write, metadata), metadata, _notes(metadata))


def read_class_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names from a JSON file that holds a list of strings.

    Raises:
        OptionError: If it does not.
    """
    try:
        names: object = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OptionError(f"cannot read class names from {path}: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise OptionError(f'{path} holds no class names: a JSON list such as ["cat", "dog"] is accepted')
    return tuple(names)


def _module(source: ExportSource, named: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    if source.network.rpartition(":")[0].endswith(".py"):
        if source.input_shape is None:
            raise OptionError(f"{source.network} does not tell its input: give --input-shape, as 3,32,32")
        if source.classes is not None:
            raise OptionError(f"--classes is for the zoo's networks: {source.network} decides its own outputs")
        return module_from_script(source.network), source.input_shape
    network = find(source.network)
    if source.input_shape not in (None, network.input_shape):
        raise OptionError(
            f"{source.network} takes {','.join(map(str, network.input_shape))}: "
            "--input-shape is for networks from a file"
        )
    if source.weights is None:
        raise OptionError(f"{source.network} from the zoo has no weights of its own: give --weights checkpoint.pth")
    if None not in (source.classes, named) and source.classes != named:
        raise OptionError(f"--classes {source.classes}, but there are {named} class names: give one of them")
    return build(source.network, source.classes or named or 10), network.input_shape


def _checked_spec(spec: str) -> str:
    portable = portable_spec(parse_spec(spec))
    if portable is None:
        reason = "names a place on this machine" if named_splits(spec) else "has no training and test side"
        raise OptionError(
            f"--data {spec!r} {reason}: the file can carry digits, or mnist:, cifar10: with a relative ROOT"
        )
    return portable


def _write(
    module: nn.Module,
    shape: tuple[int, ...],
    out: str | os.PathLike[str],
    write: WriteOptions,
    metadata: dict[str, str],
) -> Exported:
    return export(
        module,
        shape,
        out,
        opset=write.opset,
        fold_bn=not write.keep_bn,
        metadata=metadata,
        force=write.force,
    )


def _notes(metadata: dict[str, str]) -> tuple[str, ...]:
    """Say what the file does not carry and which option of ``apply`` stands in for it."""
    notes = []
    if DATA not in metadata:
        notes.append("the file names no data: give --calib and --eval (or --data) to onnxprune apply")
    if PREPROCESS not in metadata:
        notes.append("the file names no preprocessing: give --preprocess to onnxprune apply where the data is images")
    if CLASSES not in metadata:
        notes.append("the file names no classes: reports will number them")
    return tuple(notes)
