"""Planning a recipe: what every pass would treat, how far it could go, and what it would leave alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune import recipe
from onnxprune.api.opening import ModelLike, read_model
from onnxprune.budget import parse_target
from onnxprune.contract import Context, Pass, Planner, Searcher
from onnxprune.graph.cost import example_shapes, measure


@dataclass(frozen=True)
class PassPlan:
    """What one pass would do to the model as it is: rows of a table, remarks, and reasons for what stays."""

    name: str
    options: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def plan(model: ModelLike, passes: str, targets: Sequence[str] = ()) -> list[PassPlan]:
    """Return the plan of every pass of a recipe, each on the model as it is; no data is read.

    Raises:
        OptionError, ModelError: The recipe or the model cannot be used.
    """
    items = recipe.parse(passes, [parse_target(text) for text in targets])
    loaded = read_model(model)
    context = Context(loaded, measure(loaded), example_shapes(loaded), seed=0)
    return [_planned(item, loaded, context) for item in items]


def _planned(item: Pass, model: ir.Model, context: Context) -> PassPlan:
    options = recipe.options(item)
    if not isinstance(item, Planner):
        return PassPlan(item.name, options, notes=(item.summary,))
    found = item.plan(model, context)
    notes = tuple(found.notes)
    if recipe.bare(item) and isinstance(item, Searcher):
        used = ", ".join(f"{name}={options[name]:g}" for name in recipe.SIZES if name in options)
        notes += (f"no size is given: apply searches for one where it has examples to choose by; planned with {used}",)
    return PassPlan(item.name, options, tuple(found.rows), notes, found.skipped)
