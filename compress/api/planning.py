"""Planning a recipe: what every pass would treat, how far it could go, and what it would leave alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune import recipe
from onnxprune.api.opening import ModelLike, input_shapes, open_model, open_runtime, open_split
from onnxprune.api.options import Options
from onnxprune.budget import parse_target
from onnxprune.contract import Context, Pass, Planner, Searcher, silent
from onnxprune.data import DataLike
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.runtime.operators import require_runnable


@dataclass(frozen=True)
class PassPlan:
    """What one pass would do to the model as it is: rows of a table, remarks, and reasons for what stays.

    ``curve`` is filled with examples only, by passes that predict the agreement: one row per size, with the ``size``
    asked for under its own name (``flops``, ``params`` or ``bytes``), ``reached``, ``predicted agreement``, ``widths``.
    """

    name: str
    options: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    curve: Sequence[Mapping[str, Any]] = ()


def plan(
    model: ModelLike,
    passes: str,
    targets: Sequence[str] = (),
    *,
    data: DataLike | None = None,
    calib: DataLike | None = None,
    options: Options | None = None,
) -> list[PassPlan]:
    """Return the plan of every pass of a recipe, each on the model as it is.

    Args:
        model: path of an .onnx file, or a model in memory.
        passes: a recipe, or the path of a YAML file.
        targets: sizes such as ``"flops=0.5"`` for passes that name none.
        data: one source; the share of it that :func:`~onnxprune.api.compress` would calibrate on is read.
        calib: a source of calibration examples alone, at most 1000 of it. With neither no data is read.
        options: where to run, seed, number of calibration examples.

    Raises:
        OptionError, ModelError, DataError, BackendError: as their docstrings say.
    """
    chosen = options or Options()
    items = recipe.parse(passes, [parse_target(text) for text in targets])
    loaded = open_model(model, chosen)
    if data is None and calib is None:
        context = Context(loaded.model, measure(loaded.model), example_shapes(loaded.model), chosen.seed)
        return [_planned(item, loaded.model, context) for item in items]
    settings, notices = open_runtime(chosen)
    # What would be judged on is opened and never read.
    split = open_split(loaded, chosen, data, calib, calib)
    assert split.calibration is not None
    shapes = input_shapes(split.calibration)
    context = Context(
        loaded.model, measure(loaded.model, shapes), shapes, chosen.seed,
        examples=split.calibration, settings=settings, progress=chosen.progress or silent,
    )  # fmt: skip
    remarks = (*notices, *split.warnings)
    return [_planned(item, loaded.model, context, remarks) for item in items]


def _planned(item: Pass, model: ir.Model, context: Context, remarks: Sequence[str] = ()) -> PassPlan:
    options = recipe.options(item)
    if not isinstance(item, Planner):
        return PassPlan(item.name, options, notes=(item.summary,))
    if context.examples is not None and "calibration" in item.needs:
        require_runnable(item.name, model)
    found = item.plan(model, context)
    notes = tuple(found.notes)
    if "calibration" in item.needs:
        notes += tuple(remarks)
    if recipe.bare(item) and isinstance(item, Searcher):
        used = ", ".join(f"{name}={options[name]:g}" for name in recipe.SIZES if name in options)
        notes += (f"no size is given: apply searches for one where it has examples to choose by; planned with {used}",)
    return PassPlan(item.name, options, tuple(found.rows), notes, found.skipped, tuple(found.curve))
