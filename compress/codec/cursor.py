"""What a decoder knows while it follows the units of a stream, hit by hit."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np

from onnxprune.codec.coder import GapLaw, Reader, raw, read_count
from onnxprune.codec.law import Stop
from onnxprune.codec.stream import Shape, group_size
from onnxprune.errors import CodecError


@dataclass(frozen=True)
class Decoded:
    """What a prefix says.

    ``values``: signed, float64 [n]; ``support``: coordinates in the order of their first hits; ``hits`` followed;
    ``threshold``: of the last level with a hit, which bounds what is left of every weight; 0 without any;
    ``relative_l1`` error over the sum of magnitudes; ``verified``: every byte used lies in a block whose CRC was
    checked; ``complete``: the stream's last hit or the wanted stop was reached.
    """

    values: np.ndarray
    support: np.ndarray
    hits: int
    threshold: float
    relative_l1: float
    verified: bool
    complete: bool


class Cursor:
    """Follows units, hit by hit; all places are in scan order."""

    def __init__(self, shape: Shape, stop: Stop) -> None:
        self.shape, self._stop = shape, stop
        self._ledger = shape.ledger()
        self._values = np.zeros(shape.count)
        self._signs = np.zeros(shape.count, dtype=np.int8)
        self._firsts: list[np.ndarray] = []
        self._goal_hits = shape.hits if stop.hits is None else min(stop.hits, shape.hits)
        wanted = stop.support(shape.count)
        self._goal_found = shape.count + 1 if wanted is None else wanted
        self.hits = self._found = 0
        self._last = 0.0
        self._in_level = False
        self._begin_level()
        self.done = self._met()

    def copy(self) -> Cursor:
        """Return a cursor that goes its own way."""
        other = copy.copy(self)
        other._ledger = copy.copy(self._ledger)
        other._values, other._signs, other._times = self._values.copy(), self._signs.copy(), self._times.copy()
        other._firsts, other._new = list(self._firsts), list(self._new)
        return other

    def _begin_level(self) -> None:
        self._begun = self.hits
        self._scan = 0
        self._first = np.zeros(0, dtype=np.int64)  # places of the first scan's hits, and how often they are hit
        self._times = np.zeros(0)
        self._new: list[np.ndarray] = []  # hits of the scan under way, as indices of its candidates
        self._among: np.ndarray | None = None  # candidates as indices of _first; None for all places
        self._remaining = self._at = 0
        self._level_goal = self._goal_hits

    def step(self, reader: Reader) -> bool:
        """Follow one unit; return False where the reader's data ended in it.

        Raises:
            CodecError: The unit is none that an encoder writes.
        """
        return self._group(reader) if self._remaining else self._head(reader)

    def _head(self, reader: Reader) -> bool:
        """Read the number of hits with which a scan begins."""
        if not self._in_level:
            if self._ledger.open() is None:
                raise CodecError("it goes on after the code has ended")
            self._begin_level()
            self._in_level = True
            if self._stop.relative_l1 is not None:
                self._level_goal = min(self._goal_hits, self.hits + self._ledger.hits_for(self._stop.relative_l1))
        count = read_count(reader)
        if count is None:
            return False
        self._size = self.shape.count if self._among is None else len(self._among)
        if count > self._size:
            raise CodecError(f"a scan of {self._size:,} weights has {count:,} hits")
        if not count:
            self._close_level()
        else:
            self._scan += 1
            self._remaining, self._at, self._new = count, 0, []
            self._law = GapLaw.of(count, self._size)
        return True

    def _group(self, reader: Reader) -> bool:
        """Read a group of gaps and the signs of its first hits."""
        amount = group_size(self.hits, self._remaining, self.shape.wanted)
        symbols = reader.read(self._law.model, amount)
        hit = symbols < self._law.longest
        ends = np.cumsum(np.where(hit, symbols + 1, self._law.longest), dtype=np.int64) + self._at
        found = ends[hit] - 1
        if len(ends) and ends[-1] > self._size - (0 if hit[-1] else 1):
            raise CodecError("a hit lies behind the last weight")
        sure = len(found)
        if self._among is None:
            sure = self._signed(reader, found, whole=len(symbols) == amount)
        usable = max(0, min(sure, self._level_goal - self.hits))
        self._take(found[:usable])
        if usable < len(found) or len(symbols) < amount:
            self.done = self._met()
            return False
        self._at = int(ends[-1])
        self._remaining -= len(found)
        if not self._remaining:
            self._end_scan()
        self.done = self._met()
        return True

    def _signed(self, reader: Reader, found: np.ndarray, *, whole: bool) -> int:
        """Give first hits their signs; return how many of ``found`` are complete and wanted."""
        fresh = np.flatnonzero(self._signs[found] == 0)
        if not len(fresh):
            return len(found)
        negative = reader.read(raw(1), len(fresh)) if whole else np.zeros(0, dtype=np.int32)
        known, need, sure = len(negative), self._goal_found - self._found, len(found)
        if known >= need:
            sure = int(fresh[need - 1]) + 1  # the wanted coordinate ends the code
        elif known < len(fresh):
            sure = int(fresh[known])  # a first hit without its sign is not sure
        sure = max(0, min(sure, self._level_goal - self.hits))
        taken = fresh[: int(np.searchsorted(fresh, sure))]
        self._signs[found[taken]] = 1 - 2 * negative[: len(taken)]
        self._firsts.append(found[taken].astype(np.uint32))
        self._found += len(taken)
        return sure

    def _take(self, found: np.ndarray) -> None:
        self._new.append(found)
        self.hits += len(found)
        if self._among is not None:
            self._times[self._among[found]] += 1.0

    def _end_scan(self) -> None:
        new = np.concatenate(self._new)
        self._new = []
        if self._among is None:
            self._first, self._times, self._among = new, np.ones(len(new)), np.arange(len(new))
        else:
            self._among = self._among[new]
        if self._scan >= self._ledger.most:
            self._close_level()

    def _close_level(self) -> None:
        self._values[self._first] += self._times * self._ledger.threshold
        self._last = self._ledger.threshold if self.hits > self._begun else self._last
        self._ledger.close(self.hits - self._begun)
        self._begin_level()
        self._in_level = False

    def _met(self) -> bool:
        target = self._stop.relative_l1
        return (
            self.hits >= self._goal_hits
            or self._found >= self._goal_found
            or (target is not None and self._relative_l1() <= target)
        )

    def _relative_l1(self) -> float:
        return self._ledger.relative_l1(self.hits - self._begun)

    def result(self, order: np.ndarray, *, verified: bool) -> Decoded:
        """Return the state; the cursor is used up."""
        threshold, values = self._ledger.threshold, self._values
        last = threshold if self.hits > self._begun else self._last
        if self._among is None and self._new:
            values[np.concatenate(self._new)] += threshold
        else:
            values[self._first] += self._times * threshold
        self._first, self._new = self._first[:0], []
        np.multiply(values, self._signs, out=values)
        signed = np.empty_like(values)
        signed[order] = values
        support = order[np.concatenate([np.zeros(0, dtype=np.uint32), *self._firsts])]
        return Decoded(signed, support, self.hits, last, self._relative_l1(), verified, self.done)
