"""The pass ``filters``: structured magnitude, the plainest user of the channel engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import DataError
from onnxprune.fit.cutting import Cutter, fastest_within, refittable
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing, plan_spaces, reached
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.kept import record_kept
from onnxprune.graph.selection import Selection
from onnxprune.graph.spaces import Analysis, ChannelSpace


@dataclass(frozen=True)
class Filters:
    """Drop the channels whose producing weights are smallest, summed over every producer of a space.

    Li, Kadav, Durdanovic, Samet, Graf (2017) rank filters by L1 norm; with coupled channels the norms of all
    producers count (Fang et al., 2023). Nothing makes up for what goes unless ``reconstruct`` says so: then whatever
    reads the cut channels is solved for anew on calibration data (He, Zhang, Sun, 2017).
    """

    keep: float | None = option(None, float, "fraction of channels kept in every space", low=0.0, above=True, high=1.0)
    flops: float | None = option(
        None,
        float,
        "FLOPs after this pass over those of the source; searched for where no size is given, else 0.9",
        low=0.0,
        above=True,
        high=1.0,
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
    norm: str = option("l2", str, "score of a channel", choices=("l1", "l2"))
    scope: str = option(
        "space", str, "rank channels within every space, or in all spaces together", choices=("space", "global")
    )
    reconstruct: str = option(
        "none",
        str,
        "refit readers on the original's inputs, everything behind a cut on the compressed prefix, or nothing",
        choices=("none", "symmetric", "asymmetric"),
    )
    align: str = option("1", str, "widths are multiples of this number; auto takes the processor's block")
    only: str | None = option(None, str, "cut only spaces with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never cut spaces with these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "filters"
    summary: ClassVar[str] = "drops channels with the smallest weights (structured magnitude); refits only if asked to"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)

    def __post_init__(self) -> None:
        check_options(self)
        # What a refit needs, the pass needs: the class itself knows of no options yet.
        object.__setattr__(self, "needs", frozenset({"calibration"} if self.reconstruct != "none" else ()))
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights alone decide, and a refit goes through the model piece by piece."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the widths that the size gives (the same fraction everywhere) and the range that it could have."""
        analysis = spaces.analyse(prepare(model))
        chosen, skipped = self._chosen(analysis, context)
        return plan_spaces(self, analysis, chosen, skipped, context)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with narrower spaces; kept counts are in ``numbers["layers"]``.

        Raises:
            DataError: A refit is asked for and there is no calibration data, or an activation is NaN or infinite.
        """
        scored = self._scored(model, context)
        return self._cut(scored, scored.analysis, context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Filters], StepResult]:
        """Return what :meth:`apply` of this pass with a size gives; the scores are worked out once."""
        scored = self._scored(model, context)
        # Cutting rewrites the analysed model, so that every size starts from a fresh one.
        return lambda sized: sized._cut(scored, spaces.analyse(prepare(model)), context)

    def _chosen(self, analysis: Analysis, context: Context) -> tuple[list[ChannelSpace], dict[str, str]]:
        """Return the spaces to cut, and why others are left alone; with a refit, those whose readers take one."""
        if self.reconstruct == "none":
            return self._selection.spaces(analysis)
        return refittable(analysis, self._selection, context.inputs)

    def _scored(self, model: ir.Model, context: Context) -> _Scored:
        analysis = spaces.analyse(prepare(model))
        chosen, skipped = self._chosen(analysis, context)
        scores = {space.name: channel_scores(analysis, space, self.norm) for space in chosen}
        refits = self.reconstruct != "none" and self.keep != 1.0
        if not refits and self.latency is None:
            return _Scored(analysis, chosen, skipped, scores, None, context)
        if context.examples is None and refits:
            raise DataError(f"filters: reconstruct={self.reconstruct} needs calibration data; give --data or --calib")
        fit = Fit(asymmetric=self.reconstruct == "asymmetric")
        cutter = Cutter(model, context, fit, lambda other: self._chosen(other, context))
        return _Scored(analysis, chosen, skipped, scores, cutter, context)

    def _cut(self, scored: _Scored, analysis: Analysis, context: Context) -> StepResult:
        """Cut the model of ``analysis``, which is that of ``scored`` or another one of the same model."""
        chosen, scores = scored.chosen, scored.scores
        sizing = Sizing.of(self)
        if sizing.name == "latency" and sizing.value < 1.0 and scored.cutter is not None:
            widths = fastest_within(
                sizing.value, scored.cutter, sizing, lambda size: self._widths(scored, size), scored.cutter.shrunk
            )
        else:
            widths = self._widths(scored, sizing)
        kept = {name: strongest(scores[name], width) for name, width in widths.items() if width < len(scores[name])}
        refits: dict[str, Any] = {}
        if scored.cutter is not None and self.reconstruct != "none":
            cut = scored.cutter.cut(widths, kept)
            result, refits = cut.model, {"refits": cut.refits}
        else:
            if kept:
                surgery.cut(analysis, kept)
                record_kept(analysis.model, surgery.kept_outputs(analysis, kept))
            result = finish(analysis.model)
        warnings = (
            () if chosen else (f"{self.name} found no channels that it can cut; the reasons are listed with the step",)
        )
        rows = [_row(space, widths[space.name]) for space in chosen]
        numbers = {"spaces": len(chosen), "layers": rows, **refits}
        narrow = {name: len(indices) for name, indices in kept.items()}
        return StepResult(
            result, scored.skipped, numbers, reached(self, result, context), (*warnings, *sizing.unaligned(narrow))
        )

    def _widths(self, scored: _Scored, sizing: Sizing) -> dict[str, int]:
        """Return how many channels every space keeps: the same share of each, or by score over all of them."""
        if self.scope == "space":
            return sizing.widths(scored.analysis, scored.chosen, scored.context)
        pooled = {n: s / max(float(np.sqrt(np.mean(s**2))), 1e-30) for n, s in scored.scores.items()}
        return sizing.ranked(scored.analysis, pooled, scored.context)


@dataclass(frozen=True, eq=False)
class _Scored:
    """What every size shares: the channels that may go and their scores, float64 [width] per space."""

    analysis: Analysis
    chosen: Sequence[ChannelSpace]
    skipped: Mapping[str, str]
    scores: Mapping[str, np.ndarray]
    cutter: Cutter | None
    context: Context


def channel_scores(analysis: Analysis, space: ChannelSpace, norm: str) -> np.ndarray:
    """Return the norm of every channel's producing weights, over all producers of the space (float64 [width])."""
    total = np.zeros(space.width)
    for producer in space.producers:
        slices = surgery.axis_norms(producer.weight, producer.axis, 1 if norm == "l1" else 2)
        channels = analysis.positions(space, analysis.tracer.labels[producer.weight][producer.axis])
        inside = channels >= 0
        np.add.at(total, channels[inside], slices[inside] if norm == "l1" else slices[inside] ** 2)
    return total if norm == "l1" else np.sqrt(total)


def strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the ``count`` largest scores, ascending; the lowest index wins a tie."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _row(space: ChannelSpace, width: int) -> dict[str, Any]:
    return {"space": space.name, "width": space.width, "kept": width}
