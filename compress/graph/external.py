"""External data files of a model: which there are, and whether they can be trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError


def _tensors(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, bool]]:
    """Yield every tensor of the model, in bodies and functions too, and whether it is an attribute of a node."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from ((tensor, False) for tensor in graph.initializer)
            for stored in graph.sparse_initializer:
                yield from ((tensor, False) for tensor in (stored.values, stored.indices))
            nodes.extend(graph.node)
        node = nodes.pop() if nodes else None
        for attribute in node.attribute if node else ():
            held = [attribute.t] if attribute.HasField("t") else list(attribute.tensors)
            if attribute.HasField("sparse_tensor"):
                held += [attribute.sparse_tensor.values, attribute.sparse_tensor.indices]
            yield from ((tensor, True) for tensor in held)
            graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _external(proto: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, dict[str, str]]]:
    for tensor, _ in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}


def take_in_attributes(proto: onnx.ModelProto, model: Path) -> None:
    """Read tensors that nodes keep outside into ``proto``: onnx-ir writes only initialisers to a new data file."""
    for tensor, attribute in _tensors(proto):
        if attribute and tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(model.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]


def files(proto: onnx.ModelProto, model: Path) -> list[Path]:
    """Return the external data files of ``proto``, read from ``model``, in order of their names."""
    names = {entries.get("location", "") for _, entries in _external(proto)}
    return [model.parent / name for name in sorted(names)]


def verify(proto: onnx.ModelProto, model: Path) -> bool:
    """Return whether the model uses external data; every tensor's data must be there, in full.

    Raises:
        ModelError: A location is absolute, leaves the model's folder (links are followed), does not exist, or
            ends before the tensor does; or a tensor inside the file has more or fewer values than its shape.
    """
    for tensor, _ in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            _verify_inline(tensor, f"'{model}': tensor '{tensor.name}'")
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


_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_PAIRS = frozenset({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})


def _verify_inline(tensor: onnx.TensorProto, what: str) -> None:
    count = math.prod(tensor.dims)
    raw = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if tensor.data_type == onnx.TensorProto.STRING or raw is None:
        found, packed = sum(len(getattr(tensor, field)) for field in _FIELDS), _bytes(tensor, what)
        fits = found in (2 * count if tensor.data_type in _PAIRS else count, packed if packed < count else count)
    else:
        found, fits = raw, raw == _bytes(tensor, what)
    if not fits:
        kind = "values" if raw is None else "bytes"
        raise ModelError(f"{what} has {found:,} {kind} of data, which do not fit its shape {list(tensor.dims)}")


def _bytes(tensor: onnx.TensorProto, what: str) -> int:
    """Return how many bytes a tensor's values take; strings count one each."""
    count = math.prod(int(size) for size in tensor.dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        return count
    try:
        bits = int(ir.DataType(tensor.data_type).bitwidth)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{what} has an unknown element type {tensor.data_type}") from error
    return math.ceil(count * bits / 8)


def _span(tensor: onnx.TensorProto, entries: dict[str, str], what: str) -> int:
    """Return the byte at which a tensor's data ends in its file."""
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{what}, where strings cannot be kept")
    size = _bytes(tensor, what)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError as error:
        raise ModelError(f"{what} at an offset or length that is not a number") from error
    if offset < 0 or length < 0:
        raise ModelError(f"{what} at a negative offset or length")
    if length < size:
        raise ModelError(f"{what} with a length of {length:,} bytes where its shape needs {size:,}")
    return offset + length
