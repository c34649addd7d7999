"""Pooling over windows of one to three axes, and over everything."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, Result
from onnxprune.exporters.ops.conv import pad_list, window_pads

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _Window:
    """The windows of a pooling node on an input: pads, and what a last window sticks out (``ceil_mode``)."""

    def __init__(self, call: Call, x: Tensor) -> None:
        self.kernel = call.integers("kernel_shape") or []
        self.rank = len(self.kernel)
        if self.rank not in _MAX or x.ndim != self.rank + 2:
            call.refuse(f"its input has {x.ndim} axes and its window {self.rank}: windows of 1 to 3 are supported")
        self.strides = call.integers("strides") or [1] * self.rank
        self.dilations = call.integers("dilations") or [1] * self.rank
        sizes = list(x.shape[2:])
        self.before, self.behind = window_pads(call, sizes, self.kernel, self.strides, self.dilations)
        self.over = []
        up = bool(call.integer("ceil_mode", 0)) and call.text("auto_pad", "NOTSET") == "NOTSET"
        for n, k, s, d, b, e in zip(
            sizes, self.kernel, self.strides, self.dilations, self.before, self.behind, strict=True
        ):
            room = n + b + e - d * (k - 1) - 1
            count = -(-room // s) + 1 if up else room // s + 1
            if up and (count - 1) * s >= n + b:
                count -= 1  # a window that starts in the padding behind is none
            self.over.append((count - 1) * s - room)

    @property
    def ends(self) -> list[int]:
        """What to pad behind every axis, the overhang included; negative where the last entries are not read."""
        return [b + o for b, o in zip(self.behind, self.over, strict=True)]

    @property
    def simple(self) -> bool:
        """Whether torch's own padding says the same."""
        small = all(0 <= 2 * b <= k for b, k in zip(self.before, self.kernel, strict=True))
        return small and self.before == self.behind and max(self.over) <= 0


def max_pool(call: Call, x: Tensor) -> Result:
    """Return the maximum of every window, and where it is if that is asked for."""
    window = _Window(call, x)
    given = x.dtype
    if not x.is_floating_point():
        x = x.float()
    pool = _MAX[window.rank]
    pads = window.before
    if not window.simple:
        x, pads = functional.pad(x, pad_list(window.before, window.ends), value=float("-inf")), [0] * window.rank
    arguments = (x, window.kernel, window.strides, pads, window.dilations)
    if call.outputs < 2:
        return pool(*arguments).to(given)
    if call.integer("storage_order", 0):
        call.refuse("positions in column order are not supported")
    found, places = pool(*arguments, return_indices=True)
    shift = [0] * window.rank if window.simple else window.before
    return found.to(given), _positions(places, x, window, shift)


def _positions(places: Tensor, x: Tensor, window: _Window, shift: list[int]) -> Tensor:
    """Turn positions within a padded channel into positions within the whole input."""
    padded = list(x.shape[2:])
    sizes = padded
    if any(shift) or not window.simple:
        sizes = [n - b - e for n, b, e in zip(padded, window.before, window.ends, strict=True)]
    found, step, left = torch.zeros_like(places), 1, places
    for n, full, s in zip(reversed(sizes), reversed(padded), reversed(shift), strict=True):
        found = found + (left % full - s) * step
        left, step = left // full, step * n
    base = torch.arange(places.shape[0] * places.shape[1], device=places.device) * step
    return found + base.reshape(*places.shape[:2], *[1] * window.rank)


def average_pool(call: Call, x: Tensor) -> Tensor:
    """Return the mean of every window, padding counted or not; what sticks out behind the pads never counts."""
    window = _Window(call, x)
    include = bool(call.integer("count_include_pad", 0))
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    ones = functional.pad(ones, pad_list(window.before, window.behind), value=float(include))
    ones = functional.pad(ones, pad_list([0] * window.rank, window.over))
    summed = _summed(functional.pad(x, pad_list(window.before, window.ends)), window)
    if any((*window.before, *window.behind)) or max(window.over) > 0:
        return summed / _summed(ones, window)
    return summed / prod(window.kernel)


def _summed(x: Tensor, window: _Window) -> Tensor:
    if max(window.dilations) == 1 and window.rank == 2:
        return functional.avg_pool2d(x, window.kernel, window.strides, divisor_override=1)
    if max(window.dilations) == 1 and window.rank == 3:
        return functional.avg_pool3d(x, window.kernel, window.strides, divisor_override=1)
    weight = torch.ones(x.shape[1], 1, *window.kernel, dtype=x.dtype, device=x.device)
    return _CONV[window.rank](x, weight, None, window.strides, 0, window.dilations, x.shape[1])


def lp_pool(call: Call, x: Tensor) -> Tensor:
    """Return the p-norm of every window."""
    window, p = _Window(call, x), call.number("p", 2)
    powers = functional.pad(x.abs() ** p, pad_list(window.before, window.ends))
    return _summed(powers, window) ** (1 / p)


def _everything(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """Return the p-norm of every channel."""
    p = call.number("p", 2)
    return (x.abs() ** p).sum(_everything(x), keepdim=True) ** (1 / p)


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda call, x: x.mean(_everything(x), keepdim=True),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": lambda call, x: x.amax(_everything(x), keepdim=True),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
