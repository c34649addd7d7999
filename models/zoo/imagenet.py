"""ImageNet networks as torchvision builds them, with fresh weights; its checkpoints load as they are."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

from torch import nn

from onnxprune.errors import OptionError

__all__ = ["mobilenet_v2", "resnet18", "resnet34", "resnet50", "vgg16"]


def vgg16(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build VGG-16 (138 M parameters)."""
    return _built("vgg16", classes, in_channels)


def resnet18(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build ResNet-18 (11.7 M parameters)."""
    return _built("resnet18", classes, in_channels)


def resnet34(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build ResNet-34 (21.8 M parameters)."""
    return _built("resnet34", classes, in_channels)


def resnet50(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build ResNet-50 (25.6 M parameters)."""
    return _built("resnet50", classes, in_channels)


def mobilenet_v2(classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """Build MobileNetV2 (3.5 M parameters)."""
    return _built("mobilenet_v2", classes, in_channels)


def _built(name: str, classes: int, in_channels: int) -> nn.Module:
    if find_spec("torchvision") is None:
        raise OptionError(f'{name} needs torchvision: pip install "onnxprune[train]"')
    from torchvision import models

    module = cast("nn.Module", getattr(models, name)(weights=None, num_classes=classes))
    if in_channels != 3:
        path, first = next((path, child) for path, child in module.named_modules() if isinstance(child, nn.Conv2d))
        shape: dict[str, Any] = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
        module.set_submodule(path, nn.Conv2d(in_channels, first.out_channels, **shape, bias=first.bias is not None))
    return module
