"""The trials of one pass: by bisection, the smallest size whose decisions hold on the choosing examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxprune.budget import Target, size_gate
from onnxprune.contract import StepResult
from onnxprune.evaluate.intervals import lower_bound, most_flips
from onnxprune.evaluate.streaming import Decided, count_kept
from onnxprune.runtime.session import Settings

_STEPS = 100
MOST_TRIALS = math.ceil(math.log2(_STEPS))
"""Sizes that one bisection tries at most."""


@dataclass(frozen=True)
class Limit:
    """What one pass must hold: an agreement, as the most flips that the choosing examples may show.

    ``proven``: so many flips prove the agreement; where even none would not, they are its share of the examples.
    """

    agreement: float
    flips: int
    proven: bool

    def stricter(self, share: float) -> Limit:
        """Return the limit with this share of the flips."""
        return replace(self, flips=math.floor(self.flips * share + 1e-9))


def limits(agreement: float, passes: int, examples: int, confidence: float) -> list[Limit]:
    """Return what each of several passes must hold: the i-th of m may have lost i / m of the loss allowed.

    No pass may flip more than the next one, or its own size would leave that one without any.
    """
    found: list[Limit] = []
    for place in range(passes, 0, -1):
        wanted = agreement if place == passes else 1 - (1 - agreement) * place / passes
        flips = most_flips(examples, wanted, confidence)
        proven = flips is not None
        if flips is None:
            flips = math.floor((1 - wanted) * examples + 1e-9)
        found.append(Limit(wanted, min(flips, found[-1].flips) if found else flips, proven))
    return found[::-1]


@dataclass(frozen=True)
class _Trial:
    """What was seen of one size: decisions kept, and the place of the smallest size that was reached."""

    kept: int
    reachable: int


@dataclass(eq=False)
class Trials:
    """The trials of one pass, by bisection over sizes from the mildest, which changes nothing, to the smallest.

    A size that was tried under another limit is not tried again. ``record`` lists the last bisection.
    """

    name: str
    attempt: Callable[[float], StepResult]
    decided: Decided
    settings: Settings
    confidence: float
    record: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[int, _Trial] = field(default_factory=dict)
    _best: tuple[int, StepResult] | None = None
    _last: tuple[int, StepResult] | None = None

    def smallest(self, limit: Limit, advance: Callable[[int], None]) -> tuple[float, StepResult]:
        """Return the smallest size that holds and what it gives, or the mildest size where none does.

        Agreement need not fall evenly with the size: what is returned holds, and the next size that was tried fails.
        """
        self.record.clear()
        sizes = [(step if self.name == "sparsity" else _STEPS - step) / _STEPS for step in range(_STEPS)]
        low, high = 0, len(sizes)
        seen = False
        while high - low > 1:
            place = (low + high) // 2
            trial = self._tried(sizes, place)
            if trial.reachable < place:
                high = max(low, trial.reachable) + 1
            elif self._holds(sizes[place], trial, limit):
                low, seen = place, True
                self._best = place, self._result(sizes, place)
            else:
                high = place
            advance(1)
        if not seen:
            self._holds(sizes[0], self._tried(sizes, 0), limit)
        return sizes[low], self._result(sizes, low)

    def remarks(self, limit: Limit, pass_name: str) -> tuple[str, ...]:
        """Return what must be said of the outcome beside the record."""
        mildest = self.record[-1]
        if mildest["size"] not in (0.0, 1.0):
            return ()
        asked = f"{'a proven' if limit.proven else 'an observed'} agreement of {limit.agreement:g}"
        if mildest["met"]:
            return (f"{pass_name}: no size below the whole keeps {asked}; it cut nothing",)
        return (
            f"{pass_name}: the search found no size that keeps {asked} on the "
            f"{self.decided.examples.count} choosing examples: the mildest, {self.name}={mildest['size']:g}, was taken",
        )

    def _tried(self, sizes: Sequence[float], place: int) -> _Trial:
        if place not in self._known:
            result = self._result(sizes, place)
            reachable = self._reachable(sizes[: place + 1], result)
            kept = count_kept(self.decided, result.model, self.settings) if reachable >= place else 0
            self._known[place] = _Trial(kept, reachable)
        return self._known[place]

    def _result(self, sizes: Sequence[float], place: int) -> StepResult:
        """Return what a size gives; the last one made and the last one that held are at hand."""
        for found in (self._last, self._best):
            if found is not None and found[0] == place:
                return found[1]
        self._last = place, self.attempt(sizes[place])
        return self._last[1]

    def _reachable(self, sizes: Sequence[float], result: StepResult) -> int:
        """Return the place of the smallest size that was reached when the last one was asked for."""
        if self.name not in result.reached:
            return len(sizes) - 1
        got = result.reached[self.name][1]
        return max((p for p, size in enumerate(sizes) if size_gate(Target(self.name, size), got).met), default=0)

    def _holds(self, size: float, trial: _Trial, limit: Limit) -> bool:
        count = self.decided.examples.count
        met = count - trial.kept <= limit.flips
        low = lower_bound(trial.kept, count, self.confidence)
        self.record.append({"size": size, "agreement": trial.kept / count, "low": low, "met": met})
        return met
