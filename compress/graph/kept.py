"""The model's memory of what was cut: kept source indices per producing node, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError

KEY = "onnxprune.kept"
WIDTHS = "onnxprune.widths"
_UNREADABLE = f"metadata '{KEY}' is not a JSON object of lists of channel indices; delete it from the model"
_NO_WIDTHS = f"metadata '{WIDTHS}' is not a JSON object of numbers of channels; delete it from the model"


def read_kept(model: ir.Model) -> dict[str, list[int]]:
    """Return the kept indices of every node that was cut, counted in the source model's channels.

    Raises:
        ModelError: The entry is not a JSON object of lists of indices.
    """
    text = model.metadata_props.get(KEY, "{}")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ModelError(_UNREADABLE) from error
    if not isinstance(found, dict) or not all(_is_indices(indices) for indices in found.values()):
        raise ModelError(_UNREADABLE)
    return found


def _is_indices(found: object) -> bool:
    return isinstance(found, list) and all(type(item) is int and item >= 0 for item in found)


def read_widths(model: ir.Model) -> dict[str, int]:
    """Return how many channels nodes had before they were first cut, where the model says.

    Raises:
        ModelError: The entry is not a JSON object of positive whole numbers.
    """
    text = model.metadata_props.get(WIDTHS, "{}")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ModelError(_NO_WIDTHS) from error
    if not isinstance(found, dict) or not all(type(width) is int and width > 0 for width in found.values()):
        raise ModelError(_NO_WIDTHS)
    return found


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
