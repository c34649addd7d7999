"""How far cutting can go: what each space governs, which share of the work can be cut, the least that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.graph.cost import lookup, node_macs
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.spaces import Analysis, predicted_macs, predicted_shapes, total_macs


@dataclass(frozen=True)
class Reach:
    """MACs in all; the share of them in nodes with at least one axis that can be cut; the lowest ratio reachable.

    ``governed`` maps every prunable space to the MACs that go when it alone keeps a single channel.
    """

    macs: int
    prunable_share: float
    lowest: float
    governed: Mapping[str, int]


def reach(analysis: Analysis, shapes: Shapes) -> Reach:
    """Work out how far the prunable spaces of a model can be cut, without cutting."""
    total = total_macs(analysis.model, shapes)
    one = {space.name: np.zeros(1, dtype=np.int64) for space in analysis.prunable}
    after = predicted_shapes(analysis, shapes, one)
    touched = 0
    for node in analysis.model.graph:
        macs = node_macs(node, lookup(shapes)) or 0
        if macs and node_macs(node, lookup(after)) != macs:
            touched += macs
    governed = {name: total - predicted_macs(analysis, shapes, {name: kept}) for name, kept in one.items()}
    lowest = total_macs(analysis.model, after) / total if total else 1.0
    return Reach(total, touched / total if total else 0.0, lowest, governed)
