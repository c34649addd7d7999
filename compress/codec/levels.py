"""SuRP's law in level form: successive refinement of magnitudes, one vectorised level at a time.

The level form keeps the threshold fixed inside a level and exhausts it: an equally valid code whose L1 error at equal
hits is within a few percent of the paper's (which lets it decay after every hit), and the one that can be coded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.codec.law import Law, Ledger, Stop, checked, scan_words

_EXHAUSTED = 1e-12
_CHUNK = 1 << 17


@dataclass(frozen=True)
class Refinement:
    """Magnitudes reconstructed by a prefix of the code.

    ``values`` [n] with 0 <= values <= magnitudes; ``hits`` announced so far; ``levels`` begun; ``thresholds`` of
    every level with hits; ``complete``: a wanted condition was met, or none was given; ``relative_l1``: the error
    over the sum of magnitudes.
    """

    values: np.ndarray
    hits: int
    levels: int
    thresholds: tuple[float, ...]
    complete: bool
    relative_l1: float


@dataclass(frozen=True)
class Level:
    """One level: coordinate ``where[i]`` is hit ``times[i]`` times; ``fresh`` ones for the first time.

    The first scan hits every one of ``where`` once, the second those with ``times`` of 2 or more, and so on. Of
    ``hits`` only the first ``done`` in that order are wanted. Arrays are in scan order where ``ordered``.
    """

    threshold: float
    where: np.ndarray
    times: np.ndarray
    fresh: np.ndarray
    hits: int
    done: int
    ordered: bool

    @property
    def found(self) -> int:
        """How many coordinates become non-zero by the first ``done`` hits."""
        return int(np.count_nonzero(self.fresh[: self.done]))

    def partial(self) -> np.ndarray:
        """Return how often each of ``where`` is hit by the first ``done`` hits."""
        part = np.zeros(len(self.times))
        left, scan, among = self.done, 1, np.arange(len(self.times))
        while left > 0:
            among = among[self.times[among] >= scan][:left]
            part[among] += 1.0
            left -= len(among)
            scan += 1
        return part


class Refiner:
    """The code over fixed magnitudes; :meth:`advance` goes on from where the last call stopped.

    Holds one float64 per weight besides the magnitudes themselves, which must not change meanwhile.

    Attributes:
        values: of all whole levels, float64 [n].
        ledger: thresholds and sums.
        found: non-zero coordinates so far.
        hits: announced so far.
    """

    def __init__(
        self,
        magnitudes: np.ndarray,
        law: Law,
        *,
        masked: bool = False,
        total: float | None = None,
        scanned: bool = False,
    ) -> None:
        """Take magnitudes [n], float16 to float64; zeros are never hit.

        Args:
            magnitudes: finite and not negative.
            law: the controls.
            masked: thresholds follow the mean over the non-zero magnitudes (the iterative form), not over all.
            total: their sum, where the caller has it already.
            scanned: magnitudes lie in scan order; else the law's seed says in which order they are scanned.

        Raises:
            CodecError: A magnitude is NaN, infinite or negative.
        """
        self._magnitudes, self._law, self._scanned = magnitudes, law, scanned
        total = checked(magnitudes) if total is None else total
        self.alive = int(np.count_nonzero(magnitudes))
        self.ledger = Ledger(law, self.alive if masked else len(magnitudes), total)
        self.values = np.zeros(len(magnitudes))
        self.found = self.hits = 0
        self._floor = _EXHAUSTED * float(magnitudes.max(initial=0.0))
        self._thresholds: list[float] = []
        self._open: Level | None = None  # not yet part of values
        self._taken: Level | None = None  # the open one, where some of its hits are part of the state
        self._complete = self._ended = False

    def levels(self, stop: Stop) -> Iterator[Level]:
        """Go on to ``stop`` and yield every level on the way, empty ones too; the last may be wanted in part.

        A level is part of the state once the next one is asked for.

        Raises:
            OptionError: ``stop`` names coded bytes, which only an encoder knows.
        """
        stop.refuse("the level law", "bits", "bytes", "fraction")
        while not self._reached(stop):
            self._take_back()
            level = self._open or self._next()
            if level is None:
                return
            self._open = level = self._limited(level, stop)
            if level.done < level.hits:
                self._taken = level
                self.hits += level.done
                self.found += level.found
                yield level
            else:
                yield level
                self._absorb(level)

    def advance(self, stop: Stop) -> None:
        """Go on to ``stop``; one that lies behind changes nothing."""
        for _ in self.levels(stop):
            pass

    def state(self) -> Refinement:
        """Return what the code says so far; later calls of :meth:`advance` do not change it."""
        values, thresholds = self.values.copy(), self._thresholds
        taken = self._taken
        if taken is not None:
            values[taken.where] += taken.partial() * taken.threshold
            thresholds = [*thresholds, taken.threshold] if taken.done else thresholds
        return Refinement(values, self.hits, self.ledger.levels, tuple(thresholds), self._complete, self._relative_l1())

    def _relative_l1(self) -> float:
        return self.ledger.relative_l1(0 if self._taken is None else self._taken.done)

    def _take_back(self) -> None:
        """Count the part of the open level out again, so that the level is measured from its begin."""
        if self._taken is not None:
            self.hits -= self._taken.done
            self.found -= self._taken.found
            self._taken = None

    def _reached(self, stop: Stop) -> bool:
        wanted = stop.support(len(self.values))
        met = (
            wanted is not None and self.found >= wanted,
            stop.hits is not None and self.hits >= stop.hits,
            stop.relative_l1 is not None and self._relative_l1() <= stop.relative_l1,
        )
        said = self.found == self.alive and (wanted is not None or stop == Stop())
        self._complete = any(met) or stop == Stop()
        return any(met) or said or self._ended

    def _next(self) -> Level | None:
        """Open the next level, or end the code."""
        threshold = self.ledger.open()
        if threshold is None:
            self._ended = True
            return None
        parts = []
        peak = 0.0
        for start in range(0, len(self.values), _CHUNK):
            residual = self._magnitudes[start : start + _CHUNK] - self.values[start : start + _CHUNK]
            parts.append(start + np.flatnonzero(residual > threshold))
            peak = max(peak, float(residual.max()))
        if peak <= self._floor:
            self._ended = True
            return None
        where = np.concatenate(parts)
        magnitudes, values = self._magnitudes[where].astype(np.float64), self.values[where]
        times = np.minimum(np.ceil((magnitudes - values) / threshold) - 1.0, self.ledger.most)
        times -= values + times * threshold > magnitudes  # rounding must not lift a value above its weight
        hit = times > 0.0
        where, times, values = where[hit], times[hit], values[hit]
        hits = int(times.sum())
        return Level(threshold, where, times, values == 0.0, hits, hits, ordered=self._scanned)

    def _limited(self, level: Level, stop: Stop) -> Level:
        """Return the level with ``done`` at the first condition that it meets."""
        done: float = level.hits
        if stop.hits is not None:
            done = min(done, stop.hits - self.hits)
        if stop.relative_l1 is not None:
            done = min(done, self.ledger.hits_for(stop.relative_l1))
        wanted = stop.support(len(self.values))
        need = len(self.values) + 1 if wanted is None else wanted - self.found
        short = int(np.count_nonzero(level.fresh)) >= need
        if short or done < level.hits:
            level = self._ordered(level)
            if short:
                done = min(done, int(np.searchsorted(np.cumsum(level.fresh), need)) + 1)
        return replace(level, done=int(done))

    def _ordered(self, level: Level) -> Level:
        """Return the level with its arrays in scan order."""
        if level.ordered:
            return level
        order = np.argsort(scan_words(level.where, len(self.values), self._law.seed), kind="stable")
        where, times, fresh = level.where[order], level.times[order], level.fresh[order]
        return replace(level, where=where, times=times, fresh=fresh, ordered=True)

    def _absorb(self, level: Level) -> None:
        self.values[level.where] += level.times * level.threshold
        self.hits += level.hits
        self.found += level.found
        self.ledger.close(level.hits)
        if level.hits:
            self._thresholds.append(level.threshold)
        self._open = None


def refine(magnitudes: np.ndarray, stop: Stop, law: Law, *, masked: bool = False) -> Refinement:
    """Run the code from its begin to ``stop``, exactly, or until nothing is left to refine.

    Args:
        magnitudes: non-negative finite [n]; zeros are never hit.
        stop: non-zeros or sparsity, hits, relative L1; the last level stops in mid-scan to meet it.
        law: the controls.
        masked: thresholds follow the mean over the non-zero magnitudes.

    Raises:
        CodecError: A magnitude is NaN, infinite or negative.
        OptionError: ``stop`` names coded bytes.
    """
    refiner = Refiner(magnitudes, law, masked=masked)
    refiner.advance(stop)
    return refiner.state()
