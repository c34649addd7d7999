"""Coded weights and a skeleton into a ``.surp`` file: by the code's own values, or with fitted ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from onnxprune.codec import container
from onnxprune.codec.law import Law, Stop

# The threshold under equal magnitudes of 1.
_BELOW = 0.999


@dataclass(frozen=True)
class Packed:
    """A written file's header, the stream's relative L1 error (None with fitted values), and what to know of it."""

    header: container.Header
    relative_l1: float | None
    warnings: tuple[str, ...]


def pack(
    file: BinaryIO,
    tensors: Mapping[str, np.ndarray],
    skeleton: bytes,
    law: Law,
    stop: Stop,
    *,
    fitted: bool = False,
    normalize: bool = True,
    coded: Callable[[], object] = lambda: None,
) -> Packed:
    """Code weights and write the file.

    Args:
        file: open for writing bytes.
        tensors: weights by name.
        skeleton: the graph without them.
        law: the controls.
        stop: where to end; not looked at where ``fitted``.
        fitted: store all non-zero weights in float16; the stream tells their places, and with an alpha given their
            sizes too.
        normalize: divide every tensor by its L2 norm before pooling.
        coded: called between coding and writing.

    Raises:
        CodecError: A weight is not finite, or too large for float16 where ``fitted``.
        OptionError: ``stop`` or ``law`` cannot be used.
    """
    alive = sum(int(np.count_nonzero(array)) for array in tensors.values())
    if fitted:
        stop = Stop(nonzeros=alive)
    if fitted and law.alpha is None:
        result = _positions(tensors, law, stop)
    else:
        result = container.code(tensors, law, stop, normalize=normalize, masked=fitted)
    stream = result.stream
    coded()
    values = _values(tensors)[stream.support] if fitted else None
    header = container.write(file, result, skeleton, values)
    warnings = [_short(stop, alive, header, stream.relative_l1)]
    if values is not None:
        with np.errstate(over="ignore", under="ignore"):
            lost = int(np.count_nonzero(values.astype(np.float16) == 0))
        warnings.append(f"{lost:,} fitted values are too small for float16 and become zero" if lost else "")
        if alive == stream.shape.count:
            warnings.append("no weight is zero: fitted values pay for a model that was pruned before")
    return Packed(header, None if fitted else stream.relative_l1, tuple(filter(None, warnings)))


def _positions(tensors: Mapping[str, np.ndarray], law: Law, stop: Stop) -> container.Coded:
    """Code where the non-zero weights are, and their signs.

    Where values are stored besides, that is all the stream has to tell, and one level of equal magnitudes does it
    cheapest. What stands for a weight whose value is not used is its tensor's mean magnitude.
    """
    signs = {name: np.sign(array).astype(array.dtype) for name, array in tensors.items()}
    coded = container.code(signs, replace(law, alpha=_BELOW, centroid=0.0), stop, normalize=False, masked=True)
    scales = [_mean_size(array) / _BELOW for array in tensors.values()]
    described = tuple(replace(t, norm=scale) for t, scale in zip(coded.tensors, scales, strict=True))
    return replace(coded, tensors=described)


def _mean_size(array: np.ndarray) -> float:
    kept = array[array != 0].astype(np.float64)
    return float(np.abs(kept).mean()) if len(kept) else 1.0


def _values(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return all weights in order, in float64 if one of them is, else in float32."""
    wide = any(array.dtype == np.float64 for array in tensors.values())
    dtype = np.float64 if wide else np.float32
    return np.concatenate([array.astype(dtype).ravel() for array in tensors.values()])


def _short(stop: Stop, alive: int, header: container.Header, relative_l1: float) -> str:
    """Say it where the code ended before any stop was met."""
    shape, size = header.shape, stop.size()
    wanted = stop.support(shape.count)
    if (
        (wanted is not None and header.nonzeros >= wanted)
        or (stop.hits is not None and shape.hits >= stop.hits)
        or (stop.relative_l1 is not None and relative_l1 <= stop.relative_l1)
        or size is not None
        or not alive
    ):
        return ""
    said = f"the code ended before its stop: {header.nonzeros:,} of {shape.count:,} weights are not zero"
    rest = alive - header.nonzeros
    return f"{said}; {rest:,} others are too small to be coded" if rest else f"{said}, all that there are"
