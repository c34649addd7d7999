"""Sums, means, extremes, norms and orders along axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxprune.exporters.ops.call import Call, Operator, Result, axes_of


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def apply(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(call, axes)
        if not chosen:
            if call.integer("noop_with_empty_axes", 0):
                return function(x.unsqueeze(-1), [x.ndim], False).to(x.dtype)
            chosen = list(range(x.ndim))
        over = sorted({axis % x.ndim for axis in chosen}) if x.ndim else []
        keep = bool(call.integer("keepdims", 1))
        return function(x, over, keep).to(x.dtype) if over else function(x.reshape(1), [0], False).to(x.dtype)

    return apply


def _mean(x: Tensor, over: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(over, keepdim=keep)
    return torch.div(x.sum(over, keepdim=keep), x.numel() // max(x.sum(over).numel(), 1), rounding_mode="trunc")


def _product(x: Tensor, over: list[int], keep: bool) -> Tensor:
    for axis in reversed(over):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Callable[..., Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    def apply(x: Tensor, over: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return function(x.to(torch.uint8), over, keep).to(torch.bool)
        return function(x, over, keep)

    return apply


def _arg(function: Callable[..., Tensor]) -> Operator:
    def apply(call: Call, x: Tensor) -> Tensor:
        axis, keep = call.integer("axis", 0), bool(call.integer("keepdims", 1))
        if call.integer("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)
        return function(x, axis, keep)

    return apply


def cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """Return running sums, from either end, with or without the entry itself."""
    along = int(axis)
    x = x.flip(along) if call.integer("reverse", 0) else x
    found = x.cumsum(along).to(x.dtype)
    if call.integer("exclusive", 0):
        found = found - x
    return found.flip(along) if call.integer("reverse", 0) else found


def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> Result:
    """Return the largest or smallest entries along an axis and where they are; of equal ones the first."""
    count = call.integer("k", 1) if k is None else int(k)
    axis = call.integer("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=bool(call.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


OPERATORS: dict[str, Operator] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "CumSum": cumsum,
    "ReduceL1": _reduction(lambda x, over, keep: x.abs().sum(over, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, over, keep: x.square().sum(over, keepdim=keep).sqrt()),
    "ReduceLogSum": _reduction(lambda x, over, keep: x.sum(over, keepdim=keep).log()),
    "ReduceLogSumExp": _reduction(lambda x, over, keep: torch.logsumexp(x, over, keepdim=keep)),
    "ReduceMax": _reduction(_extreme(torch.amax)),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_extreme(torch.amin)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, over, keep: x.sum(over, keepdim=keep)),
    "ReduceSumSquare": _reduction(lambda x, over, keep: x.square().sum(over, keepdim=keep)),
    "TopK": top_k,
}
