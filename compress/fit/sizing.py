"""From a size option (keep, flops, params, bytes, latency) to a number of channels per space, before any cut."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Plan
from onnxprune.errors import OptionError
from onnxprune.fit.allocate import Widths, fraction_widths, ranked_widths, uniform_widths
from onnxprune.graph import spaces
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.reach import reach
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.graph.tally import Tally

SIZES = ("keep", "flops", "params", "bytes", "latency")
# Names that authors have for sizes.
_ALIASES = {"keep_ratio": "params"}
# Narrower spaces gain nothing from whole blocks.
_WIDE = 64


def block_size() -> int:
    """Return the channels in one block of ONNX Runtime's convolutions here: 16 with AVX-512, 8 with AVX2, else 16."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    if platform.machine().lower() in ("x86_64", "amd64") and "avx2" in flags and "avx512f" not in flags:
        return 8
    return 16


@dataclass(frozen=True, eq=False)
class Budget:
    """What cut channels may cost: ``cost`` of any widths, and the most that it may be."""

    cost: Callable[[Widths], int]
    limit: int


@dataclass(frozen=True)
class Sizing:
    """One size and the block that widths are multiples of (0: chosen per space, for wide ones only)."""

    name: str
    value: float
    align: int

    @classmethod
    def of(cls, item: Any) -> Sizing:
        """Read the size options of a pass, its default size where it names none.

        Raises:
            OptionError: More than one size is given, or ``align`` is neither ``auto`` nor a positive whole number.
        """
        given = [name for name in (*SIZES, *_ALIASES) if getattr(item, name, None) is not None]
        if len(given) > 1:
            raise OptionError(f"{item.name}: {' and '.join(given)} are both given; one size decides, give one of them")
        text = str(getattr(item, "align", "1"))
        if text != "auto" and not (text.isdecimal() and int(text) > 0):
            raise OptionError(f"{item.name}: align={text} is not accepted; give auto or a positive whole number")
        align = 0 if text == "auto" else int(text)
        name, value = (given[0], getattr(item, given[0])) if given else item.default_size
        name = _ALIASES.get(name, name)
        # Unaligned widths lose the time that they were to save.
        return cls(name, float(value), 0 if name == "latency" and align == 1 else align)

    def widths(
        self, analysis: Analysis, chosen: Sequence[ChannelSpace], context: Context, tally: Tally | None = None
    ) -> dict[str, int]:
        """Return how many channels every chosen space keeps: the same fraction of each, as far as blocks allow."""
        full = {space.name: space.width for space in chosen}
        align = self.blocks(full)
        if self.name == "keep":
            return fraction_widths(full, self.value, align, up=True)
        budget = self.budget(analysis, context, tally)
        return uniform_widths(full, budget.cost, budget.limit, align)

    def ranked(self, analysis: Analysis, scores: Mapping[str, np.ndarray], context: Context) -> dict[str, int]:
        """Return how many channels every space keeps when all compete by score; ``keep`` counts channels."""
        align = self.blocks({name: len(values) for name, values in scores.items()})
        if self.name == "keep":
            total = sum(len(values) for values in scores.values())
            return ranked_widths(scores, lambda widths: sum(widths.values()), int(self.value * total + 1e-9), align)
        budget = self.budget(analysis, context)
        return ranked_widths(scores, budget.cost, budget.limit, align)

    def blocks(self, widths: Widths) -> dict[str, int]:
        """Return, per space, the number that its width is a multiple of."""
        if self.align:
            return dict.fromkeys(widths, self.align)
        block = block_size()
        return {name: block if width >= _WIDE else 1 for name, width in widths.items()}

    def choices(self, widths: Widths) -> dict[str, list[int]]:
        """Return, per space, the widths that it may get, ascending; its own is always among them."""
        blocks = self.blocks(widths)
        found = {}
        for name, width in widths.items():
            found[name] = [*range(min(blocks[name], width), width, blocks[name]), width]
        return found

    def unaligned(self, widths: Widths) -> tuple[str, ...]:
        """Return a warning that names wide spaces whose width is no multiple of the processor's block."""
        block = block_size()
        odd = [f"{name} ({width})" for name, width in widths.items() if width > _WIDE and width % block]
        if not odd or self.align not in (0, 1):
            return ()
        listed = ", ".join(odd[:4]) + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
        return (f"widths that are no multiple of {block} cost speed: {listed}; align=auto avoids them",)

    def budget(self, analysis: Analysis, context: Context, tally: Tally | None = None) -> Budget:
        """Return the cost of given widths and the most it may be; ``latency`` counts FLOPs at the same fraction."""
        found = tally or tally_of(analysis, context)
        original = context.original_cost
        if self.name in ("params", "bytes"):
            own = measure(analysis.model, context.inputs)
            if self.name == "params":
                return Budget(lambda widths: own.params + found.params(widths), int(self.value * original.params))
            return Budget(lambda widths: int(own.bytes + found.bytes(widths)), int(self.value * original.bytes))
        return Budget(found.macs, int(self.value * original.macs))

    def met_by(self, model: ir.Model, context: Context) -> bool:
        """Return whether a model meets a budget as it is; the constants that a refit adds count once they are there."""
        name = {"flops": "macs", "params": "params", "bytes": "bytes"}.get(self.name)
        if name is None:
            return self.value >= 1.0
        limit = int(self.value * getattr(context.original_cost, name))
        return bool(getattr(measure(model, context.inputs), name) <= limit)


