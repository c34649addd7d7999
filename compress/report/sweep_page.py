"""A sweep as one HTML page that needs nothing else: curves, points, provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from onnxprune.report.figures import amount
from onnxprune.report.grids import data_grid, pair_grid
from onnxprune.report.svg import BAD, INK, MAIN, MUTED, SIZE, chart_svg, shares
from onnxprune.report.sweep import AXES, SCHEMA, Point, Sweep, judged_on, sweep_grid
from onnxprune.report.templates import template

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Recipes are told apart by mark and colour; there are more of both together than anybody reads in one chart.
_MARKS: Final = (("o", "circles"), ("s", "squares"), ("^", "triangles"), ("D", "diamonds"), ("v", "wedges"))
_COLOURS: Final = (MAIN, BAD, MUTED, INK)


def sweep_page(sweep: Sweep) -> str:
    """Return the sweep as an HTML document, the same text for the same sweep."""
    from markupsafe import Markup

    recipes = list(dict.fromkeys(point.recipe for point in sweep.points))
    judged = [point for point in sweep.points if point.agreement is not None]
    charts = [Markup(_curves(judged, recipes, field, label)) for field, label in AXES if _known(judged, field)]
    marks = [f"{_MARKS[place % len(_MARKS)][1]}: {recipe}" for place, recipe in enumerate(recipes)]
    missed = sum(not point.met for point in sweep.points)
    headline = f"{amount(len(recipes), 'recipe')} at {amount(len(sweep.points), 'point')}"
    facts = {"providers": ", ".join(sweep.providers) or "none", "seed": str(sweep.seed), **sweep.versions}
    first = next((point.agreement for point in judged if point.agreement is not None), None)
    return template("sweep.html").render(
        sweep=sweep,
        headline=headline + (f", {amount(missed, 'size')} NOT reached" if missed else ""),
        judged=judged_on(sweep),
        charts=charts,
        marks="; ".join(marks) + ".",
        confidence=None if first is None else first.confidence,
        points=sweep_grid(sweep),
        data=data_grid(sweep.data),
        made_with=pair_grid("fact", {**facts, "schema": SCHEMA}),
    )


def _known(points: list[Point], field: str) -> bool:
    return any(getattr(point, field) is not None for point in points)


def _curves(points: list[Point], recipes: list[str], field: str, label: str) -> str:
    """Draw agreement against a ratio, one line per recipe."""

    def draw(axes: Axes) -> None:
        for place, recipe in enumerate(recipes):
            mark, colour = _MARKS[place % len(_MARKS)][0], _COLOURS[place % len(_COLOURS)]
            rows = [(getattr(p, field), p.agreement) for p in points if p.recipe == recipe]
            known = sorted((x, rate.rate, rate.low, rate.high) for x, rate in rows if x is not None and rate)
            axes.plot([x for x, *_ in known], [y for _, y, *_ in known], f"{mark}-", color=colour, markersize=4)
            for x, _, low, high in known:
                axes.plot([x, x], [low, high], color=colour, linewidth=1)
        axes.set_xlabel(f"{label}, ratio to the source", color=INK, fontsize=SIZE)
        axes.set_ylabel("agreement", color=INK, fontsize=SIZE)
        shares(axes, along="y")

    return chart_svg(f"agreement against {label}", draw, height=3.2)
