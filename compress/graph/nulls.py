"""Channels that nobody misses: every reader multiplies them by zero, or they hold a constant that a bias can take over.

Methods: removal of zero groups, after group-sparse training (Wen et al., 2016; Yang, Wen, Li, 2020) or any mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import int_attribute
from onnxprune.graph.cleanup import remove_dead
from onnxprune.graph.known import Knowledge, Known, padded
from onnxprune.graph.labels import Consumer, Labels
from onnxprune.graph.linear import Unit, linear_units
from onnxprune.graph.names import free_name, node_names, value_names
from onnxprune.graph.spaces import Analysis, ChannelSpace

_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, eq=False)
class Reader:
    """What one node makes of the channels along an axis: per position, whether it counts for nothing, and why.

    ``column`` says that its weights are zero, ``quiet`` that the channel is zero or its weights are; ``value`` holds
    the constant of positions that are ``movable`` into a bias; ``bordered`` positions are constant, but padded with
    zeros, so that they are so only away from the border.
    """

    node: ir.Node
    labels: np.ndarray
    column: np.ndarray
    quiet: np.ndarray
    movable: np.ndarray
    bordered: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What can go of one space, per channel; ``bordered`` names the node whose padding keeps some, if one does."""

    gone: np.ndarray
    columns: np.ndarray
    bordered: np.ndarray
    keeper: str


def readers(analysis: Analysis, known: Knowledge, *, border: bool) -> Iterator[Reader]:
    """Yield everything that sums over channels; with ``border`` a padded convolution takes constants all the same."""
    tracer = analysis.tracer
    units = {unit.node: unit for unit in linear_units(analysis.model, known.shapes)}
    for consumer in tracer.consumers:
        labels = tracer.axes(consumer.value)[consumer.axis]
        if labels is not None:
            yield _of_consumer(consumer, labels, known, units.get(consumer.node), border=border)
    summed = {consumer.node for consumer in tracer.consumers}
    for node in analysis.model.graph:
        if node.op_type in ("MatMul", "Gemm") and node not in summed:
            yield from _of_product(analysis, node, known)
        elif node.op_type in _RECURRENT and (weight := known.weight(node.inputs[2])) is not None:
            fed_back = tracer.axes(node.inputs[2])[2]
            if fed_back is not None:
                null = known.null(weight, (0, 1))
                yield _reader(node, fed_back, column=null, quiet=null)


def _reader(
    node: ir.Node,
    labels: np.ndarray,
    *,
    column: np.ndarray | None = None,
    quiet: np.ndarray | None = None,
    movable: np.ndarray | None = None,
    bordered: np.ndarray | None = None,
    value: np.ndarray | None = None,
) -> Reader:
    none = np.zeros(len(labels), dtype=bool)
    column, quiet, movable, bordered = (none if flag is None else flag for flag in (column, quiet, movable, bordered))
    return Reader(node, labels, column, quiet, movable, bordered, np.zeros(len(labels)) if value is None else value)


def _of_consumer(
    consumer: Consumer, labels: np.ndarray, known: Knowledge, unit: Unit | None, *, border: bool
) -> Reader:
    weight = known.weight(consumer.weight)
    if weight is None:
        return _reader(consumer.node, labels)
    column = _null_columns(weight, consumer, known)
    given, size = known.of(consumer.value), len(labels)
    if given is None:
        return _reader(consumer.node, labels, column=column, quiet=column)
    held, sure = given.along(consumer.axis, size)
    held = held.astype(np.float64)
    quiet = column | given.zero.all(axis=_others(given, consumer.axis)) | (sure & (np.abs(held) <= known.tolerance))
    constant = sure & ~quiet & np.isfinite(held)
    kind = consumer.node.op_type
    takes = unit is not None and unit.value is consumer.value and kind != "ConvTranspose"
    # A product can be given an added vector, any other node must have a constant of its own.
    takes = takes and unit is not None and (unit.shiftable or (kind == "MatMul" and bool(known.shape(unit.out))))
    edged = kind == "Conv" and padded(consumer.node)
    return _reader(
        consumer.node, labels, column=column, quiet=quiet, value=np.where(constant, held, 0.0),
        movable=constant & (takes and (border or not edged)), bordered=constant & (takes and edged),
    )  # fmt: skip


def _others(item: Known, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(item.values.ndim) if i != axis)


