from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxprune.errors import BackendError, DataError, OptionError
from onnxprune.models.options import TrainOptions, options_for
from onnxprune.models.sources import TrainingData, open_training
from onnxprune.models.train import Epoch, Hooks, accuracy, fit, train_network
from onnxprune.models.zoo import build

GREY = (1, 28, 28)


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    """A third of the digits: enough to learn from, quick to run through."""
    data = open_training("digits", GREY)
    return replace(data, train=data.train.take(np.arange(400)))


def _weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().ravel() for weight in module.parameters()])


def test_a_few_epochs_learn(digits: TrainingData) -> None:
    seen: list[Epoch] = []
    trained = train_network("lenet300", digits, TrainOptions(epochs=4), seen.append)
    assert trained.test_accuracy > 0.8
    assert trained.train_accuracy > 0.9
    assert [epoch.number for epoch in seen] == [1, 2, 3, 4]
    assert seen[-1].loss < seen[0].loss
    assert trained.epochs == 4
    assert trained.seconds > 0
    assert not trained.module.training


def test_the_best_epoch_by_validation_is_kept(digits: TrainingData) -> None:
    seen: list[Epoch] = []
    # The constant rate is too high, so the accuracy goes up and down.
    options = TrainOptions(epochs=6, lr=0.15, schedule="none", augment="none")
    trained = train_network("lenet300", digits, options, seen.append)
    assert trained.validation_accuracy == max(epoch.validation_accuracy for epoch in seen)
    assert trained.validation_accuracy == seen[trained.best_epoch - 1].validation_accuracy
    assert trained.validation_accuracy == accuracy(trained.module, digits.validation)
    assert trained.test_accuracy == accuracy(trained.module, digits.test)


def test_weights_leave_in_the_layout_they_came_in(digits: TrainingData) -> None:
    data, strides = replace(digits, train=digits.train.take(np.arange(64))), build("lenet5", 10).conv2.weight.stride()
    during = []
    hooks = Hooks(weights=lambda module: during.append(module.conv2.weight.stride()))
    trained = train_network("lenet5", data, TrainOptions(epochs=1, device="cpu"), hooks=hooks)
    assert set(during) != {strides}
    assert trained.module.conv2.weight.stride() == strides


def test_a_regulariser_may_go_by_macs(digits: TrainingData) -> None:
    sums = {}
    for by in ("layer", "macs"):
        seen: list[Epoch] = []
        options = TrainOptions(epochs=1, lr=1e-12, weight_decay=0, reg="l1", decay=0.5, decay_by=by, device="cpu")
        module = train_network("lenet300", digits, options, seen.append).module
        sums[by] = seen[0].penalty
    weights = [weight.detach() for weight in module.parameters() if weight.ndim == 2]
    assert sums["layer"] == pytest.approx(0.5 * sum(float(w.abs().sum()) for w in weights), rel=1e-5)
    # Without convolutions every weight costs one multiplication.
    assert sums["macs"] == pytest.approx(sums["layer"], rel=1e-5)


def test_the_test_data_is_read_only_at_the_end(digits: TrainingData) -> None:
    order: list[str] = []
    test_fetch = digits.test.fetch

    def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
        order.append("test")
        return test_fetch(rows)

    data = replace(digits, test=replace(digits.test, fetch=fetch))
    train_network("lenet300", data, TrainOptions(epochs=2), lambda epoch: order.append(f"epoch {epoch.number}"))
    assert order == ["epoch 1", "epoch 2", "test"]


