"""The pass ``magnitude``: small single weights become zero, what survives is refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.codec.law import l2_norm
from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.zeroing import Stage, Zeroing, stages, usable
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import Weights, input_axis, size_of, store, stored, weights


@dataclass(frozen=True)
class Magnitude:
    """Zero the weights of least magnitude: an exact share of all or of each layer, all below a threshold, or n of m.

    Ties go to the weight that comes first. What survives is solved for anew against calibration activations, in
    stages on the way to a high sparsity.
    """

    sparsity: float | None = option(
        None,
        float,
        "share of zeros among the treated weights; searched for where no rule is given, else 0.5",
        low=0.0,
        high=1.0,
        below=True,
    )
    threshold: float | None = option(None, float, "zero what is smaller than this instead", low=0.0, high=1e30)
    std: float | None = option(
        None,
        float,
        "zero what is smaller than this many standard deviations of its tensor instead",
        low=0.0,
        high=100.0,
    )
    nm: str | None = option(
        None, str, "keep n of every m weights along the input axis instead, as 2:4 for sparse tensor cores"
    )
    scope: str = option(
        "normalized",
        str,
        "rank all weights together over their tensor's L2 norm, as they are, or each layer's by themselves",
        choices=("normalized", "global", "layer"),
    )
    values: str = option(
        "refit",
        str,
        "surviving weights: refitted to calibration data, or the original ones",
        choices=("refit", "original"),
    )
    stages: str = option(
        "auto",
        str,
        "refits on the way to the sparsity: a number, or auto (a fifth of what is left at a time, as SuRP's authors)",
    )
    ridge: float = option(1e-4, float, "refit: ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "refit: rounds that aim at what a following ReLU lets through", low=0, high=20)
    only: str | None = option(None, str, "treat only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never treat these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = (
        "small single weights become zero (global, per layer, n of m), refitted where there is data"
    )
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("sparsity", 0.5)
    stops: ClassVar[frozenset[str]] = frozenset({"threshold", "std", "nm"})

    def __post_init__(self) -> None:
        check_options(self)
        Selection.parse(self.name, self.only, self.ignore)
        rules = [name for name in ("sparsity", *sorted(self.stops)) if getattr(self, name) is not None]
        if len(rules) > 1:
            raise OptionError(f"magnitude: {' and '.join(rules)} exclude one another; give one of them")
        _pattern(self.nm)
        stages(self.name, self._wanted, self.stages)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights decide, and a refit goes through the model piece by piece."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the tensors that the rule goes over."""
        found = weights(lifted(model), self._selection)
        if self._wanted is None:
            note = "the rule says which weights become zero, whatever sparsity that gives"
        else:
            note = f"{_zeros(self._wanted, found.count):,} of {found.count:,} weights become zero"
        return Plan(found.table(), (note,), found.skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with the same topology and fewer non-zero weights.

        Raises:
            ModelError: A weight tensor holds NaN or infinity.
        """
        return self._run(lifted(model), context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Magnitude], StepResult]:
        """Return what :meth:`apply` of this pass with a size gives; stages on the way are shared."""
        source, made = lifted(model), dict[float, ir.Model]()
        return lambda sized: sized._run(source, context, made)

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    @property
    def _wanted(self) -> float | None:
        """The sparsity that is asked for, None where another rule decides."""
        ruled = any(rule is not None for rule in (self.threshold, self.std, self.nm))
        return None if ruled else self.default_size[1] if self.sparsity is None else self.sparsity

    def _run(self, source: ir.Model, context: Context, made: dict[float, ir.Model] | None = None) -> StepResult:
        fit: Fit | None = None
        said: tuple[str, ...] = ()
        if self.values == "refit" and self.sparsity != 0.0:
            fit, said = usable(self.name, Fit(ridge=self.ridge, rounds=self.rectify), source, context)
        way = stages(self.name, self._wanted, self.stages if fit else "1")
        result = Zeroing(self._selection, way, self._decide, fit).run(source, context, made)
        if not result.numbers["weights"] or not self.sparsity:
            return replace(result, warnings=said)
        reached = {"sparsity": (self.sparsity, float(result.numbers["sparsity"]))}
        return replace(result, reached=reached, warnings=said)

    def _decide(self, found: Weights, stage: Stage) -> Mapping[str, Any]:
        """Zero what the rule says, in place."""
        if stage.sparsity == 0.0:
            return {}
        if self.nm is not None:
            kept = [_n_of_m(value, *_pattern(self.nm)) for value in found.values]
        elif self.threshold is not None or self.std is not None:
            kept = [np.abs(_wide(value)) >= self._bound(value) for value in found.values]
        elif self.scope == "layer":
            kept = [_largest([value], stage.sparsity or 0.0, normalized=False)[0] for value in found.values]
        else:
            kept = _largest(found.values, stage.sparsity or 0.0, normalized=self.scope == "normalized")
        for value, mask in zip(found.values, kept, strict=True):
            store(value, np.where(mask, stored(value), 0.0))
        return {}

    def _bound(self, value: ir.Value) -> float:
        return (
            float(self.threshold) if self.threshold is not None else float(self.std or 0.0) * float(_wide(value).std())
        )


def _wide(value: ir.Value) -> np.ndarray:
    return stored(value).astype(np.float64)


def _zeros(share: float, count: int) -> int:
    return math.ceil(share * count - 1e-9)


def _largest(values: Sequence[ir.Value], share: float, *, normalized: bool) -> list[np.ndarray]:
    """Return masks of what stays when exactly a share of all these weights goes, the first of equal ones first."""
    scores = []
    for value in values:
        wide = np.abs(_wide(value))
        scores.append(wide.ravel() / ((l2_norm(wide) if normalized else 0.0) or 1.0))
    pooled = np.concatenate(scores)
    gone = _zeros(share, len(pooled))
    mask = np.ones(len(pooled), dtype=bool)
    if gone:
        bound = np.partition(pooled, gone - 1)[gone - 1]
        below = pooled < bound
        mask[below] = False
        mask[np.flatnonzero(pooled == bound)[: gone - int(below.sum())]] = False
    sizes = np.cumsum([size_of(value) for value in values])[:-1]
    return [part.reshape(stored(v).shape) for part, v in zip(np.split(mask, sizes), values, strict=True)]


def _pattern(text: str | None) -> tuple[int, int]:
    """Read ``n:m``.

    Raises:
        OptionError: It is no such pattern.
    """
    if text is None:
        return 0, 0
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 0 < int(parts[0]) < int(parts[1]) <= 64:
        raise OptionError(f"magnitude: nm={text} is not accepted; give n:m with 0 < n < m <= 64, as 2:4")
    return int(parts[0]), int(parts[1])


def _n_of_m(value: ir.Value, n: int, m: int) -> np.ndarray:
    """Return a mask of the n largest of every m weights along the input axis; a short last group keeps n too."""
    moved = np.moveaxis(np.abs(_wide(value)), input_axis(value), -1)
    length = moved.shape[-1]
    padded = np.full((*moved.shape[:-1], -(-length // m) * m), -1.0)
    padded[..., :length] = moved
    groups = padded.reshape(*moved.shape[:-1], -1, m)
    order = np.argsort(-groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    kept = mask.reshape(padded.shape)[..., :length]
    return np.asarray(np.moveaxis(kept, -1, input_axis(value)))
