"""The two-layer network of i-SpaSP's analysis (Wolfe and Kyrillidis 2022): one hidden layer with ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["TwoLayers", "mlp2"]

SIDE = 28
HIDDEN = 1024


class TwoLayers(nn.Module):
    """Fully connected 784-hidden-classes with ReLU, on ``[n, in_channels, 28, 28]``."""

    def __init__(self, classes: int = 10, in_channels: int = 1, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * SIDE * SIDE, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits ``[n, classes]``."""
        logits: Tensor = self.fc2(functional.relu(self.fc1(torch.flatten(images, 1))))
        return logits


def mlp2(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build the two-layer network with 1,024 hidden units."""
    return TwoLayers(classes, in_channels)
