"""Which channels of a source model's values a cut one still computes, from what its metadata says was kept."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxprune.graph.cleanup import prepare
from onnxprune.graph.kept import read_kept
from onnxprune.graph.spaces import Analysis, analyse

__all__ = ["staying_channels"]


def staying_channels(source: ir.Model, cut: ir.Model, names: Iterable[str]) -> dict[str, dict[int, np.ndarray]]:
    """Return, for values of ``source`` by name, which positions of which axes stay in ``cut``.

    Args:
        source: The model that was cut; its nodes have the names that cutting gave them or found.
        cut: What became of it, with the indices that were kept in its metadata.
        names: Values of the source; those it has not are left out.

    Returns:
        Sorted indices by axis; an axis that lost nothing is absent, and so is a value without such an axis.

    Raises:
        ModelError: The metadata are not readable.
    """
    kept = read_kept(cut)
    if not kept:
        return {}
    analysis = analyse(prepare(source))
    staying = _staying(analysis, kept)
    values = {str(out.name): out for node in analysis.model.graph for out in node.outputs}
    found = {}
    for name in names:
        labelled = analysis.tracer.axes(values[name]) if name in values else []
        masks = {axis: staying[analysis.channels_of(each)] for axis, each in enumerate(labelled) if each is not None}
        if any(not mask.all() for mask in masks.values()):
            found[name] = {axis: np.flatnonzero(mask) for axis, mask in masks.items() if not mask.all()}
    return found


def _staying(analysis: Analysis, kept: dict[str, list[int]]) -> np.ndarray:
    """Return per component whether every node that computes it kept it."""
    staying = np.ones(int(analysis.component.max(initial=-1)) + 1, dtype=bool)
    for producer in {id(p): p for space in analysis.spaces for p in space.producers}.values():
        indices = kept.get(str(producer.node.name))
        channels = analysis.channels_of(analysis.tracer.labels[producer.weight][producer.axis])
        if indices is not None and max(indices, default=-1) < len(channels):
            staying[np.delete(channels, indices)] = False
    return staying
