"""The pass ``pca``: layers of low rank by the principal components of their outputs, with refitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import DataError, OptionError
from onnxprune.fit.factoring import factored, pairer_of, refitted
from onnxprune.fit.lowrank import components
from onnxprune.fit.pairing import Choice, Pairer, partable
from onnxprune.fit.ranking import ranked, sensitivities
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.rectified import rectifies
from onnxprune.fit.sizing import Sizing
from onnxprune.graph.attributes import float_attribute
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.factorise import OUTPUT, Pair
from onnxprune.graph.linear import Unit, add_constants
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.runtime.observers import Spread, SpreadResult


@dataclass(frozen=True)
class Pca:
    """Put a layer of r outputs and a 1 x 1 layer in place of one, along the principal components of its outputs.

    ``y ~ U U^T (y - mean) + mean`` (Zhang, Zou, He, Sun, 2016, without their non-linear step): the first layer is
    ``U^T W``, the second ``U``, the constant ``mean - U U^T (mean - b)``. By default both are fitted from the
    compressed prefix to the original's outputs, and ranks follow what a pair does to the model's outputs.
    """

    keep: float | None = option(None, float, "rank over the outputs of every layer", low=0.0, above=True, high=1.0)
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
    weighting: str = option(
        "none",
        str,
        "without refitting: outputs count alike, or by how often the following ReLU lets them through",
        choices=("none", "relu"),
    )
    reconstruct: str = option(
        "asymmetric",
        str,
        "fit pairs to the original's outputs on its own inputs, on the compressed prefix, or project alone",
        choices=("none", "symmetric", "asymmetric"),
    )
    allocate: str = option(
        "measured",
        str,
        "ranks by measured sensitivity, or by principal components",
        choices=("measured", "spectrum"),
    )
    ridge: float = option(1e-4, float, "ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "rounds of refitting that aim at what a following ReLU lets through", low=0, high=20)
    only: str | None = option(None, str, "part only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never part these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "pca"
    summary: ClassVar[str] = "two layers in place of one, along the principal components of its outputs"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)
    stops: ClassVar[frozenset[str]] = frozenset({"keep_ratio"})

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)
        if self.reconstruct == "none" and self.latency is not None:
            raise OptionError("pca: latency= needs reconstruct=symmetric or asymmetric")
        if self.weighting != "none" and self.reconstruct != "none":
            raise OptionError(
                "pca: weighting= is for reconstruct=none; a refit looks at what ReLU lets through (rectify=)"
            )

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    @property
    def _by_components(self) -> bool:
        """Whether ranks need the covariance of every layer's outputs."""
        return self.reconstruct == "none" or (self.allocate == "spectrum" and self.keep is None)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Return an observer of the outputs of every layer that could be parted, where components decide."""
        if not self._by_components:
            return {}
        work = prepare(model)
        add_constants(work)
        shapes = concrete_shapes(work, example_shapes(work, {}))
        units, _ = partable(work, shapes, self._selection, (OUTPUT,))
        taps = [_tap(unit) for unit, _ in units.values()]
        sizes = [len(unit.scale) for unit, _ in units.values()]
        if self.weighting == "relu":
            rectified = [unit for unit, _ in units.values() if rectifies(unit)]
            taps += [_rectified(unit) for unit in rectified]
            sizes += [len(unit.scale) for unit in rectified]
        return {tap: Spread(tap.axis, size) for tap, size in zip(taps, sizes, strict=True)}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the layers that could be parted; with examples at hand, the ranks for the size."""
        work = prepare(model)
        shapes = concrete_shapes(work, example_shapes(work, context.inputs))
        units, skipped = partable(work, shapes, self._selection, (OUTPUT,))
        if context.examples is not None and not self._by_components:
            choice = self._choice(self._pairer(model, context), Sizing.of(self))
            rows = [{"node": n, "full rank": units[n][1][OUTPUT].full, "rank": p.rank} for n, p in choice.pairs.items()]
            return Plan(tuple(rows), (), skipped)
        table = [
            {"node": name, "full rank": ways[OUTPUT].full, "MACs": ways[OUTPUT].whole}
            for name, (_, ways) in units.items()
        ]
        return Plan(tuple(table), ("ranks follow from calibration data",), skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with pairs; ranks are in ``numbers["pairs"]``."""
        return self.prepared(model, context)(self)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Pca], StepResult]:
        """Return a function from this pass with a size to what that one gives; data is surveyed once."""
        seen = _Seen(context)
        pairer = None if self.reconstruct == "none" else self._pairer(model, context)

        def made(item: Pca) -> StepResult:
            if pairer is not None:
                return refitted(item, pairer, context, lambda sizing: item._choice(pairer, sizing))
            write = seen.weighted if self.weighting == "relu" else seen.write
            return factored(item, model, context, self._selection, (OUTPUT,), seen.score, write)

        return made

    def _pairer(self, model: ir.Model, context: Context) -> Pairer:
        if context.examples is None:
            raise DataError("pca needs calibration data; give --data or --calib")
        fit = Fit(self.reconstruct == "asymmetric", self.ridge, rounds=self.rectify)
        return pairer_of(model, context, fit, self._selection, (OUTPUT,))

    def _choice(self, pairer: Pairer, sizing: Sizing) -> Choice:
        if self.allocate == "measured" and sizing.name != "keep":
            return pairer.shared(sizing)
        seen = _Seen(pairer.context)
        pairs = ranked(pairer.units, sizing, pairer.analysis, pairer.context, seen.score)
        return Choice({}, pairs, {})


def _tap(unit: Unit) -> Tap:
    """Return the tensor that a node itself computes, in front of a BatchNormalization."""
    return Tap(str(unit.node.outputs[0].name), unit.out_channels)


def _rectified(unit: Unit) -> Tap:
    """Return the tensor that the following ReLU reads."""
    seen = unit.out if unit.other is None or unit.total is None else unit.total
    return Tap(str(seen.name), unit.out_channels)


class _Seen:
    """What calibration showed of every layer's outputs."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._found: dict[Tap, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, unit: Unit) -> SpreadResult:
        found: SpreadResult = self.context.statistics[_tap(unit)]
        return found

    def score(self, name: str, unit: Unit, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the sensitivity of every component (torchprune's rule)."""
        return sensitivities(self._components(unit)[0]), None

    def _components(self, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
        """Return a layer's components, worked out once for all sizes and for their projections."""
        tap = _tap(unit)
        if tap not in self._found:
            self._found[tap] = components(self.of(unit).covariance)
        return self._found[tap]

    def write(self, name: str, unit: Unit, pair: Pair) -> None:
        """Project a layer on its first components."""
        self._project(unit, pair.rank, None)

    def weighted(self, name: str, unit: Unit, pair: Pair) -> None:
        """Project with every output weighted by the root of the share that the following ReLU lets through."""
        if not rectifies(unit):
            self._project(unit, pair.rank, None)
            return
        seen: SpreadResult = self.context.statistics[_rectified(unit)]
        self._project(unit, pair.rank, np.sqrt(np.maximum(seen.positive, 1e-3)))

    def _project(self, unit: Unit, rank: int, weight: np.ndarray | None) -> None:
        found = self.of(unit)
        if weight is None:
            vectors = self._components(unit)[1][:, :rank]
            onto = vectors @ vectors.T
        else:
            vectors = components(found.covariance * np.outer(weight, weight))[1][:, :rank]
            # y A ~ y A U U^T for scaled outputs, so that y ~ y A U U^T A^-1.
            onto = (weight[:, None] * vectors) @ (vectors.T / weight)
        scale = np.where(unit.scale == 0.0, 1.0, unit.scale)
        plain = unit.matrix()[0] / scale
        unit.set_matrix(((plain @ onto) * unit.scale)[None])
        if unit.shiftable:
            # The mean without the node's own constant, and what the projection takes from it.
            mean = found.mean - _constant(unit)
            unit.add_shift(unit.scale / _gemm(unit, "alpha") * (mean - mean @ onto))


def _constant(unit: Unit) -> np.ndarray:
    """Return the constant that the node itself adds, in front of a BatchNormalization, float64 [O]."""
    own = unit.node.inputs[2] if len(unit.node.inputs) > 2 else None
    if own is None:
        return np.zeros(len(unit.scale))
    if unit.constant is own:
        return np.asarray(unit.shift)
    assert own.const_value is not None
    data = own.const_value.numpy().astype(np.float64).ravel()
    return np.asarray(np.broadcast_to(_gemm(unit, "beta") * data, unit.scale.shape))


def _gemm(unit: Unit, name: str) -> float:
    """Return a factor that Gemm has inside of itself, 1 for other operators."""
    return float_attribute(unit.node, name, 1.0) if unit.node.op_type == "Gemm" else 1.0
