"""The model's memory of what was cut: kept source indices per producing node, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError

KEY = "onnxprune.kept"
_UNREADABLE = f"metadata '{KEY}' is not a JSON object of lists of channel indices; delete it from the model"


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


def record_kept(model: ir.Model, kept: Mapping[str, np.ndarray]) -> None:
    """Note that each named node kept these of its present channels, in place; earlier cuts are composed.

    Raises:
        ModelError: The entry is not readable, or names fewer channels than the node has.
    """
    known = read_kept(model)
    for name, indices in kept.items():
        before = known.get(name)
        if before is not None and len(indices) and int(max(indices)) >= len(before):
            raise ModelError(f"metadata '{KEY}' lists {len(before)} channels of '{name}', which has more; delete it")
        known[name] = [int(i) if before is None else before[int(i)] for i in indices]
    model.metadata_props[KEY] = json.dumps(dict(sorted(known.items())), separators=(",", ":"))
