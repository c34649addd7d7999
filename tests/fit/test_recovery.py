"""Sparse recovery of channels: sums under a kernel, importance against automatic differentiation, rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.fit.design import Design
from onnxprune.fit.reader import Reader, readers
from onnxprune.fit.recovery import Energy, FirstMoments, axes_of, contributions, pair_sums, recover
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.shapes import concrete_shapes


def reader_of(proto: Any, name: str = "one", *, dense: bool = True) -> Reader:
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(proto)))
    shapes = concrete_shapes(analysis.model, example_shapes(analysis.model))
    found, _ = readers(analysis, analysis.prunable, shapes, dense=dense)
    return next(reader for reader in found if reader.space.name == name)


def block(net: Any, kernel: int, *, norm: bool = True, dtype: Any = np.float64, **attributes: Any) -> Any:
    """Conv-Relu-Conv, with a BatchNormalization behind the second one."""
    n = net(3, 9, 7, dtype=dtype)
    hidden = n.relu(n.conv("x", 3, 5, name="one"))
    out = n.conv(hidden, 5, 4, kernel, name="two", **attributes)
    return n.model(n.op("GlobalAveragePool", n.relu(n.norm(out, 4) if norm else out)))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pad", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
def test_importance_is_what_automatic_differentiation_gives(
    net: Any, kernel: int, pad: int, stride: int, dilation: int, norm: bool
) -> None:
    torch = pytest.importorskip("torch")
    same = {"pads": [pad] * 4, "strides": [stride] * 2, "dilations": [dilation] * 2}
    proto = block(net, kernel, norm=norm, **same)
    reader, rng = reader_of(proto), np.random.default_rng(kernel + pad)
    hidden = np.abs(rng.standard_normal((6, 5, 9, 7)))
    observer = reader.sums(absolute=False)
    observer.update(hidden[:4])
    observer.update(hidden[4:])
    evidence = reader.first_moments(observer.result())
    unit = reader.link.unit
    plain = torch.from_numpy(np.array(unit.weight.const_value.numpy()))
    scale, shift = (torch.from_numpy(np.array(a)).reshape(1, -1, 1, 1) for a in (unit.scale, unit.shift))

    def output(h: Any) -> Any:
        return torch.nn.functional.conv2d(h, plain, None, stride, pad, dilation) * scale

    for text in ("00000", "00100", "11011", "01010"):
        kept = np.array([letter == "1" for letter in text])
        value = torch.from_numpy(hidden).requires_grad_(True)
        masked = torch.from_numpy(hidden * kept[:, None, None])
        residual = output(value) - output(masked) if kept.any() else output(value) + shift
        residual.square().sum().div(2).backward()
        wanted = value.grad.sum((0, 2, 3)).numpy()
        np.testing.assert_allclose(evidence.importance(kept), wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 1, 2, 0], "strides": [2, 1]},
        {"pads": [1, 1, 1, 1], "dilations": [2, 1], "strides": [3, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID"},
    ],
)
def test_pair_sums_are_sums_of_patches(net: Any, run_model: Any, attributes: dict[str, Any]) -> None:
    if "auto_pad" in attributes:
        attributes = {"pads": None, **attributes}
    proto = block(net, 3, norm=False, dtype=np.float32, **attributes)
    unit = reader_of(proto).link.unit
    hidden = np.random.default_rng(0).standard_normal((3, 5, 9, 7))
    axes = axes_of(unit, (9, 7))
    size = [len(axis.place) for axis in axes]
    given = ir.serde.deserialize_model(proto)
    value = next(node for node in given.graph if node.name == "two").outputs[0]
    given.graph.outputs.append(value)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    assert list(run_model(given, {"x": np.zeros((1, 3, 9, 7), dtype=np.float32)})["two_out"].shape[2:]) == size
    design, every = Design(unit, 0, 0), np.arange(3)
    patches = design.rows(hidden, (3, 4, *size), every)[0].reshape(-1, 9, 5)
    inside = design.rows(np.ones_like(hidden), (3, 4, *size), every)[0].reshape(-1, 9, 5)[..., 0]
    wanted = np.einsum("qef,qd->fed", patches, inside)
    np.testing.assert_allclose(pair_sums(hidden.sum(axis=0), axes), wanted, atol=1e-12)


def test_the_golden_case() -> None:
    weight, mass = np.array([[1.0, 0, 2], [0, 1, -1]]), np.array([1.0, 2, 3])
    evidence = FirstMoments(weight.T, np.zeros(2), mass[:, None, None], np.ones(1), np.arange(3), mass)
    none = np.zeros(3, dtype=bool)
    assert evidence.importance(none).tolist() == [7, -1, 15]
    assert recover(evidence, 1, rounds=1).kept.tolist() == [2]
    assert evidence.importance(np.array([False, False, True])).tolist() == [1, 2, 0]
    found = recover(evidence, 1)
    assert found.kept.tolist() == [2]
    assert found.rounds == 2


def drawn(seed: int, width: int = 12, outputs: int = 7) -> FirstMoments:
    rng = np.random.default_rng(seed)
    mass = rng.uniform(0.1, 1, width)
    weight = rng.standard_normal((width, outputs))
    return FirstMoments(weight, np.zeros(outputs), mass[:, None, None], np.ones(1), np.arange(width), mass)


@given(seed=st.integers(0, 200), count=st.integers(0, 14), expansion=st.integers(1, 3))
def test_rounds_beyond_a_repeat_are_read_off_the_cycle(seed: int, count: int, expansion: int) -> None:
    evidence = drawn(seed)
    kept, many = np.zeros(12, dtype=bool), min(max(count, 1), 12)
    for rounds in range(1, 25):
        joined = kept.copy()
        joined[np.argsort(-evidence.importance(kept), kind="stable")[: expansion * many]] = True
        kept = np.zeros(12, dtype=bool)
        order = np.argsort(np.where(joined, -evidence.mass, np.inf), kind="stable")
        kept[order[:many]] = True
        found = recover(evidence, count, rounds=rounds, expansion=expansion)
        assert found.kept.tolist() == np.flatnonzero(kept).tolist()
        assert len(found.kept) == many
    assert found.rounds < 24


def test_equal_channels_go_by_their_index() -> None:
    weight, mass = np.ones((4, 2)), np.ones(4)
    evidence = FirstMoments(weight, np.zeros(2), mass[:, None, None], np.ones(1), np.arange(4), mass)
    assert recover(evidence, 2).kept.tolist() == [0, 1]
    assert recover(Energy(np.eye(4)), 2).kept.tolist() == [0, 1]
    assert recover(Energy(np.zeros((4, 4))), 3).residual == 0.0


def test_negative_sums_count_by_their_magnitude() -> None:
    weight, mass = np.eye(3), np.array([-5.0, 1.0, 2.0])
    evidence = FirstMoments(weight, np.zeros(3), mass[:, None, None], np.ones(1), np.arange(3), mass)
    assert recover(evidence, 1).kept.tolist() == [0] or 2 * 1 < 3
    assert recover(evidence, 2).kept.tolist() == [0, 2]


@pytest.mark.parametrize("kernel", [1, 3])
def test_energy_is_that_of_the_residual(net: Any, kernel: int) -> None:
    proto = block(net, kernel)
    reader = reader_of(proto)
    unit, rng = reader.link.unit, np.random.default_rng(3)
    hidden = np.maximum(rng.standard_normal((8, 5, 9, 7)), 0)
    rows = Design(unit, 0, 0).rows(hidden, (8, 4, 9, 7), np.arange(8))[0]
    matrix = unit.matrix()[0]
    evidence = Energy(contributions(rows.T @ rows, matrix, reader.owner, 5))
    owner = np.tile(reader.owner, kernel**2)
    parts = [rows[:, owner == c] @ matrix[owner == c] for c in range(5)]

    def energy(kept: np.ndarray) -> float:
        return float(np.square(sum((parts[c] for c in range(5) if not kept[c]), np.zeros_like(parts[0]))).sum())

    kept = np.array([True, False, False, True, False])
    assert evidence.residual(kept) == pytest.approx(energy(kept) / energy(np.zeros(5, dtype=bool)))
    for c in range(5):
        other = kept.copy()
        other[c] = not kept[c]
        gained = energy(other) - energy(kept)
        assert evidence.importance(kept)[c] == pytest.approx(gained if kept[c] else -gained)
    cheapest = min(np.flatnonzero(kept), key=lambda c: energy(kept & (np.arange(5) != c)))
    assert np.flatnonzero(kept & ~evidence.strongest(kept, 1)).tolist() == [cheapest]
    found = recover(evidence, 2)
    assert found.residual is not None
    pairs = [np.isin(np.arange(5), (c, d)) for c in range(5) for d in range(c)]
    assert found.residual == pytest.approx(min(energy(pair) for pair in pairs) / energy(np.zeros(5, dtype=bool)))


@pytest.mark.parametrize("power", [0.3, 0.5, 0.7])
def test_more_channels_leave_less_of_compressible_activations(power: float) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.uniform(0.5, 1.5, (40, 60)) * (1.0 + rng.permutation(60)) ** (-1 / power)
    weight = rng.standard_normal((60, 20))
    mass = hidden.sum(axis=0)
    evidence = FirstMoments(weight, np.zeros(20), mass[:, None, None], np.ones(1), np.arange(60), mass)
    left = []
    for count in (2, 5, 10, 20, 40, 60):
        gone = np.setdiff1d(np.arange(60), recover(evidence, count).kept)
        left.append(float(np.linalg.norm(hidden[:, gone] @ weight[gone])))
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0
    # The error falls like a power of the width that is the larger the more compressible the activations are.
    assert np.log(left[3] / left[0]) / np.log(10) < -(1 / power - 1)
