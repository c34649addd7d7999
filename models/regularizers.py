"""Sparsity regularisers as differentiable functions of one weight, and their sum over a network's layers.

Yang, Wen, Li: DeepHoyer (ICLR 2020). Measures are per tensor and summed over layers, never pooled. A tensor of
zeros counts 0 with gradient 0, and so does a zero entry or a zero group of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from onnxprune.errors import OptionError
from onnxprune.models.options import GROUP_REGULARIZERS, REGULARIZERS

__all__ = [
    "group_hoyer_square",
    "group_lasso",
    "hoyer",
    "hoyer_square",
    "l1",
    "penalty",
    "regularized",
    "transformed_l1",
]

Measure = Callable[[Tensor], Tensor]
Count = Callable[[Tensor], int]


def l1(weight: Tensor) -> Tensor:
    """Sum ``|w|``."""
    return weight.abs().sum()


def hoyer(weight: Tensor) -> Tensor:
    """Divide the L1 norm by the L2 norm (Hoyer 2004), 1 to ``sqrt(n)``."""
    square = weight.square().sum()
    return _guarded(weight.abs().sum(), square).div(_nonzero(square).sqrt())


def hoyer_square(weight: Tensor) -> Tensor:
    """Divide the squared L1 norm by the squared L2 norm, 1 to the number of non-zeros (DeepHoyer, equation 3)."""
    square = weight.square().sum()
    return _guarded(weight.abs().sum(), square).square().div(_nonzero(square))


def transformed_l1(weight: Tensor) -> Tensor:
    """Sum ``2|w| / (1 + |w|)`` (Zhang and Xin 2018, with a = 1)."""
    size = weight.abs()
    return (2 * size / (1 + size)).sum()


def group_lasso(weight: Tensor, axis: int) -> Tensor:
    """Sum the L2 norms of the slices along ``axis`` (Yuan and Lin 2006)."""
    return _norms(weight, axis).sum()


def group_hoyer_square(weight: Tensor, axis: int) -> Tensor:
    """Divide the squared sum of the slices' L2 norms by the squared L2 norm of all (DeepHoyer, equation 6)."""
    square = weight.square().sum()
    return _guarded(_norms(weight, axis).sum(), square).square().div(_nonzero(square))


def regularized(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors that sparsity is asked of: weights of rank 2 and more, no biases, no normalisation.

    A tensor that several layers share comes once, under its first name.
    """
    norms = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm)
        for parameter in child.parameters(recurse=False)
    }
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in norms and not name.rpartition(".")[2].startswith("bias"):
            yield name, parameter


def penalty(reg: str, decay: float, macs: Mapping[str, int] | None = None) -> Callable[[nn.Module], Tensor] | None:
    """Make ``decay`` times the sum of a measure over a network's regularised weights; None where there is none.

    Measures over groups are taken over whole filters (axis 0) and whole input channels (axis 1) and added.

    With ``macs`` every measure is multiplied by the cost of one weight, or one group, of its layer. ``hs`` and
    ``group-hs`` stand for the number of those left, so that the sum stands for the MACs left (as in MorphNet, Gordon
    et al. 2018, whose measure is Group-Lasso). Costs are scaled so that both forms have the same bound, the number
    of all weights or groups; what costs nothing is not regularised.

    Args:
        reg: A name of ``options.REGULARIZERS`` or ``options.GROUP_REGULARIZERS``.
        decay: The factor.
        macs: Multiply-accumulates of the weights by name, as of ``costs.weight_macs``.

    Raises:
        OptionError: If the name is unknown.
    """
    if reg == "none" or decay == 0:
        return None
    if reg not in _MEASURES:
        raise OptionError(f"reg {reg!r}: accepted are {', '.join(REGULARIZERS + GROUP_REGULARIZERS[1:])}")
    return partial(_summed, terms=_MEASURES[reg], decay=decay, macs=macs)


def _summed(
    module: nn.Module, terms: Sequence[tuple[Measure, Count]], decay: float, macs: Mapping[str, int] | None
) -> Tensor:
    pairs = [(name, weight, term) for name, weight in regularized(module) for term in terms]
    factors = [1.0] * len(pairs)
    if macs is not None:
        counts = [count(weight) for _, weight, (_, count) in pairs]
        costs = [macs.get(name, 0) for name, _, _ in pairs]
        scale = sum(counts) / max(1, sum(costs))
        factors = [scale * cost / max(1, count) for cost, count in zip(costs, counts, strict=True)]
    weighed = zip(pairs, factors, strict=True)
    values = [factor * measure(weight) for (_, weight, (measure, _)), factor in weighed if factor]
    return decay * torch.stack(values).sum() if values else torch.zeros(())


def _norms(weight: Tensor, axis: int) -> Tensor:
    """Return the L2 norm of each slice; the gradient at a zero slice is 0, not NaN."""
    squares = weight.square().sum([other for other in range(weight.ndim) if other != axis])
    return torch.where(squares > 0, _nonzero(squares).sqrt(), torch.zeros_like(squares))


def _nonzero(square: Tensor) -> Tensor:
    return torch.where(square > 0, square, torch.ones_like(square))


def _guarded(value: Tensor, square: Tensor) -> Tensor:
    """Cut the gradient where everything is zero, as well where squares underflow."""
    return torch.where(square > 0, value, torch.zeros_like(value))


def _groups(measure: Callable[..., Tensor]) -> list[tuple[Measure, Count]]:
    return [(partial(measure, axis=axis), partial(_size, axis=axis)) for axis in (0, 1)]


def _size(weight: Tensor, axis: int) -> int:
    return weight.shape[axis]


# What is added up for each weight, and of how many weights or groups each of these tells.
_MEASURES: dict[str, list[tuple[Measure, Count]]] = {
    "l1": [(l1, Tensor.numel)],
    "hoyer": [(hoyer, Tensor.numel)],
    "hs": [(hoyer_square, Tensor.numel)],
    "transformed-l1": [(transformed_l1, Tensor.numel)],
    "group-lasso": _groups(group_lasso),
    "group-hs": _groups(group_hoyer_square),
}
