"""The pass ``auto``: per layer fewer channels, a pair of smaller layers, or nothing, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import DataError, OptionError
from onnxprune.fit.cutting import refittable
from onnxprune.fit.factoring import pair_rows, refitted
from onnxprune.fit.pairing import Pairer, partable
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing
from onnxprune.fit.survey import NO_DECISIONS
from onnxprune.graph.factorise import KINDS, OUTPUT, POLYADIC
from onnxprune.graph.selection import Selection

_METHODS = ("id", "pca", "lrank", "cp")


@dataclass(frozen=True)
class Auto:
    """Share one budget out over all channel spaces and all layers by what each change does to the model's outputs.

    Candidates are narrower spaces (interpolative decomposition, Chee et al., 2022) and pairs of layers of low rank:
    by the principal components of the outputs (Zhang, Zou, He, Sun, 2016) and spatially separable (Jaderberg,
    Vedaldi, Zisserman, 2014), fitted to data. Everything behind a change is refitted from the compressed prefix to
    the original's outputs.
    """

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
    methods: str = option(
        "id;pca;lrank;cp", str, "what layers may become: id (fewer channels), pca, lrank (low rank), cp, parted by ;"
    )
    ridge: float = option(1e-4, float, "ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "rounds of refitting that aim at what a following ReLU lets through", low=0, high=20)
    align: str = option("1", str, "widths are multiples of this number; auto takes the processor's block")
    only: str | None = option(None, str, "change only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never change these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "per layer fewer channels, low rank or neither, shared out under one budget"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        self._methods()

    def _methods(self) -> list[str]:
        words = [word.strip() for word in self.methods.split(";") if word.strip()]
        odd = [word for word in words if word not in _METHODS]
        if odd or not words:
            known = ", ".join(_METHODS)
            raise OptionError(f"auto: methods={self.methods} is not accepted; give some of {known}, parted by ;")
        return words

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the model is run piece by piece."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model as the budget has it; what became of every space and every layer is in the numbers."""
        return self.prepared(model, context)(self)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Auto], StepResult]:
        """Return what :meth:`apply` of this pass with a size gives; data is surveyed once."""
        pairer = self._pairer(model, context)
        others = [partial(pairer.shared, family=family) for family in pairer.families()[1:]]
        return lambda sized: refitted(sized, pairer, context, pairer.shared, others)

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return what could change; with examples at hand, what the budget would do and the agreement to expect."""
        if context.examples is None:
            return Plan((), ("what becomes of every layer is decided with calibration data; give --data or --calib",))
        pairer = self._pairer(model, context)
        choice = pairer.shared(Sizing.of(self))
        note = NO_DECISIONS
        if choice.agreement is not None:
            note = f"predicted agreement {choice.agreement:.3f}: a rough guide, from {context.examples.count} examples"
        widths = [
            {"node": name, "kind": "fewer channels", "rank": width, "full": pairer.tally.full[name]}
            for name, width in choice.widths.items()
            if width < pairer.tally.full[name]
        ]
        return Plan((*widths, *pair_rows(pairer.units, choice.pairs)), (note,), pairer.skipped)

    def _nodes(self, model: ir.Model, shapes: Any) -> Any:
        words = self._methods()
        kinds = tuple(k for k in KINDS if (k == OUTPUT and "pca" in words) or "lrank" in words)
        kinds += (POLYADIC,) if "cp" in words else ()
        return partable(model, shapes, self._selection, kinds) if kinds else ({}, {})

    def _treatable(self, context: Context) -> Any:
        selection = self._selection
        if "id" not in self._methods():
            return lambda analysis: ([], {})
        return lambda analysis: refittable(analysis, selection, context.inputs)

    def _pairer(self, model: ir.Model, context: Context) -> Pairer:
        if context.examples is None:
            raise DataError("auto needs calibration data; give --data or --calib")
        fit = Fit(ridge=self.ridge, rounds=self.rectify)
        return Pairer(model, context, fit, self._treatable(context), self._nodes)
