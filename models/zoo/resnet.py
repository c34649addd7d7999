"""Residual networks for CIFAR (He, Zhang, Ren, Sun 2016, section 4.2) with option-A shortcuts.

Parameter names are those of the widely used checkpoints (``conv1``, ``bn1``, ``layer1.0.conv1`` …
``linear``), so their state dicts load as they are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from onnxprune.errors import OptionError

__all__ = ["Block", "CifarResNet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "shortcut"]


def shortcut(features: Tensor, channels: int, stride: int) -> Tensor:
    """Apply the parameter-free shortcut, option A: subsample, then pad channels with zeros.

    Args:
        features: ``[n, c, h, w]``.
        channels: Channels wanted, at least c; half of the new ones go before, half after.
        stride: Step of the spatial subsampling.
    """
    missing = channels - features.shape[1]
    if stride == 1 and missing == 0:
        return features
    before = missing // 2
    return functional.pad(features[:, :, ::stride, ::stride], (0, 0, 0, 0, before, missing - before))


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm and an option-A shortcut around them."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.channels = channels
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """Compute ``[n, channels, h / stride, w / stride]``."""
        hidden = functional.relu(self.bn1(self.conv1(features)))
        hidden = self.bn2(self.conv2(hidden))
        return functional.relu(hidden + shortcut(features, self.channels, self.stride))


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 with stages of 16, 32 and 64 channels, on ``[n, in_channels, 32, 32]``.

    Convolutions and the classifier start from He's normal initialisation (He et al. 2015, eq. 10).

    Raises:
        OptionError: If the depth is not 6n+2.
    """

    def __init__(self, depth: int = 20, classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise OptionError(f"a CIFAR ResNet of depth {depth}: the depth is 6n+2, such as 20, 32 or 56")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(blocks, 16, 16, stride=1)
        self.layer2 = _stage(blocks, 16, 32, stride=2)
        self.layer3 = _stage(blocks, 32, 64, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[n, classes]``."""
        hidden = functional.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean((2, 3)))
        return logits


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = Block(in_channels, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-20 (0.27 M parameters)."""
    return CifarResNet(20, classes, in_channels)


def resnet32(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-32 (0.46 M parameters)."""
    return CifarResNet(32, classes, in_channels)


def resnet44(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-44 (0.66 M parameters)."""
    return CifarResNet(44, classes, in_channels)


def resnet56(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-56 (0.85 M parameters)."""
    return CifarResNet(56, classes, in_channels)


def resnet110(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build ResNet-110 (1.7 M parameters)."""
    return CifarResNet(110, classes, in_channels)
