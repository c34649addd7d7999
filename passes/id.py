"""The pass ``id``: interpolative decomposition of channels (Chee, Renz, Damle, De Sa, 2022), with reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import DataError, OptionError
from onnxprune.fit.cutting import Cutter, fastest_within, refittable
from onnxprune.fit.iditer import Trail
from onnxprune.fit.interpolate import fold, foldable, observer, reduce_space, tap_of
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing, plan_spaces, reached, tally_of
from onnxprune.fit.survey import NO_DECISIONS
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, lifted, prepare
from onnxprune.graph.kept import record_kept
from onnxprune.graph.selection import Selection
from onnxprune.graph.spaces import Analysis, ChannelSpace

_CURVE = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
_UNPREDICTED = "agreement is predicted where flops=, params= or bytes= is shared out by measured sensitivity only"


@dataclass(frozen=True)
class Id:
    """Keep k channels of every space, and make up for the dropped ones in what reads them.

    As published, channels are the first pivots of a column-pivoted factorisation of the readers' activations, and
    the interpolation matrix T goes into the readers' weights (``reconstruct=none, select=pivots``). By default
    channels are those whose loss costs the readers' outputs least, every linear node behind a cut is refitted by
    least squares from the compressed prefix to the original's outputs, and a budget is shared out over the spaces
    by what a cut does to the model's outputs.
    """

    keep: float | None = option(None, float, "fraction of channels kept in every space", low=0.0, above=True, high=1.0)
    flops: float | None = option(
        None, float, "FLOPs after this pass over those of the source model", low=0.0, above=True, high=1.0
    )
    params: float | None = option(
        None, float, "parameters after this pass over those of the source", low=0.0, above=True, high=1.0
    )
    bytes: float | None = option(
        None, float, "bytes of tensors after this pass over those of the source", low=0.0, above=True, high=1.0
    )
    latency: float | None = option(
        None, float, "measured latency after this pass over that of the source", low=0.0, above=True, high=1.0
    )
    mode: str = option(
        "oneshot", str, "all widths at once, or the paper's iterative rule", choices=("oneshot", "iditer")
    )
    reconstruct: str = option(
        "asymmetric",
        str,
        "refit readers on the original's inputs, everything behind a cut on the compressed prefix, or nothing",
        choices=("none", "symmetric", "asymmetric"),
    )
    select: str = option(
        "output", str, "channels by what the readers' output loses, or by pivots", choices=("output", "pivots")
    )
    allocate: str = option(
        "measured", str, "share a budget by measured sensitivity, or evenly", choices=("measured", "uniform")
    )
    ridge: float = option(1e-4, float, "ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "rounds of refitting that aim at what a following ReLU lets through", low=0, high=20)
    step: float = option(
        0.95, float, "iditer: share of a space kept per step", low=0.0, above=True, high=1.0, below=True
    )
    steps: int | None = option(None, int, "iditer: stop after so many steps", low=1)
    refresh: str = option(
        "exact",
        str,
        "iditer: statistics anew after every step, every tenth, or never",
        choices=("exact", "lazy", "none"),
    )
    score: str = option(
        "diagonal",
        str,
        "iditer: error of a cut by the first dropped pivot, the residual's norm, or the singular values",
        choices=("diagonal", "frobenius", "spectral"),
    )
    log_interval: int = option(10, int, "iditer: steps between two measurements of agreement", low=1)
    factor: str = option("gram", str, "pivots from second moments, or from a streamed QR", choices=("gram", "tsqr"))
    swap: bool = option(False, bool, "bound the entries of T by swaps (strong rank-revealing QR)")
    align: str = option("1", str, "widths are multiples of this number; auto takes the processor's block")
    only: str | None = option(None, str, "cut only spaces with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never cut spaces with these nodes: names, globs, re:..., parted by ;")
    preserve_zeros: bool = option(True, bool, "weights that are zero before stay zero")

    name: ClassVar[str] = "id"
    summary: ClassVar[str] = "drops channels and makes up for them in the layers behind (interpolative decomposition)"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)

    def __post_init__(self) -> None:
        check_options(self)
        sizing = Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        if self.mode == "iditer" and sizing.name in ("keep", "latency"):
            raise OptionError(f"id: mode=iditer stops at a budget; give flops=, params= or bytes=, not {sizing.name}=")
        if self.factor == "tsqr" and (self.reconstruct != "none" or self.mode == "iditer"):
            raise OptionError("id: factor=tsqr gives pivots and T; it needs mode=oneshot and reconstruct=none")
        if self.swap and (self.reconstruct != "none" or self.mode == "iditer"):
            raise OptionError("id: swap=true bounds the entries of T; it needs mode=oneshot and reconstruct=none")

    @property
    def _published(self) -> bool:
        """Whether T is folded and nothing is refitted."""
        return self.reconstruct == "none"

    @property
    def _fit(self) -> Fit:
        return Fit(
            self.reconstruct != "symmetric", self.ridge, self.preserve_zeros, select=self.select, rounds=self.rectify
        )

    def _chosen(self, analysis: Analysis, inputs: Mapping[str, Any]) -> tuple[list[ChannelSpace], dict[str, str]]:
        """Return the spaces whose readers can all be refitted, and why the others are left alone."""
        selection = Selection.parse(self.name, self.only, self.ignore)
        plain = self._published or self.mode == "iditer"
        return refittable(analysis, selection, inputs, foldable if plain else None)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Return an observer per tensor that is read by a consumer of a prunable space, where T alone is folded.

        With reconstruction the model is run piece by piece instead, see ``fit/reconstruct``.
        """
        if self.keep == 1.0 or not self._published or self.mode == "iditer":
            return {}
        analysis = spaces.analyse(prepare(model))
        consumers = [c for space in self._chosen(analysis, {})[0] for c in space.consumers]
        return {tap_of(consumer): observer(analysis, consumer, self.factor) for consumer in consumers}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the widths that the size gives, and the range that it could have.

        With examples at hand and a budget to share out, the widths are the ones that the pass would take, and the
        curve predicts the agreement at several sizes.
        """
        analysis = spaces.analyse(prepare(model))
        chosen, skipped = self._chosen(analysis, context.inputs)
        sizing = Sizing.of(self)
        measured = self.allocate == "measured" and not self._published and self.mode == "oneshot"
        if context.examples is None or not chosen:
            return plan_spaces(self, analysis, chosen, skipped, context)
        if not measured or sizing.name in ("keep", "latency"):
            found = plan_spaces(self, analysis, chosen, skipped, context)
            return replace(found, notes=(*found.notes, _UNPREDICTED))
        cutter = self._cutter(model, context)
        found = plan_spaces(self, analysis, chosen, skipped, context, cutter.allocated(sizing))
        if not cutter.survey.decides:
            return replace(found, notes=(*found.notes, NO_DECISIONS))
        note = f"the predicted agreement is a rough guide, from {context.examples.count} examples"
        return replace(found, notes=(*found.notes, note), curve=tuple(_curve(cutter, sizing, context)))

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with narrower spaces; what every space and every refit gave is in the numbers."""
        if self.mode == "iditer":
            return self._iterated(model, context)(self)
        if self._published:
            return self._folded(model, context)
        return self._refitted(self._cutter(model, context), Sizing.of(self), context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Id], StepResult]:
        """Return a function from this pass with a size to what that one gives; data is surveyed once."""
        if self.mode == "iditer":
            return self._iterated(model, context)
        if self._published:
            return lambda sized: sized.apply(model, context)
        cutter = self._cutter(model, context)
        return lambda sized: sized._refitted(cutter, Sizing.of(sized), context)

    def _cutter(self, model: ir.Model, context: Context) -> Cutter:
        if context.examples is None and self.keep != 1.0:
            raise DataError("id needs calibration data; give --data or --calib")
        return Cutter(model, context, self._fit, lambda analysis: self._chosen(analysis, context.inputs))

    def _refitted(self, cutter: Cutter, sizing: Sizing, context: Context) -> StepResult:
        def widths_at(size: Sizing) -> dict[str, int]:
            even = size.name == "keep" or self.allocate == "uniform"
            return cutter.uniform(size) if even else cutter.allocated(size)

        if sizing.met_by(cutter.model, context):
            widths = {space.name: space.width for space in cutter.chosen}
        elif sizing.name == "latency":
            widths = fastest_within(sizing.value, cutter, sizing, widths_at, cutter.shrunk)
        else:
            widths = widths_at(sizing)
        cut = cutter.cut(widths)
        numbers: dict[str, Any] = {"spaces": len(cutter.chosen), "layers": cut.spaces, "refits": cut.refits}
        if "survey" in cutter.__dict__:
            predicted = cutter.survey.agreement(cutter.survey.loss(widths))
            numbers |= {} if predicted is None else {"predicted_agreement": predicted}
            numbers["sensitivity"] = [
                {"space": name, "width": m.place, "divergence": m.loss, "disagreement": m.disagreement}
                for name, curve in cutter.survey.curves.items()
                for m in curve.measured
            ]
        narrow = {name: len(indices) for name, indices in cut.kept.items()}
        return self._result(cut.model, cutter.skipped, numbers, context, sizing, narrow)

    def _folded(self, model: ir.Model, context: Context) -> StepResult:
        work = prepare(model)
        analysis = spaces.analyse(work)
        chosen, skipped = self._chosen(analysis, context.inputs)
        sizing = Sizing.of(self)
        if sizing.name == "latency":
            raise OptionError("id: latency= needs reconstruct=symmetric or asymmetric")
        widths = sizing.widths(analysis, chosen, context)
        found = {
            space.name: reduce_space(analysis, space, widths[space.name], context.statistics, swap=self.swap)
            for space in chosen
            if widths[space.name] < space.width
        }
        kept, layers = {name: one.kept for name, one in found.items()}, [one.row for one in found.values()]
        if kept:
            tables = {reader: table for one in found.values() for reader, table in one.tables.items()}
            fold(analysis, chosen, kept, context.statistics, self.preserve_zeros, tables)
        return self._cut(work, analysis, kept, skipped, {"spaces": len(chosen), "layers": layers}, context)

    def _iterated(self, model: ir.Model, context: Context) -> Callable[[Id], StepResult]:
        """Return a function to what a size gives: a smaller one than the last goes on from there."""
        begun: tuple[Trail, dict[str, str]] | None = None
        cutter: Cutter | None = None

        def sized_to(sized: Id) -> StepResult:
            nonlocal begun, cutter
            begun = begun or self._trail(model, context)
            trail, skipped = begun
            sizing = Sizing.of(sized)
            budget = sizing.budget(trail.analysis, context, trail.tally)
            if trail.past(budget.limit, budget.cost):
                trail, skipped = begun = self._trail(model, context)
            kept, path = trail.to(budget.limit, budget.cost)
            trajectory = [{key: value for key, value in vars(point).items() if value is not None} for point in path]
            numbers: dict[str, Any] = {"spaces": len(trail.spaces), "trajectory": trajectory}
            if self._published or not kept:
                numbers["layers"] = [_row(s, kept) for s in trail.spaces if s.name in kept]
                work = lifted(trail.model)
                return sized._cut(work, spaces.analyse(work), kept, skipped, numbers, context)
            cutter = cutter or self._cutter(model, context)
            widths = {s.name: len(kept[s.name]) if s.name in kept else s.width for s in trail.spaces}
            cut = cutter.cut(widths)
            numbers |= {"layers": cut.spaces, "refits": cut.refits}
            narrow = {name: len(indices) for name, indices in cut.kept.items()}
            return sized._result(cut.model, skipped, numbers, context, sizing, narrow)

        return sized_to

    def _trail(self, model: ir.Model, context: Context) -> tuple[Trail, dict[str, str]]:
        """Return a trail that has not begun, and why spaces are left alone."""
        work = prepare(model)
        analysis = spaces.analyse(work)
        chosen, skipped = self._chosen(analysis, context.inputs)
        trail = Trail(
            work, analysis, chosen, tally_of(analysis, context), context, step=self.step, refresh=self.refresh,
            log_interval=self.log_interval, max_steps=self.steps, score=self.score, readers="each",
            preserve_zeros=self.preserve_zeros,
        )  # fmt: skip
        return trail, skipped

    def _cut(
        self,
        work: ir.Model,
        analysis: Analysis,
        kept: Mapping[str, np.ndarray],
        skipped: Mapping[str, str],
        numbers: Mapping[str, Any],
        context: Context,
    ) -> StepResult:
        if kept:
            surgery.cut(analysis, kept)
            record_kept(work, surgery.kept_outputs(analysis, kept))
        narrow = {name: len(indices) for name, indices in kept.items()}
        return self._result(finish(work), skipped, numbers, context, Sizing.of(self), narrow)

    def _result(
        self,
        model: ir.Model,
        skipped: Mapping[str, str],
        numbers: Mapping[str, Any],
        context: Context,
        sizing: Sizing,
        widths: Mapping[str, int],
    ) -> StepResult:
        none = (
            () if numbers["spaces"] else ("id found no channels that it can cut; the reasons are listed with the step",)
        )
        return StepResult(model, skipped, numbers, reached(self, model, context), (*none, *sizing.unaligned(widths)))


def _curve(cutter: Cutter, sizing: Sizing, context: Context) -> Iterator[dict[str, Any]]:
    """Yield what several sizes would give: the size reached, the agreement predicted, the width of every space."""
    whole = replace(sizing, value=1.0).budget(cutter.analysis, context, cutter.tally)
    for value in _CURVE:
        widths = cutter.allocated(replace(sizing, value=value))
        yield {
            sizing.name: value,
            "reached": whole.cost(widths) / (whole.limit or 1),
            "predicted agreement": cutter.survey.agreement(cutter.survey.loss(widths)),
            "widths": widths,
        }


def _row(space: ChannelSpace, kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {"space": space.name, "width": space.width, "kept": len(kept[space.name])}
