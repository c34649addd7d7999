"""The search of passes without a size: the smallest model whose decisions hold on the choosing examples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import onnx_ir as ir

from onnxprune import recipe
from onnxprune.api.opening import task
from onnxprune.api.options import Gates, Options
from onnxprune.budget import Target, check_share, size_gate
from onnxprune.contract import Context, Pass, Progress, Searcher, StepResult, silent
from onnxprune.data import Split
from onnxprune.evaluate.evidence import Evidence
from onnxprune.evaluate.intervals import examples_needed, lower_bound, most_flips
from onnxprune.evaluate.streaming import Decided, count_kept, decide_all
from onnxprune.pipeline import applied
from onnxprune.runtime.operators import unknown_operators
from onnxprune.runtime.session import Settings

AGREEMENT: Final = 0.99
"""What a search holds where the caller asks for no agreement."""

_STEPS = 100


@dataclass(frozen=True)
class Limit:
    """What one pass must hold: an agreement, as the most flips that the choosing examples may show.

    ``proven``: so many flips prove the agreement; where even none would not, they are its share of the examples.
    """

    agreement: float
    flips: int
    proven: bool


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


@dataclass(eq=False)
class Search:
    """Puts a pass with a size in the place of one without, as the pipeline comes to it.

    ``progress`` shows what the pipeline does, but nothing while sizes are tried: one bar counts those.
    """

    settings: Settings
    confidence: float
    shown: Progress | None = None
    decided: Decided | None = None
    limits: list[Limit] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    _trying: bool = False

    def progress(self, description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Show a task, unless it is part of a trial."""
        return (silent if self._trying or self.shown is None else self.shown)(description, total)

    def treat(self, item: Pass, model: ir.Model, context: Context) -> tuple[Pass, StepResult]:
        """Return the pass with the size that was found, and what it did; other passes are applied as they are."""
        if self.decided is None or not (isinstance(item, Searcher) and recipe.bare(item)):
            return applied(item, model, context)
        limit = self.limits.pop(0)
        foreign = unknown_operators(model)
        if foreign:
            result = item.apply(model, context)
            why = f"ONNX Runtime cannot run the model that it gets (no operator {', '.join(foreign)})"
            return item, replace(result, warnings=(*result.warnings, *_fixed([item], why)))
        name = cast("Any", item).default_size[0]
        trials = _Trials(name, item.prepared(model, context), self.decided, limit, self.settings, self.confidence)
        with self._bar(f"{item.name}: searching") as advance:
            size, result = trials.smallest(advance)
        numbers = {**result.numbers, "wanted_agreement": limit.agreement, "search": trials.record}
        # The size is an outcome: nobody asked for it, so that no gate judges it.
        result = replace(result, numbers=numbers, reached={}, warnings=(*result.warnings, *trials.remarks(item.name)))
        return recipe.sized(item, size), result

    def shortfall(self, gates: Gates, evidence: Evidence) -> tuple[str, ...]:
        """Return a warning where the evaluation examples do not bear out what was searched for, and no gate says so."""
        found = evidence.agreement
        if self.decided is None or found is None or gates.min_agreement is not None:
            return ()
        low = lower_bound(found.flips.kept, found.examples, self.confidence)
        if low >= AGREEMENT:
            return ()
        return (
            f"sizes were searched for an agreement of {AGREEMENT:g} on {self.decided.examples.count} examples; "
            f"the evaluation examples prove only {math.floor(low * 10_000) / 10_000:.4f}: "
            f"--min-agreement {AGREEMENT:g} would refuse this model",
        )

    @contextlib.contextmanager
    def _bar(self, description: str) -> Iterator[Callable[[int], None]]:
        with self.progress(description, math.ceil(math.log2(_STEPS))) as advance:
            self._trying = True
            try:
                yield advance
            finally:
                self._trying = False


