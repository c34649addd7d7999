"""The page's charts as SVG for HTML: the same bytes for the same report, colours from the page's own style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxprune.report.figures import percent
from onnxprune.report.grids import accuracy_ends
from onnxprune.report.report import Report, Step
from onnxprune.report.svg import BAD, INK, MAIN, MUTED, SIZE, chart_svg, shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_CLASSES = 25
"""How many classes the chart shows, the worst first."""

_NAME = 22


def interval_chart(report: Report) -> str | None:
    """Return agreement and accuracy with their intervals, and the agreement that was wanted."""
    rows = _intervals(report)
    if not rows:
        return None
    wanted = next((gate.wanted for gate in report.gates if gate.name == "min_agreement"), None)

    def draw(axes: Axes) -> None:
        for place, (_, rate, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=MAIN, linewidth=2, solid_capstyle="butt")
            axes.plot([rate], [place], "o", color=MAIN, markersize=5)
            axes.text(rate, place - 0.3, percent(rate), ha="center", va="bottom", color=INK, fontsize=SIZE)
        if wanted is not None:
            axes.axvline(wanted, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        lowest = min([low for _, _, low, _ in rows] + ([] if wanted is None else [wanted]))
        axes.set_xlim(max(0.0, lowest - 0.15 * (1 - lowest) - 0.002), 1 + 0.1 * (1 - lowest) + 0.001)
        _names(axes, [name for name, *_ in rows], room=0.75)
        shares(axes)

    return chart_svg("intervals", draw, height=0.65 + 0.42 * len(rows))


def _intervals(report: Report) -> list[tuple[str, float, float, float]]:
    agreement, accuracy = report.agreement, report.accuracy
    if agreement is None:
        return []
    rows = [("same top-1", agreement.top1.rate, agreement.top1.low, agreement.top1.high)]
    if agreement.top5 is not None:
        rows.append(("top-1 still in top-5", agreement.top5.rate, agreement.top5.low, agreement.top5.high))
    if accuracy is not None:
        for name, share in (("accuracy before", accuracy.original), ("accuracy after", accuracy.compressed)):
            rows.append((name, share, *accuracy_ends(share, agreement.examples, agreement.top1.confidence)))
    return rows


def ratio_chart(report: Report) -> str | None:
    """Return what is left of every cost, and of the latency, as bars beside the original."""
    cost, times = report.cost, report.latency or {}
    named: list[tuple[str, Any]] = [("latency", times.get("ratio"))]
    if cost is not None:
        named[:0] = [
            ("parameters", cost.params.ratio),
            ("nonzero weights", cost.nonzero.ratio),
            ("FLOPs", cost.macs.ratio),
            ("weight bytes", cost.bytes.ratio),
        ]
    rows = [(name, float(ratio)) for name, ratio in named if isinstance(ratio, int | float)]
    if not rows:
        return None
    low, high = times.get("low"), times.get("high")

    def draw(axes: Axes) -> None:
        widest = max(1.0, *(ratio for _, ratio in rows))
        for place, (name, ratio) in enumerate(rows):
            # A time that cannot be told from the original's is no gain.
            edge = high if name == "latency" else ratio
            gained = isinstance(edge, int | float) and edge < 1
            axes.barh(place, ratio, height=0.6, color=MAIN if gained else MUTED)
            if name == "latency" and isinstance(low, int | float) and isinstance(high, int | float):
                axes.plot([low, high], [place, place], color=INK, linewidth=1.5)
                widest = max(widest, high)
        for place, (_, ratio) in enumerate(rows):
            axes.text(1.03 * widest, place, percent(ratio), va="center", color=INK, fontsize=SIZE, clip_on=False)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, widest)
        _names(axes, [name for name, _ in rows])
        shares(axes)

    return chart_svg("ratios", draw, height=0.5 + 0.3 * len(rows))


def class_chart(report: Report) -> str | None:
    """Return the agreement of every class with its interval, the worst first; None for fewer than two."""
    if report.agreement is None or len(report.agreement.per_class) < 2:
        return None
    rows = sorted(report.agreement.per_class, key=lambda each: each.rate)[:SHOWN_CLASSES]
    overall = report.agreement.top1.rate

    def draw(axes: Axes) -> None:
        for place, each in enumerate(rows):
            axes.barh(place, each.rate, height=0.62, color=MAIN)
            axes.plot([each.low, each.high], [place, place], color=INK, linewidth=1.5)
            axes.text(1.02, place, percent(each.rate), va="center", color=INK, fontsize=SIZE, clip_on=False)
        axes.axvline(overall, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        _names(axes, [each.label for each in rows])
        shares(axes)

    return chart_svg("classes", draw, height=0.5 + 0.25 * len(rows))


def trial_chart(step: Step, place: int = 1) -> str | None:
    """Return the sizes that a search tried with what each kept, and the lower bounds; None for fewer than two."""
    if len(step.trials) < 2:
        return None
    trials = sorted(step.trials, key=lambda each: float(each["size"]))
    sizes = [float(each["size"]) for each in trials]

    def draw(axes: Axes) -> None:
        wanted = step.numbers.get("wanted_agreement")
        if isinstance(wanted, int | float):
            axes.axhline(float(wanted), color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(sizes, [float(each["agreement"]) for each in trials], "o-", color=MAIN, markersize=4, linewidth=1.5)
        axes.plot(sizes, [float(each["low"]) for each in trials], "v:", color=MUTED, markersize=4, linewidth=1)
        axes.set_xlabel("size tried (dots: agreement, triangles: lower bound)", color=INK, fontsize=SIZE)
        axes.set_box_aspect(0.5)
        shares(axes, along="y")

    return chart_svg(f"trials of step {place}", draw, height=2.6)


def _names(axes: Axes, names: Sequence[str], *, room: float = 0.6) -> None:
    shown = [name if len(name) <= _NAME else name[: _NAME - 1] + "\u2026" for name in names]
    axes.set_yticks(range(len(names)), [" ".join(name.split()) for name in shown])
    axes.set_ylim(len(names) - 1 + 0.6, -room)
