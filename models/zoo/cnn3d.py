"""A small 3-D CNN that gives one real number per molecule, after the 3DCNN of ATOM3D (Townshend et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CNN3D", "cnn3d"]


class CNN3D(nn.Module):
    """Three 3x3x3 convolutions and two linear layers, on ``[n, in_channels, 20, 20, 20]``; poolings leave one place."""

    def __init__(self, values: int = 1, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, 16, 3)
        self.conv2 = nn.Conv3d(16, 32, 3)
        self.conv3 = nn.Conv3d(32, 32, 3)
        self.fc1 = nn.Linear(32, 64)
        self.fc2 = nn.Linear(64, values)

    def forward(self, voxels: Tensor) -> Tensor:
        """Compute values ``[n, values]``."""
        hidden = functional.max_pool3d(functional.relu(self.conv1(voxels)), 2)
        hidden = functional.max_pool3d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.conv3(hidden))
        hidden = functional.relu(self.fc1(torch.flatten(hidden, 1)))
        values: Tensor = self.fc2(hidden)
        return values


def cnn3d(classes: int = 1, in_channels: int = 1) -> nn.Module:
    """Build the 3-D network; ``classes`` is the number of values."""
    return CNN3D(classes, in_channels)
