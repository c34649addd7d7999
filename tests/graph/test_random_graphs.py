"""Properties of random graphs of every kind of joint: neutral tidying, cuts that equal masks, one result per input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune.contract import Context
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import cleanup, finish, prepare
from onnxprune.graph.cost import measure
from onnxprune.graph.fold_bn import fold_batch_norms
from onnxprune.passes.zero_groups import ZeroGroups

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


class Grower:
    """A graph under construction: the value at its end, and that value's channels and side length."""

    def __init__(self, n: Any, draw: Callable[..., Any]) -> None:
        self.n, self.draw = n, draw
        self.value, self.channels, self.side = "x", 3, 8
        self.extra: list[tuple[str, int]] = []
        self.inputs: dict[str, list[int | str]] = {"x": ["N", 3, 8, 8]}

    def width(self) -> int:
        return int(self.draw(st.integers(1, 6)))

    def conv(self) -> None:
        outs, kernel = self.width(), self.draw(st.sampled_from([1, 3]))
        bias = [self.n.weight(outs)] if self.draw(st.booleans()) else []
        weight = self.n.weight(outs, self.channels, kernel, kernel)
        self.value = self.n.op("Conv", self.value, weight, *bias, pads=[kernel // 2] * 4)
        self.channels = outs

    def transposed(self) -> None:
        outs = self.width()
        self.value = self.n.op(
            "ConvTranspose", self.value, self.n.weight(self.channels, outs, 1, 1), self.n.weight(outs)
        )
        self.channels = outs

    def depthwise(self) -> None:
        outs = self.channels * self.draw(st.integers(1, 2))
        weight = self.n.weight(outs, 1, 3, 3)
        self.value = self.n.op("Conv", self.value, weight, pads=[1] * 4, group=self.channels)
        self.channels = outs

    def norm(self) -> None:
        self.value = self.n.norm(self.value, self.channels)

    def activation(self) -> None:
        kind = self.draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "Identity", "Dropout", "Softplus"]))
        self.value = self.n.op(kind, self.value)

    def slope(self) -> None:
        self.value = self.n.op("PRelu", self.value, self.n.weight(self.channels, 1, 1))

    def constant(self) -> None:
        kind = self.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"]))
        shape = self.draw(st.sampled_from([(), (1,), (self.channels, 1, 1), (1, self.channels, 1, 1)]))
        operands = [self.value, self.n.weight(*shape)]
        self.value = self.n.op(kind, *(operands if self.draw(st.booleans()) else operands[::-1]))

    def pool(self) -> None:
        if self.side >= 4:
            kind = self.draw(st.sampled_from(["MaxPool", "AveragePool"]))
            self.value = self.n.op(kind, self.value, kernel_shape=[2, 2], strides=[2, 2])
            self.side //= 2

    def reshuffle(self) -> None:
        moved = self.n.op("Transpose", self.value, perm=[0, 2, 3, 1])
        moved = self.n.op("Mul", moved, self.n.positive(self.channels))
        self.value = self.n.op("Transpose", moved, perm=[0, 3, 1, 2])

    def shared(self) -> None:
        """The same weight twice, as exporters merge equal ones."""
        weight = self.n.weight(self.channels, self.channels, 1, 1)
        for _ in range(2):
            self.value = self.n.op("Conv", self.value, weight)

    def residual(self) -> None:
        start, channels = self.value, self.channels
        for _ in range(self.draw(st.integers(1, 2))):
            self.conv()
            self.activation()
        if self.channels != channels or self.draw(st.booleans()):
            weight = self.n.weight(channels, self.channels, 3, 3)
            self.value = self.n.op("Conv", self.value, weight, pads=[1] * 4)
        self.value, self.channels = self.n.op("Add", start, self.value), channels

    def gate(self) -> None:
        pooled = self.n.op("GlobalAveragePool", self.value)
        gate = self.n.op("Conv", pooled, self.n.weight(self.channels, self.channels, 1, 1))
        self.value = self.n.op("Mul", self.n.op("Sigmoid", gate), self.value)

    def join(self) -> None:
        """Two branches, or a layer beside what it reads, are joined."""
        start, channels = self.value, self.channels
        self.conv()
        if self.draw(st.booleans()):
            left, width, (self.value, self.channels) = self.value, self.channels, (start, channels)
            self.conv()
            start, channels = left, width
        parts = [start, self.value] if self.draw(st.booleans()) else [self.value, start]
        self.value, self.channels = self.n.op("Concat", *parts, axis=1), self.channels + channels

    def cut_in_two(self) -> None:
        """Two parts: one goes on alone, both are joined in the other order, or halves gate each other."""
        kind = self.draw(st.sampled_from(["one", "turned", "gate"]))
        if kind == "gate":
            self.channels, before = 2 * self.width(), self.channels
            self.value = self.n.op("Conv", self.value, self.n.weight(self.channels, before, 1, 1))
        if self.channels < 2:
            return
        first = self.channels // 2 if kind == "gate" else self.draw(st.integers(1, self.channels - 1))
        sizes = [first, self.channels - first]
        if self.n.opset >= 13:
            left, right = self.n.op("Split", self.value, self.n.ints(*sizes), axis=1, outputs=2)
        else:
            left, right = self.n.op("Split", self.value, split=sizes, axis=1, outputs=2)
        if kind == "turned":
            self.value = self.n.op("Concat", right, left, axis=1)
        elif kind == "gate":
            self.value, self.channels = self.n.op("Mul", left, self.n.op("Sigmoid", right)), first
        else:
            self.extra.append((right, sizes[1]))
            self.value, self.channels = left, first

    def stretch(self) -> None:
        """A slice of the channels, by bounds counted from either end, beside other readers."""
        first = self.draw(st.integers(0, self.channels - 1))
        last = self.draw(st.integers(first + 1, self.channels))
        self.extra.append((self.value, self.channels))
        bounds = [first - self.draw(st.sampled_from([0, self.channels])), 2**31 - 1 if last == self.channels else last]
        if self.n.opset >= 10:
            self.value = self.n.op("Slice", self.value, *(self.n.ints(i) for i in (*bounds, 1)))
        else:
            self.value = self.n.op("Slice", self.value, starts=bounds[:1], ends=bounds[1:], axes=[1])
        self.channels = last - first

    def picked(self) -> None:
        chosen = self.draw(st.lists(st.integers(-self.channels, self.channels - 1), min_size=1, max_size=8))
        self.value = self.n.op("Gather", self.value, self.n.ints(*chosen), axis=1)
        self.channels = len(chosen)

    def padded(self) -> None:
        """The shortcut of early residual nets: channels of nothing, then a sum with a layer's."""
        before, after = self.draw(st.integers(0, 2)), self.draw(st.integers(0, 2))
        pads = [0, before, 0, 0, 0, after, 0, 0]
        start = self.value
        as_input = self.n.opset >= 11
        wide = self.n.op("Pad", start, self.n.ints(*pads)) if as_input else self.n.op("Pad", start, pads=pads)
        weight = self.n.weight(self.channels + before + after, self.channels, 1, 1)
        self.channels += before + after
        self.value = self.n.op("Add", wide, self.n.op("Conv", start, weight)) if self.draw(st.booleans()) else wide

    def grouped(self) -> None:
        groups = self.draw(st.sampled_from([g for g in range(1, 7) if self.channels % g == 0]))
        outs = groups * self.draw(st.integers(1, 3))
        weight = self.n.weight(outs, self.channels // groups, 3, 3)
        self.value = self.n.op("Conv", self.value, weight, self.n.weight(outs), pads=[1] * 4, group=groups)
        self.channels = outs

    def grouped_up(self) -> None:
        groups = self.draw(st.sampled_from([g for g in range(1, 7) if self.channels % g == 0]))
        each = self.draw(st.integers(1, 3))
        weight = self.n.weight(self.channels, each, 1, 1)
        self.value = self.n.op("ConvTranspose", self.value, weight, self.n.weight(groups * each), group=groups)
        self.channels = groups * each

    def rounded(self) -> None:
        """Activations rounded to eight bits and back, then a convolution with an eight-bit weight."""
        if self.n.opset < 13 or self.n.dtype != np.float32:
            return
        outs, rng = self.width(), self.n.rng
        each = self.draw(st.booleans())
        step = self.n.const(rng.uniform(0.01, 0.05, (self.channels,) if each else ()), dtype=np.float32)
        zero = self.n.const(np.zeros((self.channels,) if each else ()), dtype=np.int8)
        value = self.n.op("QuantizeLinear", self.value, step, zero)
        value = self.n.op("DequantizeLinear", value, step, zero)
        axis = self.draw(st.sampled_from([None, 0, 1, -3]))
        shape = (outs, self.channels, 3, 3)
        scale = rng.uniform(0.5, 1.5, () if axis is None else (shape[axis],)) / 127 / self.channels
        data = self.n.const(rng.integers(-127, 128, shape), dtype=np.int8)
        named = {} if axis is None else {"axis": axis}
        weight = self.n.op("DequantizeLinear", data, self.n.const(scale, dtype=np.float32), **named)
        self.value, self.channels = self.n.op("Conv", value, weight, pads=[1] * 4), outs

    def every_so_many(self) -> None:
        step = self.draw(st.sampled_from([-3, -2, -1, 2, 3]))
        start = self.draw(st.integers(0, self.channels - 1))
        size = len(range(self.channels)[start::step])
        if self.n.opset >= 10:
            end = -100 if step < 0 else 100
            self.value = self.n.op("Slice", self.value, *(self.n.ints(bound) for bound in (start, end, 1, step)))
            self.extra.append((self.value, size))
            self.channels = size

    def shuffle(self) -> None:
        groups = self.draw(st.sampled_from([g for g in range(1, 7) if self.channels % g == 0]))
        grid = self.n.ints(0, groups, self.channels // groups, self.side, self.side)
        value = self.n.op("Transpose", self.n.op("Reshape", self.value, grid), perm=[0, 2, 1, 3, 4])
        self.value = self.n.op("Reshape", value, self.n.ints(0, self.channels, self.side, self.side))

    def instance(self) -> None:
        parameters = self.n.positive(self.channels), self.n.weight(self.channels)
        self.value = self.n.op("InstanceNormalization", self.value, *parameters, epsilon=1e-2)

    def to_depth(self) -> None:
        if self.side >= 4 and self.channels <= 6:
            self.value = self.n.op("SpaceToDepth", self.value, blocksize=2)
            self.side, self.channels = self.side // 2, self.channels * 4

    def second_input(self) -> None:
        """Another input, projected and added."""
        if self.side == 8:
            weight = self.n.weight(self.channels, 2, 1, 1)
            self.value = self.n.op("Add", self.value, self.n.op("Conv", "y", weight))
            self.inputs["y"] = ["N", 2, 8, 8]

    def others(self) -> list[str]:
        """Further outputs: of some parts that nothing else read a mean over positions, as they are or projected."""
        found = []
        for value, channels in self.extra[-2:]:
            pooled = self.n.op("Flatten", self.n.op("GlobalAveragePool", value))
            if self.draw(st.booleans()):
                pooled = self.n.op("MatMul", pooled, self.n.weight(channels, 3))
            found.append(pooled)
        return found

    def end(self) -> str:
        size = self.channels * self.side**2
        flat = self.draw(st.sampled_from(["flatten", "reshape", "reduce", "transpose"]))
        if flat == "flatten":
            self.value = self.n.op("Flatten", self.value)
        elif flat == "reshape":
            self.value = self.n.op(
                "Reshape", self.value, self.n.ints(*self.draw(st.sampled_from([(-1, size), (0, -1)])))
            )
        elif flat == "transpose":
            moved = self.n.op("Transpose", self.value, perm=[0, 2, 3, 1])
            self.value = self.n.op("Reshape", moved, self.n.ints(-1, size))
        else:
            axes = [self.n.ints(2, 3)] if self.n.opset >= 18 else []
            named = {} if axes else {"axes": [2, 3]}
            self.value = self.n.op("ReduceMean", self.value, *axes, keepdims=0, **named)
            size = self.channels
        hidden = self.width()
        first = self.n.op("Gemm", self.value, self.n.weight(hidden, size), self.n.weight(hidden), transB=1)
        last = self.n.op("MatMul", self.n.op("Relu", first), self.n.weight(hidden, 4))
        return str(self.n.op("Add", self.n.weight(4), last))


STEPS = [
    Grower.conv, Grower.transposed, Grower.depthwise, Grower.norm, Grower.activation, Grower.slope, Grower.constant,
    Grower.pool, Grower.reshuffle, Grower.shared, Grower.residual, Grower.gate, Grower.join,
    Grower.cut_in_two, Grower.stretch, Grower.picked, Grower.padded, Grower.grouped, Grower.shuffle, Grower.instance,
    Grower.to_depth, Grower.second_input, Grower.grouped_up, Grower.rounded, Grower.every_so_many,
]  # fmt: skip


def grow(net: Any, draw: Callable[..., Any]) -> onnx.ModelProto:
    versions = [(9, 4), (11, 6), (12, 7), (13, 7), (16, 8), (18, 8), (20, 9), (21, 10), (23, 11)]
    opset, ir_version = draw(st.sampled_from(versions))
    # ONNX Runtime has kernels for half precision on the CPU where it casts; a few operators of old opsets lack them.
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float32, np.float16])) if opset >= 13 else np.float32
    grower = Grower(net(draw(st.integers(0, 1000)), opset=opset, ir_version=ir_version, dtype=dtype), draw)
    grower.conv()
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7)):
        step(grower)
    others = grower.others()
    model: onnx.ModelProto = grower.n.model(grower.inputs, grower.end(), *others)
    return model


