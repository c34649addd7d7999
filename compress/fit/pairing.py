"""Sharing one budget out over channel spaces and linear nodes: narrower, in two, or left as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.fit.cutting import Cutter, Treatable
from onnxprune.fit.knapsack import allocate
from onnxprune.fit.offers import Partings
from onnxprune.fit.reconstruct import Fit, Reconstruction
from onnxprune.fit.sizing import Sizing
from onnxprune.fit.survey import RankCurve, Survey, survey
from onnxprune.graph import constants
from onnxprune.graph.cost import MACS
from onnxprune.graph.factorise import POLYADIC, Pair, partings
from onnxprune.graph.linear import Unit, linear_units
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.tally import Tally

# What a choice may hold: narrower spaces, pairs of nodes, and three nodes in place of one.
ALL, PAIRS, WIDTHS = "all", "pairs", "widths"
# What a descent to a sum of products may take in a trial, over what the final one may.
_TRIAL = 0.25
# Nodes and spaces may have the same name.
_NODE = "node "


@dataclass(frozen=True)
class Choice:
    """Widths of spaces, and pairs by the names of the nodes that they replace.

    ``places`` are those of the nearest cheaper options in the offers; ``loss`` and ``agreement`` are predicted, the
    latter None for a model that decides nothing.
    """

    widths: Mapping[str, int]
    pairs: Mapping[str, Pair]
    places: Mapping[str, int]
    loss: float = 0.0
    agreement: float | None = None


def partable(
    model: ir.Model, shapes: Shapes, selection: Selection, kinds: tuple[str, ...], *, one: bool = False
) -> tuple[dict[str, tuple[Unit, Partings]], dict[str, str]]:
    """Return the linear nodes that a pair could replace, with the kinds that it could have, and why others cannot.

    With ``one`` a node has the first of ``kinds`` that it knows.
    """
    found: dict[str, tuple[Unit, Partings]] = {}
    skipped: dict[str, str] = {}
    for unit in linear_units(model, shapes):
        reason = selection.reason([unit.name])
        if reason is not None:
            skipped[unit.name] = reason
            continue
        known = partings(unit, shapes)
        ways = {kind: known[kind] for kind in kinds if kind in known}
        ways = dict(list(ways.items())[:1]) if one else ways
        if unit.groups != 1:
            skipped[unit.name] = f"its channels do not mix ({unit.groups} groups)"
        elif not ways:
            skipped[unit.name] = "its kernel cannot be parted this way"
        elif all(way.macs >= way.whole and way.params >= way.height * way.width for way in ways.values()):
            skipped[unit.name] = "even a pair of rank 1 costs more"
        else:
            found[unit.name] = (unit, ways)
    seen = {*found, *skipped}
    for node in model.graph:
        weighty = any(v is not None and constants.constant(v) is not None for v in node.inputs[:2])
        if node.op_type in MACS and weighty and str(node.name) not in seen:
            own = selection.reason([str(node.name)])
            skipped[str(node.name)] = own or "it is no convolution or matrix product with a stored weight of its own"
    return found, skipped


class Pairer(Cutter):
    """A :class:`Cutter` that may also put pairs of nodes in the place of linear ones."""

    def __init__(
        self,
        model: ir.Model,
        context: Context,
        fit: Fit,
        treatable: Treatable,
        nodes: Callable[[ir.Model, Shapes], tuple[dict[str, tuple[Unit, Partings]], dict[str, str]]],
    ) -> None:
        super().__init__(model, context, fit, treatable)
        self.units, left = nodes(self.analysis.model, self.shapes)
        self.skipped = {**left, **self.skipped}
        self._by = "macs"
        self._surveys: dict[str, Survey] = {}

    @property
    def survey(self) -> Survey:
        """The curves of all spaces and of all nodes that could be parted, in the currency of the last budget."""
        if self._by not in self._surveys:
            ways = {name: found for name, (_, found) in self.units.items()}
            fit = replace(self.fit, effort=_TRIAL)
            work = Reconstruction(self.base, self.analysis, self.shapes, fit, self.context)
            self._surveys[self._by] = survey(work, self.chosen, self.context, parted=ways, by=self._by)
        return self._surveys[self._by]

    @property
    def surveyed(self) -> bool:
        """Whether the data have been run for it."""
        return self._by in self._surveys

    def shared(self, sizing: Sizing, family: str = ALL) -> Choice:
        """Return the choice whose predicted loss is least under the budget.

        A family other than ``ALL`` leaves out sums of products (``PAIRS``) or whatever is put in a node's place
        (``WIDTHS``).
        """
        self._by = _ranked_by(sizing.name)
        found = self.survey
        known = {ALL: found.ranks, PAIRS: found.pairs, WIDTHS: {}}[family]
        curves = {name: curve for name, curve in known.items() if len(curve.options) > 1}
        losses = {name: curve.loss for name, curve in found.curves.items()}
        losses |= {_NODE + name: curve.loss for name, curve in curves.items()}
        choices: dict[str, list[int]] = dict(sizing.choices({space.name: space.width for space in self.chosen}))
        choices |= {_NODE + name: list(range(len(curve.options))) for name, curve in curves.items()}
        budget = sizing.budget(self.analysis, self.context, self.tally)
        bill = _Bill(self.tally, self.units, curves, budget.cost, sizing.name)
        found_widths = allocate(
            losses, choices, bill, bill.conflicts(), budget.limit, {_NODE + name for name in curves}, bill.along
        )
        choice = self.choice(found_widths, curves)
        lost = sum(float(curves[name].loss[place]) for name, place in choice.places.items())
        lost += found.loss(choice.widths)
        return replace(choice, pairs=bill.filled(choice, budget.limit), loss=lost, agreement=found.agreement(lost))

    def families(self) -> list[str]:
        """Return the families that differ here, the one of everything first."""
        kinds = {kind for _, ways in self.units.values() for kind in ways}
        found = [ALL]
        if POLYADIC in kinds and kinds != {POLYADIC}:
            found.append(PAIRS)
        if kinds and self.chosen:
            found.append(WIDTHS)
        return found

    @staticmethod
    def choice(found: Mapping[str, int], curves: Mapping[str, RankCurve]) -> Choice:
        """Return what an allocation means."""
        widths = _widths_of(found)
        places = {name: found[_NODE + name] for name in curves}
        options = {name: curves[name].options[place] for name, place in places.items()}
        pairs = {name: option.pair for name, option in options.items() if option.pair is not None}
        return Choice(widths, pairs, places)


def _ranked_by(currency: str) -> str:
    """Return what options of one node are ranked by under a budget in this currency."""
    return "params" if currency in ("params", "bytes") else "macs"


def _widths_of(choice: Mapping[str, int]) -> dict[str, int]:
    """Return the part of a choice that are widths of spaces."""
    return {name: width for name, width in choice.items() if not name.startswith(_NODE)}


class _Bill:
    """The cost of widths and options together, in MACs, parameters or bytes."""

    def __init__(
        self,
        tally: Tally,
        units: Mapping[str, tuple[Unit, Partings]],
        curves: Mapping[str, RankCurve],
        cost: Callable[[Mapping[str, int]], int],
        currency: str,
    ) -> None:
        self.tally, self.units, self.curves, self.cost, self.currency = tally, units, curves, cost, currency
        self.spaces = {name: tally.spaces_of(units[name][0].weight) for name in curves}
        self.changes: dict[tuple[object, ...], np.ndarray] = {}

    def filled(self, choice: Choice, limit: float) -> dict[str, Pair]:
        """Return the pairs, ranks raised to what the limit still allows, the most worth for its cost first.

        A large layer is offered some of its ranks only; this finds those between.
        """
        pairs = dict(choice.pairs)
        base = {_NODE + name: len(curve.options) - 1 for name, curve in self.curves.items()}
        left = limit - self({**choice.widths, **base})
        changes = {name: self._change(name, pair, choice.widths) for name, pair in pairs.items()}
        left -= sum(changes.values())

        def worth(name: str) -> float:
            curve, place = self.curves[name], choice.places[name]
            fall = curve.loss[place] - curve.loss[place + 1]
            by = _ranked_by(self.currency)
            return float(fall) / max(1, curve.options[place + 1].cost(by) - curve.options[place].cost(by))

        for name in sorted(pairs, key=lambda name: (-worth(name), name)):
            pair, now, way = pairs[name], changes[name], self.units[name][1][pairs[name].kind]
            each = self._change(name, Pair(pair.kind, pair.rank + 1), choice.widths) - now
            # Fewer than full rank, and cheaper than the node as it is.
            most = min(way.full - 1 - pair.rank, math.ceil(-now / each) - 1)
            more = way.floor(pair.rank + min(most, math.floor(left / each + 1e-9))) - pair.rank
            if more > 0:
                pairs[name] = Pair(pair.kind, pair.rank + more)
                left -= more * each
        return pairs

    def __call__(self, choice: Mapping[str, int]) -> int:
        widths = _widths_of(choice)
        total = float(self.cost(widths))
        total += sum(float(self._changed(name, widths)[choice[_NODE + name]]) for name in self.curves)
        return round(total)

    def along(self, node: str, choice: Mapping[str, int]) -> np.ndarray:
        """Return the cost of every option of one node, all else as in ``choice``."""
        changes = self._changed(node.removeprefix(_NODE), _widths_of(choice))
        return np.asarray(np.round(self(choice) - changes[choice[node]] + changes))

    def _changed(self, name: str, widths: Mapping[str, int]) -> np.ndarray:
        """Return what every option of one node costs more than the node as it is."""
        key = (name, *(widths.get(space, self.tally.full[space]) for space in self.spaces[name]))
        found = self.changes.get(key)
        if found is None:
            pairs = [option.pair for option in self.curves[name].options]
            around = self._around(name, widths)
            found = np.array([0.0 if pair is None else self._more(name, pair, *around) for pair in pairs])
            self.changes[key] = found
        return found

    def conflicts(self) -> dict[str, set[str]]:
        """Return, per space and node, those whose cost depends on it."""
        found = {name: set(others) for name, others in self.tally.conflicts().items()}
        for name in self.curves:
            found[_NODE + name] = set(self.spaces[name])
            for space in self.spaces[name]:
                found[space].add(_NODE + name)
        return found

    def _change(self, name: str, pair: Pair, widths: Mapping[str, int]) -> float:
        """Return what a pair costs more than the node as it is, when both have these widths around them."""
        return self._more(name, pair, *self._around(name, widths))

    def _around(self, name: str, widths: Mapping[str, int]) -> tuple[float, float]:
        """Return the shares of its inputs and of its outputs that a node keeps at these widths."""
        unit = self.units[name][0]
        before = _shape(unit)
        after = self.tally.sizes(unit.weight, before, widths)
        return (after[unit.in_axis] or 0) / before[unit.in_axis], (after[unit.out_axis] or 0) / before[unit.out_axis]

    def _more(self, name: str, pair: Pair, reads: float, writes: float) -> float:
        """Return what a pair costs more than the node as it is, with these shares of inputs and outputs."""
        unit, ways = self.units[name]
        way, rank = ways[pair.kind], pair.rank
        if self.currency in ("params", "bytes"):
            change = way.params_at(rank, reads, writes) - way.height * way.width * reads * writes
            stored = unit.weight.const_value
            assert stored is not None
            return change * (stored.dtype.itemsize if self.currency == "bytes" else 1)
        return way.macs_at(rank, _shape(unit)[unit.in_axis], reads, writes) - way.whole * reads * writes


def _shape(unit: Unit) -> tuple[int, ...]:
    stored = unit.weight.const_value
    assert stored is not None
    return tuple(int(size) for size in stored.shape.numpy())
