"""Spaces that one dense node alone reads: what it reads, what is to be known of that, and its weights after a cut."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Tap
from onnxprune.errors import DataError
from onnxprune.fit.design import Design
from onnxprune.fit.links import Link, find_links
from onnxprune.fit.moments import Moments
from onnxprune.fit.reconstruct import Batches, wanted_rows
from onnxprune.fit.recovery import Energy, FirstMoments, axes_of, contributions, counts, pair_sums
from onnxprune.fit.solve import refit
from onnxprune.fit.wide import FEATURES, Wide
from onnxprune.graph import constants
from onnxprune.graph.shapes import Shapes
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.runtime.staged import Staged
from onnxprune.runtime.sums import Sums, SumsResult

# What keeps a least-squares problem solvable and changes nothing else.
_RIDGE = 1e-9


@dataclass(frozen=True, eq=False)
class Reader:
    """A space and the one linear node that reads it; ``owner`` [F] is the channel behind every feature, -1 for none."""

    space: ChannelSpace
    link: Link
    owner: np.ndarray

    @property
    def tap(self) -> Tap:
        """The tensor that is read and the axis of its channels."""
        return Tap(str(self.link.unit.value.name), self.link.unit.axis)

    @property
    def features(self) -> int:
        """How many features the node reads under all its taps."""
        return self.link.taps * len(self.owner)

    def sums(self, *, absolute: bool) -> Sums:
        """Return the observer of the tensor's sums."""
        return Sums(self.link.unit.axis, places=self.link.unit.slides, absolute=absolute)

    def first_moments(self, found: SumsResult) -> FirstMoments:
        """Return the evidence in the sums of what is read."""
        unit = self.link.unit
        axes = axes_of(unit, found.total.shape[1:])
        owned = self.owner >= 0
        each = found.total.reshape(len(found.total), -1).sum(axis=1)
        mass = np.bincount(self.owner[owned], weights=each[owned], minlength=self.space.width)
        pairs = pair_sums(found.total, axes)
        return FirstMoments(unit.matrix()[0], unit.shift, pairs, counts(axes, found.rows), self.owner, mass)

    def energy(self, found: Moments) -> Energy:
        """Return the evidence in the second moments of what is read."""
        features = self.features
        gram = found.gram[0, :features, :features]
        return Energy(contributions(gram, self.link.unit.matrix()[0], self.owner, self.space.width))


def readers(
    analysis: Analysis, spaces: Sequence[ChannelSpace], shapes: Shapes, *, dense: bool
) -> tuple[list[Reader], dict[str, str]]:
    """Return the spaces that one dense node alone reads, in the order of these nodes, and why others are none.

    With ``dense`` second moments of the features are wanted too, and nodes with too many are refused.
    """
    links = {link.unit.node: link for link in find_links(analysis, shapes)}
    place = {node: i for i, node in enumerate(analysis.model.graph)}
    found, refused = [], {}
    for space in spaces:
        one = _reader(analysis, space, links, dense=dense)
        if isinstance(one, str):
            refused[space.name] = one
        else:
            found.append(one)
    return sorted(found, key=lambda reader: place[reader.link.unit.node]), refused


