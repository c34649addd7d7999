"""Making zeros among single weights, at once or in stages, with a refit of what is left after each.

Whoever decides which weights go is a function; masks are the zeros of the model that is handed on, so that the same
driver serves with retraining in the place of the refit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, StepResult
from onnxprune.errors import OptionError
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.support import obstacle, refit_support
from onnxprune.graph.cleanup import finish, lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import Weights, stored, weights

SCHEDULE = (
    *(1 - 0.8**j for j in range(1, 11)),
    *(0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.992, 0.994, 0.996, 0.997, 0.998, 0.999),
)
"""Sparsities that Isik, Weissman and No (2022) go through."""
_MOST = 100
# A stage that leaves less than this many times what the goal leaves is not worth a refit of its own.
_NEAR = 1.1
# Rows of a least-squares problem on the way, where the next stage changes the weights again.
_ROWS = 15_000
# Models on the way are kept for further runs while they take no more bytes than this together.
_ROOM = 1 << 30


@dataclass(frozen=True)
class Stage:
    """One stage: zeros are made up to ``sparsity``, None for the decider's own stop."""

    sparsity: float | None
    place: int
    last: bool


Decide = Callable[[Weights, Stage], Mapping[str, Any]]


def stages(owner: str, goal: float | None, count: str) -> list[Stage]:
    """Return the way to a sparsity.

    Args:
        owner: the pass, for messages.
        goal: the sparsity; None for a decider's own stop, to which there is one stage.
        count: ``auto`` for the stages of :data:`SCHEDULE` below the goal, and the goal; or ``N`` stages in each of
            which the same share of what is left goes.

    Raises:
        OptionError: ``count`` is none of these.
    """
    if count != "auto" and not (count.isdecimal() and 1 <= int(count) <= _MOST):
        raise OptionError(f"{owner}: stages={count} is not accepted; give a number from 1 to {_MOST}, or auto")
    if goal is None:
        return [Stage(None, 0, True)]
    if count == "auto":
        found = [*(share for share in SCHEDULE if 1 - share > (1 - goal) * _NEAR), goal]
    else:
        steps = int(count)
        found = [*(1 - (1 - goal) ** (place / steps) for place in range(1, steps)), goal]
    return [Stage(share, place, place + 1 == len(found)) for place, share in enumerate(found)]


def through(
    model: ir.Model,
    way: Sequence[Stage],
    prune: Callable[[ir.Model, Stage], ir.Model],
    repair: Callable[[ir.Model, Stage], ir.Model],
) -> Iterator[tuple[Stage, ir.Model]]:
    """Go through stages: prune, repair (refit or retrain; zeros must stay), and yield the model after each."""
    for stage in way:
        model = repair(prune(model, stage), stage)
        yield stage, model


@dataclass(frozen=True)
class Zeroing:
    """Who decides about zeros, on which weights, in which stages; ``fit`` refits after each, None does not."""

    selection: Selection
    way: Sequence[Stage]
    decide: Decide
    fit: Fit | None

    def run(self, source: ir.Model, context: Context, made: dict[float, ir.Model] | None = None) -> StepResult:
        """Return what comes of a model from :func:`graph.cleanup.lifted`, which is not touched.

        ``made`` holds models on the way by their sparsity, for runs to other goals by the same rule and stages.

        Raises:
            ModelError: A weight holds NaN or infinity.
            DataError: An activation does.
        """
        found = weights(source, self.selection)
        if not found.count:
            numbers: dict[str, Any] = {"weights": 0, "sparsity": found.sparsity, "layers": []}
            return StepResult(finish(lifted(source)), found.skipped, numbers)
        before = {str(value.name): int(np.count_nonzero(stored(value))) for value in found.values}
        fit = self.fit
        said: dict[str, Any] = {}
        refits: list[dict[str, Any]] = []

        def prune(model: ir.Model, stage: Stage) -> ir.Model:
            work = lifted(model)
            said.update(self.decide(weights(work, self.selection), stage))
            return work

        def repair(model: ir.Model, stage: Stage) -> ir.Model:
            if fit is None:
                return model
            # Rounds that aim at what a ReLU lets through pay off at the end only.
            how = fit if stage.last else replace(fit, rounds=0, rows=min(fit.rows, _ROWS))
            work, rows = refit_support(model, source, context, how)
            refits[:] = rows
            return work

        if fit is None or _bytes(found) * len(SCHEDULE) > _ROOM:
            made = None
        # A model that was pruned before is past some of the way.
        way = [stage for stage in self.way if stage.last or (stage.sparsity or 0.0) > found.sparsity]
        begin = source
        while made is not None and not way[0].last and way[0].sparsity in made:
            begin = made[way.pop(0).sparsity or 0.0]
        for stage, result in through(begin, way, prune, repair):
            if made is not None and not stage.last and stage.sparsity is not None:
                made[stage.sparsity] = result
        after = _again(found, result, self.selection)
        counts = [before.get(str(value.name), stored(value).size) for value in after.values]
        numbers = {
            "weights": found.count,
            "sparsity": after.sparsity,
            **said,
            "layers": after.rows(counts),
            **({"refits": refits} if refits else {}),
        }
        return StepResult(finish(result) if fit is None else result, found.skipped, numbers)


def usable(owner: str, fit: Fit, source: ir.Model, context: Context) -> tuple[Fit | None, tuple[str, ...]]:
    """Return how to refit, or None where that cannot be, with a warning where there is data all the same."""
    why = obstacle(source, context)
    if why is None:
        return fit, ()
    return None, () if context.examples is None else (f"{owner}: the surviving weights were not refitted: {why}",)


def _bytes(found: Weights) -> int:
    return sum(stored(value).nbytes for value in found.values)


def _again(found: Weights, model: ir.Model, selection: Selection) -> Weights:
    """Return the same weights of a later model: those that became all zero too, and copies of shared ones."""
    known = [model.graph.initializers[str(v.name)] for v in found.values if str(v.name) in model.graph.initializers]
    return Weights(tuple(dict.fromkeys([*known, *weights(model, selection).values])), found.skipped)
