"""A model in two parts: the weights that are coded, and the skeleton, which is everything else, as bytes.

The skeleton is an ONNX model in which the coded weights are typed, shaped and empty. It never refers to a file, so
that one from elsewhere cannot make a reader open any.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import CodecError, ModelError
from onnxprune.graph import external, io, sparse
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.source import PROTOBUF_LIMIT, first_line, use_plain_domain
from onnxprune.graph.text import check_text
from onnxprune.graph.weights import weights

_NOTE = "onnxprune.skeleton"
"""Key of the last metadata entry of a skeleton: what :func:`io.save` must know of the source."""

_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError)


def split(model: ir.Model, names: Collection[str] | None = None) -> tuple[dict[str, np.ndarray], bytes]:
    """Return the coded weights of a model by name, in the order of ``names``, and the bytes of its skeleton.

    Weights are those of ``graph.weights``: stored, floating-point, not all zero, each once however many nodes read
    it; also what a Constant node holds. The same model gives the same bytes in every process.

    Args:
        model: stays as it is; its data files are read.
        names: code these only; None for all that can be.

    Raises:
        ModelError: A weight holds NaN or infinity, or what is not coded takes more than protobuf's 2 GiB.
    """
    if names is None:
        names = [str(value.name) for value in weights(lifted(model), Selection()).values]
    work = model.clone()
    places = _places(work)
    tensors = {name: places[name].empty() for name in names}
    ir.external_data.load_to_model(work)
    rest = sum(tensor.nbytes for graph in work.graphs() for tensor in _kept(graph))
    if rest > PROTOBUF_LIMIT:
        raise ModelError(f"what is not coded takes {rest:,} bytes, over protobuf's 2 GiB; let more nodes be coded")
    proto = ir.serde.serialize_model(work)
    note = {"full_check": bool(model.meta.get(io.FULL_CHECK, True)), "external": bool(model.meta.get(io.EXTERNAL))}
    proto.metadata_props.add(key=_NOTE, value=json.dumps(note, sort_keys=True))
    return tensors, proto.SerializeToString(deterministic=True)


def _kept(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for value in graph.initializers.values():
        if value.const_value is not None and not _is_empty(value.const_value):
            yield value.const_value


def _is_empty(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.serde.TensorProtoTensor) and not _has_data(tensor.raw)


def _has_data(tensor: onnx.TensorProto) -> bool:
    described = {"dims", "data_type", "name", "doc_string", "metadata_props"}
    return any(field.name not in described for field, _ in tensor.ListFields())


class _Place:
    """Where a stored tensor stands: an initialiser of the main graph, or what one of its Constant nodes holds."""

    def __init__(self, owner: ir.Value | ir.Node) -> None:
        self._owner = owner

    def empty(self) -> np.ndarray:
        """Leave type and shape behind, and return the values."""
        owner = self._owner
        if isinstance(owner, ir.Value):
            tensor = owner.const_value
            assert tensor is not None
            owner.const_value = _hollow(tensor)
        else:
            held = owner.attributes["value"]
            tensor = held.as_tensor()
            owner.attributes["value"] = ir.AttrTensor("value", _hollow(tensor), doc_string=held.doc_string)
        return np.asarray(tensor.numpy())


def _places(model: ir.Model) -> dict[str, _Place]:
    graph = model.graph
    found = {name: _Place(value) for name, value in graph.initializers.items() if value.const_value is not None}
    for node in graph:
        if node.op_type == "Constant" and node.domain == "" and "value" in node.attributes:
            found[str(node.outputs[0].name)] = _Place(node)
    return found


def _hollow(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.name:
        proto.name = tensor.name
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    hollow = ir.serde.TensorProtoTensor(proto)
    hollow.metadata_props.update(tensor.metadata_props)
    return hollow


def joined(skeleton: bytes, tensors: Mapping[str, np.ndarray]) -> ir.Model:
    """Return the model that a skeleton and its weights make.

    Args:
        skeleton: from :func:`split`, or from a file that nobody vouches for.
        tensors: one for every empty place, of its shape and element type; bfloat16 also as float32.

    Raises:
        CodecError: The skeleton is no model, refers to a file, or its empty places are not those of ``tensors``.
        ModelError: A tensor in it has more or fewer values than its shape, or a text is not UTF-8.
    """
    proto = _parsed(skeleton)
    check_text(proto, "the skeleton")
    outside = external.files(proto, Path())
    if outside:
        raise CodecError(f"the skeleton refers to the file '{outside[0]}'; a .surp file holds everything itself")
    note = _noted(proto)
    empty = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output:
            empty.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
    for name, array in tensors.items():
        if name not in empty:
            raise CodecError(f"the skeleton has no place for the coded weight '{name}'")
        _fill(empty[name], name, array)
    external.verify(proto, Path("skeleton"))
    sparse.densify(proto)
    use_plain_domain(proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except _UNREADABLE as error:
        raise CodecError(f"the skeleton cannot be read as a graph: {first_line(error)}") from error
    model.meta[io.FULL_CHECK], model.meta[io.EXTERNAL] = note
    return model


def _parsed(skeleton: bytes) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(skeleton)
    except DecodeError as error:
        raise CodecError("the skeleton is no ONNX model: protobuf cannot read it") from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise CodecError("the skeleton is no ONNX model: it holds no graph or no IR version")
    return proto


def _noted(proto: onnx.ModelProto) -> tuple[bool, bool]:
    """Take the note off a skeleton: does it pass the full check, and did the source have data files."""
    if not proto.metadata_props or proto.metadata_props[-1].key != _NOTE:
        raise CodecError(f"the skeleton does not end with its entry '{_NOTE}'")
    try:
        note = json.loads(proto.metadata_props.pop().value)
        return bool(note["full_check"]), bool(note["external"])
    except (ValueError, TypeError, KeyError) as error:
        raise CodecError(f"the skeleton's entry '{_NOTE}' is not understood") from error


def _fill(tensor: onnx.TensorProto, name: str, array: np.ndarray) -> None:
    if _has_data(tensor):
        raise CodecError(f"the skeleton's place for the coded weight '{name}' is not empty")
    try:
        dtype = ir.DataType(tensor.data_type)
        wanted = dtype.numpy()
    except (ValueError, TypeError) as error:
        raise CodecError(f"the skeleton's weight '{name}' has an unknown element type {tensor.data_type}") from error
    if dtype == ir.DataType.BFLOAT16 and array.dtype == np.float32:
        array = array.astype(wanted)
    if tuple(tensor.dims) != array.shape or array.dtype != wanted:
        raise CodecError(
            f"the coded weight '{name}' is {array.dtype} {list(array.shape)}, "
            f"its place in the skeleton {wanted} {list(tensor.dims)}"
        )
    tensor.raw_data = ir.Tensor(array, dtype=dtype).tobytes()
