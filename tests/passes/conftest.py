"""Small graphs of every shape that the passes meet, and one call to run a recipe on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import recipe
from onnxprune.contract import Pass
from onnxprune.data import open_data
from onnxprune.pipeline import Run, Step, run
from onnxprune.runtime.session import Settings, input_specs


class Net:
    """A graph under construction; layers draw seeded weights and return the name of their output.

    With ``twins`` every producing layer repeats: channel 1 is twice channel 0, and channel 3 is dead behind a
    Relu. Such channels can be cut without loss.
    """

    def __init__(self, *shape: int, seed: int = 0, twins: bool = False, dtype: Any = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.twins, self.dtype = twins, np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[TensorProto] = []
        self.shape = ["batch", *shape]

    def store(self, name: str, data: np.ndarray) -> str:
        """Add an initialiser; floating point takes the net's type."""
        kept = data.astype(self.dtype) if data.dtype.kind == "f" else data
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(kept), name))
        return name

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one output, which has the node's name plus ``_out``."""
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def weight(self, shape: Sequence[int], axis: int, fan: int) -> np.ndarray:
        """Draw a weight whose channels of ``axis`` hold twins where the net wants them."""
        data = self.rng.standard_normal(shape) * np.sqrt(2.0 / fan)
        if self.twins and shape[axis] > 3:
            view = np.moveaxis(data, axis, 0)
            view[1], view[3] = 2 * view[0], 0.0
        return data

    def bias(self, size: int, *, last: bool = False) -> np.ndarray:
        """Draw a bias that fits the twins."""
        data = 0.1 * self.rng.standard_normal(size)
        if self.twins and size > 3 and not last:
            data[1], data[3] = 2 * data[0], -1.0
        return data

    def conv(self, x: str, given: int, width: int, kernel: int = 3, *, name: str = "", **attributes: Any) -> str:
        """Add a convolution with bias that keeps the map's size."""
        name = name or f"conv{len(self.nodes)}"
        weight = self.weight((width, given, kernel, kernel), 0, given * kernel**2)
        self.store(f"{name}.w", weight)
        self.store(f"{name}.b", self.bias(width))
        pads = {"pads": [kernel // 2] * 4, **attributes}
        return self.node("Conv", x, f"{name}.w", f"{name}.b", name=name, **pads)

    def depthwise(self, x: str, width: int, *, name: str = "depth") -> str:
        """Add a depthwise 3 x 3 convolution without bias."""
        weight = self.rng.standard_normal((width, 1, 3, 3)) / 3
        if self.twins:
            weight[1] = weight[0]
        self.store(f"{name}.w", weight)
        return self.node("Conv", x, f"{name}.w", name=name, group=width, pads=[1, 1, 1, 1])

    def transposed(self, x: str, given: int, width: int, *, name: str = "up") -> str:
        """Add a transposed convolution of stride 2."""
        self.store(f"{name}.w", self.weight((given, width, 2, 2), 1, given))
        self.store(f"{name}.b", self.bias(width))
        return self.node("ConvTranspose", x, f"{name}.w", f"{name}.b", name=name, strides=[2, 2])

    def gemm(self, x: str, given: int, width: int, *, name: str = "", trans: bool = True, last: bool = False) -> str:
        """Add a Gemm with bias."""
        name = name or f"gemm{len(self.nodes)}"
        shape, axis = ((width, given), 0) if trans else ((given, width), 1)
        twins, self.twins = self.twins, self.twins and not last
        self.store(f"{name}.w", self.weight(shape, axis, given))
        self.twins = twins
        self.store(f"{name}.b", self.bias(width, last=last))
        return self.node("Gemm", x, f"{name}.w", f"{name}.b", name=name, transB=int(trans))

    def matmul(self, x: str, given: int, width: int, *, name: str, last: bool = False) -> str:
        """Add a MatMul followed by an Add of a bias."""
        twins, self.twins = self.twins, self.twins and not last
        self.store(f"{name}.w", self.weight((given, width), 1, given))
        self.twins = twins
        self.store(f"{name}.b", self.bias(width, last=last))
        return self.node("Add", self.node("MatMul", x, f"{name}.w", name=name), f"{name}.b", name=f"{name}_add")

    def relu(self, x: str) -> str:
        """Add a Relu."""
        return self.node("Relu", x)

    def head(self, x: str, width: int, classes: int = 4) -> str:
        """Add a global pool and a classifier."""
        pooled = self.node("GlobalAveragePool", x)
        return self.gemm(self.node("Flatten", pooled), width, classes, name="head", last=True)

    def model(self, *outputs: str, opset: int = 18) -> onnx.ModelProto:
        """Finish the graph; outputs get a shape by inference."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, self.shape)],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
            self.stored,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del inferred.graph.value_info[:]
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


@pytest.fixture(scope="session")
def net() -> type[Net]:
    """The builder of small graphs."""
    return Net


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


Applied = Callable[..., tuple[ir.Model, Step]]


@pytest.fixture(scope="session")
def apply() -> Applied:
    """Run a recipe (text or passes) on a model; return the result and its last step."""

    def applied(
        model: onnx.ModelProto | ir.Model,
        passes: str | Sequence[Pass],
        data: Mapping[str, np.ndarray] | None = None,
        *,
        seed: int = 0,
        settings: Settings | None = None,
    ) -> tuple[ir.Model, Step]:
        given = ir.serde.deserialize_model(_copy(model)) if isinstance(model, onnx.ModelProto) else model
        items = recipe.parse(passes) if isinstance(passes, str) else passes
        examples = None if data is None else open_data(data, input_specs(given))
        result, steps = run(given, items, Run(examples, settings or Settings(), seed))
        return result, steps[-1]

    return applied


@pytest.fixture(scope="session")
def images() -> Callable[..., dict[str, np.ndarray]]:
    """Draw seeded inputs for a net."""

    def drawn(count: int, *shape: int, seed: int = 5, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(seed).standard_normal((count, *shape)).astype(dtype)}

    return drawn


def _weights(model: ir.Model | onnx.ModelProto) -> dict[str, np.ndarray]:
    given = model if isinstance(model, ir.Model) else ir.serde.deserialize_model(model)
    return {str(name): value.const_value.numpy() for name, value in given.graph.initializers.items()}


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, np.ndarray]]:
    """Read the initialisers of a model by name."""
    return _weights
