"""What every channel space would cost to cut: error curves from second moments, scaled by measured sensitivity.

One run of the original network gives, per space, the order in which its channels go and the squared error that
the consumers' outputs gain at every width (closed form, refitted). A few cuts of one space alone then tell what an
error there does to the model's outputs, so that spaces can be weighed against one another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.fit.eliminate import Elimination
from onnxprune.fit.links import Link, stages
from onnxprune.fit.probe import Measured, Probe
from onnxprune.fit.reconstruct import Reconstruction, Sums
from onnxprune.graph.spaces import ChannelSpace
from onnxprune.runtime.staged import Staged

# Relative errors below this are rounding.
_NOTHING = 1e-30


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


@dataclass(frozen=True, eq=False)
class Survey:
    """The curves of all spaces, and how disagreement follows from divergence."""

    curves: Mapping[str, Curve]
    slope: float

    def agreement(self, widths: Mapping[str, int]) -> float:
        """Return the predicted agreement when every space is cut to these widths: a rough guide, not evidence."""
        total = sum(float(curve.loss[widths[name]]) for name, curve in self.curves.items() if name in widths)
        return float(max(0.0, 1.0 - self.slope * np.sqrt(total)))


def survey(work: Reconstruction, spaces: Sequence[ChannelSpace], context: Context, *, measure: bool = True) -> Survey:
    """Run the original once over the calibration data and return every space's curve.

    Without ``measure`` no space is cut to see what that does: the loss is the error alone.
    """
    wanted = {space.name: {c.node for c in space.consumers} for space in spaces}
    nodes = set().union(*wanted.values()) if wanted else set()
    chosen = [i for i, link in enumerate(work.links) if link.unit.node in nodes]
    order = stages(work.flow, chosen)
    probe = Probe(work, spaces, context) if measure else None
    found: dict[str, Elimination] = {}
    measured: dict[str, list[Measured]] = {}
    pending = list(spaces)
    kept: dict[ir.Node, tuple[Link, Sums]] = {}
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Staged(work.original, work.settings))
        advance = stack.enter_context(context.progress("surveying", len(order)))
        for stage in order:
            plain = [work.links[i] for i in chosen if work.links[i].unit.node in {k.unit.node for k in stage}]
            for link, sums in zip(plain, work.own_moments(plain, source), strict=True):
                kept[link.unit.node] = (link, sums)
            for space in [s for s in pending if wanted[s.name] <= kept.keys()]:
                pending.remove(space)
                pairs = [kept[node] for node in kept if node in wanted[space.name]]
                found[space.name] = work.choose(space, [link for link, _ in pairs], [sums for _, sums in pairs])
                if probe is not None and not probe.deep:
                    measured[space.name] = probe.alone(space, found[space.name], pairs)
            needed = set().union(*(wanted[s.name] for s in pending)) if pending else set()
            for node in [node for node in kept if node not in needed]:
                del kept[node]
            advance(1)
    if probe is not None and probe.deep:
        with context.progress("measuring", len(spaces)) as advance:
            for space in spaces:
                measured[space.name] = probe.refitted(space, found[space.name])
                advance(1)
    curves = {
        space.name: Curve(
            space, found[space.name], _scaled(found[space.name].error, measured.get(space.name, ()), space.width),
            tuple(measured.get(space.name, ())),
        )
        for space in spaces
    }  # fmt: skip
    pairs_seen = [(loss, off) for curve in curves.values() for _, loss, off in curve.measured]
    top = sum(np.sqrt(max(loss, 0.0)) * off for loss, off in pairs_seen)
    bottom = sum(max(loss, 0.0) for loss, _ in pairs_seen)
    return Survey(curves, float(top / bottom) if bottom > 0 else 0.0)


def _scaled(error: np.ndarray, measured: Sequence[Measured], width: int) -> np.ndarray:
    """Return the loss at every width: the error curve times a factor that passes through what was measured.

    The factor's logarithm is linear in the error's logarithm between measured points and constant beyond them.
    """
    if float(error.max(initial=0.0)) < _NOTHING:
        return np.zeros_like(error)  # all of its channels can go
    floor = 1e-12 * float(error.max())
    points = [(np.log(error[w] + floor), np.log(max(loss, 1e-12) / (error[w] + floor))) for w, loss, _ in measured]
    points.sort()
    if not points:
        return np.asarray(error.copy())
    factor = np.interp(np.log(error + floor), [x for x, _ in points], [y for _, y in points])
    loss = error * np.exp(factor)
    loss[width] = 0.0
    # Wider must not be worse.
    return np.asarray(np.maximum.accumulate(loss[::-1])[::-1])
