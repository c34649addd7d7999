"""What a network is worth on examples: accuracy and cross-entropy, or the error and correlation of a regression."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxprune.data import Batch, Examples
from onnxprune.errors import DataError
from onnxprune.models import distributed

__all__ = ["Scores", "accuracy", "score", "tensors"]

CHUNK = 512


@dataclass(frozen=True)
class Scores:
    """What was measured; the fields of the other task are None.

    Attributes:
        loss: Mean cross-entropy, or mean squared error.
        accuracy: Share of right top decisions.
        rmse: Root of the mean squared error.
        pearson: Correlation of predictions and targets; 0 where either is constant.
        agreement: Share of top decisions that are the teacher's, where there is one.
    """

    loss: float
    accuracy: float | None = None
    rmse: float | None = None
    pearson: float | None = None
    agreement: float | None = None

    @property
    def key(self) -> tuple[float, float]:
        """Return what is higher for the better network: agreement or accuracy and then loss, or the error."""
        decided = self.accuracy if self.agreement is None else self.agreement
        return (-self.loss, 0.0) if decided is None else (decided, -self.loss)

    @property
    def known(self) -> dict[str, float]:
        """Return the measured fields by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def words(self) -> str:
        """Say the main figures."""
        if self.agreement is not None:
            also = "" if self.accuracy is None else f", accuracy {self.accuracy:.2%}"
            return f"agreement {self.agreement:.2%}{also}"
        if self.accuracy is not None:
            return f"accuracy {self.accuracy:.2%}"
        if self.rmse is None:
            return f"loss {self.loss:.4g}"
        return f"RMSE {self.rmse:.4g}, Pearson r {self.pearson:.3f}"

    @classmethod
    def from_known(cls, values: dict[str, Any]) -> Scores:
        """Read what ``known`` gave."""
        return cls(**{name: float(value) for name, value in values.items()})


def tensors(batch: Batch, regression: bool = False) -> tuple[Tensor, Tensor]:
    """Return a batch's inputs, and its labels [n] (int64) or targets [n, k] (float32).

    Raises:
        DataError: If the examples carry neither.
    """
    (images,) = batch.arrays.values()
    answers = batch.targets if regression and batch.targets is not None else batch.labels
    if answers is None:
        raise DataError("the examples have no labels; training and scores need them")
    found = torch.from_numpy(answers)
    return torch.from_numpy(images), found.float().reshape(len(found), -1) if regression else found


@torch.no_grad()
def score(module: nn.Module, examples: Examples, device: torch.device, *, regression: bool = False) -> Scores:
    """Score a network in evaluation mode; where several processes train, each runs its share and all get the sum.

    Raises:
        DataError: If the examples hold NaN, or a target does not have the output's shape.
    """
    module.eval()
    sums = [0.0] * 7
    own = range(examples.count)[distributed.shard(examples.count)]
    for batch in examples.take(list(own)).batches(CHUNK) if len(own) else ():
        images, answers = tensors(batch, regression)
        outputs = module(images.to(device)).cpu()
        found = _regression_sums(outputs, answers) if regression else _class_sums(outputs, answers)
        sums = [total + value for total, value in zip(sums, found, strict=True)]
    return _scores(distributed.summed(sums, device), regression)


def accuracy(module: nn.Module, examples: Examples, device: torch.device | None = None) -> float:
    """Compute the share of right top decisions in evaluation mode."""
    found = score(module, examples, device or torch.device("cpu")).accuracy
    assert found is not None  # a classification
    return found


def _class_sums(logits: Tensor, labels: Tensor) -> list[float]:
    logits = logits.float()
    hits = int((logits.argmax(1) == labels).sum())
    return [len(labels), float(functional.cross_entropy(logits, labels, reduction="sum")), hits, 0, 0, 0, 0]


def _regression_sums(outputs: Tensor, targets: Tensor) -> list[float]:
    found, wanted = outputs.double().reshape(len(outputs), -1), targets.double()
    if found.shape != wanted.shape:
        raise DataError(
            f"the network gives {tuple(found.shape)[1:]} numbers an example, the targets have {tuple(wanted.shape)[1:]}"
        )
    terms = (torch.ones_like(wanted), (found - wanted) ** 2, wanted, found, wanted**2, found**2, wanted * found)
    return [float(term.sum()) for term in terms]


def _scores(sums: list[float], regression: bool) -> Scores:
    count, loss, third, *more = sums
    if not regression:
        return Scores(loss / count, accuracy=third / count)
    mean, guess = third / count, more[0] / count
    spread = math.sqrt(max(more[1] / count - mean**2, 0.0) * max(more[2] / count - guess**2, 0.0))
    pearson = 0.0 if spread == 0 else (more[3] / count - mean * guess) / spread
    return Scores(loss / count, rmse=math.sqrt(loss / count), pearson=max(-1.0, min(1.0, pearson)))
