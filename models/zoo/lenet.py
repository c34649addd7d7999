"""LeNet-300-100 and LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998), in the forms that pruning papers use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LeNet5", "LeNet300", "lenet5", "lenet300"]

SIDE = 28


class LeNet300(nn.Module):
    """Fully connected 784-300-100-classes with ReLU, on ``[n, in_channels, 28, 28]``."""

    def __init__(self, classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * SIDE * SIDE, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[n, classes]``."""
        hidden = functional.relu(self.fc1(torch.flatten(images, 1)))
        hidden = functional.relu(self.fc2(hidden))
        logits: Tensor = self.fc3(hidden)
        return logits


class LeNet5(nn.Module):
    """LeNet-5 as Caffe ships it, on ``[n, in_channels, 28, 28]``.

    conv 20 5x5, max-pool, conv 50 5x5, max-pool, fc 500, fc classes; ReLU after both
    convolutions (430,500 weights for ten grey classes, the number that pruning papers quote).
    """

    def __init__(self, classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[n, classes]``."""
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.fc1(torch.flatten(hidden, 1)))
        logits: Tensor = self.fc2(hidden)
        return logits


def lenet300(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build LeNet-300-100."""
    return LeNet300(classes, in_channels)


def lenet5(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build LeNet-5."""
    return LeNet5(classes, in_channels)
