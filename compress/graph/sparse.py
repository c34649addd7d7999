"""Sparse initialisers become dense ones: onnx-ir would drop them without a word."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.errors import ModelError


def densify(proto: onnx.ModelProto) -> None:
    """Replace every sparse initialiser of the graph by an equal dense one, in place.

    Raises:
        ModelError: Indices lie outside the tensor or do not fit its values.
    """
    for stored in proto.graph.sparse_initializer:
        values = onnx.numpy_helper.to_array(stored.values)
        indices = onnx.numpy_helper.to_array(stored.indices)
        shape = tuple(stored.dims)
        dense = np.zeros(int(np.prod(shape, dtype=np.int64)), dtype=values.dtype)
        flat = np.ravel_multi_index(tuple(indices.T), shape, mode="clip") if indices.ndim == 2 else indices
        if flat.shape != values.shape or (flat.size and not 0 <= flat.min() <= flat.max() < dense.size):
            raise ModelError(f"sparse initialiser '{stored.values.name}' has indices that do not fit its shape {shape}")
        dense[flat] = values
        proto.graph.initializer.append(onnx.numpy_helper.from_array(dense.reshape(shape), stored.values.name))
    del proto.graph.sparse_initializer[:]
