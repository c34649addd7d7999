"""The pass ``cleanup``: identities, constant computations and dead parts go; the outputs stay equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options, option
from onnxprune.graph.cleanup import cleanup
from onnxprune.graph.selection import Selection


@dataclass(frozen=True)
class Cleanup:
    """Fold constants, bypass Identity and inference-time Dropout, drop dead nodes and initialisers."""

    only: str | None = option(None, str, "remove only these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never remove these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "cleanup"
    summary: ClassVar[str] = "folds constants, drops identities and dead parts; lossless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)
        Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the graph alone says what is constant or dead."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the tidied model and how many nodes went; those that the options keep are listed."""
        selection = Selection.parse(self.name, self.only, self.ignore)
        skipped: dict[str, str] = {}

        def removable(node: ir.Node) -> bool:
            reason = selection.reason([str(node.name)])
            if reason is not None:
                skipped[str(node.name)] = reason
            return reason is None

        work, counts = cleanup(model, removable)
        return StepResult(work, skipped, counts)
