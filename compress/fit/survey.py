"""What every channel space would cost to cut: error curves from second moments, scaled by measured sensitivity.

One run of the original network gives, per space, the order in which its channels go and the squared error that
the consumers' outputs gain at every width (closed form, refitted). A few cuts of one space alone then tell what an
error there does to the model's outputs, so that spaces can be weighed against one another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.fit.eliminate import Elimination
from onnxprune.fit.links import Link, stages
from onnxprune.fit.offers import Option, Partings, candidates, dense, front
from onnxprune.fit.probe import Measured, Probe
from onnxprune.fit.reconstruct import Reconstruction, Sums
from onnxprune.graph.factorise import POLYADIC, Pair
from onnxprune.graph.spaces import ChannelSpace
from onnxprune.runtime.staged import Staged

# Relative errors below this are rounding.
_NOTHING = 1e-30
# Shares of a node's cost at which pairs are tried.
_SHARES = (0.6, 0.35, 0.15, 0.05)


@dataclass(frozen=True, eq=False)
class Curve:
    """What one space costs at every width.

    ``elimination`` holds the order in which channels go and the error relative to the consumers' outputs, ``loss``
    [C + 1] is in units of the model's output divergence, ``measured`` are cuts that were tried.
    """

    space: ChannelSpace
    elimination: Elimination
    loss: np.ndarray
    measured: tuple[Measured, ...]


NO_DECISIONS = "no agreement is predicted: the model gives no class scores"


@dataclass(frozen=True, eq=False)
class Survey:
    """The curves of all spaces, and how disagreement follows from divergence.

    ``ranks`` are those of single nodes, ``pairs`` the same without sums of products. ``decides`` tells whether the
    model gives class scores: without, no agreement can be predicted.
    """

    curves: Mapping[str, Curve]
    slope: float
    ranks: Mapping[str, RankCurve] = field(default_factory=dict)
    pairs: Mapping[str, RankCurve] = field(default_factory=dict)
    decides: bool = True

    def loss(self, widths: Mapping[str, int]) -> float:
        """Return the predicted loss when every space is cut to these widths."""
        return sum(float(curve.loss[widths[name]]) for name, curve in self.curves.items() if name in widths)

    def agreement(self, loss: float) -> float | None:
        """Return the predicted agreement at a predicted loss: a rough guide, not evidence. None without decisions."""
        return float(max(0.0, 1.0 - self.slope * np.sqrt(loss))) if self.decides else None


@dataclass(frozen=True, eq=False)
class RankCurve:
    """What putting a pair in place of one node costs: ``options`` by rising cost, the node as it is last.

    ``loss`` and ``measured`` as in :class:`Curve`, by the options' places.
    """

    options: tuple[Option, ...]
    loss: np.ndarray
    measured: tuple[Measured, ...]


def survey(
    work: Reconstruction,
    spaces: Sequence[ChannelSpace],
    context: Context,
    *,
    measure: bool = True,
    parted: Mapping[str, Partings] | None = None,
    by: str = "macs",
) -> Survey:
    """Run the original once over the calibration data and return every space's curve, and that of ``parted`` nodes.

    Without ``measure`` no space is cut to see what that does: the loss is the error alone. What nodes are offered is
    ranked ``by`` MACs or parameters.
    """
    wanted = {space.name: {c.node for c in space.consumers} for space in spaces}
    nodes = set().union(*wanted.values()) if wanted else set()
    names = parted or {}
    nodes |= {link.unit.node for link in work.links if link.unit.name in names}
    options: dict[str, tuple[list[Option], np.ndarray]] = {}
    simple: dict[str, tuple[list[Option], np.ndarray]] = {}
    chosen = [i for i, link in enumerate(work.links) if link.unit.node in nodes]
    order = stages(work.flow, chosen)
    probe = Probe(work, spaces, context, list(names)) if measure else None
    found: dict[str, Elimination] = {}
    measured: dict[str, list[Measured]] = {}
    tried: dict[str, list[Measured]] = {}
    pending = list(spaces)
    kept: dict[ir.Node, tuple[Link, Sums]] = {}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Staged(work.original, work.settings))
        advance = stack.enter_context(context.progress("surveying", len(order)))
        for stage in order:
            plain = [work.links[i] for i in chosen if work.links[i].unit.node in {k.unit.node for k in stage}]
            for link, sums in zip(plain, work.own_moments(plain, source), strict=True):
                kept[link.unit.node] = (link, sums)
                name = link.unit.name
                if name in names:
                    seen, whole = candidates(link, sums, names[name], by), dense(names[name])
                    options[name] = front(seen, whole, by)
                    pairs_only = [one for one in seen if one[1].pair is not None and one[1].pair.kind != POLYADIC]
                    simple[name] = front(pairs_only, whole, by)
                    if probe is not None:
                        tried[name] = probe.parted(name, _nearest(options[name][0], _SHARES, by), (link, sums))
            for space in [s for s in pending if wanted[s.name] <= kept.keys()]:
                pending.remove(space)
                readers = [kept[node] for node in kept if node in wanted[space.name]]
                found[space.name] = work.choose(space, [link for link, _ in readers], [sums for _, sums in readers])
                if probe is not None and not probe.deep:
                    measured[space.name] = probe.alone(space, found[space.name], readers)
            needed = set().union(*(wanted[s.name] for s in pending)) if pending else set()
            for node in [node for node in kept if node not in needed]:
                del kept[node]
            advance(1)
    if probe is not None and probe.deep:
        with context.progress("measuring", len(spaces) + len(options)) as advance:
            for space in spaces:
                measured[space.name] = probe.refitted(space, found[space.name])
                advance(1)
            for name, (offered, _) in options.items():
                tried[name] = _made_up_for(tried[name], probe.parted(name, _nearest(offered, _SHARES[1:2], by)))
                advance(1)
    curves = {
        space.name: Curve(
            space, found[space.name],
            _scaled(found[space.name].error, *_points(found[space.name].error, measured.get(space.name, ()))),
            tuple(measured.get(space.name, ())),
        )
        for space in spaces
    }  # fmt: skip
    ranks, pairs = {}, {}
    for name, (offered, error) in options.items():
        points = tuple(tried.get(name, ()))
        near = _points(error, points)
        ranks[name] = RankCurve(tuple(offered), _scaled(error, *near), points)
        pairs[name] = RankCurve(tuple(simple[name][0]), _scaled(simple[name][1], *near), ())
    told = [*(curve.measured for curve in curves.values()), *(curve.measured for curve in ranks.values())]
    top = sum(np.sqrt(max(one.loss, 0.0)) * one.disagreement for points in told for one in points)
    bottom = sum(max(one.loss, 0.0) for points in told for one in points)
    slope = float(top / bottom) if bottom > 0 else 0.0
    return Survey(curves, slope, ranks, pairs, probe is None or probe.decides)


def _made_up_for(alone: Sequence[Measured], behind: Sequence[Measured]) -> list[Measured]:
    """Return what was measured with nothing else refitted, less what the layers behind make up for.

    That was measured for one of them, and is taken to be the same share of all.
    """
    known = {one.place: one.loss for one in alone}
    share = min((one.loss / known[one.place] for one in behind if known.get(one.place, 0.0) > 0.0), default=1.0)
    share = min(1.0, share)
    # Disagreement goes with the root of divergence.
    return [Measured(place, loss * share, off * share**0.5) for place, loss, off in alone]


def _nearest(options: Sequence[Option], shares: Sequence[float], by: str) -> dict[int, Pair]:
    """Return the options to measure, by place: those that cost nearest to these shares of the node as it is."""
    whole = options[-1].cost(by)
    pairs = {place: option.pair for place, option in enumerate(options) if option.pair is not None}
    places = [min(pairs, key=lambda k: (abs(options[k].cost(by) - share * whole), k)) for share in shares if pairs]
    return {place: pairs[place] for place in places}


def _points(error: np.ndarray, measured: Sequence[Measured]) -> tuple[list[float], list[float]]:
    """Return the errors of what was measured, and the losses."""
    return [float(error[one.place]) for one in measured], [one.loss for one in measured]


def _scaled(error: np.ndarray, errors: Sequence[float], losses: Sequence[float]) -> np.ndarray:
    """Return the loss at every width: the error curve times a factor that passes through what was measured.

    The factor's logarithm is linear in the error's logarithm between measured points and constant beyond them. The
    last entry is what nothing was done to.
    """
    if float(error.max(initial=0.0)) < _NOTHING:
        return np.zeros_like(error)  # all of its channels can go
    floor = 1e-12 * float(error.max())
    points = [
        (np.log(left + floor), np.log(max(loss, 1e-12) / (left + floor)))
        for left, loss in zip(errors, losses, strict=True)
    ]
    points.sort()
    if not points:
        return np.asarray(error.copy())
    factor = np.interp(np.log(error + floor), [x for x, _ in points], [y for _, y in points])
    loss = error * np.exp(factor)
    loss[-1] = 0.0
    # Wider must not be worse.
    return np.asarray(np.maximum.accumulate(loss[::-1])[::-1])