def tolerance_of(model: onnx.ModelProto) -> float:
    return 5e-2 if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 else 1e-4


def rewritten(model: onnx.ModelProto, kept: dict[str, np.ndarray]) -> bytes:
    work = prepare(ir.serde.deserialize_model(model))
    surgery.cut(spaces.analyse(work), kept)
    return ir.serde.serialize_model(finish(work)).SerializeToString()


def check(net: Any, run_model: Any, feeds: Any, cut_equals_masked: Any, data: Any) -> None:
    model = grow(net, data.draw)
    inputs = feeds(model)
    want = run_model(model, inputs)
    source = ir.serde.deserialize_model(model)
    for work in (cleanup(source)[0], fold_batch_norms(source)[0]):
        result = ir.serde.serialize_model(work)
        onnx.checker.check_model(result, full_check=True)
        for name, got in run_model(result, inputs).items():
            close = tolerance_of(model)
            np.testing.assert_allclose(got, want[name], rtol=close, atol=close)
    widths = cut_equals_masked(model, seed=data.draw(st.integers(0, 1000)), tolerance=tolerance_of(model))
    kept = {name: np.arange((width + 1) // 2) for name, width in widths.items()}
    assert rewritten(model, kept) == rewritten(model, kept)


@settings(max_examples=50, **QUIET)
@given(data=st.data())
def test_random_graphs(net: Any, run_model: Any, feeds: Any, cut_equals_masked: Any, data: Any) -> None:
    check(net, run_model, feeds, cut_equals_masked, data)


@pytest.mark.slow
@settings(max_examples=500, **QUIET)
@given(data=st.data())
def test_many_random_graphs(net: Any, run_model: Any, feeds: Any, cut_equals_masked: Any, data: Any) -> None:
    check(net, run_model, feeds, cut_equals_masked, data)


def with_zeros(model: onnx.ModelProto, seed: int, share: float) -> onnx.ModelProto:
    """Zero whole slices of weights along their first two axes, and some biases and normalisation parameters."""
    rng = np.random.default_rng(seed)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).copy()
        if data.dtype.kind != "f":
            continue
        for axis in range(min(data.ndim, 2)):
            chosen = rng.random(data.shape[axis]) < share
            np.moveaxis(data, axis, 0)[chosen] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(data, tensor.name))
    return result


