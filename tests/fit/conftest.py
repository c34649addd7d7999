"""Small networks of every shape that refitting meets, with examples and a context for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.contract import Context
from onnxprune.data import Examples
from onnxprune.fit.reconstruct import Fit, Reconstruction
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.linear import add_constants
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.runtime.session import Settings


class Net:
    """Nodes and seeded weights in the order in which they are written down; the input is ``x``."""

    def __init__(self, *shape: int, batch: int | str = "N", seed: int = 0, dtype: Any = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape, self.dtype = [batch, *shape], np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []

    def const(self, data: Any) -> str:
        array = np.asarray(data)
        array = array.astype(self.dtype) if array.dtype.kind == "f" else array
        name = f"w{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, *shape: int, gain: float = 1.4) -> str:
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 20
        return self.const(gain * self.rng.standard_normal(shape) / np.sqrt(fan))

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> Any:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        outs = [f"{name}_out{i}" if i else f"{name}_out" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), outs, name, **attributes))
        return outs[0] if outputs == 1 else outs

    def conv(
        self, x: str, given: int, width: int, kernel: int = 3, *, name: str, bias: bool = True, **more: Any
    ) -> str:
        group = more.get("group", 1)
        parameters = [self.weight(width, given // group, kernel, kernel), *([self.weight(width)] if bias else [])]
        return str(self.op("Conv", x, *parameters, name=name, **{"pads": [kernel // 2] * 4, **more}))

    def norm(self, x: str, width: int) -> str:
        positive = [self.const(self.rng.uniform(0.5, 1.5, width)) for _ in range(2)]
        parameters = [positive[0], self.weight(width), self.weight(width), positive[1]]
        return str(self.op("BatchNormalization", x, *parameters))

    def dense(self, x: str, given: int, width: int, *, name: str) -> str:
        return str(self.op("Gemm", x, self.weight(width, given), self.weight(width), name=name, transB=1))

    def relu(self, x: str) -> str:
        return str(self.op("Relu", x))

    def pooled(self, x: str, width: int, classes: int = 4) -> str:
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), width, classes, name="head")

    def model(self, *outputs: str) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", kind, self.shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs], self.stored,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        del inferred.graph.value_info[:]
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


def residual(*, down_first: bool = False, norm: bool = True, **kinds: Any) -> onnx.ModelProto:
    """Two blocks with sums, the second one with a strided convolution on its skip."""
    n = Net(3, 8, 8, **kinds)
    x = n.relu(n.conv("x", 3, 6, name="stem"))
    inner = n.conv(x, 6, 8, name="a1", bias=not norm)
    inner = n.relu(n.norm(inner, 8) if norm else inner)
    x = n.relu(n.op("Add", n.conv(inner, 8, 6, name="a2"), x, name="a_sum"))
    skip = n.conv(x, 6, 9, 1, name="down", strides=[2, 2]) if down_first else ""
    inner = n.relu(n.conv(x, 6, 10, name="b1", strides=[2, 2]))
    inner = n.conv(inner, 10, 9, name="b2")
    skip = skip or n.conv(x, 6, 9, 1, name="down", strides=[2, 2])
    x = n.relu(n.op("Add", inner, skip, name="b_sum"))
    return n.model(n.pooled(x, 9))


def mlp(**kinds: Any) -> onnx.ModelProto:
    """Three dense layers."""
    n = Net(7, **kinds)
    x = n.relu(n.dense("x", 7, 12, name="one"))
    x = n.relu(n.dense(x, 12, 10, name="two"))
    return n.model(n.dense(x, 10, 4, name="three"))


def separable(**kinds: Any) -> onnx.ModelProto:
    """Depthwise and pointwise convolutions in turn."""
    n = Net(3, 8, 8, **kinds)
    x = n.relu(n.conv("x", 3, 8, name="stem"))
    x = n.relu(n.norm(n.conv(x, 8, 8, name="depth1", group=8, bias=False), 8))
    x = n.relu(n.conv(x, 8, 12, 1, name="point1"))
    x = n.relu(n.conv(x, 12, 12, name="depth2", group=12, strides=[2, 2]))
    x = n.relu(n.conv(x, 12, 10, 1, name="point2"))
    return n.model(n.pooled(x, 10))


def transformer(**kinds: Any) -> onnx.ModelProto:
    """One block of two heads of 4 over 5 tokens of 8 channels, and a head over the mean token."""
    n = Net(5, 8, **kinds)

    def linear(x: str, given: int, width: int, name: str) -> str:
        product = n.op("MatMul", x, n.weight(given, width, gain=1.0), name=name)
        return str(n.op("Add", product, n.weight(width), name=f"{name}_add"))

    def heads(x: str, name: str, order: Sequence[int]) -> str:
        shape = n.const(np.array([0, 5, 2, 4]))
        return str(n.op("Transpose", n.op("Reshape", linear(x, 8, 8, name), shape), perm=order))

    ones = n.const(np.ones(8))
    y = n.op("LayerNormalization", "x", ones, n.weight(8), axis=-1)
    scores = n.op("MatMul", heads(y, "q", [0, 2, 1, 3]), heads(y, "k", [0, 2, 3, 1]))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), heads(y, "v", [0, 2, 1, 3]))
    merged = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.const(np.array([0, 5, 8])))
    x = n.op("Add", "x", linear(merged, 8, 8, "out"))
    y = n.op("LayerNormalization", x, n.const(np.ones(8)), n.weight(8), axis=-1)
    x = n.op("Add", x, linear(n.relu(linear(y, 8, 14, "up")), 14, 8, "down"))
    mean = n.op("ReduceMean", x, n.const(np.array([1])), keepdims=0)
    return n.model(n.dense(mean, 8, 4, name="head"))


def unet(**kinds: Any) -> onnx.ModelProto:
    """Down, up and joined again: a map of the input's size comes out."""
    n = Net(2, 8, 8, **kinds)
    first = n.relu(n.conv("x", 2, 6, name="in"))
    low = n.relu(n.conv(n.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 6, 9, name="low"))
    low = n.relu(n.conv(low, 9, 8, name="bottom"))
    up = n.op("ConvTranspose", low, n.weight(8, 5, 2, 2), n.weight(5), name="up", strides=[2, 2])
    joined = n.op("Concat", n.relu(up), first, axis=1)
    x = n.relu(n.conv(joined, 11, 7, name="joined"))
    return n.model(n.conv(x, 7, 3, 1, name="last"))


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "residual": residual, "mlp": mlp, "separable": separable, "transformer": transformer, "unet": unet,
}  # fmt: skip


