from __future__ import annotations

import pytest
import torch

from onnxprune.models.optim import optimizer_for, rate
from onnxprune.models.options import TrainOptions
from onnxprune.models.zoo import build


def _rates(options: TrainOptions, steps: int = 4) -> list[float]:
    return [rate(options, epoch + step / steps, steps) for epoch in range(options.epochs) for step in range(steps)]


def test_step_lowers_at_milestones() -> None:
    rates = _rates(TrainOptions(epochs=6, lr=1.0, schedule="step", milestones=(2, 5), gamma=0.5), 1)
    assert rates == [1, 1, 0.5, 0.5, 0.5, 0.25]
    assert _rates(TrainOptions(epochs=4, lr=1.0, schedule="multistep"), 1) == pytest.approx([1, 1, 0.1, 0.01])
    assert _rates(TrainOptions(epochs=4, lr=1.0, schedule="step"), 1) == pytest.approx([1, 1, 0.1, 0.01])


def test_cosine_with_warmup() -> None:
    rates = _rates(TrainOptions(epochs=10, lr=1.0, warmup=2), 4)
    assert rates[:8] == pytest.approx([step / 8 for step in range(1, 9)])
    assert rates[8] == pytest.approx(1.0)
    assert rates[8:] == sorted(rates[8:], reverse=True)
    scheduler_free = _rates(TrainOptions(epochs=10, lr=1.0), 1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for wanted in scheduler_free:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted)
        optimizer.step()
        cosine.step()


def test_groups_of_weight_decay() -> None:
    module = build("resnet20")
    (whole,) = optimizer_for(module, TrainOptions()).param_groups
    assert whole["weight_decay"] == 5e-4
    assert whole["nesterov"]
    decayed, bare = optimizer_for(module, TrainOptions(no_bias_decay=True, nesterov=False)).param_groups
    assert (decayed["weight_decay"], bare["weight_decay"]) == (5e-4, 0)
    assert len(decayed["params"]) == 20
    assert all(parameter.ndim == 1 for parameter in bare["params"])
    assert not bare["nesterov"]
    assert isinstance(optimizer_for(module, TrainOptions(optimizer="adamw")), torch.optim.AdamW)
