"""How to train, as one checked dataclass, and each network's own defaults. Loads no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError

__all__ = [
    "AUGMENTATIONS",
    "GROUP_REGULARIZERS",
    "OPTIMIZERS",
    "REGULARIZERS",
    "SCHEDULES",
    "TrainOptions",
    "options_for",
    "regularizer_name",
]

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "multistep", "none")
AUGMENTATIONS = (
    "auto", "none", "shift", "shift+flip", "crop", "crop+flip", "affine", "shift+flip+mixup", "crop+flip+mixup",
)  # fmt: skip
# In the order of the numbers that the paper's scripts take for --reg.
REGULARIZERS = ("none", "l1", "hoyer", "hs", "transformed-l1")
GROUP_REGULARIZERS = ("none", "group-lasso", "group-hs")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Examples per step, over all processes together.
        lr: Learning rate at the start, after the warmup.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        momentum: Momentum of ``sgd``.
        nesterov: Nesterov's form of it.
        weight_decay: Factor of the L2 penalty (``adamw``: of the decoupled decay).
        no_bias_decay: No decay on biases and on what normalisation learns.
        schedule: ``cosine`` to zero, ``step`` (times ``gamma`` at each of ``milestones``), ``multistep`` (``step``
            at half and at three quarters), or ``none``.
        milestones: Epochs after which ``step`` lowers the rate; empty is half and three quarters.
        gamma: Factor of ``step`` and ``multistep``.
        warmup: Epochs in which the rate rises in a line from nothing; any schedule.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, section 7).
        patience: Stop after so many epochs without a better one by validation; 0 never stops early.
        clip: Gradients are scaled down to this L2 norm over all weights where theirs is larger; 0 leaves them.
        ema: Epochs are judged by, and the result is, the running mean of the weights, of which this share stays
            after a step; 0 takes the weights themselves.
        amp: Mixed precision, float16 with a scaled loss; CUDA only.
        reg: A sparsity regulariser of ``REGULARIZERS`` or ``GROUP_REGULARIZERS``.
        decay: Its factor.
        decay_by: ``layer``: every layer's measure counts alike, as published; ``macs``: times the multiply-accumulates
            of one weight or group of the layer, so that those go which save most.
        sync_bn: BatchNorm statistics over all processes; CUDA only.
        seed: Decides weights, order, held-out split and augmentation.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        augment: ``auto`` (``shift+flip`` for colour images, ``affine`` for grey ones: better than ``shift`` or
            ``none`` for lenet300 and as good for lenet5 over four folds of digits:train), ``none``, ``shift``,
            ``shift+flip``, ``crop``, ``crop+flip`` (zeros around, as torchvision's RandomCrop) or ``affine``;
            ``shift+flip+mixup`` and ``crop+flip+mixup`` for learning from a teacher, who says what a mixture is.
        workers: Threads that read and decode batches ahead; 0 reads in the loop.

    Raises:
        OptionError: If a value is out of range.
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    no_bias_decay: bool = False
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    label_smoothing: float = 0.0
    patience: int = 0
    clip: float = 0.0
    ema: float = 0.0
    amp: bool = False
    reg: str = "none"
    decay: float = 0.0
    decay_by: str = "layer"
    sync_bn: bool = False
    seed: int = 0
    device: str = "auto"
    augment: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("patience", 0), ("workers", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name.replace('_', '-')} {getattr(self, name)}: at least {least} is accepted")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise OptionError(f"lr {self.lr}: a positive number is accepted")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(
                    f"{name.replace('_', '-')} {getattr(self, name)}: 0 up to, not including, 1 is accepted"
                )
        for name in ("weight_decay", "decay", "warmup", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise OptionError(f"{name.replace('_', '-')} {getattr(self, name)}: 0 or a positive number is accepted")
        if not 0 < self.gamma <= 1:
            raise OptionError(f"gamma {self.gamma}: a factor above 0 up to 1 is accepted")
        if list(self.milestones) != sorted({each for each in self.milestones if each > 0}):
            raise OptionError(f"milestones {self.milestones}: rising epochs from 1 are accepted")
        choices = (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("augment", AUGMENTATIONS),
            ("reg", REGULARIZERS + GROUP_REGULARIZERS[1:]),
            ("decay_by", ("layer", "macs")),
        )
        for name, accepted in choices:
            if getattr(self, name) not in accepted:
                found = getattr(self, name)
                raise OptionError(f"{name.replace('_', '-')} {found!r}: accepted are {', '.join(accepted)}")


def options_for(network: str, given: Mapping[str, Any] | None = None) -> TrainOptions:
    """Give the training options of a network of the zoo.

    CIFAR ResNets start from He et al. 2016 (section 4.2), with a cosine schedule.

    Args:
        network: A key of the zoo.
        given: Fields of ``TrainOptions`` that replace the network's own; None values are ignored.

    Raises:
        OptionError: If a value is out of range.
    """
    chosen = {name: value for name, value in (given or {}).items() if value is not None}
    defaults: dict[str, Any] = {}
    if network.startswith("resnet"):
        defaults = {"epochs": 60, "batch_size": 128, "lr": 0.1}
    elif network.startswith(("vgg", "mobilenet")):
        defaults = {"epochs": 60, "batch_size": 128, "lr": 0.05 if network != "vgg16_imagenet" else 0.01}
    elif network == "cnn3d":
        defaults = {"epochs": 30, "batch_size": 32, "optimizer": "adam"}
    if chosen.get("optimizer", defaults.get("optimizer")) in ("adam", "adamw"):
        defaults["lr"] = 1e-3
    return TrainOptions(**(defaults | chosen))


def regularizer_name(text: str, *, structured: bool = False) -> str:
    """Read a regulariser's name or its number in the scripts of Yang, Wen, Li (2020).

    Args:
        text: ``l1`` ... or 0 to 4; with ``structured`` ``group-hs`` ... or 0 to 2.
        structured: Numbers count the measures over groups.

    Raises:
        OptionError: If it is neither.
    """
    named = GROUP_REGULARIZERS if structured else REGULARIZERS
    if text.isdecimal() and int(text) < len(named):
        return named[int(text)]
    if text in named or (not structured and text in GROUP_REGULARIZERS):
        return text
    close = difflib.get_close_matches(text.lower(), named, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(named))
    raise OptionError(f"reg {text!r}{' with --structured' if structured else ''}: {hint}accepted are {numbered}")