def _reader(analysis: Analysis, space: ChannelSpace, links: Mapping[ir.Node, Link], *, dense: bool) -> Reader | str:
    nodes = list(dict.fromkeys(consumer.node for consumer in space.consumers))
    if not nodes:
        return "no linear node reads its channels, so that there is no residual to go by"
    if len(nodes) > 1:
        listed = ", ".join(f"'{node.name}'" for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        return f"{len(nodes)} linear nodes read its channels ({listed}); the method needs exactly one"
    opaque = analysis.opaque(space)
    if opaque is not None:
        return opaque
    node = nodes[0]
    if any(consumer.groups > 1 for consumer in space.consumers):
        return f"'{node.name}' reads its channels in groups"
    link = links.get(node)
    if link is None or node.op_type == "ConvTranspose":
        return f"'{node.name}' is no convolution or matrix product with a stored weight that it alone uses"
    owners = link.owners(analysis, space)
    if len(owners) != 1:
        return f"'{node.name}' reads its channels in groups"
    owner = owners[0, : len(link.channels)]
    if len(np.unique(owner[owner >= 0])) < space.width:
        return f"'{node.name}' does not read all of its channels"
    reader = Reader(space, link, owner)
    if dense and reader.features > FEATURES:
        return f"'{node.name}' reads {reader.features} features; second moments are taken of up to {FEATURES}"
    return reader


class Seen(NamedTuple):
    """What one node reads on the calibration data: sums, and rows or second moments where they were asked for."""

    sums: SumsResult
    moments: Moments | Wide | None


def front_to_back(
    analysis: Analysis, found: Sequence[Reader], shapes: Shapes, context: Context, *, absolute: bool, rows: bool
) -> Iterator[tuple[list[Reader], Seen]]:
    """Yield what every node reads, front to back; weights that are changed meanwhile count for nodes behind them.

    With ``rows`` second moments come too, with the node's present output as target.

    Raises:
        DataError: There is no calibration data, or a tensor holds NaN or infinity.
    """
    if context.examples is None:
        raise DataError("ispasp needs calibration data; give --data or --calib")
    batches = Batches.of(analysis.model, context.examples, context.settings)
    groups: dict[ir.Node, list[Reader]] = {}
    for reader in found:
        groups.setdefault(reader.link.unit.node, []).append(reader)
    with contextlib.ExitStack() as stack:
        staged = stack.enter_context(Staged(analysis.model, context.settings))
        advance = stack.enter_context(context.progress("ispasp: statistics", len(groups)))
        for group in groups.values():
            yield group, _seen(group[0], staged, batches, context, absolute=absolute, rows=rows)
            advance(1)


def _seen(reader: Reader, staged: Staged, batches: Batches, context: Context, *, absolute: bool, rows: bool) -> Seen:
    unit, name = reader.link.unit, reader.tap.value
    sums = reader.sums(absolute=absolute)
    moments: Moments | Wide | None = None
    design = Design(unit, -(-wanted_rows(reader.features) // batches.examples.count), context.seed)
    if rows:
        matrix = unit.matrix()[0]
        wide = reader.features > FEATURES
        moments = Wide(*matrix.shape) if wide else Moments.empty(1, *matrix.shape)
    with staged.piece([name]) as piece:
        for number, examples in enumerate(batches.rows):
            value = piece.run(number, batches.feeds(number))[name]
            sums.update(value)
            if not sums.finite():
                source = batches.examples.source
                raise DataError(f"tensor '{name}' holds NaN or infinity on '{source}'; check the model and the data")
            if moments is not None:
                outside = [len(axis.place) for axis in axes_of(unit, value.shape[2:])]
                part = design.rows(value, [len(value), len(unit.shift), *outside], examples)
                moments.update(part, part[0].astype(np.float64) @ matrix + unit.shift)
    return Seen(sums.result(), moments)


def drop(reader: Reader, gone: np.ndarray) -> None:
    """Make the weights of a node that read some of its features' channels (bool [F]) zero, in place."""
    unit = reader.link.unit
    data = constants.array(unit.weight)
    assert data is not None
    shape = [1] * data.ndim
    shape[unit.in_axis] = len(gone)
    constants.set_array(unit.weight, np.where(gone.reshape(shape), np.zeros(1, dtype=data.dtype), data))


class Folded(NamedTuple):
    """New weights of a node, and the output's relative errors when it is cut plainly and with these."""

    matrix: np.ndarray
    cut: float
    folded: float

    @property
    def row(self) -> dict[str, Any]:
        """What the report says."""
        return {"error_cut": self.cut, "error_folded": self.folded}


def folded(reader: Reader, moments: Moments | Wide, gone: np.ndarray) -> Folded:
    """Return the weights that come closest to the node's present output without some features' channels (bool [F]).

    Least squares over everything under the kernel (He, Zhang, Sun, 2017), constants as they are; zeros among the
    weights stay. The error is never above that of dropping alone.
    """
    unit = reader.link.unit
    matrix = unit.matrix()
    keep = np.tile(~gone, reader.link.taps)
    plain = np.zeros((1, len(keep) + 1, matrix.shape[2]))
    plain[0, :-1], plain[0, -1] = np.where(keep[:, None], matrix[0], 0.0), unit.shift
    before, spread = moments.error(plain), moments.spread() or 1.0
    found = refit(moments, matrix, unit.shift, keep[None], taps=reader.link.taps, ridge=_RIDGE, shiftable=False)
    if not found.fitted * spread <= before:
        found = replace(found, matrix=plain[:, :-1], fitted=before / spread)
    return Folded(found.matrix, (before / spread) ** 0.5, found.fitted**0.5)
