"""The running mean of weights: its formula, zeros, and that training is judged by it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from onnxprune.errors import OptionError
from onnxprune.models.average import Average
from onnxprune.models.loop import Epoch, Hooks
from onnxprune.models.objectives import Supervised
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData, open_training
from onnxprune.models.train import fit
from onnxprune.models.zoo import build


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training("digits", (1, 28, 28))


def test_the_mean_follows_its_formula_and_gives_the_weights_back() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        module[0].weight[0] = 0
    average, wanted = Average(module, 0.5), module[0].weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            module[0].weight[1:] += torch.randn(3, 3)
            module[1].num_batches_tracked += 1
        average.update(module)
        share = min(0.5, (1 + step) / (10 + step))
        wanted = share * wanted + (1 - share) * module[0].weight.detach()
    now = copy.deepcopy(module.state_dict())
    with average.worn(module):
        torch.testing.assert_close(module[0].weight.detach(), wanted)
        assert module[0].weight[0].eq(0).all()
        assert int(module[1].num_batches_tracked) == 7
    assert all(torch.equal(value, now[name]) for name, value in module.state_dict().items())
    other = Average(module, 0.5)
    other.load(average.state())
    for each in (other, average):
        each.update(module)
    assert all(torch.equal(a, b) for a, b in zip(other._values.values(), average._values.values(), strict=True))


def test_weights_come_back_after_an_error() -> None:
    module = nn.Linear(2, 2)
    average, before = Average(module, 0.9), module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    with pytest.raises(ZeroDivisionError), average.worn(module):
        assert torch.equal(module.weight, before)
        raise ZeroDivisionError
    assert torch.equal(module.weight, before + 1)


def test_training_is_judged_by_the_mean_and_leaves_it(digits: TrainingData) -> None:
    options = TrainOptions(epochs=3, batch_size=200, ema=0.9, augment="none", device="cpu")
    torch.manual_seed(0)
    module, epochs = build("lenet300"), list[Epoch]()
    start = copy.deepcopy(module)
    trained = fit(module, digits, options, hooks=Hooks(epoch=epochs.append))
    score = Supervised().score(trained.module, digits.validation, torch.device("cpu"))
    assert score == trained.validation == epochs[trained.best_epoch - 1].validation
    plain = fit(start, digits, TrainOptions(epochs=3, batch_size=200, augment="none", device="cpu"))
    assert not torch.equal(trained.module.state_dict()["fc1.weight"], plain.module.state_dict()["fc1.weight"])
    with pytest.raises(OptionError, match="ema 1"):
        TrainOptions(ema=1.0)
