"""Channel spaces: every set of channels that must be cut together, or the reason why it cannot be cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.graph import (
    factors,
    rules_elementwise,
    rules_join,
    rules_linear,
    rules_matrix,
    rules_norm,
    rules_quantized,
    rules_recurrent,
    rules_shape,
)
from onnxprune.graph.cost import is_parameter, lookup, measure, node_macs
from onnxprune.graph.factors import Grid
from onnxprune.graph.labels import Consumer, Labels, Producer, Rule, Tracer, trace
from onnxprune.graph.shapes import Shapes, concrete_shapes, true_inputs

RULES: dict[str, Rule] = {
    **rules_linear.RULES,
    **rules_matrix.RULES,
    **rules_elementwise.RULES,
    **rules_shape.RULES,
    **rules_join.RULES,
    **rules_norm.RULES,
    **rules_recurrent.RULES,
    **rules_quantized.RULES,
}
# Symbolic sizes become these numbers during analysis: large primes do not meet a real size by accident.
_PRIMES = (7919, 7907, 7901, 7883, 7879, 7877, 7873, 7867)


@dataclass(frozen=True, eq=False)
class ChannelSpace:
    """Channels that are interchangeable for surgery: each one touches the same axes of the same tensors.

    ``name`` is the first producing node's; ``channels`` holds component numbers, in the producer's order;
    ``frozen`` is the reason why none of them may be cut, or None.
    """

    name: str
    channels: np.ndarray
    producers: tuple[Producer, ...]
    consumers: tuple[Consumer, ...]
    frozen: str | None

    @property
    def width(self) -> int:
        """How many channels the space has."""
        return len(self.channels)


@dataclass(frozen=True, eq=False)
class Analysis:
    """The spaces of one prepared model; surgery works on the model it was made from."""

    model: ir.Model
    tracer: Tracer
    component: np.ndarray
    grids: tuple[Grid, ...]
    spaces: tuple[ChannelSpace, ...]
    _times: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def prunable(self) -> tuple[ChannelSpace, ...]:
        """The spaces that may be cut and have more than one channel."""
        return tuple(space for space in self.spaces if space.frozen is None and space.width > 1)

    @property
    def refused(self) -> dict[str, str]:
        """Why nodes or spaces were left alone: frozen spaces by name, and operators without a rule."""
        frozen = {space.name: space.frozen for space in self.spaces if space.frozen is not None}
        return {**frozen, **self.tracer.refused}

    def channels_of(self, labels: Labels) -> np.ndarray:
        """Return the component number at every position of a labelled axis."""
        assert labels is not None
        return np.asarray(self.component[labels])

    def keep_mask(self, kept: Mapping[str, Sequence[int] | np.ndarray]) -> np.ndarray:
        """Return, per component, whether it stays when each named space keeps the given channel indices."""
        keep = np.ones(int(self.component.max(initial=-1)) + 1, dtype=bool)
        for space in self.spaces:
            if space.name in kept:
                keep[space.channels] = False
                keep[space.channels[np.asarray(kept[space.name], dtype=np.int64)]] = True
        factors.propagate(self.grids, keep)
        return keep

    def positions(self, space: ChannelSpace, labels: Labels) -> np.ndarray:
        """Return, per position of a labelled axis, which channel of ``space`` it belongs to; -1 for none."""
        return np.asarray(self.owners(space)[self.channels_of(labels)])

    def left(self, labels: np.ndarray, keep: np.ndarray) -> int:
        """Return how many positions stay of an axis that carries ``labels`` of this trace; ``keep`` as above."""
        found = self._times.get(id(labels))
        if found is None:
            times = np.bincount(self.component[labels])
            channels = np.flatnonzero(times)
            found = self._times[id(labels)] = channels, times[channels]
        return int(found[1][keep[found[0]]].sum())

    def owners(self, space: ChannelSpace) -> np.ndarray:
        """Return, per component, which channel of ``space`` it belongs to; -1 for none."""
        return factors.owners(self.grids, space.channels, int(self.component.max(initial=-1)) + 1)

    def opaque(self, space: ChannelSpace) -> str | None:
        """Return where nothing can make up for channels of ``space`` that go, or None."""
        inside = self.owners(space) >= 0
        return next((reason for labels, reason in self.tracer.opaque if inside[self.channels_of(labels)].any()), None)


def analyse(model: ir.Model) -> Analysis:
    """Find the channel spaces of a prepared model (see ``cleanup.prepare``)."""
    shapes = concrete_shapes(model, _analysis_inputs(model))
    united: frozenset[str] = frozenset()
    while True:
        tracer = trace(model, shapes, RULES, united)
        component = _components(tracer)
        while factors.unite_implied(tracer, component):
            component = _components(tracer)
        grids = factors.grids(tracer, component)
        frozen: dict[int, str] = {}
        for labels, reason in tracer.frozen:
            for channel in np.unique(component[labels]):
                frozen.setdefault(int(channel), reason)
        factors.freeze_conflicts(grids, frozen)
        clashing = _clashing(tracer, component, frozen) - united
        if not clashing:
            return Analysis(model, tracer, component, tuple(grids), _spaces(tracer, component, grids, frozen))
        # Where the groups of a convolution and another reshape part its channels differently, only places go.
        united |= clashing


def _clashing(tracer: Tracer, component: np.ndarray, frozen: Mapping[int, str]) -> frozenset[str]:
    """Return the grouped convolutions of which something is frozen because channels are parted in two ways."""
    stuck = np.zeros(int(component.max(initial=-1)) + 1, dtype=bool)
    stuck[[channel for channel, reason in frozen.items() if reason == factors.CONFLICT]] = True
    return frozenset(name for name, axes in tracer.grouped.items() if any(stuck[component[a]].any() for a in axes))


def _analysis_inputs(model: ir.Model) -> dict[str, list[int]]:
    """Return concrete input shapes in which every symbol has a size of its own."""
    sizes: dict[str, int] = {}
    shapes: dict[str, list[int]] = {}
    for value in true_inputs(model):
        if value.shape is None:
            continue
        dims: list[int] = []
        for axis, size in enumerate(value.shape):
            symbol = str(size) if not isinstance(size, int) and str(size) != "None" else f"{value.name}:{axis}"
            dims.append(size if isinstance(size, int) else sizes.setdefault(symbol, _PRIMES[len(sizes) % len(_PRIMES)]))
        shapes[str(value.name)] = dims
    return shapes


def _components(tracer: Tracer) -> np.ndarray:
    """Return the component number of every label; components are numbered by their smallest label."""
    if not tracer.count:
        return np.zeros(0, dtype=np.int64)
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *[a for a, _ in tracer.edges]])
    cols = np.concatenate([np.zeros(0, dtype=np.int64), *[b for _, b in tracer.edges]])
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, cols)), shape=(tracer.count, tracer.count))
    _, found = connected_components(graph, directed=False)
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.asarray(rank[inverse], dtype=np.int64)


def _spaces(
    tracer: Tracer, component: np.ndarray, grids: Sequence[Grid], frozen: Mapping[int, str]
) -> tuple[ChannelSpace, ...]:
    """Group components that touch the same axes equally often; grid positions belong to their rows and columns."""
    count = int(component.max(initial=-1)) + 1
    signature = np.zeros(count, dtype=np.uint64)
    hashes = np.random.default_rng(0)
    # Operators hand labels on as they are: equal arrays are counted once, under the sum of their axes' hashes.
    shared: dict[int, tuple[np.ndarray, int]] = {}
    for axes in tracer.labels.values():
        for labels in axes:
            if labels is not None:
                _, before = shared.get(id(labels), (labels, 0))
                shared[id(labels)] = labels, before + int(hashes.integers(1, 2**63))
    for labels, weight in shared.values():
        times = np.bincount(component[labels], minlength=count).astype(np.uint64)
        signature += times * np.uint64(weight % 2**64)
    factors.add_signatures(grids, signature)
    governed = factors.governed(grids, count)
    groups: dict[tuple[int, str | None], list[int]] = {}
    for channel in np.flatnonzero(~governed):
        groups.setdefault((int(signature[channel]), frozen.get(int(channel))), []).append(int(channel))
    first_use = {id(p.node): i for i, p in enumerate(tracer.producers)}
    names: set[str] = set()
    spaces = []
    for (_, reason), channels in groups.items():
        members = np.array(channels)
        inside = factors.owners(grids, members, count) >= 0
        spaces.append(_space(tracer, inside[component], members, reason, names))
    return tuple(
        sorted(spaces, key=lambda s: min((first_use[id(p.node)] for p in s.producers), default=len(first_use)))
    )


def _space(
    tracer: Tracer, inside: np.ndarray, channels: np.ndarray, reason: str | None, names: set[str]
) -> ChannelSpace:
    """Build one space; ``inside`` says per label whether it belongs to it."""

    def touches(value: ir.Value, axis: int) -> bool:
        labels = tracer.labels[value][axis]
        return labels is not None and bool(inside[labels].any())

    producers = tuple(p for p in tracer.producers if touches(p.weight, p.axis))
    consumers = tuple(c for c in tracer.consumers if touches(c.weight, c.weight_axis))
    stem = str(producers[0].node.name) if producers else f"{consumers[0].node.name}:in" if consumers else "?"
    name, count = stem, 1
    while name in names:
        count += 1
        name = f"{stem}#{count}"
    names.add(name)
    return ChannelSpace(name, channels, producers, consumers, reason)


def predicted_shapes(analysis: Analysis, shapes: Shapes, kept: Mapping[str, Sequence[int] | np.ndarray]) -> Shapes:
    """Return ``shapes`` with every cut axis at the size that it would have after cutting."""
    keep = analysis.keep_mask(kept)
    result = dict(shapes)
    for value, axes in analysis.tracer.labels.items():
        known = result.get(str(value.name))
        if known is None:
            continue
        sizes = list(known)
        for axis, labels in enumerate(axes):
            if labels is not None:
                sizes[axis] = analysis.left(labels, keep)
        result[str(value.name)] = tuple(sizes)
    return result


def predicted_macs(analysis: Analysis, shapes: Shapes, kept: Mapping[str, Sequence[int] | np.ndarray]) -> int:
    """Return the model's MACs after cutting, exactly, without cutting."""
    return total_macs(analysis.model, predicted_shapes(analysis, shapes, kept))


