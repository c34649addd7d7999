"""VGG-16 (Simonyan and Zisserman 2015, configuration D) in the form for CIFAR: one classifier layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CifarVGG", "vgg16", "vgg16_bn", "vgg_small"]

# Channels of the 3x3 convolutions; 0 halves the sides.
PLAN_SMALL = (16, 16, 0, 32, 32, 0, 64, 64, 0)
PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class CifarVGG(nn.Module):
    """3x3 convolutions and one linear layer: thirteen on ``[n, in_channels, 32, 32]``, or another plan.

    Convolutions start from He's normal initialisation by fan-out, as torchvision's do. ``positions`` are those that
    the pools leave of an image.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 3,
        *,
        norm: bool = False,
        plan: tuple[int, ...] = PLAN,
        positions: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for channels in plan:
            if channels == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(width, channels, 3, padding=1))
            layers.extend([nn.BatchNorm2d(channels)] if norm else [])
            layers.append(nn.ReLU(inplace=True))
            width = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * positions, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[n, classes]``."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def vgg16(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build VGG-16 without BatchNorm (14.7 M parameters)."""
    return CifarVGG(classes, in_channels)


def vgg16_bn(classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build VGG-16 with BatchNorm (14.7 M parameters)."""
    return CifarVGG(classes, in_channels, norm=True)


def vgg_small(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build six 3x3 convolutions of 16 to 64 channels with BatchNorm, on ``[n, in_channels, 28, 28]``."""
    return CifarVGG(classes, in_channels, norm=True, plan=PLAN_SMALL, positions=9)
