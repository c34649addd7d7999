"""Reading and writing entries by their positions; negative positions count from the end."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from onnxprune.exporters.ops.call import Call, Operator

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _counted(places: Tensor, size: int) -> Tensor:
    return torch.where(places < 0, places + size, places).long()


def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Choose slices along an axis."""
    axis = call.integer("axis", 0) % x.ndim
    places = _counted(indices, x.shape[axis])
    found = x.index_select(axis, places.flatten())
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Choose entries along an axis, each by a position of its own."""
    axis = call.integer("axis", 0)
    return torch.gather(x, axis, _counted(indices, x.shape[axis]))


def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Choose slices by positions along several axes."""
    batch, depth = call.integer("batch_dims", 0), indices.shape[-1]
    lead = x.shape[:batch]
    flat = x.reshape(prod(lead), *x.shape[batch:])
    places = indices.reshape(prod(lead), -1, depth)
    rows = torch.arange(flat.shape[0], device=x.device).unsqueeze(1).expand(places.shape[:2])
    index = [_counted(places[..., i], flat.shape[1 + i]) for i in range(depth)]
    return flat[(rows, *index)].reshape([*indices.shape[:-1], *x.shape[batch + depth :]])


def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write entries along an axis, each to a position of its own."""
    axis, how = call.integer("axis", 0), call.text("reduction", "none")
    places, updates = _counted(indices, x.shape[axis]), updates.to(x.dtype)
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[how], include_self=True)


def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Write slices to positions along several axes."""
    depth, how = indices.shape[-1], call.text("reduction", "none")
    lead, rest = x.shape[:depth], prod(x.shape[depth:])
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i, size in enumerate(lead):
        places = places * size + _counted(indices[..., i], size)
    flat = x.reshape(prod(lead), rest)
    rows, new = places.flatten(), updates.to(x.dtype).reshape(-1, rest)
    if how == "none":
        return flat.index_copy(0, rows, new).reshape(x.shape)
    index = rows.unsqueeze(1).expand(new.shape)
    return flat.scatter_reduce(0, index, new, _REDUCTIONS[how], include_self=True).reshape(x.shape)


def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """Return ones (or another value) at positions along a new axis."""
    count, axis = int(depth), call.integer("axis", -1)
    axis = axis % (indices.ndim + 1)
    places = _counted(indices.long(), count).unsqueeze(axis)
    line = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(places == line, values[1], values[0])


def nonzero(call: Call, x: Tensor) -> Tensor:
    """Return the positions of what is not zero, a row per axis."""
    return torch.nonzero(x).t()


def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Choose the slices along an axis (or the entries) where the condition holds."""
    axis = call.attributes.get("axis")
    x, along = (x.flatten(), 0) if axis is None else (x, int(axis))
    return x.index_select(along, torch.nonzero(condition).flatten())


OPERATORS: dict[str, Operator] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "NonZero": nonzero,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
}
