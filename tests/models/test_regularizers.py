"""Measures and gradients of DeepHoyer against its formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from onnxprune.errors import OptionError
from onnxprune.models.options import TrainOptions, regularizer_name
from onnxprune.models.regularizers import (
    group_hoyer_square,
    group_lasso,
    hoyer,
    hoyer_square,
    l1,
    penalty,
    regularized,
    transformed_l1,
)
from onnxprune.models.zoo import build


def _slope(measure: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(measure(leaf), leaf)
    return slope


@pytest.fixture
def weight() -> Tensor:
    values = torch.randn(5, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[values.abs() < 0.3] = 0
    values[2] = 0
    values[:, 1] = 0
    return values


def test_golden_values() -> None:
    pair = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert float(hoyer_square(pair)) == pytest.approx(1.96)
    assert _slope(hoyer_square, pair).tolist() == pytest.approx([0.0896, -0.0672])
    equal = torch.ones(3)
    assert float(hoyer_square(equal)) == pytest.approx(3)
    assert _slope(hoyer_square, equal).abs().max() < 1e-6
    matrix = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert float(group_hoyer_square(matrix, 0)) == pytest.approx(1)
    assert float(group_hoyer_square(matrix, 1)) == pytest.approx(1.96)
    net = nn.Linear(2, 2)
    net.weight.data = matrix
    together = penalty("group-hs", 0.5)
    assert together is not None
    assert float(together(net).detach()) == pytest.approx(1.48)


def test_gradients_are_the_formulas(weight: Tensor) -> None:
    one, two, sign = weight.abs().sum(), weight.square().sum(), weight.sign()
    wanted = 2 * sign * one / two**2 * (two - weight.abs() * one)
    torch.testing.assert_close(_slope(hoyer_square, weight), wanted, rtol=1e-12, atol=1e-12)
    assert abs(float((weight * wanted).sum())) < 1e-12
    torch.testing.assert_close(_slope(l1, weight), sign)
    torch.testing.assert_close(_slope(hoyer, weight), sign / two.sqrt() - one * weight / two**1.5)
    torch.testing.assert_close(_slope(transformed_l1, weight), 2 * sign / (1 + weight.abs()) ** 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_over_groups_are_the_formulas(weight: Tensor, axis: int) -> None:
    others = [other for other in range(4) if other != axis]
    norms = weight.square().sum(others, keepdim=True).sqrt()
    total, two = norms.sum(), weight.square().sum()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    wanted = 2 * total / two**2 * (two * inverse - total) * weight
    found = _slope(lambda leaf: group_hoyer_square(leaf, axis), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(_slope(lambda leaf: group_lasso(leaf, axis), weight), weight * inverse)


def test_the_trimming_point() -> None:
    values = torch.linspace(-1, 1, 41, dtype=torch.float64)
    point = float(values.square().sum() / values.abs().sum())
    slope = _slope(hoyer_square, values) * values.sign()
    assert (slope[(values.abs() < point) & (values != 0)] > 0).all()
    assert (slope[values.abs() > point] < 0).all()


@pytest.mark.parametrize("reg", ["l1", "hoyer", "hs", "transformed-l1", "group-lasso", "group-hs"])
def test_zero_tensors_count_nothing(reg: str) -> None:
    net = nn.Conv2d(2, 3, 3)
    nn.init.zeros_(net.weight)
    measure = penalty(reg, 1.0)
    assert measure is not None
    value = measure(net)
    value.backward()
    assert float(value.detach()) == 0
    assert net.weight.grad is not None
    assert not net.weight.grad.any()
    assert net.bias is not None
    assert net.bias.grad is None


def test_scale_changes_nothing(weight: Tensor) -> None:
    for scale in (1e-3, 7.0):
        assert float(hoyer_square(weight * scale)) == pytest.approx(float(hoyer_square(weight)))
        assert float(group_hoyer_square(weight * scale, 1)) == pytest.approx(float(group_hoyer_square(weight, 1)))


def test_which_tensors() -> None:
    names = [name for name, _ in regularized(build("resnet20"))]
    assert len(names) == 20
    assert all(name.endswith("weight") and "bn" not in name for name in names)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [name for name, _ in regularized(tied)] == ["0.weight"]


def test_names_and_the_papers_numbers() -> None:
    assert [regularizer_name(str(number)) for number in range(5)] == ["none", "l1", "hoyer", "hs", "transformed-l1"]
    assert [regularizer_name(str(n), structured=True) for n in range(3)] == ["none", "group-lasso", "group-hs"]
    assert regularizer_name("group-hs") == "group-hs"
    with pytest.raises(OptionError, match=r"reg .group.: .*accepted are 0 none"):
        regularizer_name("group")
    with pytest.raises(OptionError, match=r"reg 'hs' with --structured: .*accepted are 0 none, 1 group-lasso"):
        regularizer_name("hs", structured=True)
    with pytest.raises(OptionError, match="reg '5': accepted are 0 none, 1 l1"):
        regularizer_name("5")
    with pytest.raises(OptionError, match="reg 'l2': accepted are none, l1, hoyer"):
        TrainOptions(reg="l2")
    assert penalty("hs", 0) is None
    assert penalty("none", 1) is None


def test_costs_of_weights() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    measure = penalty("l1", 0.5, {"0.weight": 60, "1.weight": 3, "0.bias": 100})
    assert measure is not None
    # Costs of one weight: 10, 1 and 0; scaled by 10 weights over 63 MACs.
    wanted = 0.5 * 10 / 63 * (10 * l1(net[0].weight) + l1(net[1].weight))
    found = measure(net)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()))
    found.backward()
    assert net[2].weight.grad is None
    nothing = penalty("l1", 0.5, {})
    assert nothing is not None and float(nothing(net)) == 0
    with pytest.raises(OptionError, match="decay-by 'flops': accepted are layer, macs"):
        TrainOptions(decay_by="flops")


def test_costs_of_groups_and_their_bound() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    macs = {"0.weight": 72 * 4, "2.weight": 48}
    groups = 4 + 2 + 3 + 16
    scale = groups / (2 * (288 + 48))
    conv, dense = net[0].weight, net[2].weight
    wanted = 72 * group_hoyer_square(conv, 0) + 144 * group_hoyer_square(conv, 1)
    wanted = scale * (wanted + 16 * group_hoyer_square(dense, 0) + 3 * group_hoyer_square(dense, 1))
    weighed, plain = penalty("group-hs", 1, macs), penalty("group-hs", 1)
    assert weighed is not None and plain is not None
    assert float(weighed(net).detach()) == pytest.approx(float(wanted.detach()))
    for weight in (conv, dense):
        nn.init.ones_(weight)
    assert float(weighed(net).detach()) == pytest.approx(groups)
    assert float(plain(net).detach()) == pytest.approx(groups)
