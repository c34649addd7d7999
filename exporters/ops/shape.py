"""Operators that move, cut and join entries, and computations on shapes."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, Result, axes_of, whole

# As ends these mean "to the last", in either direction.
_TO_THE_END = (2**31 - 1, 2**63 - 1)


def reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Reshape; 0 copies a size (unless ``allowzero``), -1 takes what is left."""
    sizes = axes_of(call, shape, "shape") or []
    if not call.integer("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    if -1 in sizes and x.numel() == 0:  # torch cannot tell what is left of nothing
        rest = prod(size for size in sizes if size != -1)
        sizes = [x.numel() // rest if size == -1 and rest else max(size, 0) for size in sizes]
    return x.reshape(sizes)


def flatten(call: Call, x: Tensor) -> Tensor:
    """Return a matrix, split at the axis."""
    axis = call.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def transpose(call: Call, x: Tensor) -> Tensor:
    """Reorder the axes, or reverse them."""
    return x.permute(call.integers("perm") or list(reversed(range(x.ndim))))


def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Drop axes of size 1."""
    chosen = axes_of(call, axes)
    found = [i for i, size in enumerate(x.shape) if size == 1] if chosen is None else [a % x.ndim for a in chosen]
    if any(x.shape[a] != 1 for a in found):
        call.refuse(f"axes {found} of shape {tuple(x.shape)} are not all of size 1")
    return x.reshape([size for i, size in enumerate(x.shape) if i not in found])


def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Insert axes of size 1."""
    chosen = axes_of(call, axes) or []
    rank, sizes = x.ndim + len(chosen), list(x.shape)
    for axis in sorted(a % rank for a in chosen):
        sizes.insert(axis, 1)
    return x.reshape(sizes)


def concat(call: Call, *inputs: Tensor) -> Tensor:
    """Join along an axis."""
    return torch.cat(inputs, call.integer("axis", 1))


def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Result:
    """Split along an axis, into sizes given or equal parts, of which the last may be smaller."""
    axis = call.integer("axis", 0)
    parts = axes_of(call, sizes, "split")
    if parts is None:
        count, n = call.integer("num_outputs", call.outputs), x.shape[axis]
        each = -(-n // count)
        parts = [each] * (count - 1) + [n - each * (count - 1)]
    return tuple(torch.split(x, parts, axis))


def _places(start: int, end: int, step: int, size: int) -> range:
    """Return the positions of a slice; unlike Python, a start before the first entry is the first."""
    start = start + size if start < 0 else start
    if step > 0:
        end = end + size if end < 0 else end
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    end = -1 if end in _TO_THE_END else max(end + size, -1) if end < 0 else min(end, size - 1)
    return range(min(max(start, 0), size - 1), end, step)


def slice_(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Cut out ranges, with any steps."""
    first, last = axes_of(call, starts, "starts") or [], axes_of(call, ends, "ends") or []
    chosen = axes_of(call, axes) or list(range(len(first)))
    strides = [1] * len(first) if steps is None else whole(steps)
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        places = _places(start, end, step, x.shape[axis])
        if step == 1:
            x = x.narrow(axis, places.start, len(places)) if len(places) else x.narrow(axis, 0, 0)
        elif step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, places.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Pad with a value or with what lies inside; negative pads cut."""
    given = axes_of(call, pads, "pads") or call.integers("paddings") or []
    chosen = list(range(x.ndim)) if axes is None else [a % x.ndim for a in whole(axes)]
    before, behind = [0] * x.ndim, [0] * x.ndim
    for axis, b, e in zip(chosen, given[: len(chosen)], given[len(chosen) :], strict=True):
        before[axis], behind[axis] = b, e
    mode = call.text("mode", "constant")
    if mode == "constant":
        fill = call.number("value", 0.0) if value is None else value.item()
        ends = [size for pair in zip(reversed(before), reversed(behind), strict=True) for size in pair]
        if x.dtype == torch.bool:
            return functional.pad(x.to(torch.uint8), ends, value=int(fill)).to(torch.bool)
        return functional.pad(x, ends, value=fill)
    for axis, (b, e) in enumerate(zip(before, behind, strict=True)):
        if b or e:
            n = x.shape[axis]
            inside = np.arange(max(-b, 0), n - max(-e, 0))
            places = _padded(call, inside, (max(b, 0), max(e, 0)), mode)
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


def _padded(call: Call, places: np.ndarray, ends: tuple[int, int], mode: str) -> np.ndarray:
    if mode == "reflect":
        return np.pad(places, ends, mode="reflect")
    if mode == "edge":
        return np.pad(places, ends, mode="edge")
    if mode == "wrap":
        return np.pad(places, ends, mode="wrap")
    call.refuse(f"padding of mode '{mode}' is not supported")


def expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast to a shape, which may itself be broadcast."""
    sizes: list[int] = list(np.broadcast_shapes(tuple(x.shape), tuple(whole(shape))))
    return x.expand(sizes)


def tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(whole(repeats))


def shape_of(call: Call, x: Tensor) -> Tensor:
    """Return the sizes, on the host."""
    return torch.tensor(list(x.shape)[call.integer("start", 0) : call.attributes.get("end")], dtype=torch.int64)


def constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    """Return a tensor of one value."""
    value = call.attributes.get("value")
    if value is None:
        return torch.zeros(whole(shape))
    found: Tensor = value.reshape(()).expand(whole(shape)).clone()
    return found


def arange(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Return an arithmetic sequence."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Move channels into blocks of positions."""
    size = call.integer("blocksize", 1)
    n, c, h, w = x.shape
    if call.text("mode", "DCR") == "CRD":
        parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // size**2, h * size, w * size)


def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Move blocks of positions into channels."""
    size = call.integer("blocksize", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // size, size, w // size, size).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * size**2, h // size, w // size)


def trilu(call: Call, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """Keep the upper or the lower triangle of every matrix."""
    k = 0 if offset is None else int(offset)
    return torch.triu(x, k) if call.integer("upper", 1) else torch.tril(x, k)


def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first entries of every sequence, as many as it is long."""
    along, batch = call.integer("time_axis", 0), call.integer("batch_axis", 1)
    steps = torch.arange(x.shape[along], device=x.device).unsqueeze(0)
    ends = lengths.to(x.device).unsqueeze(1)
    places = torch.where(steps < ends, ends - 1 - steps, steps)
    places = places if batch < along else places.t()
    places = places.reshape([x.shape[i] if i in (along, batch) else 1 for i in range(x.ndim)])
    return torch.gather(x, along, places.expand(x.shape))


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "Constant": lambda call: call.attributes["value"].clone(),
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": flatten,
    "Pad": pad,
    "Range": arange,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape_of,
    "Size": lambda call, x: torch.tensor(x.numel(), dtype=torch.int64),
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
