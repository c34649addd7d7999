"""Where the order of a recipe costs something: zeros filled, sizes risen again, losses nobody makes up for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import recipe
from onnxprune.contract import Pass
from onnxprune.evaluate.evidence import Rate
from onnxprune.graph import constants
from onnxprune.graph.cost import Cost
from onnxprune.pipeline import Step
from onnxprune.report.figures import percent

# Less than this is no reason for a remark: zeros as a share of a tensor, growth as a share of a size.
_FILLED, _RAISED = 0.02, 0.01
_SIZES = (("params", "parameters"), ("macs", "MACs"), ("bytes", "weight bytes"))


def undone(original: Cost, steps: Sequence[Step], rates: Sequence[Rate | None]) -> tuple[str, ...]:
    """Return a sentence for every step that undoes something of an earlier one, or comes after what it should precede.

    Args:
        original: cost of the source model.
        steps: the steps that ran, in order.
        rates: agreement after each of them, where it is known.
    """
    costs = [original, *(step.cost for step in steps)]
    zeroing = [_zeros(now) > _zeros(was) + _FILLED for was, now in itertools.pairwise(costs)]
    said = []
    for place in range(1, len(steps)):
        sparse = _last(range(place), zeroing.__getitem__)
        if sparse is not None:
            said += _filled(steps, sparse, place)
        said += _raised(steps, costs, place)
        if zeroing[place]:
            said += _not_made_up_for(steps, rates, place)
    return tuple(said)


def _last(places: range, wanted: Callable[[int], bool]) -> int | None:
    return next((place for place in reversed(places) if wanted(place)), None)


def _zeros(cost: Cost) -> float:
    return 1 - cost.nonzero / cost.params if cost.params else 0.0


def _filled(steps: Sequence[Step], sparse: int, place: int) -> list[str]:
    """Say that a step filled zeros of an earlier one."""
    before, after = steps[place - 1], steps[place]
    got, explained = _survivors(before.result.model, after.result.model)
    if got:
        figures = f"{got:,} nonzero weights where its cut alone leaves about {explained:,}"
    elif after.cost.nonzero > before.cost.nonzero * (1 + _RAISED):
        figures = f"{after.cost.nonzero:,} nonzero weights after it, {before.cost.nonzero:,} before"
    else:
        return []
    items = [step.item for step in steps]
    if getattr(after.item, "preserve_zeros", True):
        items.insert(place, items.pop(sparse))
    else:
        items[place] = _keeping_zeros(items[place])
    return [
        f"{_named(steps, place)} fills zeros that {_named(steps, sparse)} made: {figures}; "
        f"they stay in the better recipe, {recipe.canonical(items)}"
    ]


def _not_made_up_for(steps: Sequence[Step], rates: Sequence[Rate | None], place: int) -> list[str]:
    """Say that zeros cost agreement which an earlier step, one that refits, would make up for behind them.

    Only where the intervals of the agreement before and after lie apart.
    """
    healing = _last(range(place), lambda i: getattr(steps[i].item, "reconstruct", "none") != "none")
    before, after = rates[place - 1], rates[place]
    refits = getattr(steps[place].item, "values", "refit") == "refit"
    if healing is None or before is None or after is None or refits or after.high >= before.low:
        return []
    items = [step.item for step in steps]
    items[healing] = _keeping_zeros(items[healing])
    items.insert(healing, items.pop(place))
    return [
        f"{_named(steps, place)} cost agreement ({percent(before.rate)} before it, {percent(after.rate)} after) that "
        f"{_named(steps, healing)} would make up for in the better order, {recipe.canonical(items)}"
    ]


def _keeping_zeros(item: Pass) -> Pass:
    if getattr(item, "preserve_zeros", True):
        return item
    changed: Any = item
    kept: Pass = dataclasses.replace(changed, preserve_zeros=True)
    return kept


def _survivors(before: ir.Model, after: ir.Model) -> tuple[int, int]:
    """Return nonzero weights of the tensors that were filled, and how many a cut alone explains; zeros if none was.

    A cut takes slices out of a tensor. The most nonzero weights that so many slices can hold are about those of the
    fullest ones.
    """
    got = explained = 0
    new = _tensors(after)
    for key, value in _tensors(before).items():
        old, now = constants.array(value), constants.array(new[key]) if key in new else None
        if old is None or now is None or now.ndim != old.ndim or not _part_of(now.shape, old.shape):
            continue
        most = _fullest(old != 0, now.shape)
        count = int(np.count_nonzero(now))
        if count > most + _FILLED * now.size:
            got, explained = got + count, explained + most
    return got, explained


def _part_of(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return all(size <= most for size, most in zip(shape, whole, strict=True))


def _fullest(nonzero: np.ndarray, shape: tuple[int, ...]) -> int:
    for axis, size in enumerate(shape):
        if size < nonzero.shape[axis]:
            counts = nonzero.sum(axis=tuple(other for other in range(nonzero.ndim) if other != axis))
            nonzero = np.take(nonzero, np.sort(np.argsort(-counts, kind="stable")[:size]), axis=axis)
    return int(np.count_nonzero(nonzero))


def _tensors(model: ir.Model) -> dict[tuple[str, int], ir.Value]:
    """Return the stored matrices and kernels by reader and place."""
    return {
        (str(node.name), place): value
        for node in model.graph
        for place, value in enumerate(node.inputs)
        if value is not None and value.const_value is not None and len(value.const_value.shape) > 1
    }


def _raised(steps: Sequence[Step], costs: Sequence[Cost], place: int) -> list[str]:
    """Say which sizes, lowered by an earlier step, a step raises again."""
    rose, lowered = [], []
    for key, word in _SIZES:
        sizes = [getattr(cost, key) for cost in costs]
        falls = [now < was * (1 - _RAISED) for was, now in itertools.pairwise(sizes)]
        earlier = _last(range(place), falls.__getitem__)
        if earlier is not None and sizes[place + 1] > sizes[place] * (1 + _RAISED):
            rose.append(f"{word} from {sizes[place]:,} to {sizes[place + 1]:,}")
            lowered.append(earlier)
    if not rose:
        return []
    return [f"{_named(steps, place)} raises again what {_named(steps, max(lowered))} lowered: {', '.join(rose)}"]


def _named(steps: Sequence[Step], place: int) -> str:
    return f"{steps[place].item.name} (step {place + 1})"