@pytest.fixture(scope="session")
def networks() -> dict[str, Callable[..., onnx.ModelProto]]:
    """Builders of small networks by name."""
    return NETWORKS


@pytest.fixture(scope="session")
def net() -> type[Net]:
    """The class that builds small graphs."""
    return Net


@dataclass
class Bench:
    """A prepared model with its analysis, and a context to refit it in."""

    original: ir.Model
    analysis: spaces.Analysis
    context: Context
    run: Reconstruction
    added: list[str]

    def spaces_to(self, share: float) -> tuple[list[spaces.ChannelSpace], dict[str, int]]:
        """Return the spaces that linear nodes alone read, and a share of each of their widths."""
        units = {link.unit.node for link in self.run.links}
        found = [s for s in self.analysis.prunable if s.consumers and {c.node for c in s.consumers} <= units]
        found = [s for s in found if self.analysis.opaque(s) is None]
        return found, {s.name: max(1, int(share * s.width)) for s in found}


def examples_of(arrays: dict[str, np.ndarray]) -> Examples:
    count = len(next(iter(arrays.values())))
    return Examples("test", count, None, lambda rows: {name: array[rows] for name, array in arrays.items()})


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    """Prepare a model for refitting on random examples."""

    def made(
        proto: onnx.ModelProto, *, count: int = 48, batch: int = 16, threads: int = 1, seed: int = 3, **options: Any
    ) -> Bench:
        source = ir.serde.deserialize_model(onnx.ModelProto.FromString(proto.SerializeToString()))
        base = prepare(source)
        added = add_constants(base)
        analysis = spaces.analyse(prepare(base))
        info = proto.graph.input[0].type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(info.elem_type)
        sizes = [dim.dim_value or 1 for dim in info.shape.dim]
        x = np.random.default_rng(seed).standard_normal([count, *sizes[1:]]).astype(dtype)
        inputs = {"x": tuple(sizes)}
        context = Context(
            source, measure(source, inputs), inputs, 0, examples=examples_of({"x": x}),
            settings=Settings(batch_size=batch, threads=threads),
        )  # fmt: skip
        shapes = concrete_shapes(analysis.model, example_shapes(analysis.model, inputs))
        return Bench(base, analysis, context, Reconstruction(base, analysis, shapes, Fit(**options), context), added)

    return made
