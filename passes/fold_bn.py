"""The pass ``fold_bn``: BatchNormalization goes into the convolution or Gemm in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options, option
from onnxprune.graph.fold_bn import fold_batch_norms
from onnxprune.graph.selection import Selection


@dataclass(frozen=True)
class FoldBn:
    """Fold inference-time BatchNormalization into Conv, ConvTranspose and Gemm weights, computed in float64."""

    only: str | None = option(
        None, str, "fold only where the BatchNormalization or the node in front is named: names, globs, re:..., by ;"
    )
    ignore: str | None = option(None, str, "never fold where either of the two is named, in the same way")

    name: ClassVar[str] = "fold_bn"
    summary: ClassVar[str] = "folds BatchNormalization into the linear node in front of it; lossless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)
        Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the parameters are in the model."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with fewer nodes; what could not be folded is listed with its reason."""
        selection = Selection.parse(self.name, self.only, self.ignore)
        work, folded, skipped = fold_batch_norms(model, selection.reason)
        return StepResult(work, skipped=skipped, numbers={"folded": folded})
