"""The pass ``zero_groups``: channels that are zero or constant leave the graph, and what they gave stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.graph import nulls, spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.kept import record_kept
from onnxprune.graph.known import Knowledge
from onnxprune.graph.linear import add_constants, drop_zero_constants
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.spaces import Analysis
from onnxprune.report.figures import amount


@dataclass(frozen=True)
class ZeroGroups:
    """Turn zeros that fill whole filters or columns, as group-sparse training leaves them, into narrower layers.

    A channel goes where every reader multiplies it by zero, or where it is zero itself. A null filter leaves its
    bias behind, which normalisation and activation turn into another constant: that goes into the readers' biases
    where they are no zero-padded convolutions. Repeated until nothing is left to remove; a layer keeps one channel.
    """

    tolerance: float = option(0.0, float, "weights of at most this size count as zero", low=0.0, high=1e30)
    border: str = option(
        "keep",
        str,
        "a constant that zero padding cuts off at the border: keep its channel, or accept and report the error there",
        choices=("keep", "accept"),
    )
    drop_branch: bool = option(True, bool, "a residual branch that is zero or constant everywhere goes as a whole")
    only: str | None = option(None, str, "cut only spaces with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never cut spaces with these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "zero_groups"
    summary: ClassVar[str] = "removes channels and residual branches that are zero or constant; lossless"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)
        _ = self._selection

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the weights alone decide."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model without null channels; counts are in the numbers."""
        work = prepare(model)
        added = add_constants(work)
        tally = _Tally()
        skipped: Mapping[str, str] = {}
        while True:
            analysis = spaces.analyse(work)
            shapes = concrete_shapes(work, example_shapes(work, context.inputs))
            known = Knowledge(work, shapes, self.tolerance)
            if self.drop_branch and (dropped := nulls.drop_branches(analysis, known, self._barred(work))):
                tally.branches += dropped
                continue
            kept, skipped = self._cut(analysis, known, tally)
            if not kept:
                break
        finish(work)
        drop_zero_constants(work, added)
        return StepResult(work, skipped, tally.numbers(), warnings=self._warnings(tally))

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return what would go: a row per space that gets narrower, and residual branches; weights alone decide."""
        found = self.apply(model, context)
        rows = [row for row in found.numbers["layers"] if row["kept"] < row["width"]]
        dropped = found.numbers["branches_dropped"]
        notes = [f"{amount(found.numbers['channels_removed'], 'channel')} would go, outputs as they are"]
        notes += [f"{amount(dropped, 'residual branch')} would go"] if dropped == 1 else []
        notes += [f"{dropped:,} residual branches would go"] if dropped > 1 else []
        return Plan(tuple(rows), (*notes, *found.warnings), found.skipped)

    def _barred(self, work: ir.Model) -> dict[ir.Node, str]:
        reasons = {node: self._selection.reason([str(node.name)]) for node in work.graph if node.op_type == "Add"}
        return {node: reason for node, reason in reasons.items() if reason is not None}

    def _cut(self, analysis: Analysis, known: Knowledge, tally: _Tally) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Cut what can go now, in place; return what stays of each cut space, and why other channels stay."""
        chosen, skipped = self._selection.spaces(analysis)
        found = list(nulls.readers(analysis, known, border=self.border == "accept"))
        kept: dict[str, np.ndarray] = {}
        verdicts: dict[str, nulls.Verdict] = {}
        for space in chosen:
            verdict = nulls.judge(analysis, space, found)
            if verdict is None:
                continue
            tally.widths.setdefault(space.name, [space.width, space.width])
            if verdict.bordered.any():
                skipped[space.name] = (
                    f"{amount(int(verdict.bordered.sum()), 'channel')} held a constant that the zero padding of "
                    f"'{verdict.keeper}' cuts off at the border; border=accept removes them"
                )
            gone = verdict.gone.copy()
            # A layer keeps a channel, whatever it holds.
            gone[0] &= not gone.all()
            if gone.any():
                kept[space.name], verdicts[space.name] = np.flatnonzero(~gone), verdict
        if kept and nulls.add_shifts(analysis, known, found, kept):
            return kept, skipped
        if kept:
            tally.rounds += 1
            tally.moved += nulls.absorb(analysis, known, found, kept)
            for name, staying in kept.items():
                columns = np.delete(verdicts[name].columns, staying)
                tally.columns += int(columns.sum())
                tally.filters += int((~columns).sum())
                tally.widths[name][1] = len(staying)
            surgery.cut(analysis, kept)
            record_kept(analysis.model, surgery.kept_outputs(analysis, kept))
        return kept, skipped

    def _warnings(self, tally: _Tally) -> tuple[str, ...]:
        edges = [item for item in tally.moved if item.border]
        if not edges:
            return ()
        worst = max(edges, key=lambda item: item.border)
        return (
            f"zero_groups: border=accept changes outputs next to the border of {amount(len(edges), 'convolution')}, "
            f"by at most {worst.border:.3g} at '{worst.node}'",
        )


@dataclass
class _Tally:
    """What has gone so far; ``widths`` holds (before, now) of every space that was looked at."""

    filters: int = 0
    columns: int = 0
    rounds: int = 0
    branches: list[str] = field(default_factory=list)
    moved: list[nulls.Moved] = field(default_factory=list)
    widths: dict[str, list[int]] = field(default_factory=dict)

    def numbers(self) -> dict[str, Any]:
        borders = [{"node": item.node, "bound": item.border} for item in self.moved if item.border]
        return {
            "channels_removed": self.filters + self.columns,
            "null_filters": self.filters,
            "null_columns": self.columns,
            "constants_moved": sum(item.constants for item in self.moved),
            "branches_dropped": len(self.branches),
            "rounds": self.rounds,
            **({"border_errors": borders} if borders else {}),
            "layers": [{"space": n, "width": before, "kept": now} for n, (before, now) in self.widths.items()],
        }
