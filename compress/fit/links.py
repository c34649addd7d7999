"""Which linear nodes read which channels, which of them a cut touches, and in what order they are refitted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph.attributes import inner_nodes
from onnxprune.graph.linear import Unit, linear_units
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.spaces import Analysis, ChannelSpace


@dataclass(frozen=True, eq=False)
class Link:
    """A linear node with the channel (component number) behind each channel that it reads, -1 where none is tracked."""

    unit: Unit
    taps: int
    channels: np.ndarray

    def features(self, mask: np.ndarray) -> np.ndarray:
        """Return, per feature [groups, taps * channels of a group], what ``mask`` says of each channel read."""
        groups = self.unit.groups
        split = mask.reshape(groups, 1, -1).repeat(self.taps, axis=1)
        return np.asarray(split.reshape(groups, -1))

    def keeps(self, keep: np.ndarray) -> np.ndarray:
        """Return which features stay, bool [groups, F]; ``keep`` is over components."""
        tracked = self.channels >= 0
        staying = np.ones(len(tracked), dtype=bool)
        staying[tracked] = keep[self.channels[tracked]]
        return self.features(staying)

    def owners(self, analysis: Analysis, space: ChannelSpace) -> np.ndarray:
        """Return, per feature [groups, F], the channel of ``space`` that it belongs to, -1 for none."""
        labels = analysis.tracer.axes(self.unit.value)[self.unit.axis]
        if labels is None:
            return self.features(np.full(len(self.channels), -1))
        return self.features(analysis.positions(space, labels))


def find_links(analysis: Analysis, shapes: Shapes) -> list[Link]:
    """Return the linear nodes of an analysed model with what they read, in execution order."""
    links = []
    for unit in linear_units(analysis.model, shapes):
        labels = analysis.tracer.axes(unit.value)[unit.axis] if unit.value in analysis.tracer.labels else None
        given, size = shapes[str(unit.value.name)], shapes[str(unit.weight.name)]
        width = given[unit.axis]
        if width is None:
            continue
        channels = np.full(width, -1) if labels is None else analysis.channels_of(labels)
        taps = math.prod(s or 1 for s in size[2:]) if unit.slides else 1
        links.append(Link(unit, taps, channels))
    return links


@dataclass(frozen=True, eq=False)
class Flow:
    """How linear nodes lie behind one another: per value, the bit set of the units that it depends on."""

    bits: Mapping[ir.Value, int]
    links: Sequence[Link]

    @classmethod
    def of(cls, model: ir.Model, links: Sequence[Link]) -> Flow:
        """Follow every value of the main graph back to the linear nodes behind it."""
        own = {link.unit.node: 1 << i for i, link in enumerate(links)}
        bits: dict[ir.Value, int] = {}
        for node in model.graph:
            behind = own.get(node, 0)
            for value in node.inputs:
                if value is not None:
                    behind |= bits.get(value, 0)
            for inner in inner_nodes(node):
                for value in inner.inputs:
                    behind |= bits.get(value, 0) if value is not None else 0
            for value in node.outputs:
                bits[value] = behind
        return cls(bits, links)

    def behind(self, value: ir.Value | None) -> int:
        """Return the units that a value depends on."""
        return 0 if value is None else self.bits.get(value, 0)


def touched(flow: Flow, keep: np.ndarray, changed: Collection[str] = ()) -> list[int]:
    """Return the links that lose features, are ``changed`` (names of nodes), or read what such a link computes."""
    losing = 0
    found = []
    for i, link in enumerate(flow.links):
        own = link.unit.name in changed or not link.keeps(keep).all()
        if own or flow.behind(link.unit.value) & losing:
            losing |= 1 << i
            found.append(i)
    return found


def stages(flow: Flow, chosen: Collection[int]) -> list[list[Link]]:
    """Return the chosen links in groups: each group depends on earlier ones only, so that it is fitted at once.

    A link whose output is added to another value waits for what is behind that value; of two links that meet in
    one sum, the one with more units behind it makes up for the other.
    """
    wanted = sum(1 << i for i in chosen)
    members = {i: flow.links[i] for i in chosen}
    fixed: dict[int, Link] = {}
    totals: dict[ir.Value, int] = {}
    for i, link in members.items():
        total = link.unit.total
        fixed[i] = link
        if total is None:
            continue
        rival = totals.get(total)
        if rival is None:
            totals[total] = i
            continue
        depth = {j: flow.behind(members[j].unit.value).bit_count() for j in (i, rival)}
        loser = rival if depth[i] > depth[rival] else i
        totals[total] = i if loser == rival else rival
        fixed[loser] = replace(members[loser], unit=replace(members[loser].unit, other=None, total=None))
    levels: dict[int, int] = {}

    def needs(i: int) -> int:
        unit = fixed[i].unit
        return (flow.behind(unit.value) | flow.behind(unit.other)) & wanted & ~(1 << i)

    pending = sorted(fixed)
    while pending:
        rest = []
        for i in pending:
            before = [j for j in fixed if needs(i) >> j & 1]
            if all(j in levels for j in before):
                levels[i] = 1 + max((levels[j] for j in before), default=0)
            else:
                rest.append(i)
        if len(rest) == len(pending):  # two sums wait for each other: the first one aims at its own output
            first = rest[0]
            fixed[first] = replace(fixed[first], unit=replace(fixed[first].unit, other=None, total=None))
        pending = rest
    groups: dict[int, list[Link]] = {}
    for i in sorted(fixed):
        groups.setdefault(levels[i], []).append(fixed[i])
    return [groups[level] for level in sorted(groups)]
