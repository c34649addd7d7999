"""The embedded stream of the level law: what is announced, in which order, and its encoder.

One level: the scan order fixed by the seed is walked through; the gaps to the next hit are coded and, for a first hit,
one raw bit of sign. The scan is repeated among the coordinates just hit until one has no hit. Every scan begins with
its number of hits, which makes its law of gaps. Hits come in groups, gaps first and then their signs, each a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.codec.blocks import BlockWriter
from onnxprune.codec.coder import LONGEST, GapLaw, Part, count_parts, raw
from onnxprune.codec.law import Law, Ledger, Stop, checked, scan_order
from onnxprune.codec.levels import Level, Refiner
from onnxprune.errors import CodecError, OptionError

_LARGEST_GROUP = 256
_GROUPS_SO_FAR = 16
_SMALLEST_ALPHA = 1e-3
_NEVER = 1 << 62


@dataclass(frozen=True)
class Shape:
    """What a decoder must know of a stream besides its body.

    ``count`` coordinates, ``mean_over`` of them in the mean (fewer in the masked form), ``total`` their sum of
    magnitudes, ``law`` with its alpha given; ``hits`` in all. ``wanted``: the hits that a stop in mid-level aimed at,
    which shorten the last groups; None for a stop elsewhere.
    """

    count: int
    mean_over: int
    total: float
    law: Law
    hits: int
    wanted: int | None

    def ledger(self) -> Ledger:
        """Return the thresholds' state at the stream's begin."""
        return Ledger(self.law, self.mean_over, self.total)


@dataclass(frozen=True)
class Encoded:
    """A coded stream: ``blocks`` of its body; ``support`` are the coordinates in the order of their first hits."""

    shape: Shape
    blocks: tuple[bytes, ...]
    support: np.ndarray
    relative_l1: float

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum(map(len, self.blocks))


def group_size(hits: int, remaining: int, wanted: int | None) -> int:
    """Return the symbols of the next group after ``hits`` in all: a small share of them, so that prefixes are fine.

    No more than ``remaining`` hits of the scan, nor than are missing of ``wanted``.
    """
    left = remaining if wanted is None else min(remaining, wanted - hits)
    return min(left, max(1, min(_LARGEST_GROUP, hits // _GROUPS_SO_FAR)))


def encode(weights: np.ndarray, law: Law, stop: Stop | None = None, *, masked: bool = False) -> Encoded:
    """Code signed weights [n], float16 to float64, up to ``stop``.

    Args:
        weights: flat; what the law should treat alike should have one scale (see ``container.pool``).
        law: the controls.
        stop: sparsity, non-zeros, hits, relative L1, and the body's bits or bytes, which it never exceeds.
        masked: thresholds follow the mean over the non-zero weights.

    Raises:
        CodecError: A weight is NaN or infinite, or there are too many.
        OptionError: ``stop`` names a fraction, or alpha is so small that one weight would be hit a thousand times.
    """
    stop = Stop() if stop is None else stop
    stop.refuse("an encoder", "fraction")
    if len(weights) > LONGEST:
        raise CodecError(f"{len(weights):,} weights are too many for one stream; {LONGEST:,} are accepted")
    if law.alpha is not None and law.alpha < _SMALLEST_ALPHA:
        raise OptionError(f"alpha={law.alpha} is too small to be coded; give {_SMALLEST_ALPHA} or more")
    total = checked(np.abs(weights))
    order = scan_order(len(weights), law.seed).astype(np.uint32)
    count, scanned = len(weights), weights[order]
    del weights
    negative = np.signbit(scanned)
    magnitudes = np.abs(scanned, out=scanned)
    refiner = Refiner(magnitudes, law, masked=masked, total=total, scanned=True)
    ledger, alpha = refiner.ledger, refiner.ledger.alpha
    writer = _Writer(BlockWriter(stop.size()), negative)
    error, wanted = ledger.relative_l1(0), None
    endless = stop.size() is not None and stop.hits is None  # bytes alone must not end at a full support
    for level in refiner.levels(replace(stop, bits=None, bytes=None, hits=_NEVER if endless else stop.hits)):
        before = writer.hits
        wanted = before + level.done if level.done < level.hits else None
        writer.level(level, ledger.most, wanted)
        error = ledger.relative_l1(writer.hits - before)
        if writer.full:
            break
    shape = Shape(count, ledger.count, total, replace(law, alpha=alpha), writer.hits, wanted)
    support = order[np.concatenate([np.zeros(0, dtype=np.uint32), *writer.support])]
    return Encoded(shape, tuple(writer.blocks.finish()), support, error)


class _Writer:
    """Turns levels into units.

    Attributes:
        hits: written.
        support: scanned places of first hits, level by level.
        full: a unit found no room.
    """

    def __init__(self, blocks: BlockWriter, negative: np.ndarray) -> None:
        self.blocks, self._negative = blocks, negative
        self.hits = self._empty = 0
        self.support: list[np.ndarray] = []
        self.full = False

    def level(self, level: Level, most: float, wanted: int | None) -> None:
        """Write the hits of a level up to ``wanted`` in all; ``most`` hits per place are possible."""
        if not level.hits:  # said only if something follows
            self._empty += 1
            return
        for _ in range(self._empty):
            self._add(count_parts(0))
        self._empty = 0
        places, among, size, scan = level.where, np.arange(len(level.where)), len(self._negative), 1
        while not self.full and scan <= most and (wanted is None or self.hits < wanted):
            self._add(count_parts(len(places)))
            if not len(places):
                return
            fresh = level.fresh if scan == 1 else np.zeros(len(places), dtype=bool)
            self._scan(places, size, fresh, level.where[among[fresh]] if scan == 1 else among[:0], wanted)
            places = np.flatnonzero(level.times[among] > scan)
            size, among = len(among), among[places]
            scan += 1

    def _scan(self, places: np.ndarray, size: int, fresh: np.ndarray, firsts: np.ndarray, wanted: int | None) -> None:
        """Write the hits at ``places`` of ``size`` candidates until ``wanted``; the ``fresh`` are at ``firsts``."""
        law = GapLaw.of(len(places), size)
        symbols = law.symbols(np.diff(places, prepend=-1) - 1)
        signs = self._negative[firsts].astype(np.int32)
        hits_upto = np.concatenate(([0], np.cumsum(symbols < law.longest)))
        fresh_upto = np.concatenate(([0], np.cumsum(fresh)))
        at = known = 0
        while known < len(places) and not self.full and (wanted is None or self.hits < wanted):
            end = at + group_size(self.hits, len(places) - known, wanted)
            new = int(hits_upto[end])
            low, high = int(fresh_upto[known]), int(fresh_upto[new])
            parts: list[Part] = [(symbols[at:end], law.model)]
            if high > low:
                parts.append((signs[low:high], raw(1)))
            if self._add(parts):
                self.hits += new - known
                at, known = end, new
        self.support.append(firsts[: int(fresh_upto[known])].astype(np.uint32))

    def _add(self, parts: list[Part]) -> bool:
        self.full = self.full or not self.blocks.add(parts)
        return not self.full
