"""What a network learns: how a batch becomes a loss, and what the network is worth then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxprune.data import Batch, Examples
from onnxprune.models.scoring import Scores, score, tensors

__all__ = ["Objective", "Supervised"]


class Objective(Protocol):
    """What the loop asks of a task; the network is called with the inputs one by one."""

    @property
    def partial(self) -> bool:
        """Return whether some weights get no gradient, which several processes have to know."""

    @property
    def taught(self) -> bool:
        """Return whether answers are those of a teacher to the very inputs, mixtures of images included."""

    def read(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return a batch's inputs in the network's order, and its answers where there are any."""

    def loss(self, outputs: Any, inputs: tuple[Tensor, ...], answers: Tensor | None) -> Tensor:
        """Return the mean loss of what the network gave for these inputs (augmented, on its device)."""

    def score(self, module: nn.Module, examples: Examples, device: torch.device) -> Scores:
        """Measure a network on examples; of several processes each runs its share, and all get the whole."""


@dataclass(frozen=True)
class Supervised:
    """Labels by cross-entropy, or real targets by the squared error; one input and one output.

    Attributes:
        regression: The examples have targets in place of labels.
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016, section 7).
        partial: Some weights of the network get no gradient.
    """

    regression: bool = False
    label_smoothing: float = 0.0
    partial: bool = False

    @property
    def taught(self) -> bool:
        """Return that answers are labels."""
        return False

    def read(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the images, and their labels [n] or targets [n, k]."""
        images, answers = tensors(batch, self.regression)
        return (images,), answers

    def loss(self, outputs: Tensor, inputs: tuple[Tensor, ...], answers: Tensor | None) -> Tensor:
        """Return the mean cross-entropy or squared error."""
        assert answers is not None
        if self.regression:
            return functional.mse_loss(outputs.float().reshape(answers.shape), answers)
        return functional.cross_entropy(outputs.float(), answers, label_smoothing=self.label_smoothing)

    def score(self, module: nn.Module, examples: Examples, device: torch.device) -> Scores:
        """Return accuracy and loss, or the figures of a regression."""
        return score(module, examples, device, regression=self.regression)
