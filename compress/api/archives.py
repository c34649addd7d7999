"""What a model takes stored in the usual ways: as it is, packed by zstd, in half precision, in 8-bit integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.api.opening import ModelLike
from onnxprune.graph import external
from onnxprune.graph.source import parse
from onnxprune.graph.weights import output_axis

LEVEL = 19
_PIECE = 1 << 20
_LARGEST = 127


@dataclass(frozen=True, eq=False)
class Archive:
    """A stored form: its bytes, and the weights that come out of it; None where they are the model's own."""

    name: str
    kind: str
    bytes: int
    tensors: dict[str, np.ndarray] | None


def archives(
    pieces: Iterable[bytes],
    raw: int,
    tensors: Mapping[str, np.ndarray],
    skeleton: bytes,
    axes: Mapping[str, int],
) -> Iterator[Archive]:
    """Yield the stored forms, from the largest; one that cannot hold a weight is left out.

    Args:
        pieces: the model's file as it is.
        raw: how many bytes it has.
        tensors: the weights that are coded.
        skeleton: everything else, kept as it is.
        axes: the axis of output channels of every tensor; each channel has a scale of its own in the 8-bit form.
    """
    yield Archive("raw", "raw", raw, None)
    yield Archive("zstd", "zstd", packed(pieces), None)
    with np.errstate(over="ignore"):
        halves = {name: _wide(array).astype(np.float16) for name, array in tensors.items()}
    if all(np.isfinite(half).all() for half in halves.values()):
        stored = packed([skeleton, *(half.tobytes() for half in halves.values())])
        back = {name: _as(half, tensors[name].dtype) for name, half in halves.items()}
        yield Archive("fp16 + zstd", "fp16", stored, back)
    del halves
    data, back = [skeleton], {}
    for name, array in tensors.items():
        whole, scales = quantised(array, axes[name])
        data += [whole.tobytes(), scales.tobytes()]
        back[name] = _as(whole * scales, array.dtype)
    yield Archive("int8 + zstd", "int8", packed(data), back)


def packed(pieces: Iterable[bytes]) -> int:
    """Return how many bytes zstd makes of pieces put together."""
    import zstandard

    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    return sum(len(stream.compress(piece)) for piece in pieces) + len(stream.flush())


def quantised(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return symmetric 8-bit integers of a weight's shape, and float32 scales of its rank along ``axis``."""
    wide = _wide(array)
    others = tuple(place for place in range(wide.ndim) if place != axis)
    peaks = np.abs(wide).max(axis=others, keepdims=True)
    scales = np.where(peaks > 0, peaks / _LARGEST, 1.0).astype(np.float32)
    scales[scales == 0] = np.finfo(np.float32).tiny
    return np.clip(np.rint(wide / scales), -_LARGEST, _LARGEST).astype(np.int8), scales


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64 if array.dtype == np.float64 else np.float32)


def _as(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.asarray(array).astype(dtype)


def output_axes(model: ir.Model, names: Iterable[str]) -> dict[str, int]:
    """Return the axis of output channels of every named weight, as the first of its readers has it.

    ``model`` is one from ``graph.cleanup.lifted``.
    """
    return {name: output_axis(model.graph.initializers[name]) for name in names}


def file_pieces(model: ModelLike, loaded: ir.Model) -> Iterator[bytes]:
    """Yield the bytes of a model, external data behind it, or of one in memory as it would be written."""
    if isinstance(model, str | Path):
        path = Path(model)
        for part in [path, *external.files(parse(path), path)]:
            with part.open("rb") as file:
                yield from iter(lambda: file.read(_PIECE), b"")
        return
    yield ir.serde.serialize_model(loaded).SerializeToString(deterministic=True)
