"""External data files of a model: which there are, and whether they can be trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of the model: initialisers and attributes, in bodies and functions too."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for stored in graph.sparse_initializer:
                yield stored.values
                yield stored.indices
            nodes.extend(graph.node)
        node = nodes.pop() if nodes else None
        for attribute in node.attribute if node else ():
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _external(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, dict[str, str]]]:
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}


def files(proto: onnx.ModelProto, model: Path) -> list[Path]:
    """Return the external data files of ``proto``, read from ``model``, in order of their names."""
    names = {entries.get("location", "") for _, entries in _external(proto)}
    return [model.parent / name for name in sorted(names)]


def verify(proto: onnx.ModelProto, model: Path) -> bool:
    """Return whether the model uses external data; every piece of it must be there and inside the folder.

    Raises:
        ModelError: A location is absolute, leaves the model's folder (links are followed), does not exist, or
            ends before the tensor does.
    """
    folder = Path(os.path.realpath(model.parent))
    found = False
    for tensor, entries in _external(proto):
        found = True
        location = entries.get("location", "")
        what = f"'{model}': tensor '{tensor.name}' keeps its data in '{location}'"
        if not location or Path(location).is_absolute():
            raise ModelError(f"{what}, which is not a path relative to the model's folder")
        target = Path(os.path.realpath(folder / location))
        if not target.is_relative_to(folder):
            raise ModelError(f"{what}, which leaves the model's folder; keep the data beside the model")
        if not target.is_file():
            raise ModelError(f"{what}, which does not exist; copy it beside the model")
        needed = _span(tensor, entries, what)
        size = target.stat().st_size
        if size < needed:
            raise ModelError(f"{what}, which ends at byte {size:,} where the tensor needs {needed:,}")
    return found


def _span(tensor: onnx.TensorProto, entries: dict[str, str], what: str) -> int:
    """Return the byte at which a tensor's data ends in its file."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what}, but its element type {tensor.data_type} cannot be kept outside the file") from error
    size = math.ceil(math.prod(tensor.dims) * bits / 8)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError as error:
        raise ModelError(f"{what} at an offset or length that is not a number") from error
    if offset < 0 or length < 0:
        raise ModelError(f"{what} at a negative offset or length")
    if length < size:
        raise ModelError(f"{what} with a length of {length:,} bytes where its shape needs {size:,}")
    return offset + length