@dataclass(eq=False)
class _Trials:
    """The trials of one pass, by bisection over sizes from the mildest, which changes nothing, to the smallest."""

    name: str
    attempt: Callable[[float], StepResult]
    decided: Decided
    limit: Limit
    settings: Settings
    confidence: float
    record: list[dict[str, Any]] = field(default_factory=list)

    def smallest(self, advance: Callable[[int], None]) -> tuple[float, StepResult]:
        """Return the smallest size that holds and what it gives, or the mildest size where none does.

        Agreement need not fall evenly with the size: what is returned holds, and the next size that was tried fails.
        """
        sizes = [(step if self.name == "sparsity" else _STEPS - step) / _STEPS for step in range(_STEPS)]
        low, high = 0, len(sizes)
        best: tuple[float, StepResult] | None = None
        while high - low > 1:
            place = (low + high) // 2
            result = self.attempt(sizes[place])
            reachable = self._reachable(sizes[: place + 1], result)
            if reachable < place:
                high = max(low, reachable) + 1
            elif self._holds(sizes[place], result):
                low, best = place, (sizes[place], result)
            else:
                high = place
            advance(1)
        if best is None:
            best = sizes[0], self.attempt(sizes[0])
            self._holds(*best)
        return best

    def _reachable(self, sizes: Sequence[float], result: StepResult) -> int:
        """Return the place of the smallest size that was reached when the last one was asked for."""
        if self.name not in result.reached:
            return len(sizes) - 1
        got = result.reached[self.name][1]
        return max((p for p, size in enumerate(sizes) if size_gate(Target(self.name, size), got).met), default=0)

    def _holds(self, size: float, result: StepResult) -> bool:
        count = self.decided.examples.count
        kept = count_kept(self.decided, result.model, self.settings)
        met = count - kept <= self.limit.flips
        low = lower_bound(kept, count, self.confidence)
        self.record.append({"size": size, "agreement": kept / count, "low": low, "met": met})
        return met

    def remarks(self, pass_name: str) -> tuple[str, ...]:
        """Return what must be said of the outcome beside the record."""
        mildest = self.record[-1]
        if mildest["size"] not in (0.0, 1.0):
            return ()
        if mildest["met"]:
            return (f"{pass_name}: no size below the whole keeps {_asked(self.limit)}; it cut nothing",)
        return (
            f"{pass_name}: the search found no size that keeps {_asked(self.limit)} on the "
            f"{self.decided.examples.count} choosing examples: the mildest, {self.name}={mildest['size']:g}, was taken",
        )


def open_search(
    items: Sequence[Pass],
    original: ir.Model,
    split: Split,
    settings: Settings,
    options: Options,
    gates: Gates,
    *,
    targeted: bool,
) -> Search:
    """Return the search for a run, ready for its passes; where there is nothing to search, it applies them as given.

    Args:
        items: the passes of the run.
        original: the source model, whose decisions are to be kept.
        split: the data; the choosing examples decide.
        settings: where to run.
        options: confidence and progress.
        gates: ``min_agreement`` is what the search holds.
        targeted: a target was given: it decides the sizes, and there is no search.

    Raises:
        OptionError: ``min_agreement`` is not in [0, 1].
        ModelError, BackendError: The original cannot be judged or run.
    """
    search = Search(settings, options.confidence, options.progress)
    bare = [] if targeted else [item for item in items if recipe.bare(item)]
    if not bare:
        return search
    wanted = AGREEMENT if gates.min_agreement is None else gates.min_agreement
    check_share("min-agreement", wanted, example=AGREEMENT)
    able = [item for item in bare if isinstance(item, Searcher)]
    search.warnings = _fixed([item for item in bare if item not in able], "it cannot be tried at many sizes")
    why = _obstacle(split)
    if able and why is None and split.choosing is not None:
        with task(options, "the original's decisions", split.choosing.count) as advance:
            search.decided = decide_all(original, split.choosing, settings, advance=advance)
        why = None if search.decided else "no output of the model holds class scores to decide by"
    if why is not None:
        search.warnings += _fixed(able, why)
    elif able and search.decided is not None:
        count = search.decided.examples.count
        search.limits = limits(wanted, len(able), count, options.confidence)
        search.warnings += _unproven(search.limits, able, count, options.confidence)
    return search


def _obstacle(split: Split) -> str | None:
    """Return why there is nothing to choose by, if so."""
    calibration, evaluation = split.calibration, split.evaluation
    if split.choosing is not None and not split.choosing.synthetic:
        return None
    if calibration is None or calibration.synthetic:
        return "random numbers show no decisions to keep; give --calib or --data"
    if evaluation is not None and evaluation.source == calibration.source:
        return (
            f"calibration and evaluation leave no examples of {calibration.source} to choose by; "
            "leave some with --eval-examples, or give --calib and --eval"
        )
    return (
        f"calibration takes all {calibration.count} examples of {calibration.source} and leaves none to choose by; "
        "take fewer with --calib-examples"
    )


def _fixed(items: Sequence[Pass], why: str) -> tuple[str, ...]:
    """Return a warning that passes use their default sizes."""
    if not items:
        return ()
    used = " and ".join(f"{item.name} {'{}={:g}'.format(*cast('Any', item).default_size)}" for item in items)
    return (f"no size was searched for, fixed ones are used ({used}): {why}",)


def _unproven(found: Sequence[Limit], items: Sequence[Pass], count: int, confidence: float) -> tuple[str, ...]:
    """Return a warning about limits that the choosing examples are too few to prove."""
    open_ones = [(limit, item.name) for limit, item in zip(found, items, strict=True) if not limit.proven]
    if not open_ones:
        return ()
    highest = max(limit.agreement for limit, _ in open_ones)
    needed = examples_needed(highest, confidence)
    more = "no number of examples can" if needed is None else f"at least {needed} would"
    names = ", ".join(dict.fromkeys(name for _, name in open_ones))
    return (
        f"{count} choosing examples cannot prove an agreement of {highest:g} even for an identical model ({more}): "
        f"the search for {names} went by the observed agreement",
    )


def _asked(limit: Limit) -> str:
    return f"{'a proven' if limit.proven else 'an observed'} agreement of {limit.agreement:g}"
