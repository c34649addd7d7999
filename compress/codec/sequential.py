"""SuRP's law one hit at a time, as published: the threshold decays after every hit (Isik, Weissman, No, 2022).

Costs O((n + hits) log n): what exceeds the threshold is a set to pick from, everything else waits in order of size.
The threshold only falls between two refreshes, and a refresh needs an empty set, so the set is never gone through.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np

from onnxprune.codec.law import Law, Stop, checked, kappa

_SMALLEST_ALPHA = 1e-6
_EXHAUSTED = 1e-12
_RESUM = 1 << 16


@dataclass(frozen=True)
class Sequence:
    """What the hits announced.

    ``values`` [n] with 0 <= values <= magnitudes; ``announced`` [hits]: coordinates in turn; ``thresholds`` [hits]:
    what each hit added; ``index_bits``: estimate of the announcements' cost, h(p) / p with p the share above the
    threshold; signs cost one bit per non-zero more. ``refreshes`` of the threshold; ``complete``: a wanted condition
    was met, or none was given; ``relative_l1``: the error over the sum of magnitudes.
    """

    values: np.ndarray
    announced: np.ndarray
    thresholds: np.ndarray
    index_bits: float
    refreshes: int
    complete: bool
    relative_l1: float

    @property
    def hits(self) -> int:
        """How many announcements there were."""
        return len(self.announced)


def announce(magnitudes: np.ndarray, stop: Stop, law: Law, *, masked: bool = False, paper: bool = False) -> Sequence:
    """Announce coordinates one by one until ``stop`` or until nothing is left to refine.

    Args:
        magnitudes: non-negative finite [n]; zeros are never hit.
        stop: non-zeros or sparsity, hits, relative L1, bits (estimated, signs included).
        law: the controls; ``seed`` fixes which of the coordinates above the threshold is picked.
        masked: the iterative form: n and the mean are of the non-zero magnitudes only.
        paper: decay by (n - kappa) / n after a hit, as the paper says, instead of the released code's (n - 1) / n.

    Raises:
        CodecError: A magnitude is NaN, infinite or negative.
        OptionError: ``stop`` names bytes or a fraction, which need a coded body.
    """
    stop.refuse("the sequential law", "bytes", "fraction")
    run = _Run(magnitudes, stop, law, masked, paper)
    complete = run.go()
    return Sequence(
        run.values(),
        np.array(run.announced, dtype=np.int64),
        np.array(run.thresholds),
        run.index_bits,
        run.refreshes,
        complete,
        run.remaining / run.total if run.total else 0.0,
    )


class _Run:
    def __init__(self, magnitudes: np.ndarray, stop: Stop, law: Law, masked: bool, paper: bool) -> None:
        self.total = self.remaining = checked(magnitudes)
        self._stop, self._law = stop, law
        self._magnitudes = magnitudes.astype(np.float64)
        alive = int(np.count_nonzero(magnitudes))
        self._n = alive if masked else len(magnitudes)
        self._alpha = kappa(self._n) if law.alpha is None else law.alpha
        self._step = 1.0 - (kappa(self._n) if paper else 1.0) / max(self._n, 1)
        self._smallest = _SMALLEST_ALPHA * min(1.0, self._alpha)
        self._floor = _EXHAUSTED * float(self._magnitudes.max(initial=0.0))
        self._wanted = stop.support(len(magnitudes))
        self._alive = alive
        # Never hit, largest first; hit before, as a heap of (-residual, coordinate); above the threshold.
        order = np.argsort(-self._magnitudes, kind="stable")[:alive]
        self._order, self._sizes, self._next = order.tolist(), self._magnitudes[order].tolist(), 0
        self._waiting: list[tuple[float, int]] = []
        self._active: list[int] = []
        self._residual: list[float] = []
        self._touched = bytearray(len(magnitudes))
        self._found = 0
        self.announced: list[int] = []
        self.thresholds: list[float] = []
        self.index_bits = 0.0
        self.refreshes = 0

    def go(self) -> bool:
        """Run; return whether a wanted condition was met or none was given."""
        if not self._n or self._met():
            return self._n == 0 or self._met()
        rng = np.random.Generator(np.random.Philox(key=self._law.seed))
        threshold = self._alpha * self.remaining / self._n
        while not self._met():
            if self._full():
                return self._stop == Stop()
            self._gather(threshold)
            if not self._active:
                refreshed = self._refresh()
                if refreshed is None:
                    return self._stop == Stop()
                threshold = refreshed
                continue
            threshold = self._spend(threshold, rng.random(min(4096, max(64, len(self._active)))).tolist())
        return True

    def _met(self) -> bool:
        stop = self._stop
        return (
            (self._wanted is not None and self._found >= self._wanted)
            or (stop.hits is not None and len(self.announced) >= stop.hits)
            or (stop.relative_l1 is not None and self.remaining <= stop.relative_l1 * self.total)
            or (stop.bits is not None and self.index_bits + self._found >= stop.bits)
        )

    def _full(self) -> bool:
        """Say whether all there is to find is found, where that is what the stop asks for."""
        return self._found == self._alive and (self._wanted is not None or self._stop == Stop())

    def _gather(self, threshold: float) -> None:
        """Move what exceeds the threshold to the set."""
        while self._next < len(self._sizes) and self._sizes[self._next] > threshold:
            self._active.append(self._order[self._next])
            self._residual.append(self._sizes[self._next])
            self._next += 1
        while self._waiting and -self._waiting[0][0] > threshold:
            size, where = heapq.heappop(self._waiting)
            self._active.append(where)
            self._residual.append(-size)

    def _refresh(self) -> float | None:
        """Return the threshold for the mean as it is now, None when nothing is left to refine."""
        largest = max(
            self._sizes[self._next] if self._next < len(self._sizes) else 0.0,
            -self._waiting[0][0] if self._waiting else 0.0,
        )
        self.refreshes += 1
        if self.refreshes % self._law.patience == 0:
            self._alpha *= self._law.decay
        if largest <= self._floor or self._alpha <= self._smallest or self.remaining <= 0.0:
            return None
        return self._alpha * self.remaining / self._n

    def _spend(self, threshold: float, draws: list[float]) -> float:
        """Use up ``draws``, one per hit, or fewer where the set runs empty or the stop is met."""
        active, residual = self._active, self._residual
        for draw in draws:
            share = len(active) / self._n
            pick = int(draw * len(active))
            where, left = active[pick], residual[pick] - threshold
            self.announced.append(where)
            self.thresholds.append(threshold)
            self.index_bits += _gap_bits(share)
            if not self._touched[where]:
                self._touched[where] = 1
                self._found += 1
            self.remaining -= threshold
            threshold *= self._step
            if left > threshold:
                residual[pick] = left
            else:
                active[pick], residual[pick] = active[-1], residual[-1]
                active.pop()
                residual.pop()
                heapq.heappush(self._waiting, (-left, where))
            if len(self.announced) % _RESUM == 0:
                self.remaining = float((self._magnitudes - self.values()).sum())
            self._gather(threshold)
            if not active or self._met() or self._full():
                break
        return threshold

    def values(self) -> np.ndarray:
        """Return what the hits so far add up to, float64 [n]."""
        left = self._magnitudes.copy()
        left[self._active] = self._residual
        if self._waiting:
            sizes, where = zip(*self._waiting, strict=True)
            left[list(where)] = -np.array(sizes)
        return self._magnitudes - left


def _gap_bits(share: float) -> float:
    """Return the entropy per hit, in bits, of gaps where ``share`` of the coordinates are candidates."""
    if share >= 1.0:
        return 0.0
    return -math.log2(share) - (1.0 - share) / share * math.log2(1.0 - share)
