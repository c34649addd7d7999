"""Running passes in order: statistics, rewrite, check, cost, after every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.contract import Context, Observer, Pass, Progress, StepResult, Tap
from onnxprune.data import Examples
from onnxprune.errors import DataError
from onnxprune.graph import io
from onnxprune.graph.cost import Cost, measure
from onnxprune.runtime.collect import collect
from onnxprune.runtime.session import Settings


@dataclass(frozen=True)
class Step:
    """One pass that ran: what it did and what the model costs after it."""

    item: Pass
    seconds: float
    result: StepResult
    cost: Cost


@dataclass(frozen=True)
class Run:
    """Everything a pipeline needs besides the model and the passes; ``calibration`` may be None without data."""

    calibration: Examples | None
    settings: Settings
    seed: int = 0
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    progress: Progress | None = None


@contextlib.contextmanager
def _silent(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def run(model: ir.Model, passes: Sequence[Pass], settings: Run) -> tuple[ir.Model, list[Step]]:
    """Apply ``passes`` in order and return the final model with a record of every step; ``model`` is not touched.

    Raises:
        DataError: A pass needs calibration data and there is none, or the data is broken.
        BackendError: ONNX Runtime failed, or a rewritten model does not pass the checker.
    """
    original_cost = measure(model, settings.inputs)
    steps: list[Step] = []
    current = model
    for item in passes:
        start = time.perf_counter()
        context = _context(item, current, model, original_cost, settings)
        result = item.apply(current, context)
        io.check(result.model)
        current = result.model
        steps.append(Step(item, time.perf_counter() - start, result, measure(current, settings.inputs)))
    return current, steps


def _context(item: Pass, current: ir.Model, original: ir.Model, cost: Cost, settings: Run) -> Context:
    progress = settings.progress or _silent

    def gather(model: ir.Model, observers: Mapping[Tap, Observer]) -> Mapping[Tap, Any]:
        if not observers:
            return {}
        if settings.calibration is None:
            raise DataError(f"{item.name} needs calibration data; give --data or --calib")
        with progress(f"{item.name}: statistics", settings.calibration.count) as advance:
            return collect(model, observers, settings.calibration, settings.settings, advance=advance)

    statistics = gather(current, item.wants(current))
    return Context(original, cost, settings.inputs, settings.seed, statistics, gather)
