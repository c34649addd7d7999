"""Convolutions of one to three axes, plain and transposed."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from onnxprune.exporters.ops.call import Call, Operator, alike

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def window_pads(
    call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Return how much a window operator pads before and behind every axis (``pads`` or ``auto_pad``)."""
    auto, rank = call.text("auto_pad", "NOTSET"), len(sizes)
    if auto == "VALID":
        return [0] * rank, [0] * rank
    if auto == "NOTSET":
        pads = call.integers("pads") or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    total = [
        max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    before = [(t + (auto == "SAME_LOWER")) // 2 for t in total]
    return before, [t - b for t, b in zip(total, before, strict=True)]


def pad_list(before: list[int], behind: list[int]) -> list[int]:
    """Return pads in the order of ``torch.nn.functional.pad``: the last axis first."""
    return [size for pair in zip(reversed(before), reversed(behind), strict=True) for size in pair]


def _rank(call: Call, x: Tensor) -> int:
    rank = x.ndim - 2
    if rank not in _CONV:
        call.refuse(f"its input has {x.ndim} axes: 3 to 5 are supported")
    return rank


def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve, with any pads, strides, dilations and groups."""
    x, weight, bias = alike(x, weight, bias)
    rank = _rank(call, x)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    before, behind = window_pads(call, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if before != behind or min(before) < 0:
        x, before = functional.pad(x, pad_list(before, behind)), [0] * rank
    return _CONV[rank](x, weight, bias, strides, before, dilations, call.integer("group", 1))


def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve transposed: the sum of all kernels, cut by the pads."""
    x, weight, bias = alike(x, weight, bias)
    rank, groups = _rank(call, x), call.integer("group", 1)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    extra = call.integers("output_padding") or [0] * rank
    full = [
        (n - 1) * s + d * (k - 1) + 1
        for n, k, s, d in zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    ]
    before, behind = _transposed_pads(call, list(x.shape[2:]), full, strides, extra)
    plain = before == behind and min(before) >= 0
    if plain and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        return _TRANSPOSED[rank](x, weight, bias, strides, before, extra, groups, dilations)
    found = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, groups, dilations)
    cut = pad_list([-b for b in before], [e - b for e, b in zip(extra, behind, strict=True)])
    found = functional.pad(found, cut)
    return found if bias is None else found + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    call: Call, sizes: list[int], full: list[int], strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    auto, wanted, rank = call.text("auto_pad", "NOTSET"), call.integers("output_shape"), len(sizes)
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = (call.integers("pads") if auto == "NOTSET" else None) or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    ends = wanted[-rank:] if wanted is not None else [n * s for n, s in zip(sizes, strides, strict=True)]
    total = [f + e - w for f, e, w in zip(full, extra, ends, strict=True)]
    total = [max(t, 0) for t in total] if wanted is None else total
    half = [t // 2 for t in total]
    rest = [t - h for t, h in zip(total, half, strict=True)]
    return (half, rest) if auto == "SAME_UPPER" else (rest, half)


OPERATORS: dict[str, Operator] = {"Conv": conv, "ConvTranspose": conv_transpose}
