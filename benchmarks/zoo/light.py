"""The light graphs inside the onnx package: their weights are constants there, and get seeded values here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
_POSITIVE = {1: (0.5, 1.5), 4: (0.5, 1.5)}  # BatchNormalization's scale and variance


def names() -> list[str]:
    """Return the names of the light graphs, ``light_resnet50`` and the like."""
    return sorted(path.stem for path in FOLDER.glob("light_*.onnx"))


def seeded(name: str, seed: int) -> onnx.ModelProto:
    """Return a light graph with every ConstantOfShape replaced by an initialiser of sane, seeded values."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    graph, rng = model.graph, np.random.default_rng(seed)
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {given: (node, i) for node in graph.node for i, given in enumerate(node.input)}
    drop = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in drop:
        shape = [int(size) for size in sizes[node.input[0]]]
        graph.initializer.append(numpy_helper.from_array(_values(rng, shape, readers[node.output[0]]), node.output[0]))
        kind = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
        graph.input.append(kind)  # IR version 3 lists every initialiser as an input
        graph.node.remove(node)
    unused = {node.input[0] for node in drop} - {given for node in graph.node for given in node.input}
    for field in (graph.initializer, graph.input):
        for item in [item for item in field if item.name in unused]:
            field.remove(item)
    _calm_softmax(model, rng)
    return model


def _calm_softmax(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Scale the layer in front of a final Softmax, in place, so that its input has unit spread.

    Otherwise one class takes all, and outputs stay equal whatever goes wrong before.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    node = makers[graph.output[0].name]
    if node.op_type != "Softmax":
        return
    while node.op_type not in ("Conv", "Gemm"):
        node = makers[node.input[0]]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in session.get_inputs()}
    spread = session.run(None, feeds)[0].std()
    weights = {makers[name].input[0] if name in makers else name for name in node.input[1:]}  # one is reshaped first
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / spread, tensor.name))


def _values(rng: np.random.Generator, shape: list[int], reader: tuple[onnx.NodeProto, int]) -> np.ndarray:
    node, position = reader
    if node.op_type == "BatchNormalization" and position in _POSITIVE:
        return rng.uniform(*_POSITIVE[position], shape).astype(np.float32)
    if len(shape) > 1 and node.op_type in ("Conv", "Gemm", "MatMul"):
        turned = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        fan = shape[0] if turned or node.op_type == "MatMul" else int(np.prod(shape[1:]))
        return np.asarray(rng.standard_normal(shape) * np.sqrt(2.0 / fan), dtype=np.float32)
    if node.op_type in ("Mul", "Unsqueeze"):  # Caffe's Scale layers, whose factor and shift look alike
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)