def tally_of(analysis: Analysis, context: Context) -> Tally:
    """Return the costs of an analysed model at the shapes at which the original's are counted."""
    return Tally(analysis, concrete_shapes(analysis.model, example_shapes(analysis.model, context.inputs)))


def reached(item: Any, result: ir.Model, context: Context) -> dict[str, tuple[float, float]]:
    """Return what a pass reached of the size that it was asked for (nothing for ``keep`` and for defaults)."""
    found = {}
    original = context.original_cost
    if getattr(item, "flops", None) is not None and original.macs:
        shapes = concrete_shapes(result, example_shapes(result, context.inputs))
        found["flops"] = (float(item.flops), spaces.total_macs(result, shapes) / original.macs)
    asked = next((v for n in ("params", "keep_ratio") if (v := getattr(item, n, None)) is not None), None)
    if asked is not None and original.params:
        found["params"] = (float(asked), measure(result, context.inputs).params / original.params)
    if getattr(item, "bytes", None) is not None and original.bytes:
        found["bytes"] = (float(item.bytes), measure(result, context.inputs).bytes / original.bytes)
    if getattr(item, "latency", None) is not None:
        from onnxprune.fit.speed import ratio

        found["latency"] = (float(item.latency), ratio(context, result))
    return found


def plan_spaces(
    item: Any,
    analysis: Analysis,
    chosen: Sequence[ChannelSpace],
    skipped: Mapping[str, str],
    context: Context,
    widths: Widths | None = None,
) -> Plan:
    """Return the plan of a pass that cuts channels: its widths, what they govern, and the range of its targets."""
    shapes = concrete_shapes(analysis.model, example_shapes(analysis.model, context.inputs))
    sizing = Sizing.of(item)
    planned = widths or sizing.widths(analysis, chosen, context)
    found = reach(analysis, shapes)
    rows = tuple(
        {
            "space": space.name,
            "width": space.width,
            "planned": planned[space.name],
            "producers": len(space.producers),
            "consumers": len(space.consumers),
            "MACs governed": found.governed[space.name],
        }
        for space in chosen
    )
    ones = {space.name: np.zeros(1, dtype=np.int64) for space in chosen}
    counted = {name: np.arange(count) for name, count in planned.items()}
    original = context.original_cost.macs or 1
    lowest, after = (spaces.predicted_macs(analysis, shapes, kept) / original for kept in (ones, counted))
    notes = (
        f"{100 * found.prunable_share:.1f} % of the MACs are in nodes that can be cut",
        f"planned: {after:.4f} of the FLOPs; reachable: {lowest:.4f} to {found.macs / original:.4f}",
    )
    narrow = {space.name: planned[space.name] for space in chosen if planned[space.name] < space.width}
    return Plan(rows, (*notes, *sizing.unaligned(narrow)), skipped)