def _null_columns(weight: np.ndarray, consumer: Consumer, known: Knowledge) -> np.ndarray:
    """Return, per position of what is read, whether all weights that meet it are zero."""
    if consumer.groups > 1 and consumer.weight_axis == 1:
        split = weight.reshape(consumer.groups, len(weight) // consumer.groups, weight.shape[1], -1)
        return known.null(split, (1, 3)).ravel()
    return known.null(weight, tuple(axis for axis in range(weight.ndim) if axis != consumer.weight_axis))


def _of_product(analysis: Analysis, node: ir.Node, known: Knowledge) -> Iterator[Reader]:
    """A product of two computed tensors counts a position for nothing where one of them is zero all along it."""
    sides = []
    for value, turned, inner in zip(node.inputs[:2], ("transA", "transB"), (-1, -2), strict=True):
        rank = len(known.shape(value))
        axis = {-1: -2, -2: -1}[inner] if int_attribute(node, turned, 0) else inner
        sides.append((value, max(0, rank + axis)))
    labels: Labels = None
    quiet: np.ndarray = np.array(False)
    for value, axis in sides:
        axes = analysis.tracer.axes(value)
        labels = axes[axis] if labels is None and axes else labels
        item = known.of(value)
        if item is not None and item.values.ndim:
            quiet = quiet | item.zero.all(axis=_others(item, axis))
    if labels is not None:
        yield _reader(node, labels, quiet=np.broadcast_to(quiet, len(labels)))


def judge(analysis: Analysis, space: ChannelSpace, found: Sequence[Reader]) -> Verdict | None:
    """Return which channels of a space can go without a trace, or None where nothing reads any."""
    gone = np.ones(space.width, dtype=bool)
    columns, stuck = gone.copy(), ~gone
    rest, read, keeper = gone.copy(), False, ""
    for reader in found:
        channels = analysis.positions(space, reader.labels)
        inside = channels >= 0
        if not inside.any():
            continue
        read = True
        fine = reader.quiet | reader.movable
        gone[channels[inside & ~fine]] = False
        columns[channels[inside & ~reader.column]] = False
        only = inside & ~fine & reader.bordered
        stuck[channels[only]] = True
        rest[channels[inside & ~fine & ~reader.bordered]] = False
        keeper = keeper or (str(reader.node.name) if only.any() else "")
    return Verdict(gone, gone & columns, stuck & rest, keeper) if read else None


@dataclass(frozen=True)
class Moved:
    """Constants that a node takes over: how many of its inputs, and what its outputs are off by at most at borders."""

    node: str
    constants: int
    border: float


def absorb(
    analysis: Analysis, known: Knowledge, found: Sequence[Reader], kept: Mapping[str, np.ndarray]
) -> list[Moved]:
    """Add to every reader's bias what the constants that go gave it, in place, before they are cut.

    Raises:
        ValueError: A reader has no bias; :func:`add_shifts` gives it one.
    """
    keep = analysis.keep_mask(kept)
    units = {unit.node: unit for unit in linear_units(analysis.model, known.shapes)}
    moved = []
    for reader in found:
        going = reader.movable & ~keep[analysis.channels_of(reader.labels)]
        if not going.any():
            continue
        unit = units[reader.node]
        matrix = unit.matrix()
        groups, features, outputs = matrix.shape
        channels = np.where(going, reader.value, 0.0).reshape(groups, 1, -1, 1)
        # One row per tap: what each place of the kernel gives to every output.
        taps = (matrix.reshape(groups, features // channels.shape[2], channels.shape[2], outputs) * channels).sum(
            axis=2
        )
        unit.add_shift(taps.sum(axis=1).ravel())
        lost = np.maximum(np.maximum(taps, 0).sum(axis=1), np.maximum(-taps, 0).sum(axis=1)).max()
        edge = bool((going & reader.bordered).any())
        moved.append(Moved(unit.name, int(going.sum()), float(lost) if edge else 0.0))
    return moved


def add_shifts(analysis: Analysis, known: Knowledge, found: Sequence[Reader], kept: Mapping[str, np.ndarray]) -> int:
    """Give a MatMul that is to take constants over an added vector of zeros, in place; return how many got one."""
    keep = analysis.keep_mask(kept)
    graph = analysis.model.graph
    units = {unit.node: unit for unit in linear_units(analysis.model, known.shapes)}
    names, values = set(node_names(graph)), value_names(graph)
    count = 0
    for reader in found:
        going = (reader.movable & ~keep[analysis.channels_of(reader.labels)]).any()
        unit = units.get(reader.node)
        if not going or unit is None or unit.shiftable:
            continue
        out, kind = reader.node.outputs[0], unit.weight.dtype
        assert kind is not None
        zeros = np.zeros(len(unit.scale), dtype=kind.numpy())
        shift = constants.add_array(graph, f"{reader.node.name}/shift", zeros, kind, values)
        total = ir.Value(name=free_name(f"{out.name}/shifted", values), shape=out.shape, type=out.type)
        add = ir.Node("", "Add", [out, shift], outputs=[total], name=free_name(f"{reader.node.name}/shift", names))
        if out.is_graph_output():
            name, total.name = total.name, out.name
            out.replace_all_uses_with(total, replace_graph_outputs=True)
            out.name = name
        else:
            out.replace_all_uses_with(total)
        add.replace_input_with(0, out)
        graph.insert_after(reader.node, add)
        count += 1
    return count


def drop_branches(analysis: Analysis, known: Knowledge, barred: Mapping[ir.Node, str]) -> list[str]:
    """Take branches away whose value is known everywhere, in place; return the sums that lost one.

    A branch of zeros leaves the other side alone; one of constants becomes a stored tensor. Nodes in ``barred`` are
    left as they are.
    """
    graph, shapes = analysis.model.graph, analysis.tracer.shapes
    done = []
    for node in list(graph):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or node in barred:
            continue
        out = node.outputs[0]
        for place in (0, 1):
            branch, other = node.inputs[place], node.inputs[1 - place]
            item = known.found.get(branch) if branch is not None else None
            if item is None or branch is None or other is None or not item.sure.all() or other in known.found:
                continue
            if known.weight(other) is not None or shapes.get(str(other.name)) != shapes.get(str(out.name)):
                continue
            if not item.zero.all() or out.is_graph_output():
                kind = branch.dtype or ir.DataType.from_numpy(item.values.dtype)
                stored = constants.add_array(graph, f"{branch.name}/constant", item.values, kind)
                node.replace_input_with(place, stored)
            else:
                out.replace_all_uses_with(other)
                graph.remove(node, safe=True)
            done.append(str(node.name))
            break
    if done:
        remove_dead(analysis.model)
    return done
