"""Networks of the papers, in PyTorch: one plain table from a name to its builder.

Reading the table loads no torch; ``build`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

from onnxprune.errors import OptionError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "Network", "build", "find"]


@dataclass(frozen=True)
class Network:
    """One row of the zoo.

    Attributes:
        builder: ``module:function``; called as ``function(classes=…, in_channels=…)``.
        input_shape: Channels, height and width of one image.
        summary: One line for help texts.
    """

    builder: str
    input_shape: tuple[int, int, int]
    summary: str


_GREY = (1, 28, 28)
_COLOUR = (3, 32, 32)
_LENET = "onnxprune.models.zoo.lenet"
_RESNET = "onnxprune.models.zoo.resnet"

NETWORKS: dict[str, Network] = {
    "lenet300": Network(f"{_LENET}:lenet300", _GREY, "LeNet-300-100, fully connected"),
    "lenet5": Network(f"{_LENET}:lenet5", _GREY, "LeNet-5 in Caffe's form, 20-50-500"),
    "resnet20": Network(f"{_RESNET}:resnet20", _COLOUR, "CIFAR ResNet-20, option-A shortcuts"),
    "resnet32": Network(f"{_RESNET}:resnet32", _COLOUR, "CIFAR ResNet-32, option-A shortcuts"),
    "resnet44": Network(f"{_RESNET}:resnet44", _COLOUR, "CIFAR ResNet-44, option-A shortcuts"),
    "resnet56": Network(f"{_RESNET}:resnet56", _COLOUR, "CIFAR ResNet-56, option-A shortcuts"),
    "resnet110": Network(f"{_RESNET}:resnet110", _COLOUR, "CIFAR ResNet-110, option-A shortcuts"),
}


def find(name: str) -> Network:
    """Look a network up by name.

    Raises:
        OptionError: If the name is not in the zoo.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    close = get_close_matches(name.lower(), NETWORKS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise OptionError(f"unknown network {name!r}: {hint}the zoo has {', '.join(NETWORKS)}")


def build(name: str, classes: int = 10, in_channels: int | None = None) -> nn.Module:
    """Build a network of the zoo with fresh weights drawn from torch's global generator.

    Args:
        name: A key of ``NETWORKS``.
        classes: Number of output classes, at least 2.
        in_channels: Channels of the input images; None is the network's own number.

    Raises:
        OptionError: If the name is not in the zoo or a number is out of range.
    """
    network = find(name)
    if classes < 2:
        raise OptionError(f"{name} with {classes} classes: a classifier needs at least 2")
    channels = network.input_shape[0] if in_channels is None else in_channels
    if channels < 1:
        raise OptionError(f"{name} with {channels} input channels: at least 1 is needed")
    module, function = network.builder.split(":")
    built = getattr(import_module(module), function)(classes=classes, in_channels=channels)
    return cast("nn.Module", built)
