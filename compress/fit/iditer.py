"""Widths chosen step by step: interpolative decomposition where it costs least per MAC (Chee et al., 2022, iditer)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Tap
from onnxprune.errors import OptionError
from onnxprune.evaluate.kinds import output_kind
from onnxprune.evaluate.scores import Rows, decide
from onnxprune.fit.narrowing import READERS, SCORES, Candidate, Narrowing
from onnxprune.graph.cost import measure
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.graph.tally import Tally, Widths
from onnxprune.runtime.session import batch_for, open_session

REFRESH = ("exact", "lazy", "none")
CURRENCIES = ("macs", "params", "bytes")
# A last cut may pass the limit by this much; beyond it the space keeps as many channels as the limit allows.
_SLACK = 0.02

Stop = Callable[[Widths], bool]
Price = Callable[[Widths], float]
Limit = Stop | tuple[str, float] | float


@dataclass(frozen=True)
class Step:
    """One cut: ``number`` from 1, the space's name, how many channels it ``kept``, and the model afterwards.

    ``error`` is relative (see :class:`Trail`), ``score`` is error per MAC saved; ``macs`` and ``params`` are the whole
    model's; ``agreement`` is the share of calibration examples with the original's decisions, where it was taken.
    """

    number: int
    space: str
    kept: int
    error: float
    score: float
    macs: int
    params: int
    agreement: float | None = None


class Trail:
    """Narrow one space at a time, the one with the least error per MAC saved, to a limit and on to smaller ones.

    Every step proposes ``max(1, floor(step * width))`` channels for every space, scores the proposal on the
    activations of the present model and carries out the best one: the first k pivots stay and the others are
    folded into the consumers. Three things differ from the published rule (Chee et al., 2022): MACs saved are
    exact, not a tenth of two layers'; a space keeps one channel at least; and where the last cut would pass the
    limit by more than 2 % (always, where ``limit`` is a function), its space keeps the most channels that reach
    the limit, since the rule as published overshoots.

    Args:
        model: a prepared model; weights of its consumers are rewritten in place, those that read dropped channels
            become zero. Nothing is cut: hand the channels returned to ``surgery.cut``.
        analysis: of this very model.
        spaces: those that may be cut; all of their consumers must be foldable.
        tally: costs of ``analysis`` by widths.
        context: ``statistics`` are used where they hold what is needed, ``collect`` gives the rest.
        step: fraction of its channels that a space keeps in one step, above 0 and below 1.
        refresh: ``exact`` takes statistics anew behind every cut, ``lazy`` every ``lazy_every`` steps, ``none``
            never.
        lazy_every: steps between two runs of the data under ``lazy``.
        log_interval: agreement is taken after every so many steps, and at the end; 0 for the end alone.
        max_steps: the most steps to take.
        score: ``diagonal`` |r_kk| / |r_00|, ``frobenius`` ||R22||_F / ||R||_F, ``spectral`` sigma_k+1 / sigma_1.
        readers: how the error of a space with several consumers counts, of which the paper has none: ``once``, or
            once in ``each`` of them, as the MACs saved do (residual streams are then cut later).
        preserve_zeros: weights that are zero stay zero.
        original: decisions to compare with (:func:`decisions`); by default those of ``context.original``.

    Raises:
        OptionError: An option is out of range.
        DataError: There are no calibration data, or a tensor holds NaN or infinity.
    """

    def __init__(
        self,
        model: ir.Model,
        analysis: Analysis,
        spaces: Sequence[ChannelSpace],
        tally: Tally,
        context: Context,
        *,
        step: float,
        refresh: str = "exact",
        lazy_every: int = 10,
        log_interval: int = 10,
        max_steps: int | None = None,
        score: str = "diagonal",
        readers: str = "once",
        preserve_zeros: bool = True,
        original: Rows | None = None,
    ) -> None:
        _check(step, refresh, lazy_every, score, readers)
        assert model is analysis.model
        self.model, self.analysis, self.spaces, self.tally = model, analysis, tuple(spaces), tally
        self._step, self._refresh, self._lazy_every, self._log_interval = step, refresh, lazy_every, log_interval
        self._max_steps = max_steps
        self._work = Narrowing(
            analysis, spaces, tally, context, score=score, readers=readers, preserve_zeros=preserve_zeros
        )
        self._log = _Agreement(model, context, original)
        self._params = measure(model).params
        self._steps: list[Step] = []
        self._stale: set[Tap] = set()
        # Widths before the last cut; how to take back a cut that a limit has made smaller than the rule would.
        self._earlier: Widths | None = None
        self._back: Callable[[], None] | None = None

    def past(self, limit: Limit, cost: Price | None = None) -> bool:
        """Return whether the limit lies before what has been cut already: it then takes a trail of its own."""
        return self._earlier is not None and _Goal(limit, cost, self.tally, self.model).reached(self._earlier)

    def to(self, limit: Limit, cost: Price | None = None) -> tuple[dict[str, np.ndarray], list[Step]]:
        """Cut until the limit is reached, which must not be ``past``; the model stays so until the next call.

        Args:
            limit: the most that the whole model may cost, in a currency (macs, params or bytes) that comes with it or
                else by ``cost``; or a function of the widths that says when to stop, and still does when a width falls.
            cost: what the model costs at given widths (of ``spaces`` only; the others have their own), for a ``limit``
                without currency; by default its MACs.

        Returns:
            The kept channels, ascending, of every space that was narrowed, and the steps. Where the limit was not
            reached every space that can be narrowed has one channel left, or ``max_steps`` were taken.

        Raises:
            OptionError: The limit is in an unknown currency.
            DataError: There are no calibration data, or a tensor holds NaN or infinity.
        """
        goal, work = _Goal(limit, cost, self.tally, self.model), self._work
        if self._back is not None:
            self._back()
            self._back = None
            self._steps.pop()
        while not goal.reached(work.widths) and self._back is None and not self._spent():
            if self._stale and self._due():
                work.collect(self._stale)
                self._stale.clear()
            best = work.best(self._step)
            if best is None:
                break
            self._cut(best, goal.least_cut(work.widths, best.space.name, best.kept))
        steps = list(self._steps)
        if steps and steps[-1].agreement is None:
            steps[-1] = replace(steps[-1], agreement=self._log.take())
        return {s.name: work.kept[s.name] for s in self.spaces if len(work.kept[s.name]) < s.width}, steps

    def _spent(self) -> bool:
        return self._max_steps is not None and len(self._steps) >= self._max_steps

    def _due(self) -> bool:
        exact, lazy = self._refresh == "exact", self._refresh == "lazy"
        return exact or (lazy and len(self._steps) % self._lazy_every == 0)

    def _cut(self, best: Candidate, kept: int) -> None:
        work = self._work
        if kept == best.kept:
            self._earlier = work.widths
        else:
            self._back = work.mark(best.space)
        best = work.resized(best, kept)
        work.cut(best)
        if self._back is None:
            self._stale |= work.behind(best.space)
        number, widths = len(self._steps) + 1, work.widths
        agreement = self._log.take() if self._log_interval > 0 and number % self._log_interval == 0 else None
        macs, left = self.tally.macs(widths), self._params + self.tally.params(widths)
        self._steps.append(Step(number, best.space.name, best.kept, best.error, best.score, macs, left, agreement))


def decisions(model: ir.Model, context: Context) -> Rows | None:
    """Return the decisions [n] on the calibration examples by the first output of class scores; None without one."""
    if context.examples is None:
        return None
    found: list[Rows] = []
    judged: str | None = None
    with open_session(model, context.settings) as session:
        for batch in context.examples.batches(batch_for(session, context.settings)):
            outputs = session.run(batch.arrays, None if judged is None else [judged])
            if judged is None:
                kinds = {name: output_kind(array, len(batch.rows)) for name, array in outputs.items()}
                judged = next((name for name, kind in kinds.items() if kind == "class scores"), None)
            if judged is None:
                return None
            found.append(decide(outputs[judged].astype(np.float64)))
    return np.concatenate(found)


def _check(step: float, refresh: str, lazy_every: int, score: str, readers: str) -> None:
    if not 0.0 < step < 1.0:
        raise OptionError(f"iditer: step={step:g} is not accepted; give a number in (0, 1)")
    if refresh not in REFRESH:
        raise OptionError(f"iditer: refresh={refresh} is not accepted; give {' or '.join(REFRESH)}")
    if lazy_every < 1:
        raise OptionError(f"iditer: lazy_every={lazy_every} is not accepted; give a whole number in [1, inf)")
    if score not in SCORES:
        raise OptionError(f"iditer: score={score} is not accepted; give {' or '.join(SCORES)}")
    if readers not in READERS:
        raise OptionError(f"iditer: readers={readers} is not accepted; give {' or '.join(READERS)}")


class _Goal:
    """When to stop, and how far the last cut goes."""

    def __init__(self, limit: Limit, cost: Price | None, tally: Tally, model: ir.Model) -> None:
        self._stop: Stop | None = limit if callable(limit) else None
        self._cost, self._most = cost or tally.macs, 0.0
        if isinstance(limit, tuple):
            if limit[0] not in CURRENCIES:
                raise OptionError(f"iditer: a limit in {limit[0]} is not accepted; give {' or '.join(CURRENCIES)}")
            self._cost, self._most = _price(limit[0], tally, model), limit[1]
        elif not callable(limit):
            self._most = limit

    def reached(self, widths: Widths) -> bool:
        """Return whether no more has to go."""
        return self._cost(widths) <= self._most if self._stop is None else self._stop(widths)

    def least_cut(self, widths: Widths, name: str, kept: int) -> int:
        """Return to how many channels the space is cut: ``kept``, or more where those reach the limit too."""
        after = {**widths, name: kept}
        if not self.reached(after) or (self._stop is None and self._cost(after) >= (1 - _SLACK) * self._most):
            return kept

        def short(count: int) -> bool:
            return not self.reached({**widths, name: count})

        return kept - 1 + bisect.bisect_left(range(kept, widths[name]), True, key=short)


def _price(currency: str, tally: Tally, model: ir.Model) -> Price:
    """Return what the whole model costs in a currency."""
    if currency == "macs":
        return tally.macs
    whole = measure(model)
    if currency == "params":
        return lambda widths: whole.params + tally.params(widths)
    return lambda widths: whole.bytes + tally.bytes(widths)


class _Agreement:
    """The share of calibration examples on which the present model decides as the original does."""

    def __init__(self, model: ir.Model, context: Context, original: Rows | None) -> None:
        self._model, self._context, self._original = model, context, original

    def take(self) -> float | None:
        """Return the agreement now, None where there are no class scores."""
        now = decisions(self._model, self._context)
        if now is None:
            return None
        if self._original is None:
            self._original = decisions(self._context.original, self._context)
        return None if self._original is None else float(np.mean(now == self._original))
