"""The pass ``cp``: convolutions as sums of products of channels, taps and outputs, fitted where there is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.fit.factoring import factored, pairer_of, refitted
from onnxprune.fit.lowrank import tails
from onnxprune.fit.pairing import Choice, Pairer
from onnxprune.fit.polyadic import decompose, single_products
from onnxprune.fit.ranking import ranked
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.sizing import Sizing
from onnxprune.fit.zeroing import usable
from onnxprune.graph.factorise import POLYADIC, Pair, kernel_of
from onnxprune.graph.linear import Unit
from onnxprune.graph.polyadic import Factors
from onnxprune.graph.selection import Selection


@dataclass(frozen=True)
class Cp:
    """Put 1 x 1, k x k on every channel by itself, and 1 x 1 in place of a convolution.

    The canonical polyadic decomposition of kernels (Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, 2015), without
    its fine-tuning: with calibration data the three are fitted to the original's outputs from the compressed prefix,
    and ranks follow what that does to the model's outputs; without, to the weights alone. Layers without a kernel
    are left as they are.
    """

    keep: float | None = option(
        None, float, "rank over the rank at which nothing is lost, of every layer", low=0.0, above=True, high=1.0
    )
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
    reconstruct: str = option(
        "asymmetric",
        str,
        "fit to the original's outputs on its own inputs, on the compressed prefix, or to weights",
        choices=("none", "symmetric", "asymmetric"),
    )
    ridge: float = option(1e-4, float, "ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "rounds of refitting that aim at what a following ReLU lets through", low=0, high=20)
    only: str | None = option(None, str, "change only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never change these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "cp"
    summary: ClassVar[str] = "convolutions as 1 x 1, channel-wise k x k, 1 x 1 (CP decomposition); fitted to data"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        if self.latency is not None and self.reconstruct == "none":
            raise OptionError("cp: latency= needs reconstruct=symmetric or asymmetric")

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights decide, and a refit goes through the model piece by piece."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the ranks that the weights alone give for the size."""
        found = replace(self, reconstruct="none", latency=None).apply(model, context)
        return Plan(tuple(found.numbers["pairs"]), ("ranks by the weights alone",), found.skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with smaller layers; ranks are in ``numbers["pairs"]``."""
        return self.prepared(model, context)(self)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Cp], StepResult]:
        """Return a function from this pass with a size to what that one gives; data is surveyed once."""
        fit = Fit(self.reconstruct == "asymmetric", self.ridge, rounds=self.rectify)
        able, said = (None, ()) if self.reconstruct == "none" else usable(self.name, fit, model, context)
        pairer = None if able is None else pairer_of(model, context, able, self._selection, (POLYADIC,))

        def made(item: Cp) -> StepResult:
            if pairer is not None:
                return refitted(item, pairer, context, lambda sizing: item._choice(pairer, sizing))
            result = factored(item, model, context, self._selection, (POLYADIC,), _score, products=_products)
            return replace(result, warnings=(*result.warnings, *said))

        return made

    @staticmethod
    def _choice(pairer: Pairer, sizing: Sizing) -> Choice:
        if sizing.name != "keep":
            return pairer.shared(sizing)
        return Choice({}, ranked(pairer.units, sizing, pairer.analysis, pairer.context, _score), {})


def _score(name: str, unit: Unit, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what the products of single channels add, descending, and what is lost without the later ones."""
    squares = single_products(unit.matrix()[0], int(np.prod(kernel_of(unit))))
    return squares, tails(squares)


def _products(unit: Unit, pair: Pair) -> Factors:
    return decompose(unit.matrix()[0], None, int(np.prod(kernel_of(unit))), pair.rank)
