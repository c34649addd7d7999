"""Masks that keep zeros where they are, and tables of what is zero, by entries and by whole groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onnxprune.errors import OptionError
from onnxprune.models.regularizers import regularized

__all__ = ["LayerSparsity", "apply_masks", "keep_masks", "make_masks", "sparsity_table"]


@dataclass(frozen=True)
class LayerSparsity:
    """What of one weight is zero.

    Attributes:
        name: The parameter's name; ``total`` for a sum of layers.
        total: Entries.
        nonzero: Of these not zero.
        rows: Filters, or outputs of a linear layer (axis 0).
        rows_kept: Of these not all zero.
        columns: Input channels, or inputs of a linear layer (axis 1).
        columns_kept: Of these not all zero.
    """

    name: str
    total: int
    nonzero: int
    rows: int
    rows_kept: int
    columns: int
    columns_kept: int

    @property
    def share(self) -> float:
        """Return the share of entries that are not zero."""
        return self.nonzero / self.total


def make_masks(
    module: nn.Module, *, threshold: float | None = None, std_ratio: float | None = None, structured: bool = False
) -> dict[str, Tensor]:
    """Decide which entries stay, as boolean tensors by parameter name; the module is not changed.

    An entry stays whose magnitude is at least the threshold: one number for all layers, or ``std_ratio`` times the
    layer's standard deviation (of the population, about the mean). With ``structured`` whole filters and input
    channels go instead, those whose root mean square is below the threshold; within the others nothing does. No
    layer is emptied: where nothing reached the threshold the largest entry or group stays (the first of equals).
    Biases and normalisation stay as they are.

    Raises:
        OptionError: If not exactly one threshold is given, it is negative or not finite, or a weight holds NaN.
    """
    given = threshold if threshold is not None else std_ratio
    if given is None or (threshold is None) == (std_ratio is None):
        raise OptionError("give either --threshold or --std-ratio")
    if not (math.isfinite(given) and given >= 0):
        raise OptionError(f"{'threshold' if threshold is not None else 'std-ratio'} {given}: 0 or more is accepted")
    masks = {}
    for name, parameter in regularized(module):
        weight = parameter.detach().double()
        if not bool(torch.isfinite(weight).all()):
            raise OptionError(f"{name} holds NaN or infinite values: there is nothing to compare with a threshold")
        limit = given if threshold is not None else given * float(weight.std(correction=0))
        masks[name] = _group_mask(weight, limit) if structured else _reaching(weight.abs(), limit)
    return masks


def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what the masks do not keep to exact zero, in place."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0.0)


def keep_masks(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """Make a hook for after each step of the optimiser, which has momentum and decay of its own."""
    placed: dict[str, Tensor] = {}

    def hold(module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        if not placed:
            placed.update({name: ~mask.to(parameters[name].device) for name, mask in masks.items()})
        with torch.no_grad():
            for name, gone in placed.items():
                parameters[name].masked_fill_(gone, 0.0)

    return hold


def sparsity_table(module: nn.Module) -> list[LayerSparsity]:
    """Count zeros per layer, and in all of them in a last row."""
    rows = [_counted(name, parameter.detach()) for name, parameter in regularized(module)]
    fields = ("total", "nonzero", "rows", "rows_kept", "columns", "columns_kept")
    sums = {field: sum(getattr(row, field) for row in rows) for field in fields}
    return [*rows, LayerSparsity("total", **sums)]


def _reaching(sizes: Tensor, limit: float) -> Tensor:
    mask = sizes >= limit
    if not bool(mask.any()):
        mask.view(-1)[int(sizes.reshape(-1).argmax())] = True
    return mask


def _group_mask(weight: Tensor, limit: float) -> Tensor:
    mask = torch.ones_like(weight, dtype=torch.bool)
    for axis in (0, 1):
        others = [other for other in range(weight.ndim) if other != axis]
        sizes = weight.square().mean(others).sqrt()
        shape = [-1 if other == axis else 1 for other in range(weight.ndim)]
        mask &= _reaching(sizes, limit).reshape(shape)
    return mask


def _counted(name: str, weight: Tensor) -> LayerSparsity:
    live = weight != 0
    rows, columns = live.flatten(1).any(1), live.transpose(0, 1).flatten(1).any(1)
    return LayerSparsity(
        name, live.numel(), int(live.sum()), len(rows), int(rows.sum()), len(columns), int(columns.sum())
    )
