"""The model's memory of what was cut: kept source indices per producing node, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

KEY = "onnxprune.kept"


def read_kept(model: ir.Model) -> dict[str, list[int]]:
    """Return the kept indices of every node that was cut, counted in the source model's channels."""
    found = json.loads(model.metadata_props.get(KEY, "{}"))
    return {str(name): [int(i) for i in indices] for name, indices in found.items()}


def record_kept(model: ir.Model, kept: Mapping[str, np.ndarray]) -> None:
    """Note that each named node kept these of its present channels, in place; earlier cuts are composed."""
    known = read_kept(model)
    for name, indices in kept.items():
        before = known.get(name)
        known[name] = [int(i) if before is None else before[int(i)] for i in indices]
    model.metadata_props[KEY] = json.dumps(dict(sorted(known.items())), separators=(",", ":"))
