"""What a benchmark found: models, settings, figures, and what they mean in one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.budget import Gate
from onnxprune.report.figures import amount, number
from onnxprune.runtime.memory import Memory
from onnxprune.runtime.timing import Latency, Ratio

# A latency ratio this far off the MAC ratio is remarked on.
MISSED = 0.1
_NAMED = 4


@dataclass(frozen=True)
class BenchModel:
    """One model: ``name`` is its letter; MACs are of one run at ``macs_batch`` examples, None where unknown.

    ``macs_ratio``, ``bytes_ratio`` (weights) and ``nonzero_ratio`` are to the first model; None where that has none.
    """

    name: str
    path: str
    bytes: int
    sha256: str
    params: int
    nonzero: int
    macs: int | None
    macs_batch: int
    weight_bytes: int
    macs_ratio: float | None
    bytes_ratio: float | None
    nonzero_ratio: float | None


@dataclass(frozen=True)
class BenchRow:
    """One model at one setting; ``threads`` is None for ONNX Runtime's own choice, ``memory`` where not measured."""

    model: str
    batch: int
    threads: int | None
    latency: Latency
    memory: Memory | None
    meaning: str

    @property
    def setting(self) -> str:
        """The setting in words."""
        return setting_text(self.batch, self.threads)


@dataclass(frozen=True)
class BenchResult:
    """What :func:`onnxprune.api.bench` found; ``rows`` holds every model at every setting, models innermost."""

    models: tuple[BenchModel, ...]
    rows: tuple[BenchRow, ...]
    data: str
    providers: tuple[str, ...]
    seconds: float
    seed: int
    gates: tuple[Gate, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every gate was met."""
        return all(gate.met for gate in self.gates)


def setting_text(batch: int, threads: int | None) -> str:
    """Return a setting in words."""
    return f"batch {batch}" + ("" if threads is None else f", {amount(threads, 'thread')}")


def share(value: float) -> str:
    """Write a ratio with two decimals, or as many more as it takes not to read as exactly 1 or 0."""
    for decimals in range(2, 7):
        text = f"{value:.{decimals}f}"
        if float(text) not in (0.0, 1.0) or float(text) == value:
            return text
    return f"{value:.9g}"


def ratio_text(ratio: Ratio) -> str:
    """Write a ratio and the ends of its interval."""
    ends = "" if ratio.low is None or ratio.high is None else f", {share(ratio.low)}-{share(ratio.high)}"
    return f"{share(ratio.value)}{ends}"


def deviation(model: BenchModel, ratio: Ratio | None) -> float | None:
    """Return how far a latency ratio is off the MAC ratio, as a share of that, or None where the data does not tell.

    None, too, where it is off by at most :data:`MISSED`, or where the MAC ratio lies within the interval.
    """
    if ratio is None or not model.macs_ratio:
        return None
    off = ratio.value / model.macs_ratio - 1
    if ratio.low is not None and ratio.high is not None and ratio.low <= model.macs_ratio <= ratio.high:
        return None
    return off if abs(off) > MISSED else None


def meaning(first: BenchModel, model: BenchModel, latency: Latency, unaligned: Sequence[str], block: int) -> str:
    """Return one sentence on what a model's latency beside the first model's means.

    ``unaligned`` names widths that are no multiple of ``block``, where the MAC ratio was missed on a CPU.
    """
    ratio = latency.ratio
    if ratio is None:
        if model.name != first.name:
            return f"{model.name} cannot be compared: the runs of {first.name} took no time that the clock shows."
        rate = 1000 * latency.batch / latency.median_ms if latency.median_ms else math.inf
        spoken = number(round(rate) if 100 < rate < math.inf else rate)
        return f"{model.name} takes {number(latency.median_ms)} ms a run, {spoken} examples a second."
    if ratio.low is None or ratio.high is None:
        said = f"{model.name} takes {share(ratio.value)} of {first.name}'s time; the turns were too few for an interval"
    elif ratio.high < 1:
        said = f"{model.name} is {share(1 / ratio.value)} times as fast as {first.name} (ratio {ratio_text(ratio)})"
    elif ratio.low > 1:
        said = f"{model.name} is slower than {first.name}: it takes {share(ratio.value)} times as long"
        said += f" ({share(ratio.low)}-{share(ratio.high)})"
    else:
        holds = f"the interval holds 1 (ratio {ratio_text(ratio)})"
        if _smaller(model):
            said = f"{model.name} is smaller, not faster: {holds}"
        else:
            said = f"{model.name} and {first.name} cannot be told apart: {holds}"
    return f"{said}; {_beside(model, first)}{_missed(model, ratio, unaligned, block)}."


def _smaller(model: BenchModel) -> bool:
    return any(r is not None and r < 1 for r in (model.macs_ratio, model.bytes_ratio, model.nonzero_ratio))


def _beside(model: BenchModel, first: BenchModel) -> str:
    if model.macs_ratio is None:
        return "its MACs are not known" if model.macs is None or first.macs is None else f"{first.name} has no MACs"
    said = "its MACs are the same" if model.macs_ratio == 1 else f"its MACs are {share(model.macs_ratio)} of those"
    if model.macs_ratio == 1 and model.nonzero_ratio is not None and model.nonzero_ratio < 1:
        said += ", and a zero takes as long to multiply by as any other weight"
    return said


def _missed(model: BenchModel, ratio: Ratio, unaligned: Sequence[str], block: int) -> str:
    off = deviation(model, ratio)
    if off is None:
        return ""
    if off < 0:
        return f", and its time is {-100 * off:.0f} % below what they say"
    said = f", and its time is {100 * off:.0f} % above what they say"
    if unaligned:
        more = f" and {len(unaligned) - _NAMED} more" if len(unaligned) > _NAMED else ""
        said += f"; widths that are no multiple of {block} may be why (align=auto avoids them): "
        said += ", ".join(unaligned[:_NAMED]) + more
    return said
