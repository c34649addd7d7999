"""The pass ``fold_bn``: BatchNormalization goes into the convolution or Gemm in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap
from onnxprune.graph.fold_bn import fold_batch_norms


@dataclass(frozen=True)
class FoldBn:
    """Fold inference-time BatchNormalization into Conv, ConvTranspose and Gemm weights, computed in float64."""

    name: ClassVar[str] = "fold_bn"
    summary: ClassVar[str] = "folds BatchNormalization into the linear node in front of it; lossless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the parameters are in the model."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with fewer nodes; what could not be folded is listed with its reason."""
        work, folded, skipped = fold_batch_norms(model)
        return StepResult(work, skipped=skipped, numbers={"folded": folded})
