"""A whole model in one ``.surp`` file: header, skeleton, optional fitted values, and the coded weights last.

The body comes last, so that the begin of a file is a coarser model as soon as header and skeleton are there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from onnxprune.codec.blocks import BLOCK
from onnxprune.codec.cursor import Decoded
from onnxprune.codec.decoder import StreamDecoder
from onnxprune.codec.header import TYPES, Header, Section, Tensor, packed, read_header
from onnxprune.codec.law import Law, Stop, l2_norm
from onnxprune.codec.stream import Encoded, encode
from onnxprune.errors import CodecError

__all__ = ["Coded", "Header", "Model", "code", "decode", "read_header", "read_sections", "weights_of", "write"]

_LEVEL = 10
_WINDOW = 1 << 31


@dataclass(frozen=True)
class Coded:
    """Coded tensors, not yet written; ``stream.support`` counts through them in order, row by row."""

    tensors: tuple[Tensor, ...]
    stream: Encoded
    masked: bool


@dataclass(frozen=True)
class Model:
    """A decoded file.

    ``tensors`` by name, in their element types (bfloat16 as float32 of the same values); ``skeleton`` as it was
    given; ``state`` of the code; ``fitted``: the stored values took the place of the code's own.
    """

    header: Header
    skeleton: bytes
    tensors: dict[str, np.ndarray]
    state: Decoded
    fitted: bool


def code(
    tensors: Mapping[str, np.ndarray],
    law: Law,
    stop: Stop | None = None,
    *,
    normalize: bool = True,
    masked: bool = False,
) -> Coded:
    """Code named weights together, each tensor over its L2 norm.

    Args:
        tensors: float16, bfloat16, float32 or float64 of any shape.
        law: the controls.
        stop: where to end, see :func:`stream.encode`.
        normalize: divide by norms; without it all weights have the one scale they have.
        masked: thresholds follow the mean over the non-zero weights.

    Raises:
        CodecError: A weight is NaN or infinite, or a tensor has another element type.
        OptionError: ``stop`` or ``law`` cannot be used.
    """
    described, parts = [], [np.zeros(0)]
    for name, array in tensors.items():
        if array.dtype.name not in TYPES:
            raise CodecError(f"tensor '{name}' has the element type {array.dtype.name}; {', '.join(TYPES)} are coded")
        wide = np.asarray(array, dtype=np.float64).ravel()
        norm = _norm(name, wide) if normalize else 1.0
        described.append(Tensor(name, tuple(array.shape), array.dtype.name, norm))
        parts.append(wide / norm)
    # Handed over without a name: the encoder lets go of them as soon as it has them in its own order.
    stream = encode(np.concatenate([parts.pop(0) for _ in range(len(parts))]), law, stop, masked=masked)
    return Coded(tuple(described), stream, masked)


def _norm(name: str, weights: np.ndarray) -> float:
    """Return the L2 norm, 1 for a tensor of zeros."""
    if not np.isfinite(weights).all():
        raise CodecError(f"tensor '{name}' holds NaN or infinity; mend the model first")
    return l2_norm(weights) or 1.0


def write(file: BinaryIO, coded: Coded, skeleton: bytes, values: np.ndarray | None = None) -> Header:
    """Write a file and return its header.

    Args:
        file: open for writing bytes.
        coded: the tensors.
        skeleton: opaque bytes, the graph without them.
        values: weights that take the place of the code's, in the order of ``coded.stream.support``; kept as float16.

    Raises:
        CodecError: ``values`` are not one finite float16 per non-zero weight.
    """
    stream = coded.stream
    graph, graph_section = _packed(skeleton)
    fitted, fitted_section = (b"", None) if values is None else _packed(_halves(values, len(stream.support)))
    header = Header(
        0, stream.shape, len(stream.support), coded.masked, coded.tensors, graph_section, fitted_section, stream.size, 0
    )
    head = packed(header)
    for part in (head, graph, fitted, *stream.blocks):
        file.write(part)
    return replace(header, version=1, begin=len(head))


def _halves(values: np.ndarray, wanted: int) -> bytes:
    with np.errstate(over="ignore"):
        halves = np.asarray(values).astype("<f2")
    if halves.shape != (wanted,):
        raise CodecError(f"values of shape {list(halves.shape)} cannot be stored; give [{wanted}], one per non-zero")
    if not np.isfinite(halves).all():
        raise CodecError("a value is NaN or too large for float16 and cannot be stored")
    return halves.tobytes()


def _packed(data: bytes) -> tuple[bytes, Section]:
    import zstandard

    stored = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    return stored, Section(len(stored), len(data), zlib.crc32(stored))


def _unpacked(file: BinaryIO, section: Section, what: str) -> bytes:
    import zstandard

    stored = file.read(section.stored)
    if len(stored) < section.stored:
        raise CodecError(f"the .surp file is cut off before its body: {what} has {len(stored):,} of {section.stored:,}")
    if zlib.crc32(stored) != section.crc:
        raise CodecError(f"the .surp file is corrupt: {what} does not match its checksum")
    try:
        if zstandard.get_frame_parameters(stored).content_size != section.size:
            raise CodecError(f"the .surp file is corrupt: {what} is not as long as its header says")
        return zstandard.ZstdDecompressor().decompress(stored, max_output_size=_WINDOW)
    except zstandard.ZstdError as error:
        raise CodecError(f"the .surp file is corrupt: {what} cannot be unpacked") from error


def decode(file: BinaryIO, stop: Stop | None = None, *, strict: bool = False, fitted: bool | None = None) -> Model:
    """Read a file, whole or cut off, up to ``stop``.

    Args:
        file: open for reading bytes, at its begin.
        stop: sparsity, non-zeros, hits, relative L1, or bytes, bits, fraction of the body; None for all of it.
        strict: refuse a file that is cut off in a block, whose CRC cannot be checked then.
        fitted: use the stored values; None: where every hit was decoded, for which they were made.

    Raises:
        CodecError: Not a .surp file, a newer version, cut off before the body, or corrupt, with the place.
    """
    header = read_header(file)
    skeleton, stored = read_sections(file, header)
    decoder = StreamDecoder(header.shape, header.body, stop, origin=header.body_begin)
    while not decoder.done and (piece := file.read(BLOCK)):
        decoder.feed(piece)
    short = not decoder.done
    state = decoder.state(strict=strict, last=True)
    if strict and short:
        raise CodecError(
            f"the .surp file is cut off: {decoder.received:,} of {header.body:,} bytes of its body are there"
        )
    use = stored is not None and (state.hits == header.shape.hits if fitted is None else fitted)
    values = stored if use else None
    return Model(header, skeleton, weights_of(header, state, values), state, use)


def read_sections(file: BinaryIO, header: Header) -> tuple[bytes, np.ndarray | None]:
    """Return the skeleton and the stored values, float16 in the order of first hits; the file is left at its body.

    Raises:
        CodecError: The file is cut off before the body, or one of the two is damaged.
    """
    skeleton = _unpacked(file, header.skeleton, "the skeleton")
    if header.values is None:
        return skeleton, None
    halves = _unpacked(file, header.values, "the list of values")
    if len(halves) != 2 * header.nonzeros:
        raise CodecError("the .surp file is corrupt: it has not one value per non-zero weight")
    return skeleton, np.frombuffer(halves, dtype="<f2")


def weights_of(header: Header, state: Decoded, values: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the tensors that a state stands for, by name.

    The code's magnitudes end below the weights': each non-zero one is moved up by the law's share of the last
    threshold. That times the norm is one float64 product, rounded once to the
    element type, to nearest, ties to even; ``values``, in the order of first hits, stand in the place of all this.
    """
    if values is None:
        flat = state.values + np.sign(state.values) * (header.shape.law.centroid * state.threshold)
    else:
        flat = np.zeros(len(state.values))
        flat[state.support] = values[: len(state.support)].astype(np.float64)
    weights, begin = {}, 0
    for tensor in header.tensors:
        part = flat[begin : begin + tensor.size].reshape(tensor.shape)
        begin += tensor.size
        weights[tensor.name] = _rounded(part * tensor.norm if values is None else part, tensor.dtype)
    return weights


def _rounded(wide: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        if dtype != "bfloat16":
            return wide.astype(dtype)
        # Eight bits of significand, down to the smallest subnormal of the type.
        step = np.ldexp(1.0, np.maximum(np.frexp(wide)[1] - 8, -133))
        short: np.ndarray = (np.rint(wide / step) * step).astype(np.float32)
        return short
