"""The search of passes without a size: the smallest model whose decisions hold on the choosing examples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import onnx_ir as ir

from onnxprune import recipe
from onnxprune.api.opening import output_kinds, task
from onnxprune.api.options import Gates, Options
from onnxprune.api.trials import MOST_TRIALS, Limit, Trials, limits
from onnxprune.budget import below, check_share
from onnxprune.contract import Context, Pass, Progress, Searcher, StepResult, silent
from onnxprune.data import Split
from onnxprune.evaluate.evidence import Evidence
from onnxprune.evaluate.intervals import examples_needed, lower_bound
from onnxprune.evaluate.streaming import Decided, decide_all
from onnxprune.pipeline import applied
from onnxprune.runtime.operators import unknown_operators
from onnxprune.runtime.session import Settings

AGREEMENT: Final = 0.99
"""What a search holds where the caller asks for no agreement."""

LOOKS: Final = ((1.0, 1.0), (0.75, 0.1), (0.5, 0.1), (0.25, 0.1))
"""Every look at the evaluation examples: its share of the flips allowed, and of the risk of 1 - confidence.

Fixed beforehand, so that all looks together mislead with a probability of at most 1.3 times that risk (union bound).
"""


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
    found: list[str] = field(default_factory=list)
    _look: int = 0
    _first: Trials | None = None
    _trying: bool = False

    @property
    def risk_confidence(self) -> float:
        """The confidence of the present look."""
        return 1 - (1 - self.confidence) * LOOKS[self._look][1]

    def begin(self, look: int) -> None:
        """Search anew, with the share of the flips that this look allows."""
        self._look = look
        self.found.clear()

    def progress(self, description: str, total: int | None) -> AbstractContextManager[Callable[[int], None]]:
        """Show a task, unless it is part of a trial."""
        return (silent if self._trying or self.shown is None else self.shown)(description, total)

    def treat(self, item: Pass, model: ir.Model, context: Context) -> tuple[Pass, StepResult]:
        """Return the pass with the size that was found, and what it did; other passes are applied as they are."""
        if self.decided is None or not (isinstance(item, Searcher) and recipe.bare(item)):
            return applied(item, model, context)
        place = len(self.found)
        limit = self.limits[place].stricter(LOOKS[self._look][0])
        self.found.append(item.name)
        foreign = unknown_operators(model)
        if foreign:
            result = item.apply(model, context)
            why = f"ONNX Runtime cannot run the model that it gets (no operator {', '.join(foreign)})"
            return item, replace(result, warnings=(*result.warnings, *_fixed([item], why)))
        # Nothing before the first one depends on a size that was found: what it was tried with holds for every look.
        trials = self._first if place == 0 else None
        if trials is None:
            name = cast("Any", item).default_size[0]
            made = item.prepared(model, context)
            trials = Trials(
                name, lambda size: made(recipe.sized(item, size)), self.decided, self.settings, self.confidence
            )
        if place == 0:
            self._first = trials
        with self._bar(f"{item.name}: searching") as advance:
            size, result = trials.smallest(limit, advance)
        self.found[place] = f"{item.name} {trials.name}={size:g}"
        numbers = {**result.numbers, "wanted_agreement": limit.agreement, "search": list(trials.record)}
        # The size is an outcome: nobody asked for it, so that no gate judges it.
        result = replace(
            result, numbers=numbers, reached={}, warnings=(*result.warnings, *trials.remarks(limit, item.name))
        )
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
            f"the evaluation examples prove only {below(low)}: "
            f"--min-agreement {AGREEMENT:g} would refuse this model",
        )

    def another(self, gates: Gates, evidence: Evidence) -> str | None:
        """Return why a milder model should be searched for and judged, if so: the evaluation did not bear this one out.

        Not where no model could pass, or where nothing milder is left to find.
        """
        agreement, wanted = evidence.agreement, gates.min_agreement
        if self.decided is None or agreement is None or wanted is None or self._look + 1 >= len(LOOKS):
            return None
        low = lower_bound(agreement.flips.kept, agreement.examples, self.risk_confidence)
        share, risk = LOOKS[self._look + 1]
        needed = examples_needed(wanted, 1 - (1 - self.confidence) * risk)
        now = LOOKS[self._look][0]
        milder = any(limit.stricter(share).flips < limit.stricter(now).flips for limit in self.limits)
        if low >= wanted or needed is None or needed > agreement.examples or not milder:
            return None
        return (
            f"what was found ({', '.join(self.found)}) held on the {self.decided.examples.count} choosing "
            f"examples, but the evaluation examples prove only {below(low)} of the {wanted:g} asked for: a milder "
            f"model, with {share:g} times the changed decisions allowed in the search, was judged in its place, at a "
            f"confidence of {1 - (1 - self.confidence) * risk:g}"
        )

    @contextlib.contextmanager
    def _bar(self, description: str) -> Iterator[Callable[[int], None]]:
        with self.progress(description, MOST_TRIALS) as advance:
            self._trying = True
            try:
                yield advance
            finally:
                self._trying = False


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
            kinds = output_kinds(original, options)
            search.decided = decide_all(original, split.choosing, settings, kinds=kinds, advance=advance)
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


def searches(items: Sequence[Pass], *, targeted: bool) -> bool:
    """Return whether any of the passes would be searched for, given examples to choose by."""
    return not targeted and any(recipe.bare(item) and isinstance(item, Searcher) for item in items)
