"""The pass ``cleanup``: identities, constant computations and dead parts go; the outputs stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap
from onnxprune.graph.cleanup import cleanup


@dataclass(frozen=True)
class Cleanup:
    """Fold constants, bypass Identity and inference-time Dropout, drop dead nodes and initialisers."""

    name: ClassVar[str] = "cleanup"
    summary: ClassVar[str] = "folds constants, drops identities and dead parts; lossless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the graph alone says what is constant or dead."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the tidied model and how many nodes went."""
        work, counts = cleanup(model)
        return StepResult(work, numbers=counts)
