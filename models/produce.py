"""From a name to a finished ONNX file in one call: train and export, or load weights and export."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
from torch import nn

from onnxprune.data import Preprocess, named_splits
from onnxprune.data.spec import parse_spec
from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters.metadata import CLASSES, DATA, PREPROCESS, describe
from onnxprune.exporters.to_onnx import Exported, Exporter, check_opset, export
from onnxprune.graph import io
from onnxprune.graph.io import check_output
from onnxprune.models import distributed
from onnxprune.models.checkpoint import load_weights, module_from_script, read_checkpoint, trial_output
from onnxprune.models.options import TrainOptions
from onnxprune.models.scoring import Scores, score
from onnxprune.models.sources import HELD_OUT, TrainingData, known_classes, open_training, portable_spec
from onnxprune.models.state import Checkpoints
from onnxprune.models.train import Hooks, Trained, open_device, seeded, train_network
from onnxprune.models.zoo import NETWORKS, build, find

__all__ = [
    "ExportSource",
    "LearnOptions",
    "Produced",
    "WriteOptions",
    "evaluate_weights",
    "graph_to_train",
    "load_and_export",
    "named_source",
    "open_for",
    "read_class_names",
    "train_and_export",
]


@dataclass(frozen=True)
class WriteOptions:
    """How the ONNX file is written: operator set, BatchNormalization kept, overwriting, which exporter."""

    opset: int = 20
    keep_bn: bool = False
    force: bool = False
    exporter: Exporter = "dynamo"


@dataclass(frozen=True)
class LearnOptions:
    """What training starts from and on.

    Attributes:
        download: Allow torchvision to download.
        val_share: Share of the training data held out for validation.
        drop_classes: Classes that are not learnt from.
        start: A checkpoint whose weights training starts from.
        trust_pickle: That checkpoint may be a whole pickled module.
        resume: A ``last`` checkpoint to go on from.
        test: A DATA form that is tested on in place of a part of the data.
    """

    download: bool = False
    val_share: float = HELD_OUT
    drop_classes: tuple[str, ...] = ()
    start: Path | None = None
    trust_pickle: bool = False
    resume: Path | None = None
    test: str | None = None

    def loader(self) -> Callable[[nn.Module], None] | None:
        """Return what loads the weights to start from; None where they are fresh."""
        if self.start is None:
            return None
        return partial(load_weights, path=self.start, trust_pickle=self.trust_pickle)


@dataclass(frozen=True)
class ExportSource:
    """What to export.

    Attributes:
        network: A name of the zoo, a checkpoint that ``train`` wrote, or ``file.py:function``.
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
    trust_pickle: bool = False


@dataclass(frozen=True)
class Produced:
    """A written model file.

    Attributes:
        file: What ``export`` wrote; None where another of several processes writes.
        metadata: The entries it carries.
        notes: Sentences the user should read, such as what the file could not carry.
        trained: How training went, if there was any.
        data: The examples it was trained on, if there were any.
    """

    file: Exported | None
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
    learn: LearnOptions | None = None,
    hooks: Hooks | None = None,
) -> Produced:
    """Train a network of the zoo on a DATA spec and write it with data, preprocessing and classes named.

    Beside ``out`` lie two checkpoints: the last, to resume from, and the best by validation, which is exported.
    Of several processes the first writes.

    Raises:
        OptionError: If the network, an option or the output path is not usable; nothing was trained then.
        ModelError: If weights or a state to start from cannot be used.
        DataError: If the data is not usable.
        BackendError: If training diverges or the file cannot be written.
    """
    write, learn = write or WriteOptions(), learn or LearnOptions()
    found = find(network)
    check_output(out, source=None, force=write.force)
    check_opset(write.opset, write.exporter)
    files = {name: Path(out).with_suffix(f".{name}.pth") for name in ("last", "best")}
    for file in files.values():
        if learn.resume is None:
            check_output(file, source=None, force=write.force)
    data = open_for(network, spec, options, learn)
    about = {"network": network, "classes": data.outputs, "data": data.spec, "class_names": list(data.classes)}
    about["preprocess"] = None if data.preprocess is None else data.preprocess.to_json()
    trained = train_network(
        network,
        data,
        options,
        start=learn.loader(),
        hooks=hooks,
        checkpoints=Checkpoints(files["last"], files["best"], learn.resume, about),
    )
    metadata = describe(data.preprocess, data.classes, data.spec)
    exported = None
    if distributed.rank() == 0:
        exported = _write(trained.module, found.input_shape, out, write, metadata, found.regression)
    return Produced(exported, metadata, _notes(metadata, found.regression), trained, data)


