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
        input_shape: Of one example: channels, height and width of an image, or channels and three sides.
        summary: One line for help texts.
        classes: Outputs where nothing else is known.
        regression: It gives real numbers, not classes.
    """

    builder: str
    input_shape: tuple[int, ...]
    summary: str
    classes: int = 10
    regression: bool = False


_GREY = (1, 28, 28)
_COLOUR = (3, 32, 32)
_PHOTO = (3, 224, 224)
_VOXELS = (1, 20, 20, 20)
_LENET = "onnxprune.models.zoo.lenet"
_RESNET = "onnxprune.models.zoo.resnet"
_IMAGENET = "onnxprune.models.zoo.imagenet"

NETWORKS: dict[str, Network] = {
    "lenet300": Network(f"{_LENET}:lenet300", _GREY, "LeNet-300-100, fully connected"),
    "lenet5": Network(f"{_LENET}:lenet5", _GREY, "LeNet-5 in Caffe's form, 20-50-500"),
    "resnet20": Network(f"{_RESNET}:resnet20", _COLOUR, "CIFAR ResNet-20, option-A shortcuts"),
    "resnet32": Network(f"{_RESNET}:resnet32", _COLOUR, "CIFAR ResNet-32, option-A shortcuts"),
    "resnet44": Network(f"{_RESNET}:resnet44", _COLOUR, "CIFAR ResNet-44, option-A shortcuts"),
    "resnet56": Network(f"{_RESNET}:resnet56", _COLOUR, "CIFAR ResNet-56, option-A shortcuts"),
    "resnet110": Network(f"{_RESNET}:resnet110", _COLOUR, "CIFAR ResNet-110, option-A shortcuts"),
    "vgg16": Network("onnxprune.models.zoo.vgg:vgg16", _COLOUR, "VGG-16 for CIFAR, one classifier layer"),
    "vgg16_bn": Network("onnxprune.models.zoo.vgg:vgg16_bn", _COLOUR, "VGG-16 for CIFAR with BatchNorm"),
    "vgg_small": Network("onnxprune.models.zoo.vgg:vgg_small", _GREY, "six 3x3 convolutions with BatchNorm"),
    "mlp2": Network("onnxprune.models.zoo.mlp:mlp2", _GREY, "two layers with 1,024 hidden units, for i-SpaSP"),
    "vgg16_imagenet": Network(f"{_IMAGENET}:vgg16", _PHOTO, "torchvision's VGG-16", 1000),
    "resnet18": Network(f"{_IMAGENET}:resnet18", _PHOTO, "torchvision's ResNet-18", 1000),
    "resnet34": Network(f"{_IMAGENET}:resnet34", _PHOTO, "torchvision's ResNet-34", 1000),
    "resnet50": Network(f"{_IMAGENET}:resnet50", _PHOTO, "torchvision's ResNet-50", 1000),
    "mobilenet_v2": Network(f"{_IMAGENET}:mobilenet_v2", _PHOTO, "torchvision's MobileNetV2", 1000),
    "cnn3d": Network("onnxprune.models.zoo.cnn3d:cnn3d", _VOXELS, "3-D convolutions, one real output", 1, True),
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


def build(name: str, classes: int | None = None, in_channels: int | None = None) -> nn.Module:
    """Build a network of the zoo with fresh weights drawn from torch's global generator.

    Args:
        name: A key of ``NETWORKS``.
        classes: Number of output classes, at least 2, or of values; None is the network's own number.
        in_channels: Channels of the input images; None is the network's own number.

    Raises:
        OptionError: If the name is not in the zoo, a number is out of range, or torchvision is missing.
    """
    network = find(name)
    if classes is None:
        classes = network.classes
    if classes < (1 if network.regression else 2):
        raise OptionError(f"{name} with {classes} classes: a classifier needs at least 2")
    channels = network.input_shape[0] if in_channels is None else in_channels
    if channels < 1:
        raise OptionError(f"{name} with {channels} input channels: at least 1 is needed")
    module, function = network.builder.split(":")
    built = getattr(import_module(module), function)(classes=classes, in_channels=channels)
    return cast("nn.Module", built)
