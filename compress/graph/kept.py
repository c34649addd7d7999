"""The model's memory of what was cut: kept source indices per producing node, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError

KEY = "onnxprune.kept"
WIDTHS = "onnxprune.widths"


def read_kept(model: ir.Model) -> dict[str, list[int]]:
    """Return the kept indices of every node that was cut, counted in the source model's channels.

    Raises:
        ModelError: The entry is not a JSON object of lists of indices.
    """
    return _read(model, KEY, _is_indices, "lists of channel indices")


def read_widths(model: ir.Model) -> dict[str, int]:
    """Return how many channels nodes had before they were first cut, where the model says.

    Raises:
        ModelError: The entry is not a JSON object of positive whole numbers.
    """
    return _read(model, WIDTHS, lambda found: type(found) is int and found > 0, "numbers of channels")


def _read(model: ir.Model, key: str, fits: Callable[[object], bool], what: str) -> dict[str, Any]:
    try:
        found = json.loads(model.metadata_props.get(key, "{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(map(fits, found.values())):
        raise ModelError(f"metadata '{key}' is not a JSON object of {what}; delete it from the model")
    return found


def _is_indices(found: object) -> bool:
    return isinstance(found, list) and all(type(item) is int and item >= 0 for item in found)


def record_kept(model: ir.Model, kept: Mapping[str, np.ndarray]) -> None:
    """Note which of its present channels each named node kept, in place; earlier cuts are composed.

    Args:
        model: The model that was cut.
        kept: Booleans, one for every channel the node had before this cut.

    Raises:
        ModelError: The entry is not readable, or names fewer channels than the node has.
    """
    known, widths = read_kept(model), read_widths(model)
    for name, mask in kept.items():
        before, indices = known.get(name), np.flatnonzero(mask)
        if before is not None and len(indices) and int(max(indices)) >= len(before):
            raise ModelError(f"metadata '{KEY}' lists {len(before)} channels of '{name}', which has more; delete it")
        if before is None:
            widths[name] = len(mask)
        known[name] = [int(i) if before is None else before[int(i)] for i in indices]
    for key, found in ((KEY, known), (WIDTHS, widths)):
        model.metadata_props[key] = json.dumps(dict(sorted(found.items())), separators=(",", ":"))
