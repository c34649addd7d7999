"""How to train, as one checked dataclass, and each network's own defaults. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError

__all__ = ["AUGMENTATIONS", "OPTIMIZERS", "SCHEDULES", "TrainOptions", "options_for"]

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("cosine", "multistep", "none")
AUGMENTATIONS = ("auto", "none", "shift", "shift+flip", "affine")


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Examples per step.
        lr: Learning rate at the start.
        optimizer: ``sgd`` (Nesterov momentum) or ``adam``.
        momentum: Momentum of ``sgd``.
        weight_decay: Factor of the L2 penalty.
        schedule: ``cosine`` to zero, ``multistep`` (a tenth at half and at three quarters), or ``none``.
        seed: Decides weights, order, held-out split and augmentation.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        augment: ``auto`` (``shift+flip`` for colour images, ``affine`` for grey ones: better than ``shift`` or
            ``none`` for lenet300 and as good for lenet5 over four folds of digits:train), ``none``, ``shift``,
            ``shift+flip`` or ``affine``.

    Raises:
        OptionError: If a value is out of range.
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    seed: int = 0
    device: str = "auto"
    augment: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise OptionError(f"{name.replace('_', '-')} {getattr(self, name)}: at least {least} is accepted")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise OptionError(f"lr {self.lr}: a positive number is accepted")
        if not 0 <= self.momentum < 1:
            raise OptionError(f"momentum {self.momentum}: 0 up to, not including, 1 is accepted")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise OptionError(f"weight-decay {self.weight_decay}: 0 or a positive number is accepted")
        choices = (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", AUGMENTATIONS))
        for name, accepted in choices:
            if getattr(self, name) not in accepted:
                raise OptionError(f"{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")


def options_for(network: str, given: Mapping[str, Any] | None = None) -> TrainOptions:
    """Give the training options of a network of the zoo.

    ResNets start from He et al. 2016 (section 4.2), with a cosine schedule.

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
    if chosen.get("optimizer") == "adam":
        defaults["lr"] = 1e-3
    return TrainOptions(**(defaults | chosen))
