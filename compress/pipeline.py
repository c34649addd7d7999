"""Running passes in order: statistics, rewrite, check, cost, after every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.contract import Context, Observer, Pass, Progress, StepResult, Tap, silent
from onnxprune.data import Examples
from onnxprune.errors import DataError
from onnxprune.graph import io
from onnxprune.graph.cost import Cost, measure
from onnxprune.runtime.collect import collect
from onnxprune.runtime.operators import require_runnable, unknown_operators
from onnxprune.runtime.session import Settings


@dataclass(frozen=True)
class Step:
    """One pass that ran: what it did and what the model costs after it.

    ``foreign`` names operators of the result that ONNX Runtime does not have, so that the result cannot be run here.
    """

    item: Pass
    seconds: float
    result: StepResult
    cost: Cost
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Everything a pipeline needs besides the model and the passes; ``calibration`` may be None without data."""

    calibration: Examples | None
    settings: Settings
    seed: int = 0
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    progress: Progress | None = None


Treat = Callable[[Pass, ir.Model, Context], tuple[Pass, StepResult]]


def applied(item: Pass, model: ir.Model, context: Context) -> tuple[Pass, StepResult]:
    """Apply a pass as it is."""
    return item, item.apply(model, context)


def run(model: ir.Model, passes: Sequence[Pass], settings: Run, treat: Treat = applied) -> tuple[ir.Model, list[Step]]:
    """Apply ``passes`` in order and return the final model with a record of every step; ``model`` is not touched.

    ``treat`` runs one pass and says which pass that was: a search puts one with a size in the place of one without.

    Raises:
        DataError: A pass needs calibration data and there is none, or the data is broken.
        ModelError: A pass needs calibration data after one that wrote an operator that ONNX Runtime does not have.
        BackendError: ONNX Runtime failed, or a rewritten model does not pass the checker.
    """
    original_cost = measure(model, settings.inputs)
    steps: list[Step] = []
    current = model
    for item in passes:
        start = time.perf_counter()
        ran, result = treat(item, current, context_for(item, current, model, original_cost, settings))
        steps.append(taken(ran, result, settings, start))
        current = result.model
    return current, steps


def taken(item: Pass, result: StepResult, settings: Run, start: float) -> Step:
    """Return the record of a pass that began at ``start`` on the clock ``time.perf_counter``, its result checked.

    Raises:
        BackendError: The rewritten model does not pass the checker.
    """
    io.check(result.model)
    seconds = time.perf_counter() - start
    cost = measure(result.model, settings.inputs)
    return Step(item, seconds, result, cost, tuple(unknown_operators(result.model)))


def context_for(item: Pass, current: ir.Model, original: ir.Model, cost: Cost, settings: Run) -> Context:
    """Return what a pass works with on ``current``, the statistics that it wants included.

    Raises:
        DataError, ModelError, BackendError: as :func:`run`.
    """
    if "calibration" in item.needs and settings.calibration is not None:
        require_runnable(item.name, current)
    progress = settings.progress or silent

    def gather(model: ir.Model, observers: Mapping[Tap, Observer]) -> Mapping[Tap, Any]:
        if not observers:
            return {}
        if settings.calibration is None:
            raise DataError(f"{item.name} needs calibration data; give --data or --calib")
        require_runnable(item.name, model)
        with progress(f"{item.name}: statistics", settings.calibration.count) as advance:
            return collect(model, observers, settings.calibration, settings.settings, advance=advance)

    statistics = gather(current, item.wants(current))
    return Context(
        original, cost, settings.inputs, settings.seed, statistics, gather,
        settings.calibration, settings.settings, progress,
    )  # fmt: skip
