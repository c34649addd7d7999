"""The page's charts as SVG for HTML: the same bytes for the same report, colours from the page's own style."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from onnxprune.report.figures import percent
from onnxprune.report.grids import accuracy_ends
from onnxprune.report.report import Report, Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_CLASSES = 25
"""How many classes the chart shows, the worst first."""

# Matplotlib writes these; the page's style decides how each looks, light and dark.
_INK, _MUTED, _MAIN, _LIGHT, _BAD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_STYLED: Final = {_INK: "--ink", _MUTED: "--muted", _MAIN: "--main", _LIGHT: "--line", _BAD: "--bad"}
_SIZE = 9.5
_WIDTH = 5.0
_NAME = 22


def interval_chart(report: Report) -> str | None:
    """Return agreement and accuracy with their intervals, and the agreement that was wanted."""
    rows = _intervals(report)
    if not rows:
        return None
    wanted = next((gate.wanted for gate in report.gates if gate.name == "min_agreement"), None)

    def draw(axes: Axes) -> None:
        for place, (_, rate, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=_MAIN, linewidth=2, solid_capstyle="butt")
            axes.plot([rate], [place], "o", color=_MAIN, markersize=5)
            axes.text(rate, place - 0.3, percent(rate), ha="center", va="bottom", color=_INK, fontsize=_SIZE)
        if wanted is not None:
            axes.axvline(wanted, color=_BAD, linewidth=1, linestyle=(0, (4, 3)))
        lowest = min([low for _, _, low, _ in rows] + ([] if wanted is None else [wanted]))
        axes.set_xlim(max(0.0, lowest - 0.15 * (1 - lowest) - 0.002), 1 + 0.1 * (1 - lowest) + 0.001)
        _names(axes, [name for name, *_ in rows], room=0.75)
        _shares(axes)

    return _svg("intervals", draw, height=0.65 + 0.42 * len(rows))


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
            axes.barh(place, ratio, height=0.6, color=_MAIN if gained else _MUTED)
            if name == "latency" and isinstance(low, int | float) and isinstance(high, int | float):
                axes.plot([low, high], [place, place], color=_INK, linewidth=1.5)
                widest = max(widest, high)
        for place, (_, ratio) in enumerate(rows):
            axes.text(1.03 * widest, place, percent(ratio), va="center", color=_INK, fontsize=_SIZE, clip_on=False)
        axes.axvline(1, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, widest)
        _names(axes, [name for name, _ in rows])
        _shares(axes)

    return _svg("ratios", draw, height=0.5 + 0.3 * len(rows))


def class_chart(report: Report) -> str | None:
    """Return the agreement of every class with its interval, the worst first; None for fewer than two."""
    if report.agreement is None or len(report.agreement.per_class) < 2:
        return None
    rows = sorted(report.agreement.per_class, key=lambda each: each.rate)[:SHOWN_CLASSES]
    overall = report.agreement.top1.rate

    def draw(axes: Axes) -> None:
        for place, each in enumerate(rows):
            axes.barh(place, each.rate, height=0.62, color=_MAIN)
            axes.plot([each.low, each.high], [place, place], color=_INK, linewidth=1.5)
            axes.text(1.02, place, percent(each.rate), va="center", color=_INK, fontsize=_SIZE, clip_on=False)
        axes.axvline(overall, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 1)
        _names(axes, [each.label for each in rows])
        _shares(axes)

    return _svg("classes", draw, height=0.5 + 0.25 * len(rows))


def trial_chart(step: Step, place: int = 1) -> str | None:
    """Return the sizes that a search tried with what each kept, and the lower bounds; None for fewer than two."""
    if len(step.trials) < 2:
        return None
    trials = sorted(step.trials, key=lambda each: float(each["size"]))
    sizes = [float(each["size"]) for each in trials]

    def draw(axes: Axes) -> None:
        wanted = step.numbers.get("wanted_agreement")
        if isinstance(wanted, int | float):
            axes.axhline(float(wanted), color=_BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(sizes, [float(each["agreement"]) for each in trials], "o-", color=_MAIN, markersize=4, linewidth=1.5)
        axes.plot(sizes, [float(each["low"]) for each in trials], "v:", color=_MUTED, markersize=4, linewidth=1)
        axes.set_xlabel("size tried (dots: agreement, triangles: lower bound)", color=_INK, fontsize=_SIZE)
        axes.set_box_aspect(0.5)
        _shares(axes, along="y")

    return _svg(f"trials of step {place}", draw, height=2.6)


def _names(axes: Axes, names: Sequence[str], *, room: float = 0.6) -> None:
    shown = [name if len(name) <= _NAME else name[: _NAME - 1] + "\u2026" for name in names]
    axes.set_yticks(range(len(names)), [" ".join(name.split()) for name in shown])
    axes.set_ylim(len(names) - 1 + 0.6, -room)


def _shares(axes: Axes, along: str = "x") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.5g} %"))
    axes.grid(axis=along, color=_LIGHT, linewidth=0.8)  # type: ignore[arg-type]  # "x" or "y"


def _svg(name: str, draw: Callable[[Axes], None], *, height: float) -> str:
    """Draw on one pair of axes and return an ``svg`` element that scales with its box."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": f"onnxprune {name}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": _SIZE,
        "font.family": ["DejaVu Sans"],
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A class may be named in letters that the measuring font lacks; the reader's own font draws them.
        warnings.simplefilter("ignore")
        # The user's own matplotlibrc must not change the page.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(_LIGHT)
        axes.tick_params(length=0, colors=_INK, labelsize=_SIZE)
        draw(axes)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """Return the element alone: no prolog, no metadata, no namespaces, colours by name."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    rest = re.sub(r'<g id="[^"]*"', "<g", rest).replace("xlink:href=", "href=")
    rest = re.sub(r"<!--.*?-->", "", rest, flags=re.DOTALL)
    # The page's own font, and no quotes within an attribute's value.
    rest = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", rest, count=1, flags=re.DOTALL)
    rest = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", rest)
    rest = re.sub(r" font-family: [^;\"]*;", "", rest)
    for colour, variable in _STYLED.items():
        rest = rest.replace(f": {colour}", f": var({variable})")
    lines = (line.strip() for line in rest.splitlines())
    return f'<svg class="chart" role="img" aria-label="{name}" {box[0]}>' + "\n".join(line for line in lines if line)
