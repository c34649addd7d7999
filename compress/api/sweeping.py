"""One recipe or several at many sizes: examples are opened once, and what sizes have in common is worked out once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from onnxprune import pipeline, recipe
from onnxprune.api.compressing import finished, judged_last
from onnxprune.api.opening import ModelLike
from onnxprune.api.options import Options
from onnxprune.api.reporting import size_gates
from onnxprune.api.sources import Opened, Sources, open_run
from onnxprune.budget import TARGETS, Target, parse_target
from onnxprune.contract import Context, Pass, Searcher, StepResult
from onnxprune.data import DataLike
from onnxprune.data.split import Dropped
from onnxprune.errors import OptionError
from onnxprune.evaluate.streaming import Recorded
from onnxprune.graph import io
from onnxprune.graph.cost import Cost, measure
from onnxprune.report.report import Report
from onnxprune.report.sweep import Point, Sweep
from onnxprune.runtime.operators import unknown_operators

# Bytes of evaluation examples that are kept as arrays.
_ROOM = 1 << 29


def sweep(
    model: ModelLike,
    recipes: Sequence[str],
    targets: Sequence[str | Target],
    *,
    data: DataLike | None = None,
    calib: DataLike | None = None,
    eval: DataLike | None = None,
    folder: str | Path | None = None,
    force: bool = False,
    options: Options | None = None,
) -> Sweep:
    """Run every recipe at every target and return what each keeps, costs and takes.

    Args:
        model: as in :func:`~onnxprune.api.compress`.
        recipes: recipes in each of which a pass names no size; the target fills it.
        targets: sizes such as ``"flops=0.5"``.
        data: as in :func:`~onnxprune.api.compress`; all points are judged on the same examples.
        calib: as there.
        eval: as there.
        folder: an existing folder that every model is written to; None keeps none.
        force: whether files there may be overwritten.
        options: as there.

    Raises:
        OptionError: A target fits no pass, nothing is to be tried, or files would be overwritten.
        ModelError, DataError, BackendError: as their docstrings say.
    """
    chosen = options or Options()
    wanted = [parse_target(t) if isinstance(t, str) else t for t in targets]
    runs = [(text, target, recipe.parse(text, [target])) for text in recipes for target in wanted]
    if not runs:
        raise OptionError("there is nothing to try; give a recipe and a target, such as id and flops=0.9,0.7,0.5")
    recipes_in_full = [items for _, _, items in runs]
    paths: Sequence[Path | None] = [None] * len(runs)
    if folder is not None:
        paths = _paths(Path(folder), recipes_in_full, model, force=force)
    opened = open_run(model, chain(*recipes_in_full), Sources(data, calib, eval), chosen, choosing=False)
    # Every point reads them again.
    opened = replace(opened, evaluation=opened.evaluation.held(_ROOM))
    shared = _Shared(opened, chosen)
    points, reports = list[Point](), list[Report]()
    for (text, target, items), path in zip(runs, paths, strict=True):
        start = time.perf_counter()
        report = _reported(shared, items, path, force=force)
        points.append(Point.of(text, target, report, time.perf_counter() - start, path))
        reports.append(report)
    first, warnings = reports[0], tuple(dict.fromkeys(w for report in reports for w in report.warnings))
    return Sweep(
        first.source, first.data, tuple(points), warnings, chosen.seed, first.providers, first.versions,
        Dropped.parse(chosen.drop_classes, opened.loaded.classes).labels(opened.loaded.classes),
    )  # fmt: skip


def _reported(shared: _Shared, items: Sequence[Pass], path: Path | None, *, force: bool) -> Report:
    """Make one model, write it where it is wanted, and return the report; the model itself is not kept."""
    steps = shared.steps(items)
    judged, unjudged = judged_last(shared.opened, steps, shared.chosen, shared.recorded)
    result = finished(
        shared.opened, steps, judged, shared.chosen,
        rates=[None] * len(steps), gates=size_gates(steps), before=unjudged,
    )  # fmt: skip
    return result.report if path is None else result.save(path, force=force).report


def _paths(folder: Path, recipes: Sequence[Sequence[Pass]], model: ModelLike, *, force: bool) -> list[Path]:
    """Return where the model of every recipe goes.

    Raises:
        OptionError: The folder is missing, or a file is there already (without ``force``).
    """
    if not folder.is_dir():
        raise OptionError(f"'{folder}' is not a folder; give one that exists")
    source, found = model if isinstance(model, str | os.PathLike) else None, list[Path]()
    for items in recipes:
        name = "".join(c if c.isalnum() or c in "._-=" else "_" for c in recipe.canonical(items)).strip("_")[:100]
        path = folder / f"{name}.onnx"
        if path in found:
            path = folder / f"{name}-{len(found) + 1}.onnx"
        found.append(io.check_output(path, source=source, force=force))
    return found


@dataclass(eq=False)
class _Level:
    """One place of the recipe: the model that comes in, and what passes made ready on it for many sizes."""

    model: ir.Model
    ready: dict[Pass, Callable[[Any], StepResult]] = field(default_factory=dict)


class _Shared:
    """Runs recipes one after the other; steps at which the next begins like the last are not taken again."""

    def __init__(self, opened: Opened, chosen: Options) -> None:
        self.opened, self.chosen, self.recorded = opened, chosen, Recorded()
        self._source = opened.loaded.model
        self._way = pipeline.Run(opened.calibration, opened.settings, chosen.seed, opened.inputs, chosen.progress)
        self._cost: Cost = measure(self._source, opened.inputs)
        self._levels = [_Level(self._source)]
        self._steps: list[pipeline.Step] = []

    def steps(self, items: Sequence[Pass]) -> list[pipeline.Step]:
        """Return the record of every pass of a recipe."""
        alike = 0
        while alike < min(len(items) - 1, len(self._steps)) and self._steps[alike].item == items[alike]:
            alike += 1
        del self._steps[alike:], self._levels[alike + 1 :]
        for item in items[alike:]:
            start = time.perf_counter()
            step = pipeline.taken(item, self._result(item), self._way, start)
            self._steps.append(step)
            self._levels.append(_Level(step.result.model))
        done = list(self._steps)
        # The last model gets its provenance written into it, and so is no other recipe's way.
        del self._steps[-1:], self._levels[-1:]
        return done

    def _result(self, item: Pass) -> StepResult:
        level = self._levels[-1]
        if not isinstance(item, Searcher) or unknown_operators(level.model):
            return item.apply(level.model, self._context(item))
        bare = _without_size(item)
        if bare not in level.ready:
            level.ready[bare] = item.prepared(level.model, self._context(item))
        return level.ready[bare](item)

    def _context(self, item: Pass) -> Context:
        return pipeline.context_for(item, self._levels[-1].model, self._source, self._cost, self._way)


def _without_size(item: Pass) -> Pass:
    """Return a pass as it would be with no size, by which passes that differ in theirs alone are known."""
    sizes = {name: None for name in TARGETS if getattr(item, name, None) is not None}
    return cast("Pass", replace(cast("Any", item), **sizes))
