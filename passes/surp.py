"""The pass ``surp``: successive refinement pruning (Isik, Weissman, No, 2022) on the weights of linear nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.codec.law import Law, Stop
from onnxprune.codec.levels import Refinement, refine
from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import ModelError
from onnxprune.graph import constants, origins
from onnxprune.graph.cleanup import finish, name_nodes
from onnxprune.graph.selection import Selection

_LINEAR = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


@dataclass(frozen=True)
class Surp:
    """Zero the weights that the information-theoretic code has not announced when it reaches a sparsity.

    Every tensor is divided by its L2 norm and all are pooled; biases and normalisation parameters are untouched.
    """

    sparsity: float | None = option(
        None,
        float,
        "share of zeros among the treated weights; searched for where none is given, else 0.5",
        low=0.0,
        high=1.0,
        below=True,
    )
    values: str = option(
        "reconstruction",
        str,
        "surviving weights: the code's own values, or the original ones",
        choices=("reconstruction", "original"),
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

    name: ClassVar[str] = "surp"
    summary: ClassVar[str] = "information-theoretic pruning of single weights (SuRP); needs no data"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    default_size: ClassVar[tuple[str, float]] = ("sparsity", 0.5)

    def __post_init__(self) -> None:
        check_options(self)
        Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights alone decide."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the tensors that compete for the sparsity; how many zeros each gets, the code decides."""
        tensors, skipped = _treated(_opened(model), Selection.parse(self.name, self.only, self.ignore))
        zeros = self.default_size[1] if self.sparsity is None else self.sparsity
        rows = tuple(
            {"tensor": str(v.name), "weights": int(w.size), "nonzero": int(np.count_nonzero(w))}
            for v, w in tensors.items()
        )
        total = sum(weight.size for weight in tensors.values())
        return Plan(rows, (f"{math.ceil(zeros * total - 1e-9):,} of {total:,} weights become zero",), skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with the same topology and fewer non-zero weights.

        Raises:
            ModelError: A weight tensor holds NaN or infinity.
        """
        work = _opened(model)
        tensors, skipped = _treated(work, Selection.parse(self.name, self.only, self.ignore))
        return self._pruned(work, tensors, self._pooled(tensors), skipped, context)

    def prepared(self, model: ir.Model, context: Context) -> Callable[[float], StepResult]:
        """Return what :meth:`apply` gives for a sparsity; the weights are read and pooled once."""
        source = _opened(model)
        tensors, skipped = _treated(source, Selection.parse(self.name, self.only, self.ignore))
        pooled = self._pooled(tensors)

        def at(sparsity: float) -> StepResult:
            work = source.clone()
            work.meta.update(source.meta)
            own = {work.graph.initializers[str(value.name)]: weight for value, weight in tensors.items()}
            return replace(self, sparsity=sparsity)._pruned(work, own, pooled, skipped, context)

        return at

    def _pruned(
        self,
        work: ir.Model,
        tensors: dict[ir.Value, np.ndarray],
        pooled: np.ndarray,
        skipped: Mapping[str, str],
        context: Context,
    ) -> StepResult:
        """Prune the weights of ``work`` in place; ``tensors`` comes to hold what was written."""
        wanted = self.default_size[1] if self.sparsity is None else self.sparsity
        total = pooled.size
        if not total or wanted == 0.0:
            numbers = {"weights": total, "sparsity": _sparsity(tensors), "layers": []}
            return StepResult(finish(work), skipped=skipped, numbers=numbers)
        before = {value: np.count_nonzero(weight) for value, weight in tensors.items()}
        zeros = math.ceil(wanted * total - 1e-9)
        law = Law(alpha=self.alpha, decay=self.decay, patience=self.patience, seed=context.seed)
        refinement = refine(pooled, Stop(nonzeros=total - zeros), law)
        self._write(tensors, refinement)
        sparsity = _sparsity(tensors)
        numbers = {
            "weights": total,
            "sparsity": sparsity,
            "hits": refinement.hits,
            "levels": refinement.levels,
            "layers": [_layer(v, weight, int(before[v])) for v, weight in tensors.items()],
        }
        reached = {} if self.sparsity is None else {"sparsity": (wanted, sparsity)}
        warnings = () if refinement.complete else (_too_sparse(wanted, sparsity),)
        return StepResult(finish(work), skipped, numbers, reached, warnings)

    def _pooled(self, tensors: Mapping[ir.Value, np.ndarray]) -> np.ndarray:
        """Return the magnitudes of all weights, float64 [weights], each tensor over its norm."""
        parts = [np.abs(weight).ravel() / self._norm(weight) for weight in tensors.values()]
        return np.concatenate([np.zeros(0), *parts])

    def _norm(self, weight: np.ndarray) -> float:
        if not self.normalize:
            return 1.0
        peak = float(np.abs(weight).max())  # squares of very small or large doubles leave the range
        return peak * float(np.linalg.norm(weight / peak))

    def _write(self, tensors: dict[ir.Value, np.ndarray], refinement: Refinement) -> None:
        start = 0
        for value, weight in tensors.items():
            magnitude = refinement.values[start : start + weight.size].reshape(weight.shape)
            start += weight.size
            if self.values == "original":
                new = np.where(magnitude > 0.0, weight, 0.0)
            else:
                new = np.where(magnitude > 0.0, np.sign(weight) * magnitude * self._norm(weight), 0.0)
            tensors[value] = _store(value, new, weight)


def _opened(model: ir.Model) -> ir.Model:
    """Return a clone whose weights are all initialisers and whose nodes are all named."""
    work = model.clone()
    work.meta.update(model.meta)
    constants.lift(work)
    name_nodes(work)
    return work


def _too_sparse(wanted: float, got: float) -> str:
    return (
        f"surp was asked for a sparsity of {wanted:g} and came to {got:.6g}: "
        "the other weights were zero before or are too small to be coded"
    )


def _store(value: ir.Value, new: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Write new values and return them as stored; one too small for the element type keeps its old weight."""
    constants.set_array(value, new)
    stored = np.asarray(constants.array(value)).astype(np.float64)
    lost = (stored == 0.0) & (new != 0.0)
    if lost.any():
        stored[lost] = weight[lost]
        constants.set_array(value, stored)
    return stored


def _treated(model: ir.Model, selection: Selection) -> tuple[dict[ir.Value, np.ndarray], dict[str, str]]:
    """Return the weights to prune in float64, each initialiser once, and nodes whose weight is left alone."""
    tensors: dict[ir.Value, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for node, value in _weights(model):
        if value in tensors:
            continue
        # A shared weight is treated for all its readers or for none.
        reason = selection.reason([str(use.node.name) for use in value.uses()])
        if reason is not None:
            skipped[str(node.name)] = reason
            continue
        data = constants.array(value)
        if data is None and origins.shows_stored(value):
            skipped[str(node.name)] = "its weight is quantised, converted or transposed by the graph, and left as it is"
            continue
        if data is None or (value.is_graph_input() and model.ir_version >= 4):
            skipped[str(node.name)] = "its weight is computed or may be fed by the caller, not stored"
            continue
        if data.ndim < 2 or value.dtype is None or not value.dtype.is_floating_point():
            continue
        wide = data.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ModelError(f"weight '{value.name}' of node '{node.name}' holds NaN or infinity; mend the model first")
        if not wide.any():
            skipped[str(node.name)] = f"its weight '{value.name}' is all zeros"
            continue
        tensors[value] = wide
    return tensors, skipped


def _weights(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in model.graph:
        positions = _LINEAR.get(node.op_type, ()) if node.domain == "" else ()
        values = [node.inputs[i] for i in positions]
        stored = [value for value in values if value is not None and value.is_initializer()]
        behind = [value for value in values if value is not None and origins.shows_stored(value)]
        given = stored or behind or [value for value in values[-1:] if value is not None and len(positions) == 1]
        for value in given:
            yield node, value


def _sparsity(tensors: Mapping[ir.Value, np.ndarray]) -> float:
    total = sum(weight.size for weight in tensors.values())
    zeros = total - sum(int(np.count_nonzero(weight)) for weight in tensors.values())
    return zeros / total if total else 0.0


def _layer(value: ir.Value, weight: np.ndarray, before: int) -> dict[str, object]:
    kept = int(np.count_nonzero(weight))
    return {
        "tensor": str(value.name),
        "weights": weight.size,
        "nonzero_before": before,
        "nonzero_after": kept,
    }
