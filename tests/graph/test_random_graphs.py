"""Properties of random chains and residual graphs: neutral tidying, cuts that equal masks, one result per input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import cleanup, finish, prepare
from onnxprune.graph.fold_bn import fold_batch_norms

QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


class Grower:
    """A graph under construction: the value at its end, and that value's channels and side length."""

    def __init__(self, n: Any, draw: Callable[..., Any]) -> None:
        self.n, self.draw = n, draw
        self.value, self.channels, self.side = "x", 3, 8

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
            self.value = self.n.op("ReduceMean", self.value, self.n.ints(2, 3), keepdims=0)
            size = self.channels
        hidden = self.width()
        first = self.n.op("Gemm", self.value, self.n.weight(hidden, size), self.n.weight(hidden), transB=1)
        last = self.n.op("MatMul", self.n.op("Relu", first), self.n.weight(hidden, 4))
        return str(self.n.op("Add", self.n.weight(4), last))


STEPS = [
    Grower.conv, Grower.transposed, Grower.depthwise, Grower.norm, Grower.activation, Grower.slope, Grower.constant,
    Grower.pool, Grower.reshuffle, Grower.shared, Grower.residual, Grower.gate,
]  # fmt: skip


def grow(net: Any, draw: Callable[..., Any]) -> onnx.ModelProto:
    opset, ir_version = draw(st.sampled_from([(18, 8), (20, 9), (23, 11)]))
    grower = Grower(net(draw(st.integers(0, 1000)), opset=opset, ir_version=ir_version), draw)
    grower.conv()
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7)):
        step(grower)
    model: onnx.ModelProto = grower.n.model({"x": ["N", 3, 8, 8]}, grower.end())
    return model


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
            np.testing.assert_allclose(got, want[name], rtol=1e-4, atol=1e-4)
    widths = cut_equals_masked(model, seed=data.draw(st.integers(0, 1000)))
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