def total_macs(model: ir.Model, shapes: Shapes) -> int:
    """Return the MACs of the main graph under the given shapes; a node with unknown sizes counts none."""
    return sum(node_macs(node, lookup(shapes)) or 0 for node in model.graph)


def parameter_counter(analysis: Analysis) -> Callable[[Mapping[str, Sequence[int] | np.ndarray]], int]:
    """Return a function from kept channels to the model's parameters after cutting."""
    full = measure(analysis.model).params
    stored = [
        (value.const_value.shape.numpy(), axes)
        for value, axes in analysis.tracer.labels.items()
        if value.is_initializer() and value.const_value is not None and counts_as_parameter(value)
    ]

    def count(kept: Mapping[str, Sequence[int] | np.ndarray]) -> int:
        keep = analysis.keep_mask(kept)
        gone = 0
        for before, axes in stored:
            after = [
                size if labels is None else analysis.left(labels, keep)
                for size, labels in zip(before, axes, strict=True)
            ]
            gone += math.prod(before) - math.prod(after)
        return full - gone

    return count


def counts_as_parameter(value: ir.Value) -> bool:
    """Return whether an initialiser holds parameters: no statistics, no scales, no stored shapes."""
    tensor = value.const_value
    return tensor is not None and all(is_parameter(tensor, use.node, use.idx) for use in value.uses())
