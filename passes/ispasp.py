"""The pass ``ispasp``: hidden channels chosen by sparse signal recovery (Wolfe, Kyrillidis, 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import DataError, OptionError
from onnxprune.fit.cutting import Cutter, fastest_within
from onnxprune.fit.moments import Moments
from onnxprune.fit.ratios import Ratios
from onnxprune.fit.reader import Reader, Seen, drop, folded, front_to_back, readers
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.recovery import Choice, Energy, recover
from onnxprune.fit.sizing import SIZES, Sizing, plan_spaces, reached
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.kept import record_kept
from onnxprune.graph.linear import Unit
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import Shapes, concrete_shapes
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.runtime.sums import SumsResult


@dataclass(frozen=True)
class Ispasp:
    """Keep the hidden channels that recover their reader's output best, chosen as CoSaMP chooses coefficients.

    For every space that one dense node alone reads: take up the channels that matter most for the residual between
    the dense and the cut output, join them with the kept ones, keep those with the largest summed activation, repeat.
    The summed activations of the calibration examples are all it needs. As published nothing is refitted.
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
    ratios: str | None = option(
        None,
        str,
        "fraction kept in the spaces with these nodes, as pattern=ratio;pattern=ratio; others stay whole",
    )
    rounds: int = option(20, int, "rounds at most; a set of channels that comes again ends them", low=1, high=10_000)
    expansion: int = option(2, int, "channels taken up per round, over channels kept", low=1, high=1000)
    importance: str = option(
        "sum",
        str,
        "go by sums of the hidden activations, by sums of their magnitudes, or by energies of the residual",
        choices=("sum", "abs", "energy"),
    )
    fold: bool = option(False, bool, "least squares in the reader's weights for the channels that stay")
    reconstruct: str = option(
        "none",
        str,
        "refit readers on the original's inputs, everything behind a cut on the compressed prefix, or nothing",
        choices=("none", "symmetric", "asymmetric"),
    )
    prefix: bool = option(False, bool, "statistics of every space behind the ones that are cut already")
    align: str = option("1", str, "widths are multiples of this number; auto takes the processor's block")
    only: str | None = option(None, str, "cut only spaces with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never cut spaces with these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "ispasp"
    summary: ClassVar[str] = "drops hidden channels that sparse recovery does not choose (i-SpaSP)"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)
    stops: ClassVar[frozenset[str]] = frozenset({"ratios"})

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        given = next((name for name in SIZES if getattr(self, name) is not None), None)
        if self.ratios is not None:
            Ratios.parse(self.name, self.ratios)
            if given is not None:
                raise OptionError(f"ispasp: ratios and {given} are both given; one of them decides, give one")
        if self.fold and self.reconstruct != "none":
            raise OptionError("ispasp: fold=true and reconstruct= both change what the readers weigh; give one of them")

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Return an observer of the sums of every tensor that is read, where the dense model alone is looked at."""
        if not self._wants_sums:
            return {}
        found, _ = self._readers(spaces.analyse(prepare(model)), {})
        return {reader.tap: reader.sums(absolute=self.importance == "abs") for reader in found}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the widths that the size or the ratios give, and the range that a size could have."""
        analysis = spaces.analyse(prepare(model))
        found, skipped = self._readers(analysis, context.inputs)
        chosen = [reader.space for reader in found]
        widths = None if self.ratios is None else self._by_ratio(chosen)
        return plan_spaces(self, analysis, chosen, skipped, context, widths)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with narrower spaces; kept counts and rounds are in ``numbers["layers"]``.

        Raises:
            DataError: There is no calibration data, or a tensor holds NaN or infinity.
        """
        known = self._known(model, context)
        return self._cut(known, known.analysis, context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Ispasp], StepResult]:
        """Return what :meth:`apply` of this pass with a size gives; statistics of the dense model are taken once."""
        known = self._known(model, context)
        # Cutting rewrites the analysed model, so that every size starts from a fresh one.
        return lambda sized: sized._cut(known, spaces.analyse(prepare(model)), context)

    def _readers(
        self, analysis: Analysis, inputs: Mapping[str, tuple[int, ...]]
    ) -> tuple[list[Reader], dict[str, str]]:
        chosen, skipped = Selection.parse(self.name, self.only, self.ignore).spaces(analysis)
        if self.ratios is not None:
            ratios = Ratios.parse(self.name, self.ratios)
            skipped |= {space.name: "ratios= does not name it" for space in chosen if ratios.of(space) is None}
            chosen = [space for space in chosen if space.name not in skipped]
        found, refused = readers(analysis, chosen, _shapes(analysis.model, inputs), dense=self.importance == "energy")
        return found, {**skipped, **refused}

    def _by_ratio(self, chosen: Sequence[ChannelSpace]) -> dict[str, int]:
        return Ratios.parse(self.name, self.ratios or "").widths(chosen, Sizing.of(self))

    def _known(self, model: ir.Model, context: Context) -> _Known:
        """Return what every size shares; statistics where they do not depend on what is cut."""
        analysis = spaces.analyse(prepare(model))
        found, skipped = self._readers(analysis, context.inputs)
        cutter = None
        if self.reconstruct != "none" or self.latency is not None:
            fit = Fit(asymmetric=self.reconstruct != "symmetric")
            cutter = Cutter(model, context, fit, lambda other: self._treatable(other, context))
        statistics: dict[str, SumsResult | Energy] = {}
        if self.importance == "energy" and not self.prefix and self.keep != 1.0:
            for group, seen in self._walk(analysis, found, context, rows=True):
                statistics |= {reader.space.name: self._of(reader, seen) for reader in group}
        elif self._wants_sums:
            if not all(reader.tap in context.statistics for reader in found):
                raise DataError("ispasp needs calibration data; give --data or --calib")
            statistics |= {reader.space.name: context.statistics[reader.tap] for reader in found}
        return _Known(analysis, found, skipped, statistics, cutter)

    @property
    def _wants_sums(self) -> bool:
        """Whether sums over the dense model are all that the choice takes."""
        return not (self.keep == 1.0 or self.prefix or self.importance == "energy")

    def _treatable(self, analysis: Analysis, context: Context) -> tuple[list[ChannelSpace], dict[str, str]]:
        found, skipped = self._readers(analysis, context.inputs)
        return [reader.space for reader in found], skipped

    def _walk(
        self, analysis: Analysis, found: Sequence[Reader], context: Context, *, rows: bool
    ) -> Iterator[tuple[list[Reader], Seen]]:
        shapes = _shapes(analysis.model, context.inputs)
        return front_to_back(analysis, found, shapes, context, absolute=self.importance == "abs", rows=rows)

    def _of(self, reader: Reader, seen: Seen) -> SumsResult | Energy:
        """Return what is kept of a space's statistics."""
        if self.importance != "energy":
            return seen.sums
        assert isinstance(seen.moments, Moments)
        return reader.energy(seen.moments)

    def _choice(self, reader: Reader, statistics: SumsResult | Energy, count: int) -> Choice:
        evidence = statistics if isinstance(statistics, Energy) else reader.first_moments(statistics)
        return recover(evidence, count, rounds=self.rounds, expansion=self.expansion)

    def _cut(self, known: _Known, analysis: Analysis, context: Context) -> StepResult:
        """Cut the model of ``analysis``, which is that of ``known`` or another one of the same model."""
        sizing, chosen = Sizing.of(self), [reader.space for reader in known.found]
        widths = self._widths(known, chosen, sizing, context)
        choices, errors = self._choices(known, analysis, widths, context)
        kept = {name: choice.kept for name, choice in choices.items()}
        numbers: dict[str, Any] = {"spaces": len(chosen)}
        numbers["layers"] = [_row(space, widths, choices, errors) for space in chosen]
        if known.cutter is not None and self.reconstruct != "none":
            cut = known.cutter.cut(widths, kept)
            result, numbers["refits"] = cut.model, cut.refits
        else:
            if kept:
                surgery.cut(analysis, kept)
                record_kept(analysis.model, surgery.kept_outputs(analysis, kept))
            result = finish(analysis.model)
        narrow = {name: len(indices) for name, indices in kept.items()}
        warnings = [*self._warnings(chosen), *sizing.unaligned(narrow)]
        return StepResult(result, known.skipped, numbers, reached(self, result, context), tuple(warnings))

    def _widths(
        self, known: _Known, chosen: Sequence[ChannelSpace], sizing: Sizing, context: Context
    ) -> dict[str, int]:
        if self.ratios is not None:
            return self._by_ratio(chosen)
        if sizing.name == "latency" and sizing.value < 1.0 and known.cutter is not None:
            return fastest_within(sizing.value, known.cutter, sizing, known.cutter.uniform, known.cutter.shrunk)
        return sizing.widths(known.analysis, chosen, context)

    def _choices(
        self, known: _Known, analysis: Analysis, widths: Mapping[str, int], context: Context
    ) -> tuple[dict[str, Choice], dict[str, dict[str, Any]]]:
        """Return what every narrower space keeps and what its reader's fold gave, which is written to its weights."""
        cut = [reader for reader in known.found if widths[reader.space.name] < reader.space.width]
        choices: dict[str, Choice] = {}
        if not (self.prefix or self.fold):
            for reader in cut:
                name = reader.space.name
                choices[name] = self._choice(reader, known.statistics[name], widths[name])
            return choices, {}
        if not cut:
            return {}, {}
        names = {reader.space.name for reader in cut}
        here = [reader for reader in self._readers(analysis, context.inputs)[0] if reader.space.name in names]
        rows = self.fold or self.importance == "energy"
        errors: dict[str, dict[str, Any]] = {}
        written: list[tuple[Unit, np.ndarray]] = []
        for group, seen in self._walk(analysis, here, context, rows=rows):
            for reader in group:
                name = reader.space.name
                statistics = self._of(reader, seen) if self.prefix else known.statistics[name]
                choices[name] = self._choice(reader, statistics, widths[name])
            first = group[0]
            keep = first.link.keeps(analysis.keep_mask({name: one.kept for name, one in choices.items()}))[0]
            gone = ~keep[: len(first.owner)]
            if self.fold:
                assert seen.moments is not None
                found = folded(first, seen.moments, gone)
                errors |= {reader.space.name: found.row for reader in group}
                written.append((first.link.unit, found.matrix))
            elif self.prefix:
                drop(first, gone)
            if self.prefix:  # what lies behind is to see it
                _write(written)
        _write(written)
        return choices, errors

    def _warnings(self, chosen: Sequence[ChannelSpace]) -> Iterator[str]:
        if self.ratios is not None:
            for text in Ratios.parse(self.name, self.ratios).idle(chosen):
                yield f"ispasp: ratios: '{text}' names no space that can be cut; the reasons are listed with the step"
        if not chosen:
            yield "ispasp found no channels that it can cut; the reasons are listed with the step"


@dataclass(frozen=True, eq=False)
class _Known:
    """What every size shares: the spaces that may be cut, and by name what the dense model shows of each."""

    analysis: Analysis
    found: Sequence[Reader]
    skipped: Mapping[str, str]
    statistics: Mapping[str, SumsResult | Energy]
    cutter: Cutter | None


def _write(written: list[tuple[Unit, np.ndarray]]) -> None:
    while written:
        unit, matrix = written.pop(0)
        unit.set_matrix(matrix)


def _shapes(model: ir.Model, inputs: Mapping[str, tuple[int, ...]]) -> Shapes:
    return concrete_shapes(model, example_shapes(model, inputs))


def _row(
    space: ChannelSpace,
    widths: Mapping[str, int],
    choices: Mapping[str, Choice],
    errors: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"space": space.name, "width": space.width, "kept": widths[space.name]}
    choice = choices.get(space.name)
    if choice is not None:
        row["rounds"] = choice.rounds
        if choice.residual is not None:
            row["residual"] = choice.residual**0.5
    return {**row, **errors.get(space.name, {})}
