"""Which of the weights that are left go next: the smallest, over all layers, per layer or per neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError

__all__ = ["SCOPES", "Layer", "fraction", "narrower"]

SCOPES = ("global", "layer", "neuron")
Mask = npt.NDArray[np.bool_]
Rule = Callable[[npt.NDArray[np.float64]], int]


@dataclass(frozen=True)
class Layer:
    """One weight that is pruned: its magnitudes, which of them are left, and the axis of its outputs (neurons)."""

    values: npt.NDArray[np.float64]
    mask: Mask
    axis: int = 0


def fraction(share: float) -> Rule:
    """Return the rule that a share of what is left goes, rounded down (Frankle, Carbin 2019).

    Raises:
        OptionError: If the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise OptionError(f"prune={share:g}: a share from 0 up to, not including, 1 is accepted")
    return lambda values: math.floor(share * values.size + 1e-9)


def narrower(layers: Mapping[str, Layer], rule: Rule, scope: str = "global") -> dict[str, Mask]:
    """Return masks with fewer weights: a subset of what was left, the first of equal magnitudes first.

    Every layer, and with ``scope="neuron"`` every neuron, keeps the largest of its weights that are left.

    Args:
        layers: By name, in the order that parts equals.
        rule: How many of the magnitudes [n] that are left go; it is asked once for all, per layer or per neuron.
        scope: ``global``, ``layer`` or ``neuron``.

    Raises:
        OptionError: If the scope is unknown.
    """
    if scope not in SCOPES:
        raise OptionError(f"scope '{scope}': accepted are {', '.join(SCOPES)}")
    if scope == "global":
        return _pruned(layers, rule)
    found = {}
    for name, layer in layers.items():
        if scope == "layer":
            found[name] = _pruned({name: layer}, rule)[name]
            continue
        values, mask = (np.moveaxis(each, layer.axis, 0) for each in (layer.values, layer.mask))
        rows = {str(row): Layer(values[row], mask[row]) for row in range(len(values))}
        stay = [_pruned({row: each}, rule)[row] for row, each in rows.items()]
        found[name] = np.ascontiguousarray(np.moveaxis(np.stack(stay), 0, layer.axis))
    return found


def _pruned(layers: Mapping[str, Layer], rule: Rule) -> dict[str, Mask]:
    """Prune what all of these layers have left together."""
    left = [layer.values[layer.mask] for layer in layers.values()]
    pooled = np.concatenate(left) if left else np.zeros(0)
    keys = [np.array(each) for each in left]
    for key in keys:
        if key.size:
            key[int(key.argmax())] = np.inf  # the one that stays
    count = min(rule(pooled), pooled.size - sum(key.size > 0 for key in keys))
    gone = np.zeros(pooled.size, dtype=bool)
    if count > 0:
        gone[np.argsort(np.concatenate(keys), kind="stable")[:count]] = True
    found, start = {}, 0
    for (name, layer), key in zip(layers.items(), keys, strict=True):
        mask = layer.mask.copy()
        mask[layer.mask] = ~gone[start : start + key.size]
        found[name], start = mask, start + key.size
    return found
