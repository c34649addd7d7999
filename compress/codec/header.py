"""The head of a ``.surp`` file: magic, version and a checked record of everything that comes before the body."""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from onnxprune.codec.coder import LONGEST
from onnxprune.codec.law import Law
from onnxprune.codec.stream import Shape
from onnxprune.errors import CodecError, OptionError

MAGIC = b"\x89SURP\r\n\x1a"
VERSION = 1
TYPES = ("float16", "bfloat16", "float32", "float64")
"""Element types a coded tensor may have."""

_PRELUDE = struct.Struct("<8sHHII")
"""Magic, version, zero, length of the record, CRC32 of the record."""

LONGEST_RECORD = 1 << 28


@dataclass(frozen=True)
class Tensor:
    """A coded tensor: its weights are float64 code values times ``norm``, rounded once to ``dtype``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Section:
    """Bytes kept under zstd: ``stored`` bytes in the file, ``size`` unpacked, CRC32 of the stored ones."""

    stored: int
    size: int
    crc: int


@dataclass(frozen=True)
class Header:
    """Everything a reader knows before the body; ``begin`` is the byte at which the sections begin."""

    version: int
    shape: Shape
    nonzeros: int
    masked: bool
    tensors: tuple[Tensor, ...]
    skeleton: Section
    values: Section | None
    body: int
    begin: int

    @property
    def body_begin(self) -> int:
        """The file's byte at which the body begins."""
        return self.begin + self.skeleton.stored + (self.values.stored if self.values else 0)

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.body_begin + self.body


def packed(header: Header) -> bytes:
    """Return the bytes of a header; its ``version`` and ``begin`` are not looked at."""
    shape, law = header.shape, header.shape.law
    if law.alpha is None:
        raise CodecError("a header needs the alpha that was used")
    record = {
        "law": {
            "alpha": law.alpha.hex(),
            "decay": law.decay.hex(),
            "patience": law.patience,
            "seed": law.seed,
            "centroid": law.centroid.hex(),
        },
        "count": shape.count,
        "mean_over": shape.mean_over,
        "masked": header.masked,
        "total": shape.total.hex(),
        "hits": shape.hits,
        "wanted": shape.wanted,
        "nonzeros": header.nonzeros,
        "tensors": [[t.name, list(t.shape), t.dtype, t.norm.hex()] for t in header.tensors],
        "skeleton": _row(header.skeleton),
        "values": _row(header.values) if header.values else None,
        "body": header.body,
    }
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    return _PRELUDE.pack(MAGIC, VERSION, 0, len(text), zlib.crc32(text)) + text


def _row(section: Section) -> list[int]:
    return [section.stored, section.size, section.crc]


def read_header(file: BinaryIO) -> Header:
    """Read the header of a ``.surp`` file from its begin; the file is left at its sections.

    Raises:
        CodecError: It is no .surp file, a newer one, cut off in the header, or its header is damaged.
    """
    prelude = file.read(_PRELUDE.size)
    if prelude[: len(MAGIC)] != MAGIC[: len(prelude)] or not prelude:
        raise CodecError("not a .surp file: it does not begin as one")
    if len(prelude) < _PRELUDE.size:
        raise CodecError("the .surp file is cut off in its header")
    _, version, reserved, length, crc = _PRELUDE.unpack(prelude)
    if version > VERSION:
        raise CodecError(f"the .surp file is of version {version}; this program reads versions up to {VERSION}")
    if version < 1 or reserved or length > LONGEST_RECORD:
        raise CodecError("the .surp file's header is corrupt")
    text = file.read(length)
    if len(text) < length:
        raise CodecError(f"the .surp file is cut off in its header: {len(text):,} of {length:,} bytes are there")
    if zlib.crc32(text) != crc:
        raise CodecError("the .surp file's header is corrupt")
    try:
        return _unpacked(json.loads(text), version, _PRELUDE.size + length)
    except (ValueError, TypeError, KeyError, OptionError, OverflowError) as error:
        raise CodecError(f"the .surp file's header is not understood: {error}") from error


def _unpacked(record: dict[str, Any], version: int, begin: int) -> Header:
    law = record["law"]
    given = Law(
        float.fromhex(law["alpha"]),
        float.fromhex(law["decay"]),
        _number(law["patience"]),
        _number(law["seed"]),
        float.fromhex(law["centroid"]),
    )
    wanted = record["wanted"]
    shape = Shape(
        _number(record["count"]),
        _number(record["mean_over"]),
        float.fromhex(record["total"]),
        given,
        _number(record["hits"]),
        None if wanted is None else _number(wanted),
    )
    tensors = tuple(
        Tensor(str(name), tuple(map(_number, sizes)), str(dtype), float.fromhex(norm))
        for name, sizes, dtype, norm in record["tensors"]
    )
    if shape.count != sum(tensor.size for tensor in tensors) or shape.count > LONGEST:
        raise ValueError("its tensors do not add up")
    if not {tensor.dtype for tensor in tensors} <= set(TYPES) or not math.isfinite(shape.total):
        raise ValueError("an element type or a sum is unknown")
    values = record["values"]
    return Header(
        version,
        shape,
        _number(record["nonzeros"]),
        bool(record["masked"]),
        tensors,
        Section(*map(_number, record["skeleton"])),
        None if values is None else Section(*map(_number, values)),
        _number(record["body"]),
        begin,
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
