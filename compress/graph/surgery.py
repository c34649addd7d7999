"""Cutting channels and folding matrices: the only place where weights of a structured rewrite are edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import BackendError
from onnxprune.graph import constants, origins
from onnxprune.graph.labels import Consumer
from onnxprune.graph.spaces import Analysis

# Weights converted to float64 at once.
_BLOCK = 1 << 22
# Weights rewritten at once: what a cache holds.
_CACHED = 1 << 19


def cut(analysis: Analysis, kept: Mapping[str, Sequence[int] | np.ndarray]) -> None:
    """Cut every named space down to its kept channel indices, in place (methods: slicing all members with one I).

    Weights, biases, normalisation parameters, literal shapes and group counts of all members are rewritten
    together; what is dropped is simply gone (to make up for it, fold it into the consumers
    first, with :func:`set_weight_rows`).
    """
    keep = analysis.keep_mask(kept)
    tracer = analysis.tracer
    for value, axes in tracer.labels.items():
        if not value.is_initializer():
            continue
        masks = {i: keep[analysis.component[labels]] for i, labels in enumerate(axes) if labels is not None}
        cutting = {axis: mask for axis, mask in masks.items() if not mask.all()}
        if not cutting:
            continue
        data = constants.array(value)
        assert data is not None
        for axis, mask in cutting.items():
            if not mask.any():
                raise BackendError(f"cutting would leave '{value.name}' without a single channel")
            data = np.compress(mask, data, axis=axis)
        old = value.const_value
        constants.set_array(value, data)
        constants.release(old)
    for rewrite in tracer.rewrites:
        rewrite.apply(lambda labels: keep[analysis.component[labels]])


@dataclass(frozen=True)
class Layout:
    """How an axis repeats its channels: position = (o, c, i) of ``outer`` x ``len(channels)`` x ``inner``."""

    outer: int
    channels: np.ndarray
    inner: int


def layout(analysis: Analysis, consumer: Consumer) -> Layout | None:
    """Return how the consumed axis repeats its channels, or None where it follows no such pattern."""
    found = analysis.channels_of(analysis.tracer.labels[consumer.weight][consumer.weight_axis])
    distinct = len(np.unique(found))
    changes = np.flatnonzero(np.diff(found))
    inner = int(changes[0]) + 1 if len(changes) else len(found)
    if len(found) % (distinct * inner):
        return None
    outer = len(found) // (distinct * inner)
    channels = found[: distinct * inner : inner]
    regular = np.array_equal(found, np.tile(channels.repeat(inner), outer))
    return Layout(outer, channels, inner) if regular else None


def weight_rows(consumer: Consumer, shape: Layout) -> np.ndarray:
    """Return a consumer's weight as float64 rows over channels: [everything else, C]."""
    data = constants.array(consumer.weight)
    assert data is not None
    return _rows(np.moveaxis(data, consumer.weight_axis, -1), shape)


def set_weight_rows(consumer: Consumer, shape: Layout, rows: np.ndarray) -> None:
    """Write rows from :func:`weight_rows` (same width) back into the consumer's weight."""
    data = constants.array(consumer.weight)
    assert data is not None
    joined = _joined(rows, np.moveaxis(data, consumer.weight_axis, -1).shape, shape)
    constants.set_array(consumer.weight, np.moveaxis(joined, -1, consumer.weight_axis))


def rewrite_rows(consumer: Consumer, shape: Layout, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a consumer's weight by ``change`` of its rows over channels, [n, C] -> [n, C] in float64.

    In blocks of rows: a large weight never stands in memory a second time as float64.
    """
    data = constants.array(consumer.weight)
    assert data is not None
    moved = np.moveaxis(data, consumer.weight_axis, -1)
    result = np.empty_like(data)
    target = np.moveaxis(result, consumer.weight_axis, -1)
    # The first axis of a vector is the consumed one: it is one row.
    step = max(1, len(moved)) if moved.ndim == 1 else max(1, _CACHED // max(1, moved[0].size))
    for start in range(0, len(moved), step):
        part = moved[start : start + step]
        target[start : start + step] = _joined(change(_rows(part, shape)), part.shape, shape)
    old = consumer.weight.const_value
    constants.set_array(consumer.weight, result)
    constants.release(old)


def _rows(moved: np.ndarray, shape: Layout) -> np.ndarray:
    """Return a weight whose consumed axis is last as float64 rows over channels."""
    split = moved.reshape(*moved.shape[:-1], shape.outer, len(shape.channels), shape.inner)
    turned = np.moveaxis(split, -2, -1)
    return np.ascontiguousarray(turned, dtype=np.float64).reshape(-1, len(shape.channels))


def _joined(rows: np.ndarray, moved: Sequence[int], shape: Layout) -> np.ndarray:
    """Return rows over channels as a weight of shape ``moved``, whose consumed axis is last."""
    split = rows.reshape(*moved[:-1], shape.outer, shape.inner, len(shape.channels))
    return np.moveaxis(split, -1, -2).reshape(moved)


def axis_norms(weight: ir.Value, axis: int, order: int = 2) -> np.ndarray:
    """Return the norm (L2, or L1 with ``order`` 1) of a weight's slice at every position of ``axis``.

    A quantised weight counts with the values that it stands for.
    """
    data = origins.values(weight)
    assert data is not None
    rows = np.moveaxis(data, axis, 0)
    # In blocks: a large weight must not stand in memory a second time as float64.
    step = max(1, _BLOCK // max(1, rows[0].size))
    norms = [
        np.linalg.norm(rows[start : start + step].astype(np.float64).reshape(-1, rows[0].size), ord=order, axis=1)
        for start in range(0, len(rows), step)
    ]
    del data, rows
    constants.release(weight.const_value)  # of an initialiser; a computed weight has none
    return np.concatenate(norms)


def kept_outputs(analysis: Analysis, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return, for every producer of a space that is cut, which of its own outputs stay: booleans, one an output."""
    keep = analysis.keep_mask(kept)
    producers = {id(p): p for space in analysis.spaces if space.name in kept for p in space.producers}
    return {
        str(p.node.name): keep[analysis.channels_of(analysis.tracer.labels[p.weight][p.axis])]
        for p in producers.values()
    }
