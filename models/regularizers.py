"""Sparsity regularisers as differentiable functions of one weight, and their sum over a network's layers.

Yang, Wen, Li: DeepHoyer (ICLR 2020). Measures are per tensor and summed over layers, never pooled. A tensor of
zeros counts 0 with gradient 0, and so does a zero entry or a zero group of any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from onnxprune.errors import OptionError
from onnxprune.models.options import GROUP_REGULARIZERS, REGULARIZERS

__all__ = [
    "by_cost",
    "group_hoyer_square",
    "group_lasso",
    "hoyer",
    "hoyer_square",
    "l1",
    "penalty",
    "regularized",
    "transformed_l1",
]


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


def penalty(reg: str, decay: float, shares: Mapping[str, float] | None = None) -> Callable[[nn.Module], Tensor] | None:
    """Make ``decay`` times the sum of a measure over a network's regularised weights; None where there is none.

    Measures over groups are taken over whole filters (axis 0) and whole input channels (axis 1) and added.

    Args:
        reg: A name of ``options.REGULARIZERS`` or ``options.GROUP_REGULARIZERS``.
        decay: The factor.
        shares: Another factor for each weight by name, as of :func:`by_cost`; None is 1 for all.

    Raises:
        OptionError: If the name is unknown.
    """
    if reg == "none" or decay == 0:
        return None
    if reg not in _MEASURES:
        raise OptionError(f"reg {reg!r}: accepted are {', '.join(REGULARIZERS + GROUP_REGULARIZERS[1:])}")
    return partial(_summed, measure=_MEASURES[reg], decay=decay, shares=shares)


def by_cost(module: nn.Module, costs: Mapping[str, int]) -> dict[str, float]:
    """Return a factor for each regularised weight: its cost over the mean cost of all of them.

    A measure then pulls hardest where zeros save most (as Gordon et al. 2018, MorphNet, with FLOPs for costs), and
    the same ``decay`` is about as strong in sum. A weight without a cost has the factor 0.
    """
    names = [name for name, _ in regularized(module)]
    total = sum(costs.get(name, 0) for name in names)
    return {name: costs.get(name, 0) * len(names) / total if total else 1.0 for name in names}


def _summed(
    module: nn.Module, measure: Callable[[Tensor], Tensor], decay: float, shares: Mapping[str, float] | None
) -> Tensor:
    values = [
        measure(weight) if shares is None else shares[name] * measure(weight)
        for name, weight in regularized(module)
        if shares is None or shares[name]
    ]
    return decay * torch.stack(values).sum() if values else torch.zeros(())


def _both_axes(measure: Callable[[Tensor, int], Tensor], weight: Tensor) -> Tensor:
    return measure(weight, 0) + measure(weight, 1)


def _norms(weight: Tensor, axis: int) -> Tensor:
    """Return the L2 norm of each slice; the gradient at a zero slice is 0, not NaN."""
    squares = weight.square().sum([other for other in range(weight.ndim) if other != axis])
    return torch.where(squares > 0, _nonzero(squares).sqrt(), torch.zeros_like(squares))


def _nonzero(square: Tensor) -> Tensor:
    return torch.where(square > 0, square, torch.ones_like(square))


def _guarded(value: Tensor, square: Tensor) -> Tensor:
    """Cut the gradient where everything is zero, as well where squares underflow."""
    return torch.where(square > 0, value, torch.zeros_like(value))


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": l1,
    "hoyer": hoyer,
    "hs": hoyer_square,
    "transformed-l1": transformed_l1,
    "group-lasso": partial(_both_axes, group_lasso),
    "group-hs": partial(_both_axes, group_hoyer_square),
}
