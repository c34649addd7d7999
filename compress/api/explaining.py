"""What a model says of how it was made: provenance, kept channels, zeros, pairs of layers, 8-bit nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune.api import provenance
from onnxprune.errors import ModelError
from onnxprune.graph import io, origins, spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import Cost, measure
from onnxprune.graph.kept import read_kept, read_widths

_QUANTISED = (*origins.QUANTISERS, "DynamicQuantizeLinear")
_PREFIX = "onnxprune."


@dataclass(frozen=True)
class Kept:
    """Which of the source's output channels a node kept, of how many; None where neither model nor source tells."""

    node: str
    indices: tuple[int, ...]
    of: int | None = None

    @property
    def text(self) -> str:
        """Say how many were kept of how many, or at least how many."""
        total = f"{self.of:,}" if self.of is not None else f"at least {max(self.indices, default=-1) + 1:,}"
        return f"{len(self.indices):,} of {total}"


@dataclass(frozen=True)
class Part:
    """A linear node that was parted in two (or ``layers``) of this rank; None where the weight does not tell."""

    node: str
    rank: int | None
    layers: int = 2


@dataclass(frozen=True)
class Explanation:
    """What a model's metadata and graph tell of how it was made.

    ``made`` is the last run as the metadata has it, names without their prefix; None where there is none. ``history``
    holds the runs before, oldest first. ``quantised`` counts the nodes that quantise, by operator.
    """

    model: io.FileFacts
    made: Mapping[str, str] | None
    history: tuple[Any, ...]
    kept: tuple[Kept, ...]
    params: int
    nonzero: int
    layers: tuple[tuple[str, int, int], ...]
    pairs: tuple[Part, ...]
    quantised: Mapping[str, int]

    @property
    def sparse_share(self) -> float:
        """The share of the parameters that are zero."""
        return 1 - self.nonzero / self.params if self.params else 0.0


def explain(path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Explanation:
    """Read how a model was made out of its own file.

    Args:
        path: the model.
        source: the model that the first run began with; its hash is checked.

    Raises:
        ModelError: A file is no usable model, the metadata of channels is not what this program writes, or the source
            is another one than the metadata names.
        BackendError: A file cannot be read.
    """
    model, facts = io.load(path), io.facts(path)
    metadata = model.metadata_props
    made = provenance.run_facts(metadata) if provenance.is_told(metadata) else None
    history = tuple(provenance.history(metadata))
    told = read_widths(model)
    kept = tuple(Kept(node, tuple(indices), told.get(node)) for node, indices in sorted(read_kept(model).items()))
    if source is not None:
        _check_source(facts.path, made, history, io.facts(source))
        widths = _widths(io.load(source))
        kept = tuple(replace(each, of=widths.get(each.node, each.of)) for each in kept)
    cost = measure(prepare(model))
    counts = {kind: sum(node.op_type == kind for node in model.graph) for kind in _QUANTISED}
    return Explanation(
        model=facts,
        made=made,
        history=history,
        kept=kept,
        params=cost.params,
        nonzero=cost.nonzero,
        layers=_layers(cost),
        pairs=tuple(_pairs(model)),
        quantised={kind: count for kind, count in counts.items() if count},
    )


def _check_source(path: str, made: Mapping[str, str] | None, history: tuple[Any, ...], found: io.FileFacts) -> None:
    first = history[0] if history else made
    wanted = first.get(provenance.SOURCE.removeprefix(_PREFIX)) if isinstance(first, Mapping) else None
    if wanted != found.sha256:
        began = f"which began with the one that has {str(wanted)[:12]}" if wanted else "which names no source"
        raise ModelError(f"'{found.path}' has sha256 {found.sha256[:12]} and is not the source of '{path}', {began}")


def _widths(source: ir.Model) -> dict[str, int]:
    """Return how many output channels every producer of a channel space has."""
    analysis = spaces.analyse(prepare(source))
    labels = analysis.tracer.labels
    found = {}
    for producer in (producer for space in analysis.spaces for producer in space.producers):
        channels = labels[producer.weight][producer.axis]
        if channels is not None:
            found[str(producer.node.name)] = len(channels)
    return found


def _layers(cost: Cost) -> tuple[tuple[str, int, int], ...]:
    return tuple((name, each.params, each.nonzero) for name, each in cost.nodes.items() if each.nonzero < each.params)


def _pairs(model: ir.Model) -> list[Part]:
    nodes = {str(node.name): node for node in model.graph}
    found = []
    for name, node in nodes.items():
        stem = name.removesuffix("/enc")
        if stem != name and f"{stem}/dec" in nodes:
            shape = node.outputs[0].shape
            rank = shape[1 if node.op_type == "Conv" else -1] if shape is not None and len(shape) > 1 else None
            layers = 3 if f"{stem}/mid" in nodes else 2
            found.append(Part(stem, rank if isinstance(rank, int) else _rank(node), layers))
    return found


def _rank(node: ir.Node) -> int | None:
    """Return the width of the first half's output, read off its weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None:
        return None
    shape = weight.const_value.shape
    attribute = node.attributes.get("transB")
    first = node.op_type == "Conv" or (attribute is not None and attribute.as_int() == 1)
    size = shape[0 if first else -1]
    return size if isinstance(size, int) else None
