"""Options of the verbs that train, and how their processes are started."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.cli.shared import DATA_HELP, added
from onnxprune.errors import OptionError

if TYPE_CHECKING:
    from onnxprune.models.options import TrainOptions
    from onnxprune.models.teaching import Lesson

__all__ = [
    "data_options", "distributed_options", "exporter_option", "launch", "learning_options", "lesson_of",
    "lesson_options", "log_options", "train_options", "writing_options",
]  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., Any])

# Fields of TrainOptions that the command line gives under their own names.
FIELDS = (
    "epochs", "batch_size", "lr", "optimizer", "momentum", "nesterov", "weight_decay", "no_bias_decay", "schedule",
    "gamma", "warmup", "label_smoothing", "patience", "clip", "ema", "amp", "decay", "decay_by", "sync_bn", "augment",
    "seed", "device", "workers",
)  # fmt: skip


def data_options(function: Function) -> Function:
    """Add what is learnt from."""
    return added(
        function,
        click.option("--data", help=f"labelled {DATA_HELP.removesuffix(', random')}"),
        click.option(
            "--val-share", type=float, default=0.1, show_default=True, help="share held out, which picks the epoch"
        ),
        click.option(
            "--drop-class", "dropped", multiple=True, metavar="CLASS", help="learn from no example of it (repeatable)"
        ),
        click.option("--download", is_flag=True, help="let torchvision fetch missing data"),
        click.option("--workers", type=int, default=0, show_default=True, help="threads that read and decode ahead"),
    )


def learning_options(
    function: Function,
    *,
    epochs: str = "30; ResNets, VGGs 60",
    batch_size: str = "32; ResNets 128",
    lr: str = "0.02; ResNets 0.1; adam 0.001",
    optimizer: str = "sgd; cnn3d adam",
    weight_decay: str = "0.0005",
    clip: str = "none",
    epochs_names: tuple[str, ...] = ("--epochs",),
) -> Function:
    """Add how it is learnt; where no default is given the network or the verb has one, of which the help tells."""
    return added(
        function,
        click.option(*epochs_names, "epochs", type=int, help=f"passes over the training data  [default: {epochs}]"),
        click.option("--batch-size", type=int, help=f"examples per step, of all processes  [default: {batch_size}]"),
        click.option("--lr", type=float, help=f"learning rate at the start  [default: {lr}]"),
        click.option("--optimizer", help=f"sgd, adam or adamw  [default: {optimizer}]"),
        click.option("--momentum", type=float, help="momentum of sgd  [default: 0.9]"),
        click.option("--nesterov/--no-nesterov", default=None, help="Nesterov's form of it  [default: yes]"),
        click.option("--weight-decay", type=float, help=f"factor of the L2 penalty  [default: {weight_decay}]"),
        click.option("--no-bias-decay", is_flag=True, default=None, help="no weight decay on biases and normalisation"),
        click.option("--schedule", help="cosine, step, multistep or none  [default: cosine]"),
        click.option("--milestones", metavar="E,E,...", help="epochs of step  [default: half and three quarters]"),
        click.option("--gamma", type=float, help="factor of step and multistep  [default: 0.1]"),
        click.option("--warmup", type=float, metavar="EPOCHS", help="the rate rises in a line first  [default: 0]"),
        click.option("--label-smoothing", type=float, help="share of the target spread over classes  [default: 0]"),
        click.option(
            "--patience", type=int, metavar="EPOCHS", help="stop when none was better for so long  [default: never]"
        ),
        click.option(
            "--clip", type=float, metavar="NORM", help=f"largest L2 norm of a step's gradient  [default: {clip}]"
        ),
        click.option(
            "--ema",
            type=float,
            metavar="DECAY",
            help="judge and keep the running mean of the weights, such as 0.999  [default: 0, none]",
        ),
        click.option("--amp", is_flag=True, default=None, help="mixed precision; CUDA only"),
        click.option(
            "--reg",
            metavar="NAME",
            help="none, l1, hoyer, hs, transformed-l1, group-lasso, group-hs, or DeepHoyer's number",
        ),
        click.option("--structured", is_flag=True, help="--reg over whole filters and channels: 0-2 or a group-"),
        click.option("--decay", type=float, help="factor of --reg  [default: 0]"),
        click.option(
            "--decay-by", metavar="layer|macs", help="a weight or group counts alike, or by its MACs  [default: layer]"
        ),
        click.option(
            "--augment",
            help="auto, none, shift, shift+flip, crop, crop+flip, affine; with a teacher also shift+flip+mixup and "
            "crop+flip+mixup  "
            "[default: auto: affine on grey images, shift+flip on colour]",
        ),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="decides weights, order, held-out examples"
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N"),
    )


def lesson_options(function: Function, *, teacher: str, loss: str) -> Function:
    """Add what is learnt from another network; ``teacher`` and ``loss`` are the help of these two."""
    return added(
        function,
        click.option("--teacher", metavar="M.onnx", help=teacher),
        click.option("--loss", help=f"distill, labels or both  [default: {loss}]"),
        click.option(
            "--temperature", type=float, default=1.0, show_default=True, help="class scores are divided by it"
        ),
        click.option(
            "--feature",
            "features",
            multiple=True,
            metavar="NAME",
            help="inner values to match too: names, globs, re:..., or auto (repeatable)",
        ),
        click.option(
            "--feature-weight", type=float, default=1.0, show_default=True, help="factor of the mean over --feature"
        ),
    )


def lesson_of(given: dict[str, Any], loss: str) -> Lesson:
    """Take what is learnt from out of the command line's options; ``loss`` is meant where they name none.

    Raises:
        OptionError: If a value is out of range.
    """
    from onnxprune.models.teaching import Lesson

    return Lesson(
        given["loss"] or loss, given["temperature"], given["features"], given["feature_weight"],
        given["label_smoothing"] or 0.0,
    )  # fmt: skip


def log_options(function: Function) -> Function:
    """Add where figures go meanwhile."""
    return added(
        function,
        click.option("--csv", type=click.Path(), metavar="FILE", help="every epoch's figures as CSV"),
        click.option("--tensorboard", type=click.Path(), metavar="DIR", help="every epoch's figures for TensorBoard"),
        click.option("--print-freq", type=int, default=0, metavar="N", help="a line on stderr every N steps"),
    )


def distributed_options(function: Function) -> Function:
    """Add how several processes train together."""
    return added(
        function,
        click.option(
            "--multiprocessing-distributed", is_flag=True, help="one process per CUDA device (or --nproc-per-node) here"
        ),
        click.option("--nproc-per-node", type=int, metavar="N", help="processes here  [default: CUDA devices, else 1]"),
        click.option(
            "--world-size",
            type=int,
            metavar="N",
            help="processes in all, or machines with --multiprocessing-distributed; torchrun says it itself",
        ),
        click.option("--rank", type=int, metavar="N", help="which of these this is, from 0"),
        click.option("--dist-url", metavar="URL", help="where they meet, such as tcp://127.0.0.1:23456"),
        click.option("--dist-backend", metavar="NAME", help="nccl or gloo  [default: nccl with a device each]"),
        click.option(
            "--sync-bn", is_flag=True, default=None, help="BatchNorm statistics over all processes; CUDA only"
        ),
    )


def exporter_option(function: Function) -> Function:
    """Add ``--exporter``."""
    return click.option(
        "--exporter",
        type=click.Choice(["dynamo", "torchscript"]),
        default="dynamo",
        show_default=True,
        help="torchscript for modules that torch's newer one refuses; it freezes branches that depend on values",
    )(function)


def writing_options(function: Function) -> Function:
    """Add how the ONNX file is written, and ``--json``."""
    return added(
        function,
        click.option("--opset", type=int, default=20, show_default=True, help="ONNX operator set"),
        click.option("--keep-bn", is_flag=True, help="keep BatchNormalization nodes instead of folding them"),
        exporter_option,
        click.option("--force", is_flag=True, help="overwrite an existing --out and its checkpoints"),
        click.option("--json", "as_json", is_flag=True, help="print the result as JSON"),
    )


def train_options(network: str, given: dict[str, Any]) -> TrainOptions:
    """Take the training options out of the command line's.

    Raises:
        OptionError: If a value is out of range.
    """
    from onnxprune.models.options import options_for, regularizer_name

    chosen = {name: given[name] for name in FIELDS}
    if given["reg"] is not None:
        chosen["reg"] = regularizer_name(given["reg"], structured=given["structured"])
    elif given["structured"]:
        raise OptionError("--structured says over what --reg is taken: give --reg group-hs or group-lasso")
    if given["milestones"] is not None:
        try:
            chosen["milestones"] = tuple(int(text) for text in given["milestones"].split(","))
        except ValueError as error:
            raise OptionError(
                f"--milestones {given['milestones']!r}: epochs with commas are accepted, as 80,120"
            ) from error
    return options_for(network, chosen)


def launch(function: Callable[[str, dict[str, Any]], None], network: str, given: dict[str, Any]) -> None:
    """Run ``function(network, given)`` here, or in as many processes as the options ask for.

    Raises:
        OptionError: If the options do not say how the processes find each other.
    """
    import torch

    from onnxprune.models import distributed

    world, rank, url = given["world_size"], given["rank"], given["dist_url"]
    if given["multiprocessing_distributed"]:
        processes = given["nproc_per_node"] or max(1, torch.cuda.device_count())
        node = distributed.Rendezvous(world or 1, rank or 0, url or "env://", given["dist_backend"])
        distributed.spawn(function, (network, given), node, processes)
        return
    if given["nproc_per_node"] is not None:
        raise OptionError("--nproc-per-node is for --multiprocessing-distributed; torchrun has its own")
    meeting = distributed.from_environment(given["dist_backend"])
    if world is not None and meeting is None:
        if world > 1 and (rank is None or url is None):
            raise OptionError(
                "--world-size without torchrun needs --rank and --dist-url, such as tcp://127.0.0.1:23456"
            )
        meeting = distributed.Rendezvous(world, rank or 0, url or "env://", given["dist_backend"])
    with distributed.joined(meeting, given["device"]):
        function(network, given)
