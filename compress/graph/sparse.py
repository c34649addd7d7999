"""Sparse initialisers: dense ones on the way in, as onnx-ir drops them silently; sparse on request."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import weights

_LIMIT = 2**31 - 1
# Names, shapes and types of the two parts of a sparse tensor.
_OVERHEAD = 128
_STORED = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


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


def smaller(model: ir.Model) -> dict[str, np.ndarray]:
    """Return the weights, by initialiser, that take fewer bytes as their non-zero entries and int64 places.

    They are at least half zeros; at four bytes a weight it takes two thirds to save any.
    """
    found = {}
    for value in weights(lifted(model), Selection()).values:
        own = model.graph.initializers.get(str(value.name))
        if own is None or own.is_graph_input() or own.is_graph_output() or own.dtype not in _STORED:
            continue
        array = np.asarray(own.const_value.numpy()) if own.const_value is not None else np.zeros(0)
        kept = np.count_nonzero(array)
        if 2 * kept <= array.size and kept * (array.itemsize + 8) + _OVERHEAD < array.nbytes:
            found[str(value.name)] = array
    return found


def hollowed(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> ir.Model:
    """Return a clone in which these initialisers hold nothing, for :func:`sparsify` to take their place in the file."""
    work = model.clone()
    work.meta.update(model.meta)
    for name, array in arrays.items():
        work.graph.initializers[name].const_value = ir.Tensor(np.zeros(0, array.dtype), name=name)
    return work


def sparsify(proto: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> None:
    """Put sparse initialisers (places counted row by row) in the place of the ones of these names, in place."""
    dense = [tensor for tensor in proto.graph.initializer if tensor.name not in arrays]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(dense)
    for name, array in arrays.items():
        flat = array.ravel()
        where = np.flatnonzero(flat).astype(np.int64)
        values = onnx.numpy_helper.from_array(flat[where], name)
        indices = onnx.numpy_helper.from_array(where, f"{name}_indices")
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, array.shape))
