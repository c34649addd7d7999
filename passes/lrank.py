"""The pass ``lrank``: layers of low rank by one exact trade-off of error against cost, refitted where there is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.fit.factoring import factored, pairer_of, refitted
from onnxprune.fit.lowrank import Metric, project, tails
from onnxprune.fit.pairing import Choice, Pairer
from onnxprune.fit.ranking import ranked
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing
from onnxprune.fit.zeroing import usable
from onnxprune.graph.factorise import KINDS, OUTPUT, Pair, kernel_of, spectrum, unfold
from onnxprune.graph.linear import Unit
from onnxprune.graph.selection import Selection


@dataclass(frozen=True)
class LRank:
    """Put two layers of low rank in place of one, ranks by one exact C-step over all layers.

    Idelbayev and Carreira-Perpinan (2020), without their L-steps: a layer keeps the singular values of its folded
    weight with ``s^2 > lambda * cost of a rank``, one lambda for all, or stays as it is where that is better. With
    calibration data the pair is fitted to the original's outputs from the compressed prefix, and ranks follow what
    a pair does to the model's outputs.
    """

    keep: float | None = option(None, float, "rank over the full rank of every layer", low=0.0, above=True, high=1.0)
    flops: float | None = option(
        None, float, "FLOPs after this pass over those of the source model", low=0.0, above=True, high=1.0
    )
    params: float | None = option(
        None, float, "parameters after this pass over those of the source", low=0.0, above=True, high=1.0
    )
    keep_ratio: float | None = option(
        None, float, "the same as params=, under torchprune's name", low=0.0, above=True, high=1.0
    )
    bytes: float | None = option(
        None, float, "bytes of tensors after this pass over those of the source", low=0.0, above=True, high=1.0
    )
    latency: float | None = option(
        None, float, "measured latency after this pass over that of the source", low=0.0, above=True, high=1.0
    )
    scheme: int = option(
        1, int, "kernel parted as k x k, 1 x 1 (0); 1 x k, k x 1 (1); k x 1, 1 x k (2); 1 x 1, k x k (3)", low=0, high=3
    )
    scale: str = option(
        "none",
        str,
        "singular values as they are, or every layer's over its norm (ranks without data)",
        choices=("none", "norm"),
    )
    reconstruct: str = option(
        "asymmetric",
        str,
        "fit pairs to the original's outputs on its own inputs, on the compressed prefix, or truncate weights",
        choices=("none", "symmetric", "asymmetric"),
    )
    allocate: str = option(
        "measured", str, "ranks by measured sensitivity, or by singular values", choices=("measured", "spectrum")
    )
    ridge: float = option(1e-4, float, "ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "rounds of refitting that aim at what a following ReLU lets through", low=0, high=20)
    only: str | None = option(None, str, "part only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never part these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "lrank"
    summary: ClassVar[str] = "two layers of low rank in place of one, by singular values; fitted where there is data"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)
    stops: ClassVar[frozenset[str]] = frozenset({"keep_ratio"})

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        if self.latency is not None and self.reconstruct == "none":
            raise OptionError("lrank: latency= needs reconstruct=symmetric or asymmetric")

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    @property
    def _kinds(self) -> tuple[str, ...]:
        """The scheme, and for what has no such kernel the plain one."""
        return KINDS[self.scheme], OUTPUT

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights decide, and a refit goes through the model piece by piece."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the ranks that singular values give for the size."""
        found = replace(self, reconstruct="none", latency=None).apply(model, context)
        return Plan(tuple(found.numbers["pairs"]), ("ranks by singular values",), found.skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with pairs; ranks are in ``numbers["pairs"]``."""
        return self.prepared(model, context)(self)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[LRank], StepResult]:
        """Return a function from this pass with a size to what that one gives; data is surveyed once."""
        fit = Fit(self.reconstruct == "asymmetric", self.ridge, rounds=self.rectify)
        able, said = (None, ()) if self.reconstruct == "none" else usable(self.name, fit, model, context)
        pairer = None if able is None else pairer_of(model, context, able, self._selection, self._kinds)

        def made(item: LRank) -> StepResult:
            if pairer is not None:
                return refitted(item, pairer, context, lambda sizing: item._choice(pairer, sizing))
            result = factored(item, model, context, self._selection, self._kinds, self._score, _truncate)
            return replace(result, warnings=(*result.warnings, *said))

        return made

    def _choice(self, pairer: Pairer, sizing: Sizing) -> Choice:
        if self.allocate == "measured" and sizing.name != "keep":
            return pairer.shared(sizing)
        pairs = ranked(pairer.units, sizing, pairer.analysis, pairer.context, self._score)
        return Choice({}, pairs, {})

    def _score(self, name: str, unit: Unit, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return squared singular values of the folded weight, and what is lost at every rank."""
        squares = spectrum(unfold(unit.matrix()[0], kind, kernel_of(unit)))
        if self.scale == "norm":
            squares /= float(squares.sum()) or 1.0
        return squares, tails(squares)


def _truncate(name: str, unit: Unit, pair: Pair) -> None:
    """Truncate a layer's weight as a following BatchNormalization scales it, which is what ranks are chosen by."""
    unit.set_matrix(project(unit.matrix()[0], Metric(None, None), pair, kernel_of(unit))[None])