def check_null(net: Any, run_model: Any, feeds: Any, data: Any) -> None:
    model = with_zeros(grow(net, data.draw), data.draw(st.integers(0, 1000)), data.draw(st.sampled_from([0.3, 0.7])))
    before = model.SerializeToString(deterministic=True)
    source = ir.serde.deserialize_model(model)
    once = ZeroGroups().apply(source, Context(source, measure(source), {}, seed=0))
    result = ir.serde.serialize_model(once.model)
    onnx.checker.check_model(result, full_check=True)
    inputs = feeds(model)
    want, got = run_model(model, inputs), run_model(result, inputs)
    close = max(tolerance_of(model), 1e-5)
    for name in want:
        np.testing.assert_allclose(
            got[name], want[name], rtol=close, atol=close * max(1, np.nanmax(np.abs(want[name])))
        )
    assert ir.serde.serialize_model(source).SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before
    twice = ZeroGroups().apply(once.model, Context(source, measure(source), {}, seed=0))
    assert twice.numbers["channels_removed"] == twice.numbers["branches_dropped"] == 0
    assert ir.serde.serialize_model(twice.model).SerializeToString(deterministic=True) == result.SerializeToString(
        deterministic=True
    )
    assert measure(once.model).macs <= measure(source).macs


@settings(max_examples=40, **QUIET)
@given(data=st.data())
def test_null_groups_leave_random_graphs(net: Any, run_model: Any, feeds: Any, data: Any) -> None:
    check_null(net, run_model, feeds, data)


@pytest.mark.slow
@settings(max_examples=500, **QUIET)
@given(data=st.data())
def test_null_groups_leave_many_random_graphs(net: Any, run_model: Any, feeds: Any, data: Any) -> None:
    check_null(net, run_model, feeds, data)
