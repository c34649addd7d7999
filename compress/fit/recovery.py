"""Which channels to keep by sparse recovery: i-SpaSP (Wolfe, Kyrillidis, 2022) in closed form.

The method follows CoSaMP (Needell, Tropp, 2009): take up the channels that matter most for the residual between the
dense and the cut output, join them with those that are kept, keep the strongest, and repeat. What the authors get by
automatic differentiation is linear in the sums of the hidden activations, so that those sums are all the data needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from onnxprune.fit.design import begin_pads
from onnxprune.graph.attributes import ints_attribute, string_attribute
from onnxprune.graph.linear import Unit


class Axis(NamedTuple):
    """Where a kernel reads along one spatial axis: ``inside`` places, and the place read, [outputs, taps].

    A place of ``inside`` or more, or below 0, is padding.
    """

    inside: int
    place: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Whether a tap reads a real place, bool [outputs, taps]."""
        return (self.place >= 0) & (self.place < self.inside)


def axes_of(unit: Unit, inside: Sequence[int]) -> list[Axis]:
    """Return how a convolution (not a transposed one) reads maps of size ``inside``; none for a plain product."""
    if not unit.slides:
        return []
    stored = unit.weight.const_value
    assert stored is not None
    kernel = [int(size) for size in stored.shape.numpy()[2:]]
    rank = len(kernel)
    strides, dilations = (ints_attribute(unit.node, name, [1] * rank) for name in ("strides", "dilations"))
    pads, auto = ints_attribute(unit.node, "pads", [0] * (2 * rank)), string_attribute(unit.node, "auto_pad", "NOTSET")
    reach = [(kernel[i] - 1) * dilations[i] + 1 for i in range(rank)]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        outside = [-(-inside[i] // strides[i]) for i in range(rank)]
    else:
        around = [0] * rank if auto == "VALID" else [pads[i] + pads[rank + i] for i in range(rank)]
        outside = [max(0, (inside[i] + around[i] - reach[i]) // strides[i] + 1) for i in range(rank)]
    begin = begin_pads(unit.node, inside, outside, kernel, strides, dilations)
    places = [
        np.arange(outside[i])[:, None] * strides[i] - begin[i] + np.arange(kernel[i])[None, :] * dilations[i]
        for i in range(rank)
    ]
    return [Axis(inside[i], place) for i, place in enumerate(places)]


def pair_sums(total: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """Return A[f, d', d]: what tap d' reads of feature f, summed over the outputs whose tap d is no padding.

    The set of such outputs is a product over the axes, so that every axis is contracted by itself.

    Args:
        total: summed maps, float64 [F, places...].
        axes: one for every spatial axis.

    Returns:
        float64 [F, K, K] with K taps in the kernel's order; [F, 1, 1] without spatial axes.
    """
    result = total
    for axis in axes:
        taps = axis.place.shape[1]
        table = np.zeros((taps, taps, axis.inside))
        both = axis.valid[:, :, None] & axis.valid[:, None, :]
        index = np.nonzero(both)
        np.add.at(table, (index[1], index[2], axis.place[index[0], index[1]]), 1.0)
        result = np.tensordot(result, table.reshape(taps * taps, axis.inside), axes=([1], [1]))
    sizes = [axis.place.shape[1] for axis in axes]
    rank, kernel = len(axes), math.prod(sizes)
    split = result.reshape(len(total), *[size for size in sizes for _ in range(2)])
    order = [0, *range(1, 2 * rank + 1, 2), *range(2, 2 * rank + 1, 2)]
    return np.ascontiguousarray(split.transpose(order)).reshape(len(total), kernel, kernel)


def counts(axes: Sequence[Axis], rows: int) -> np.ndarray:
    """Return how often every tap reads something that is no padding, float64 [K]; ``rows`` examples were summed."""
    found = np.full(1, float(rows))
    for axis in axes:
        found = np.outer(found, axis.valid.sum(axis=0)).ravel()
    return found


class Evidence(Protocol):
    """What the choice of channels goes by."""

    @property
    def width(self) -> int:
        """How many channels there are."""

    def importance(self, kept: np.ndarray) -> np.ndarray:
        """Return what every channel does for the residual of the kept ones (bool [C]), float64 [C]."""

    def strongest(self, joined: np.ndarray, count: int) -> np.ndarray:
        """Return ``count`` of the joined channels, bool [C] both."""

    def residual(self, kept: np.ndarray) -> float | None:
        """Return the relative energy that the kept channels leave out, where it is known."""


@dataclass(frozen=True, eq=False)
class FirstMoments:
    """The authors' evidence: the signed gradient of half the squared residual, summed over all input positions.

    With weights M (scaled by a BatchNormalization behind), shift t and pair sums A the residual sums are
    ``r[d, o] = sum over dropped f and d' of M[d', f, o] A[f, d', d]``, with ``t[o] counts[d]`` more while nothing is
    kept yet, and the importance of f is the sum over d and o of ``M[d, f, o] r[d, o]``. Exact for a
    BatchNormalization at inference; equal to automatic differentiation up to rounding.

    Attributes:
        matrix: float64 [K * F, O], features ordered (tap, channel), as ``Unit.matrix``.
        shift: float64 [O].
        pairs: float64 [F, K, K], see :func:`pair_sums`.
        count: float64 [K], see :func:`counts`.
        owner: channel of the space behind every feature, -1 for a feature of another space.
        mass: summed activation of every channel, float64 [C]; its magnitude tells the strongest (it is not negative
            behind a ReLU).
    """

    matrix: np.ndarray
    shift: np.ndarray
    pairs: np.ndarray
    count: np.ndarray
    owner: np.ndarray
    mass: np.ndarray

    @property
    def width(self) -> int:
        """How many channels the space has."""
        return len(self.mass)

    def importance(self, kept: np.ndarray) -> np.ndarray:
        """Return the summed gradient with respect to every channel."""
        features, taps = self.pairs.shape[:2]
        owned = self.owner >= 0
        gone = owned & ~kept[self.owner]
        read = (self.pairs * gone[:, None, None]).transpose(1, 0, 2).reshape(taps * features, taps)
        residual = read.T @ self.matrix
        if not kept.any():
            residual += np.outer(self.count, self.shift)
        parts = (self.matrix[d * features : (d + 1) * features] @ residual[d] for d in range(taps))
        total = sum(parts, np.zeros(features))
        return np.bincount(self.owner[owned], weights=total[owned], minlength=self.width)

    def strongest(self, joined: np.ndarray, count: int) -> np.ndarray:
        """Return the channels with the largest magnitude of summed activation."""
        return _mask(np.where(joined, np.abs(self.mass), -np.inf), count)

    def residual(self, kept: np.ndarray) -> None:
        """First moments do not tell."""


@dataclass(frozen=True, eq=False)
class Energy:
    """Evidence from second moments: ``gram`` [C, C] holds the inner products of what channels add to the output.

    With contributions U_c the residual of the kept set S is the sum V of the dropped ones. A channel's importance is
    by how much |V|^2 falls when it alone is taken up (``2 <U_c, V> - |U_c|^2``), or grows when it alone goes; of the
    joined ones that channel goes, one at a time, whose going adds least to |V|^2. Unlike sums, that tells channels
    with equal sums and different patterns apart, and lets no signs cancel over examples.
    """

    gram: np.ndarray

    @property
    def width(self) -> int:
        """How many channels the space has."""
        return len(self.gram)

    def importance(self, kept: np.ndarray) -> np.ndarray:
        """Return the change of the residual's energy when one channel changes sides."""
        own = self.gram.diagonal()
        return np.asarray(2 * self.gram @ (~kept).astype(np.float64) + np.where(kept, own, -own))

    def strongest(self, joined: np.ndarray, count: int) -> np.ndarray:
        """Return what is left when channels go one at a time, each where it adds least to the residual's energy."""
        kept, own = joined.copy(), self.gram.diagonal()
        meets = self.gram @ (~kept).astype(np.float64)
        for _ in range(int(kept.sum()) - count):
            # The last of equal ones goes, so that the lowest index stays.
            added = np.where(kept, 2 * meets + own, np.inf)[::-1]
            gone = len(kept) - 1 - int(np.argmin(added))
            kept[gone] = False
            meets += self.gram[:, gone]
        return kept

    def residual(self, kept: np.ndarray) -> float:
        """Return the energy that the kept channels leave out over that of all."""
        whole = float(self.gram.sum())
        return float(self.gram[np.ix_(~kept, ~kept)].sum()) / whole if whole > 0.0 else 0.0


def contributions(gram: np.ndarray, matrix: np.ndarray, owner: np.ndarray, width: int) -> np.ndarray:
    """Return the inner products of what the channels of a space add to a reader's output, float64 [width, width].

    Args:
        gram: second moments of the reader's features, float64 [K * F, K * F].
        matrix: its weights, float64 [K * F, O].
        owner: channel behind every one of the F features, -1 for none.
        width: channels of the space.
    """
    features = len(owner)
    taps = len(matrix) // features
    small = np.zeros((features, features))
    for d in range(taps):
        for e in range(taps):
            one, other = (slice(t * features, (t + 1) * features) for t in (d, e))
            small += gram[one, other] * (matrix[one] @ matrix[other].T)
    hot = np.zeros((features, width))
    owned = np.flatnonzero(owner >= 0)
    hot[owned, owner[owned]] = 1.0
    found = hot.T @ small @ hot
    return np.asarray((found + found.T) / 2)


class Choice(NamedTuple):
    """Kept channels (ascending), the rounds that were run, and the relative residual energy where it is known."""

    kept: np.ndarray
    rounds: int
    residual: float | None


def recover(evidence: Evidence, count: int, *, rounds: int = 20, expansion: int = 2) -> Choice:
    """Return which ``count`` channels stay.

    Every round takes up the ``expansion * count`` most important channels, joins those that are kept, and keeps the
    ``count`` strongest of all these; the lowest index wins a tie. One set follows from another, so that a set that
    comes again closes a cycle: the rest of the rounds is read off it. Where the residual's energy is known the set
    with the least is returned, otherwise the last one.
    """
    count = min(max(1, count), evidence.width)
    kept = np.zeros(evidence.width, dtype=bool)
    history: list[np.ndarray] = []
    seen: dict[bytes, int] = {}
    for number in range(rounds):
        joined = kept | _mask(evidence.importance(kept), min(expansion * count, evidence.width))
        fresh = evidence.strongest(joined, count)
        first = seen.get(fresh.tobytes())
        if first is not None:
            kept = history[first + (rounds - 1 - first) % (number - first)]
            break
        seen[fresh.tobytes()] = number
        history.append(fresh)
        kept = fresh
    energies = [evidence.residual(one) for one in history]
    known = [energy for energy in energies if energy is not None]
    if known:
        kept = history[int(np.argmin(known))]
    return Choice(np.flatnonzero(kept), min(rounds, number + 1), evidence.residual(kept))


def _mask(scores: np.ndarray, count: int) -> np.ndarray:
    """Return where the ``count`` largest scores are, the lowest index of equal ones."""
    found = np.zeros(len(scores), dtype=bool)
    found[np.argsort(-scores, kind="stable")[:count]] = True
    return found
