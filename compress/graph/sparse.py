"""Sparse initialisers become dense ones: onnx-ir would drop them without a word."""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnxprune.errors import ModelError

_LIMIT = 2**31 - 1


def densify(proto: onnx.ModelProto, folder: str = "") -> None:
    """Replace every sparse initialiser and sparse Constant of the model by an equal dense one, in place.

    ``folder`` is where external data lies.

    Raises:
        ModelError: Indices lie outside the tensor or do not fit its values, or the dense tensor is over 2 GiB.
    """
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            for stored in graph.sparse_initializer:
                graph.initializer.append(_dense(stored, folder, stored.values.name))
            del graph.sparse_initializer[:]
            nodes.extend(graph.node)
            continue
        node = nodes.pop()
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                tensor = _dense(attribute.sparse_tensor, folder, attribute.sparse_tensor.values.name)
                attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))
            graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _dense(stored: onnx.SparseTensorProto, folder: str, name: str) -> onnx.TensorProto:
    shape = tuple(stored.dims)
    what = f"sparse tensor '{name}' of shape {shape}"
    try:
        values = onnx.numpy_helper.to_array(stored.values, folder)
        indices = onnx.numpy_helper.to_array(stored.indices, folder)
        size = math.prod(shape)
        if size * values.dtype.itemsize > _LIMIT:
            raise ModelError(f"{what} is over 2 GiB when dense, which one tensor cannot hold")
        flat = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
    except (ValueError, TypeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{what} cannot be read: {error}") from error
    if flat.shape != values.shape or (flat.size and not 0 <= flat.min() <= flat.max() < size):
        raise ModelError(f"{what} has indices that do not fit its shape")
    dense = np.zeros(size, dtype=values.dtype)
    dense[flat] = values
    return onnx.numpy_helper.from_array(dense.reshape(shape), name)
