"""Multiplications per weight: against sums by hand and the graph's own count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from onnxprune.errors import OptionError
from onnxprune.exporters.to_onnx import export
from onnxprune.exporters.to_torch import to_torch
from onnxprune.graph import cost, io
from onnxprune.models.costs import weight_macs
from onnxprune.models.zoo import build, find


def test_lenet5_by_hand() -> None:
    macs = weight_macs(build("lenet5").train(), [torch.randn(2, 1, 28, 28)])
    assert list(macs.values()) == [2 * 288_000, 2 * 1_600_000, 2 * 400_000, 2 * 5_000]


@pytest.mark.parametrize("network", ["resnet20", "cnn3d"])
def test_module_and_graph_have_the_count_of_the_file(network: str, tmp_path: Path) -> None:
    module, shape = build(network).eval(), find(network).input_shape
    export(module, shape, tmp_path / "net.onnx")
    model, x = io.load(tmp_path / "net.onnx"), torch.randn(1, *shape)
    wanted = cost.measure(model).macs
    assert sum(weight_macs(module, [x]).values()) == wanted
    assert sum(weight_macs(to_torch(model), [x]).values()) == wanted


def test_modes_and_statistics_stay() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Conv2d(2, 2, 1, groups=2), nn.Flatten(), nn.Linear(8, 3)
    )
    net[1].eval()
    assert weight_macs(net, [torch.randn(1, 1, 4, 4)]) == {"0.weight": 72, "3.weight": 8, "5.weight": 24}
    assert [each.training for each in net] == [True, False, True, True, True, True]
    assert net[1].num_batches_tracked == 0


def test_attention_counts_and_embeddings_do_not() -> None:
    layer = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    macs = weight_macs(layer, [torch.tensor([[1, 2, 3]])])
    assert macs["0.weight"] == 0
    assert macs["1.self_attn.in_proj_weight"] == 3 * 8 * 24
    assert macs["1.self_attn.out_proj.weight"] == 3 * 8 * 8
    assert macs["1.linear1.weight"] == macs["1.linear2.weight"] == 3 * 8 * 16
    with pytest.raises(OptionError, match="torch does not tell what the LSTM '0' multiplies"):
        weight_macs(nn.Sequential(nn.LSTM(4, 5)), [torch.randn(3, 1, 4)])
