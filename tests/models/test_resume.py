"""A killed run goes on bit for bit, and checkpoints say what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.models.checkpoint import read_checkpoint
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData, open_training
from onnxprune.models.state import Checkpoints
from onnxprune.models.train import Epoch, Hooks, Step, Trained, fit


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    data = open_training("digits", (1, 28, 28))
    return replace(data, train=data.train.take(np.arange(200)))


class _KilledError(Exception):
    pass


def _module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))


def _files(folder: Path, resume: bool = False) -> Checkpoints:
    last = folder / "m.last.pth"
    return Checkpoints(last, folder / "m.best.pth", last if resume else None, {"network": "own"})


def _fit(data: TrainingData, options: TrainOptions, files: Checkpoints, hooks: Hooks | None = None) -> Trained:
    return fit(_module(), data, options, hooks=hooks, checkpoints=files)


def _same(first: object, second: object) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict) and isinstance(second, dict):
        assert list(first) == list(second)
        for key in first:
            _same(first[key], second[key])
    elif isinstance(first, list) and isinstance(second, list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            _same(one, other)
    else:
        assert first == second


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(epochs=5, batch_size=48, warmup=1.5, ema=0.95),
        TrainOptions(epochs=5, optimizer="adamw", lr=1e-3, schedule="step", milestones=(2, 4), no_bias_decay=True),
        TrainOptions(epochs=5, optimizer="adam", lr=1e-3, reg="hs", decay=1e-4, label_smoothing=0.1),
    ],
)
def test_a_killed_run_resumes_bit_for_bit(options: TrainOptions, digits: TrainingData, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    seen: list[Epoch] = []
    wanted = _fit(digits, options, _files(whole), Hooks(epoch=seen.append))

    def kill(step: Step) -> None:
        if (step.epoch, step.number) == (4, 2):
            raise _KilledError

    with pytest.raises(_KilledError):
        _fit(digits, options, _files(cut), Hooks(step=kill))
    again: list[Epoch] = []
    found = _fit(digits, options, _files(cut, resume=True), Hooks(epoch=again.append))
    assert again == seen
    assert (found.best_epoch, found.test, found.train) == (wanted.best_epoch, wanted.test, wanted.train)
    for key, value in wanted.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[key], value)
    for name in ("m.last.pth", "m.best.pth"):
        first, second = (read_checkpoint(folder / name) for folder in (whole, cut))
        _same(first, second)


def test_a_finished_run_resumes_to_itself(digits: TrainingData, tmp_path: Path) -> None:
    options = TrainOptions(epochs=2)
    wanted = _fit(digits, options, _files(tmp_path))
    found = _fit(digits, options, _files(tmp_path, resume=True))
    assert found.test == wanted.test
    assert found.epochs == 2


def test_states_of_other_runs_are_refused(digits: TrainingData, tmp_path: Path) -> None:
    _fit(digits, TrainOptions(epochs=1), _files(tmp_path))
    with pytest.raises(
        OptionError, match=r"comes from a run with lr 0.02, not 0.5: resume with the options of that run"
    ):
        _fit(digits, TrainOptions(epochs=1, lr=0.5), _files(tmp_path, resume=True))
    best = Checkpoints(tmp_path / "a", tmp_path / "b", tmp_path / "m.best.pth")
    with pytest.raises(ModelError, match=r"m.best.pth is no state to resume from"):
        _fit(digits, TrainOptions(epochs=1), best)
    other = replace(_files(tmp_path, resume=True), about={"network": "another"})
    with pytest.raises(OptionError, match="a run with network own, not another"):
        _fit(digits, TrainOptions(epochs=1), other)


def test_patience_stops_early(digits: TrainingData) -> None:
    seen: list[Epoch] = []
    options = TrainOptions(epochs=50, lr=0.15, schedule="none", augment="none", patience=2)
    trained = fit(_module(), digits, options, seen.append)
    assert trained.epochs == trained.best_epoch + 2 < 50
    assert trained.last == seen[-1]


def test_workers_change_nothing(digits: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.models.train.CACHE_BYTES", 0)
    one, two = (fit(_module(), digits, TrainOptions(epochs=2, workers=workers)) for workers in (0, 3))
    assert one.test == two.test
    assert torch.equal(next(one.module.parameters()), next(two.module.parameters()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["amp", "sync_bn"])
def test_what_needs_cuda_is_refused_on_the_cpu(name: str, digits: TrainingData) -> None:
    with pytest.raises(OptionError, match="needs a CUDA device, this run is on cpu"):
        fit(_module(), digits, TrainOptions(epochs=1, **{name: True}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_learns(digits: TrainingData) -> None:
    assert fit(_module(), digits, TrainOptions(epochs=4, amp=True)).test_accuracy > 0.6