@pytest.mark.parametrize("network", ["lenet300", "lenet5"])
def test_same_seed_same_weights(network: str, digits: TrainingData) -> None:
    data = replace(digits, train=digits.train.take(np.arange(64)))
    first, again, other = (
        _weights(train_network(network, data, TrainOptions(epochs=2, seed=seed)).module) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_callers_random_state_stays(digits: TrainingData) -> None:
    data = replace(digits, train=digits.train.take(np.arange(64)))
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    train_network("lenet300", data, TrainOptions(epochs=1))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("schedule", ["cosine", "multistep", "none"])
def test_optimizers_and_schedules_run(optimizer: str, schedule: str, digits: TrainingData) -> None:
    options = options_for("lenet300", {"epochs": 3, "optimizer": optimizer, "schedule": schedule})
    assert train_network("lenet300", digits, options).train_accuracy > 0.6


@pytest.mark.parametrize("augment", ["none", "shift", "shift+flip", "affine"])
def test_augmentations_run(augment: str, digits: TrainingData) -> None:
    assert math.isfinite(train_network("lenet300", digits, TrainOptions(epochs=1, augment=augment)).test_accuracy)


def test_large_data_is_read_batch_by_batch(digits: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = train_network("lenet300", digits, TrainOptions(epochs=1))
    monkeypatch.setattr("onnxprune.models.train.CACHE_BYTES", 0)
    lazy = train_network("lenet300", digits, TrainOptions(epochs=1))
    assert torch.equal(_weights(kept.module), _weights(lazy.module))


def test_divergence_is_told_in_a_sentence(digits: TrainingData) -> None:
    with pytest.raises(
        BackendError, match=r"training diverged: the loss is (nan|inf) in epoch \d+ with lr 1e\+30; try"
    ):
        train_network("lenet300", digits, TrainOptions(epochs=3, lr=1e30))


def test_a_module_of_the_users_own(digits: TrainingData) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(784, 10))
    start = {name: value.clone() for name, value in module.state_dict().items()}
    weights = []
    for _ in range(2):
        module.load_state_dict(start)
        trained = fit(module, digits, TrainOptions(epochs=2))
        assert trained.module is module
        weights.append(_weights(module))
    assert trained.test_accuracy > 0.7
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 0}, "epochs 0: at least 1 is accepted"),
        ({"batch_size": 0}, "batch-size 0: at least 1"),
        ({"seed": -1}, "seed -1: at least 0"),
        ({"lr": 0.0}, "lr 0.0: a positive number"),
        ({"lr": math.nan}, "lr nan: a positive number"),
        ({"momentum": 1.0}, "momentum 1.0: 0 up to, not including, 1"),
        ({"weight_decay": -1.0}, "weight-decay -1.0: 0 or a positive number"),
        ({"optimizer": "rmsprop"}, "optimizer 'rmsprop': accepted are sgd, adam, adamw"),
        ({"schedule": "linear"}, "schedule 'linear': accepted are cosine, step, multistep, none"),
        (
            {"augment": "mixup"},
            "augment 'mixup': accepted are auto, none, shift, shift\\+flip, crop, crop\\+flip, affine",
        ),
    ],
)
def test_options_out_of_range(given: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        options_for("lenet5", given)


def test_each_network_has_its_own_defaults() -> None:
    assert options_for("lenet5") == TrainOptions()
    assert options_for("resnet56", {"lr": None}).lr == 0.1
    assert options_for("resnet20", {"optimizer": "adam"}).lr == 1e-3
    assert options_for("resnet20", {"optimizer": "adam", "lr": 0.01}).lr == 0.01


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_unknown_devices(device: str, digits: TrainingData) -> None:
    with pytest.raises(OptionError, match=f"device '{device}'"):
        fit(build("lenet300"), digits, TrainOptions(epochs=1, device=device))


def test_nan_in_the_test_data_is_found(digits: TrainingData) -> None:
    def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"input": np.full((len(rows), *GREY), np.nan, np.float32)}

    data = replace(digits, test=replace(digits.test, fetch=fetch))
    with pytest.raises(DataError, match="digits:test: array 'input' holds NaN in example 0"):
        train_network("lenet300", data, TrainOptions(epochs=1))


def test_a_last_batch_of_one(digits: TrainingData) -> None:
    data = replace(digits, train=digits.train.take(np.arange(9)))
    assert train_network("lenet300", data, TrainOptions(epochs=1, batch_size=8)).epochs == 1


def test_gradients_are_clipped_to_a_norm(digits: TrainingData) -> None:
    options = TrainOptions(
        epochs=1, batch_size=400, lr=1.0, momentum=0, nesterov=False, weight_decay=0, schedule="none", augment="none",
        clip=0.01, device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    module = build("lenet300")
    before = _weights(module)
    after = _weights(fit(module, digits, options).module)
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(OptionError, match="clip -1"):
        TrainOptions(clip=-1)
