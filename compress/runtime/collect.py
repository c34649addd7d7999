"""Running calibration data through a model once, filling every observer on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import Examples
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
        size = _batch(model, names, session, settings)
        fed = 0
        for batch in examples.batches(size):
            arrays = batch.arrays
            if session.fixed_batch and len(batch.rows) < session.fixed_batch:
                if fed:
                    break  # a partial batch would count padding; the full ones before it are enough
                arrays = {name: np.resize(a, (session.fixed_batch, *a.shape[1:])) for name, a in arrays.items()}
            values = session.run(arrays, names)
            for key, observer in observers.items():
                observer.update(values[key[0]])
                if not observer.finite():
                    raise DataError(
                        f"tensor '{key[0]}' holds NaN or infinity on '{examples.source}'; check the model and the data"
                    )
            fed += len(batch.rows)
            if advance is not None:
                advance(len(batch.rows))
    return {key: observer.result() for key, observer in observers.items()}


def _batch(model: ir.Model, names: list[str], session: Session, settings: Settings) -> int:
    size = batch_for(session, settings)
    if session.fixed_batch is not None:
        return size
    shapes = concrete_shapes(model, example_shapes(model))
    per_example = sum(4 * int(np.prod([s or 1 for s in shapes.get(name, ())])) for name in names)
    return max(1, min(size, TAP_LIMIT // max(1, per_example)))
