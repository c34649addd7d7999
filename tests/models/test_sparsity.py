"""Masks by threshold, by standard deviation and by groups; tables; zeros that stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.models.options import TrainOptions, options_for
from onnxprune.models.prunetune import PruneOptions, known_source, prune_tune
from onnxprune.models.sources import open_training
from onnxprune.models.sparsity import apply_masks, keep_masks, make_masks, sparsity_table
from onnxprune.models.state import write_checkpoint
from onnxprune.models.train import Hooks, fit
from onnxprune.models.zoo import build


def _linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data = torch.tensor(rows)
    return layer


def test_thresholds_by_entries() -> None:
    layer = _linear([[0.5, -0.2, 0.1], [-0.6, 0.3, 0.0]])
    (mask,) = make_masks(layer, threshold=0.3).values()
    assert mask.tolist() == [[True, False, False], [True, True, False]]
    weight = layer.weight.detach().double()
    spread = float(weight.std(correction=0))
    (by_spread,) = make_masks(layer, std_ratio=0.25).values()
    assert torch.equal(by_spread, weight.abs() >= 0.25 * spread)
    assert all(bool(mask.all()) for mask in make_masks(layer, threshold=0).values())


def test_no_layer_is_emptied() -> None:
    (mask,) = make_masks(_linear([[1.0, 2.0], [-2.0, 0.0]]), threshold=9).values()
    assert mask.tolist() == [[False, True], [False, False]]
    (mask,) = make_masks(_linear([[1.0, 2.0], [-3.0, 0.0]]), threshold=9, structured=True).values()
    assert mask.tolist() == [[False, False], [True, False]]


def test_whole_groups() -> None:
    layer = _linear([[0.01, 0.01, 0.02], [0.9, 0.01, 0.8], [0.5, 0.02, 0.001]])
    (mask,) = make_masks(layer, threshold=0.1, structured=True).values()
    assert mask.tolist() == [[False] * 3, [True, False, True], [True, False, True]]


def test_the_table_counts_entries_and_groups() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].weight[1] = 0
        net[0].weight[:, 1] = 0
        net[3].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
    first, second, total = sparsity_table(net)
    assert (first.name, first.total, first.nonzero, first.rows_kept, first.columns_kept) == ("0.weight", 54, 18, 2, 1)
    assert (second.rows, second.rows_kept, second.columns, second.columns_kept) == (2, 2, 3, 2)
    assert (total.name, total.total, total.nonzero) == ("total", 60, 21)
    assert total.share == pytest.approx(0.35)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give either --threshold or --std-ratio"),
        ({"threshold": 1.0, "std_ratio": 1.0}, "give either"),
        ({"threshold": -1.0}, "threshold -1.0: 0 or more"),
        ({"std_ratio": float("nan")}, "std-ratio nan: 0 or more"),
    ],
)
def test_wrong_thresholds(given: dict[str, float], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make_masks(nn.Linear(2, 2), **given)  # type: ignore[arg-type]


def test_nan_weights_are_refused() -> None:
    with pytest.raises(OptionError, match="weight holds NaN"):
        make_masks(_linear([[float("nan"), 1.0]]), threshold=0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_zeros_stay_exact_while_tuning(optimizer: str) -> None:
    data = open_training("digits", (1, 28, 28))
    data = replace(data, train=data.train.take(np.arange(100)))
    module = build("lenet300")
    masks = make_masks(module, std_ratio=1.0)
    apply_masks(module, masks)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    options = options_for("lenet300", {"epochs": 2, "optimizer": optimizer})
    fit(module, data, options, hooks=Hooks(weights=keep_masks(masks)))
    for name, parameter in module.named_parameters():
        if name in masks:
            assert not parameter[~masks[name]].any()
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = build("lenet5")
    with torch.no_grad():
        module.get_parameter("conv1.weight")[5:] *= 1e-5
        module.get_parameter("fc1.weight")[100:] *= 1e-5
    about = {
        "network": "lenet5",
        "classes": 10,
        "data": "digits",
        "class_names": list("0123456789"),
        "preprocess": None,
    }
    write_checkpoint(tmp_path / "w.pth", module, about)
    return tmp_path / "w.pth"


def test_structured_zeros_leave_the_graph(checkpoint: Path, tmp_path: Path) -> None:
    source = known_source(str(checkpoint), None)
    options = TrainOptions(epochs=1, lr=1e-3)
    done = prune_tune(source, None, tmp_path / "s.onnx", PruneOptions(threshold=1e-3, structured=True), options)
    rows = {row.name: row for row in done.table}
    assert (rows["conv1.weight"].rows_kept, rows["fc1.weight"].rows_kept) == (5, 100)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert (5, 1, 5, 5) in shapes.values()
    assert (100, 800) in shapes.values() or (800, 100) in shapes.values()
    assert done.cost is not None and done.dense is not None
    assert (done.cost.macs or 0) < 0.5 * (done.dense.macs or 0)
    assert done.trained.test_accuracy == done.trained.test.accuracy


def test_element_wise_zeros_are_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    source = known_source("lenet5", checkpoint)
    options = TrainOptions(epochs=1, lr=1e-3)
    done = prune_tune(source, "digits", tmp_path / "e.onnx", PruneOptions(std_ratio=0.5), options)
    arrays = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "e.onnx").graph.initializer]
    stored = sum(int(np.count_nonzero(array)) for array in arrays if array.ndim >= 2 and array.dtype == np.float32)
    assert stored == done.table[-1].nonzero < done.table[-1].total
    assert (tmp_path / "e.best.pth").is_file()


def test_sources_that_cannot_be_pruned(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="lenet5 from the zoo has no weights of its own: give --from"):
        known_source("lenet5", None)
    torch.save(build("lenet300").state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="does not say of which network it is"):
        known_source(str(tmp_path / "w.pth"), None)
    with pytest.raises(OptionError, match="unknown network 'lenet6'"):
        known_source("lenet6", None)