def open_for(network: str, spec: str, options: TrainOptions, learn: LearnOptions) -> TrainingData:
    """Open a DATA spec for a network of the zoo.

    Raises:
        OptionError: If the network or an option is not usable.
        DataError: If the data is not usable.
    """
    found = find(network)
    return open_training(
        spec,
        found.input_shape,
        test=learn.test,
        seed=options.seed,
        download=learn.download,
        regression=found.regression,
        val_share=learn.val_share,
        drop_classes=learn.drop_classes,
    )


def evaluate_weights(network: str, spec: str, options: TrainOptions, learn: LearnOptions) -> Scores:
    """Score weights on the test side of a DATA spec, preprocessed as training would.

    Raises:
        OptionError: If there are no weights, or the network or the device is not usable.
        ModelError: If the weights do not fit.
        DataError: If the data is not usable.
    """
    loader = learn.loader()
    if loader is None:
        raise OptionError("--evaluate scores given weights: give --from checkpoint.pth")
    data = open_for(network, spec, options, learn)
    module = build(network, data.outputs)
    loader(module)
    device = open_device(options.device)
    return score(module.to(device), data.test, device, regression=data.regression)


def load_and_export(source: ExportSource, out: str | os.PathLike[str], write: WriteOptions | None = None) -> Produced:
    """Load weights into a network and write it.

    Raises:
        OptionError: If the network, an option or the output path is not usable.
        ModelError: If the weights do not fit, or torch cannot export the module.
        BackendError: If the file cannot be written.
    """
    write = write or WriteOptions()
    check_output(out, source=None, force=write.force)
    check_opset(write.opset, write.exporter)
    source = named_source(source)
    data = None if source.data is None else _checked_spec(source.data)
    names = source.class_names or (None if data is None else known_classes(parse_spec(data)))
    module, shape = _module(source, len(names) if names else None)
    if source.weights is not None:
        load_weights(module, source.weights, trust_pickle=source.trust_pickle)
    outputs = trial_output(module, shape, source.network)
    if names and outputs[-1] != len(names):
        raise OptionError(f"{source.network} has {outputs[-1]} outputs, but {len(names)} class names were given")
    metadata = describe(source.preprocess, names, data)
    regression = source.network in NETWORKS and find(source.network).regression
    return Produced(_write(module, shape, out, write, metadata, regression), metadata, _notes(metadata, regression))


def graph_to_train(source: ExportSource, data: TrainingData, seed: int) -> ir.Model:
    """Return a network of the zoo as a graph that keeps its normalisation, with seeded or loaded weights.

    Raises:
        OptionError: If the network is unknown.
        ModelError: If the weights do not fit, or torch cannot export the module.
    """
    with seeded(seed):
        module = build(source.network, data.outputs)
    if source.weights is not None:
        load_weights(module, source.weights, trust_pickle=source.trust_pickle)
    metadata = describe(data.preprocess, data.classes, data.spec)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        file = Path(folder) / "model.onnx"
        _write(module, find(source.network).input_shape, file, WriteOptions(keep_bn=True), metadata)
        return io.load(file)


def named_source(source: ExportSource) -> ExportSource:
    """Read what a checkpoint of ``train`` says of itself, where one stands in place of a network's name.

    Raises:
        ModelError: If it is missing, or does not say of which network it is.
    """
    path = Path(source.network)
    if source.network in NETWORKS or path.suffix == ".py":
        return source
    if not path.is_file():
        if path.suffix in (".pth", ".pt", ".th"):
            raise ModelError(f"the checkpoint {path} does not exist")
        return source
    loaded = read_checkpoint(path)
    if not isinstance(loaded, dict) or loaded.get("network") not in NETWORKS:
        raise ModelError(f"{path} does not say of which network it is: name the network, and give this as its weights")
    kept = loaded.get("preprocess")
    return replace(
        source,
        network=loaded["network"],
        weights=source.weights or path,
        classes=source.classes or loaded["classes"],
        class_names=source.class_names or tuple(loaded["class_names"]) or None,
        preprocess=source.preprocess or (None if kept is None else Preprocess.from_json(kept)),
        data=source.data or loaded["data"],
    )


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
    return build(source.network, source.classes or named), network.input_shape


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
    regression: bool = False,
) -> Exported:
    return export(
        module,
        shape,
        out,
        opset=write.opset,
        exporter=write.exporter,
        output_name="value" if regression else "logits",
        fold_bn=not write.keep_bn,
        metadata=metadata,
        force=write.force,
    )


def _notes(metadata: dict[str, str], regression: bool = False) -> tuple[str, ...]:
    """Say what the file does not carry and which option of ``apply`` stands in for it."""
    notes = []
    if DATA not in metadata:
        notes.append("the file names no data: give --calib and --eval (or --data) to onnxprune apply")
    if regression:
        return tuple(notes)
    if PREPROCESS not in metadata:
        notes.append("the file names no preprocessing: give --preprocess to onnxprune apply where the data is images")
    if CLASSES not in metadata:
        notes.append("the file names no classes: reports will number them")
    return tuple(notes)
