"""Running calibration data through a model once, filling every observer on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Batch, Examples
from onnxprune.errors import DataError
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.runtime.session import Session, Settings, batch_for, open_session

# Bytes of tapped activations held at once; the batch shrinks to stay below it.
TAP_LIMIT = 512 << 20


def collect(
    model: ir.Model,
    observers: Mapping[Any, Any],
    examples: Examples,
    settings: Settings,
    *,
    advance: Callable[[int], None] | None = None,
) -> dict[Any, Any]:
    """Fill ``observers`` (keyed by (value name, axis)) with one run of ``examples`` and return their results.

    Results do not depend on the batch size beyond float64 rounding. Memory is bounded by :data:`TAP_LIMIT`.

    Raises:
        DataError: A tensor holds NaN or infinity; it is named.
        BackendError: ONNX Runtime failed.
    """
    if not observers:
        return {}
    names = sorted({key[0] for key in observers})
    with open_session(model, settings, taps=names) as session:
        size = _batch(model, names, examples, session, settings)
        for batch in examples.batches(size):
            values = _run(session, batch, names)
            for key, observer in observers.items():
                seen = values[key[0]]
                if seen is None:
                    continue
                observer.update(seen)
                if not observer.finite():
                    raise DataError(
                        f"tensor '{key[0]}' holds NaN or infinity on '{examples.source}'; check the model and the data"
                    )
            if advance is not None:
                advance(len(batch.rows))
    return {key: observer.result() for key, observer in observers.items()}


def _run(session: Session, batch: Batch, names: list[str]) -> dict[str, np.ndarray | None]:
    """Return the tapped values of one batch without what pads it; None where the two cannot be told apart."""
    count, fixed = len(batch.rows), session.fixed_batch
    if fixed is None or count == fixed:
        return dict(session.run(batch.arrays, names))
    # Examples are repeated in turn rather than the last one alone: a first batch is counted with its padding.
    full = {
        name: np.resize(data, (fixed, *data.shape[1:])) if data.ndim and len(data) == count else data
        for name, data in batch.arrays.items()
    }
    first = int(batch.rows[0]) == 0
    values = session.run(full, names)
    return {
        name: data[:count] if data.ndim and len(data) == fixed else data if first else None
        for name, data in values.items()
    }


def _batch(model: ir.Model, names: list[str], examples: Examples, session: Session, settings: Settings) -> int:
    size = batch_for(session, settings)
    if session.fixed_batch is not None:
        return size
    one = {name: data.shape for name, data in examples.fetch(np.zeros(1, dtype=np.int64)).items()}
    shapes = concrete_shapes(model, example_shapes(model, one))
    per_example = sum(4 * int(np.prod([s or 1 for s in shapes.get(name, ())])) for name in names)
    return min(size, max(1, TAP_LIMIT // max(1, per_example)))
