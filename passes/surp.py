"""The pass ``surp``: successive refinement pruning (Isik, Weissman, No, 2022) on the weights of linear nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.codec.law import Law, Stop, l2_norm
from onnxprune.codec.levels import refine
from onnxprune.codec.sequential import announce
from onnxprune.codec.stream import encode
from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.fit.reconstruct import Fit
from onnxprune.fit.zeroing import Stage, Zeroing, stages, usable
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import Weights, store, stored, weights

_STOPS = ("bits", "bytes", "hits", "relative_l1")


@dataclass(frozen=True)
class Surp:
    """Zero the weights that the information-theoretic code has not announced when it stops.

    Every tensor is divided by its L2 norm and all are pooled; normalisation parameters are untouched. What survives
    gets the code's own values; with ``values=refit`` it is solved for anew against calibration activations, in stages
    on the way to a high sparsity, which keeps far more decisions and takes longer.
    """

    sparsity: float | None = option(
        None,
        float,
        "share of zeros among the treated weights; searched for where no stop is given, else 0.5",
        low=0.0,
        high=1.0,
        below=True,
    )
    values: str = option(
        "reconstruction",
        str,
        "surviving weights: the code's own values, the original ones, or refitted to calibration data",
        choices=("reconstruction", "original", "refit"),
    )
    alpha: float | None = option(
        None,
        float,
        "first threshold over the mean magnitude; default ln(n / ln n)",
        low=0.0,
        above=True,
        high=1e6,
    )
    decay: float = option(0.9, float, "factor on alpha", low=0.0, above=True, high=1.0, below=True)
    patience: int = option(20, int, "levels between two decays of alpha", low=1, high=1_000_000)
    normalize: bool = option(True, bool, "divide every tensor by its L2 norm before pooling")
    only: str | None = option(None, str, "treat only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never treat these nodes: names, globs, re:..., parted by ;")
    mode: str = option(
        "level",
        str,
        "thresholds that stay within a level (the form that is coded), or the paper's, which decay with every hit",
        choices=("level", "sequential"),
    )
    stages: str = option(
        "auto",
        str,
        "refits on the way to the sparsity: a number, or auto (a fifth of what is left at a time, as SuRP's authors)",
    )
    bits: int | None = option(None, int, "stop at so many coded bits", low=0)
    bytes: int | None = option(None, int, "stop at so many coded bytes", low=0)
    hits: int | None = option(None, int, "stop after so many announcements", low=0)
    relative_l1: float | None = option(
        None, float, "stop when the error's L1 norm is this share of the weights'", low=0.0, high=1.0
    )
    seed: int | None = option(None, int, "of the order of announcements; default: the run's", low=0, high=2**63)
    ridge: float = option(1e-4, float, "refit: ridge over the mean diagonal of second moments", low=0.0, high=1.0)
    rectify: int = option(3, int, "refit: rounds that aim at what a following ReLU lets through", low=0, high=20)

    name: ClassVar[str] = "surp"
    summary: ClassVar[str] = "information-theoretic pruning of single weights (SuRP); values=refit makes up for it"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("sparsity", 0.5)
    stops: ClassVar[frozenset[str]] = frozenset(_STOPS)

    def __post_init__(self) -> None:
        check_options(self)
        Selection.parse(self.name, self.only, self.ignore)
        if self.mode == "sequential" and self.bytes is not None:
            raise OptionError("surp: mode=sequential is not coded, bytes= cannot stop it; bits= can, by an estimate")
        stages(self.name, self._wanted, self.stages)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights decide, and a refit goes through the model piece by piece."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the tensors that compete for the sparsity; how many zeros each gets, the code decides."""
        found = weights(lifted(model), self._selection)
        if self._wanted is None:
            note = f"the code stops at {' or '.join(self._stops)}: how many zeros that leaves, it tells"
        else:
            note = f"{math.ceil(self._wanted * found.count - 1e-9):,} of {found.count:,} weights become zero"
        return Plan(found.table(), (note,), found.skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with the same topology and fewer non-zero weights.

        Raises:
            ModelError: A weight tensor holds NaN or infinity.
            OptionError: ``alpha`` is too small for a code that is to stop at its bytes.
        """
        return self._run(lifted(model), context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Surp], StepResult]:
        """Return what :meth:`apply` of this pass with a size gives; stages on the way are shared."""
        source, made = lifted(model), dict[float, ir.Model]()
        return lambda sized: sized._run(source, context, made)

    def norm(self, value: ir.Value) -> float:
        """Return what a tensor is divided by before pooling."""
        if not self.normalize:
            return 1.0
        return l2_norm(stored(value).astype(np.float64))

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    @property
    def _stops(self) -> list[str]:
        """The stops besides the sparsity, as they were given."""
        return [f"{name}={getattr(self, name):g}" for name in _STOPS if getattr(self, name) is not None]

    @property
    def _wanted(self) -> float | None:
        """The sparsity that is asked for, None where other stops alone decide."""
        return self.default_size[1] if self.sparsity is None and not self._stops else self.sparsity

    def _run(self, source: ir.Model, context: Context, made: dict[float, ir.Model] | None = None) -> StepResult:
        fit: Fit | None = None
        said: tuple[str, ...] = ()
        if self.values == "refit" and self.sparsity != 0.0:
            fit, said = usable(self.name, Fit(ridge=self.ridge, rounds=self.rectify), source, context)
        # Other stops are of one code: there are no stages on the way to them.
        way = stages(self.name, None if self._stops else self._wanted, self.stages if fit else "1")
        coder = _Coder(self, context.seed if self.seed is None else self.seed, self._values(fit))
        result = Zeroing(self._selection, way, coder, fit).run(source, context, made)
        if not result.numbers["weights"] or not self._wanted:
            return replace(result, warnings=said)
        got = float(result.numbers["sparsity"])
        reached = {} if self.sparsity is None or self._stops else {"sparsity": (self.sparsity, got)}
        missed = () if coder.complete else (_too_sparse(self._wanted, got),)
        return replace(result, reached=reached, warnings=(*said, *missed))

    def _values(self, fit: Fit | None) -> str:
        """What stands in the weights before a refit, or for good."""
        if self.values == "refit":
            return "reconstruction" if fit is None else "original"
        return self.values


@dataclass(eq=False)
class _Coder:
    """Decides by the code which weights stay, and writes ``values`` into them."""

    options: Surp
    seed: int
    values: str
    complete: bool = True

    def __call__(self, found: Weights, stage: Stage) -> Mapping[str, Any]:
        """Zero what is not announced, in place, and return figures of the code."""
        options = self.options
        share = options.sparsity if stage.sparsity is None else stage.sparsity
        if share == 0.0:
            return {}
        given = {name: getattr(options, name) for name in _STOPS}
        stop = Stop(sparsity=share, **given)
        law = Law(alpha=options.alpha, decay=options.decay, patience=options.patience, seed=self.seed)
        norms = [options.norm(value) for value in found.values]
        pooled = _pooled(found, norms)
        masked = stage.place > 0
        if options.mode == "sequential":
            announced = announce(pooled, stop, law, masked=masked)
            values, self.complete = announced.values, announced.complete
            said = {"hits": announced.hits, "relative_l1": announced.relative_l1}
        else:
            if stop.size() is not None:  # only an encoder knows how far so many bytes reach
                stop = Stop(hits=encode(pooled, law, stop, masked=masked).shape.hits)
            refined = refine(pooled, stop, law, masked=masked)
            values, self.complete = refined.values, refined.complete
            said = {"hits": refined.hits, "levels": refined.levels, "relative_l1": refined.relative_l1}
        self._write(found, values, norms)
        return said

    def _write(self, found: Weights, values: np.ndarray, norms: list[float]) -> None:
        begin = 0
        for value, norm in zip(found.values, norms, strict=True):
            weight = stored(value)
            magnitude = values[begin : begin + weight.size].reshape(weight.shape)
            begin += weight.size
            own = self.values == "original"
            store(value, np.where(magnitude > 0.0, weight if own else np.sign(weight) * magnitude * norm, 0.0))


def _pooled(found: Weights, norms: Sequence[float]) -> np.ndarray:
    """Return the magnitudes of all weights, float64 [weights], each tensor over its norm."""
    pooled, begin = np.empty(found.count), 0
    for value, norm in zip(found.values, norms, strict=True):
        weight = stored(value)
        part = pooled[begin : begin + weight.size]
        part[:] = weight.ravel()
        np.abs(part, out=part)
        part /= norm
        begin += weight.size
    return pooled


def _too_sparse(wanted: float, got: float) -> str:
    return (
        f"surp was asked for a sparsity of {wanted:g} and came to {got:.6g}: "
        "the other weights were zero before or are too small to be coded"
    )
