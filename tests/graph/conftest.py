"""A short way to write small ONNX graphs, and the comparison that every cut must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph import constants, spaces, surgery
from onnxprune.graph.cleanup import cleanup, finish, prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.shapes import concrete_shapes


class Net:
    """Nodes and seeded random weights in the order in which they are written down."""

    def __init__(self, seed: int = 0, *, opset: int = 18, ir_version: int = 9, dtype: Any = np.float32) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.ir_version, self.dtype = opset, ir_version, np.dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: list[onnx.TensorProto] = []
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def weight(self, *shape: int, name: str | None = None) -> str:
        """Store random values of about unit gain and return their name."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return self.const(self.rng.standard_normal(shape) / np.sqrt(fan), name=name, dtype=self.dtype)

    def positive(self, *shape: int) -> str:
        return self.const(self.rng.uniform(0.5, 1.5, shape), dtype=self.dtype)

    def const(self, data: Any, *, name: str | None = None, dtype: Any = None) -> str:
        name = name or self.fresh("w")
        self.stored.append(numpy_helper.from_array(np.array(data, dtype=dtype), name))
        return name

    def ints(self, *data: int) -> str:
        return self.const(np.array(data, dtype=np.int64))

    def op(self, op_type: str, *inputs: str, name: str | None = None, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and return the name of its output (a list of names where there are several)."""
        outs = [self.fresh("v") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), outs, name or self.fresh(op_type), **attributes))
        return outs[0] if outputs == 1 else outs

    def norm(self, value: str, channels: int, **attributes: Any) -> str:
        parameters = [self.positive(channels), self.weight(channels), self.weight(channels), self.positive(channels)]
        return str(self.op("BatchNormalization", value, *parameters, **attributes))

    def model(
        self,
        inputs: Mapping[str, Sequence[int | str]],
        *outputs: str,
        sizes: Sequence[int | str] | None = None,
    ) -> onnx.ModelProto:
        """Return the model, with the shapes of its outputs as inference finds them unless they are given."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        if sizes is not None:
            results = [helper.make_tensor_value_info(name, kind, sizes) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", given, results, self.stored)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir_version
        )
        if self.ir_version < 4:
            model.graph.input.extend(
                helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self.stored
            )
        found = {info.name: info for info in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
        del model.graph.output[:]
        model.graph.output.extend(found[name] for name in outputs)
        onnx.checker.check_model(model, full_check=True)
        return model


@pytest.fixture
def net() -> type[Net]:
    """The class that builds small graphs."""
    return Net


def feeds_of(model: onnx.ModelProto, *, batch: int = 3, seed: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in stored:
            continue
        kind = info.type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else batch for dim in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[info.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


@pytest.fixture
def feeds() -> Callable[..., dict[str, np.ndarray]]:
    """Random inputs that fit a model; symbols become ``batch``."""
    return feeds_of


def interface(model: onnx.ModelProto) -> tuple[Any, ...]:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [info.SerializeToString() for info in model.graph.input if info.name not in stored]
    outputs = [info.SerializeToString() for info in model.graph.output]
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    return inputs, outputs, opsets, model.ir_version


def choose(analysis: spaces.Analysis, seed: int) -> dict[str, np.ndarray]:
    """Return random kept channels of every prunable space, one to all but one of them."""
    rng = np.random.default_rng(seed)
    kept = {}
    for space in analysis.prunable:
        count = int(rng.integers(1, space.width))
        kept[space.name] = np.sort(rng.permutation(space.width)[:count])
    return kept


def mask(analysis: spaces.Analysis, kept: Mapping[str, np.ndarray]) -> None:
    """Zero what every consumer multiplies dropped channels by: the dense model that a cut must equal."""
    keep = analysis.keep_mask(kept)
    for consumer in analysis.tracer.consumers:
        labels = analysis.tracer.labels[consumer.weight][consumer.weight_axis]
        data = constants.array(consumer.weight)
        if data is None:
            _mask_input(analysis, consumer.node, consumer.value, consumer.axis, keep)
            continue
        staying = keep[analysis.channels_of(labels)]
        shape = [-1 if axis == consumer.weight_axis else 1 for axis in range(data.ndim)]
        constants.set_array(consumer.weight, np.where(staying.reshape(shape), data, np.zeros(1, data.dtype)))
    for node in list(analysis.model.graph):
        if node.op_type in ("MatMul", "Gemm"):
            _mask_product(analysis, node, keep)
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            _mask_recurrence(analysis, node.inputs[2], keep)


def _mask_product(analysis: spaces.Analysis, node: ir.Node, keep: np.ndarray) -> None:
    """Multiply what a product of two computed tensors sums over by 0 and 1."""
    left, right = node.inputs[:2]
    assert left is not None and right is not None
    turned = "transA" in node.attributes and node.attributes["transA"].as_int()
    if not left.is_initializer() and not right.is_initializer():
        _mask_input(analysis, node, left, 0 if turned else max(0, len(analysis.tracer.axes(left)) - 1), keep)


def _mask_input(analysis: spaces.Analysis, node: ir.Node, value: ir.Value, axis: int, keep: np.ndarray) -> None:
    """Multiply an input of a node by 0 and 1 along one axis (a quantised weight cannot hold the zeros itself)."""
    axes = analysis.tracer.axes(value)
    labels = axes[axis] if axes else None
    if labels is None:
        return
    graph = analysis.model.graph
    kind = value.dtype or analysis.model.graph.inputs[0].dtype
    assert kind is not None
    staying = keep[analysis.channels_of(labels)].astype(kind.numpy())
    staying = staying.reshape([-1 if i == axis else 1 for i in range(len(axes))])
    position = list(node.inputs).index(value)
    name = f"{node.name}/mask{position}"
    factor = constants.add_array(graph, name, staying, kind)
    masked = ir.Node("", "Mul", [value, factor], name=f"{name}ed")
    masked.outputs[0].name = f"{name}ed"
    graph.insert_before(node, masked)
    node.replace_input_with(position, masked.outputs[0])


def _mask_recurrence(analysis: spaces.Analysis, weight: ir.Value | None, keep: np.ndarray) -> None:
    """Zero what dropped hidden units give back to the recurrence."""
    labels = analysis.tracer.axes(weight)
    if weight is None or not labels or labels[2] is None:
        return
    data = constants.array(weight)
    assert data is not None
    constants.set_array(weight, np.where(keep[analysis.channels_of(labels[2])], data, np.zeros(1, data.dtype)))


Runner = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def cut_equals_masked(run_model: Runner) -> Callable[..., dict[str, int]]:
    """Cut a model at random and compare it with the masked dense one; return the widths before the cut."""
    return compare_by(run_model)


@pytest.fixture
def cut_equals_masked_by() -> Callable[[Runner], Callable[..., dict[str, int]]]:
    """The same comparison with another way to run models."""
    return compare_by


def compare_by(run_model: Runner) -> Callable[..., dict[str, int]]:
    """Return the comparison that runs models by ``run_model``."""

    def check(proto: onnx.ModelProto, *, seed: int = 0, tolerance: float = 1e-4) -> dict[str, int]:
        given_bytes = proto.SerializeToString(deterministic=True)
        source = ir.serde.deserialize_model(proto)
        before = ir.serde.serialize_model(source).SerializeToString(deterministic=True)
        dense, work = prepare(source), prepare(source)
        analysis, masking = spaces.analyse(work), spaces.analyse(dense)
        kept = choose(analysis, seed)
        mask(masking, kept)
        shapes = concrete_shapes(work, example_shapes(work))
        predicted = spaces.predicted_macs(analysis, shapes, kept)
        surgery.cut(analysis, kept)
        result, wanted = ir.serde.serialize_model(finish(work)), ir.serde.serialize_model(finish(dense))
        onnx.checker.check_model(result, full_check=True)
        assert interface(result) == interface(proto)
        assert measure(ir.serde.deserialize_model(result)).macs == predicted
        for batch in (1, 3):
            given = feeds_of(proto, batch=batch)
            want, got = run_model(wanted, given), run_model(result, given)
            for name in want:
                np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance)
        assert proto.SerializeToString(deterministic=True) == given_bytes
        assert ir.serde.serialize_model(source).SerializeToString(deterministic=True) == before
        return {space.name: space.width for space in analysis.prunable}

    return check


@pytest.fixture
def tidied(run_model: Any, feeds: Any) -> Callable[..., tuple[onnx.ModelProto, dict[str, int]]]:
    """Clean a model up and return it, having shown that outputs, interface and the given model are unchanged."""

    def check(proto: onnx.ModelProto, *, tolerance: float = 0.0) -> tuple[onnx.ModelProto, dict[str, int]]:
        given_bytes = proto.SerializeToString(deterministic=True)
        source = ir.serde.deserialize_model(proto)
        before = ir.serde.serialize_model(source).SerializeToString(deterministic=True)
        work, counts = cleanup(source)
        result = ir.serde.serialize_model(work)
        assert ir.serde.serialize_model(source).SerializeToString(deterministic=True) == before
        onnx.checker.check_model(result, full_check=True)
        assert [str(o) for o in result.graph.output] == [str(o) for o in proto.graph.output]
        assert str(result.opset_import) == str(proto.opset_import)
        assert result.ir_version == proto.ir_version
        for batch in (1, 3):
            given = feeds(proto, batch=batch)
            want, got = run_model(proto, given), run_model(result, given)
            assert want.keys() == got.keys()
            for name in want:
                assert got[name].dtype == want[name].dtype
                np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance)
        assert proto.SerializeToString(deterministic=True) == given_bytes
        twice = ir.serde.serialize_model(cleanup(source)[0])
        assert twice.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
        return result, counts

    return check
