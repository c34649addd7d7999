"""A sweep as SVG plots: agreement (or correlation) against size, and what every class loses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.report.plots import check_plot_path, write_svg
from onnxprune.report.sweep import AXES, Point, Sweep

__all__ = ["write_class_plot", "write_sweep_plot"]

_LOUD = ("tab:red", "tab:purple", "tab:brown", "tab:pink")


def write_sweep_plot(sweep: Sweep, path: str | os.PathLike[str]) -> None:
    """Draw agreement against FLOPs, bytes and latency as SVG, one line per recipe.

    Of a regression, Pearson's correlation with the source and, with labels, the RMSE against FLOPs.

    Raises:
        OptionError: The path cannot take a plot, or no point was judged.
        BackendError: It cannot be written.
    """
    target, name = check_plot_path(path), Path(sweep.source.path).name
    judged = [point for point in sweep.points if point.agreement is not None]
    valued = [point for point in sweep.points if point.values is not None]
    if judged:
        write_svg(target, (12, 4.2), lambda figure: _draw(figure, judged, name))
    elif valued:
        write_svg(target, (9, 4.2), lambda figure: _draw_values(figure, valued, name))
    else:
        raise OptionError("a plot shows agreement or correlation, and the model has neither class scores nor values")


def write_class_plot(sweep: Sweep, path: str | os.PathLike[str]) -> None:
    """Draw every class's agreement and, with labels, accuracy against FLOPs as SVG, one row of panels per recipe.

    Classes that calibration went without stand out, as does the mean of the others (the class-removed study of
    Chee, Renz, Damle, De Sa, 2022).

    Raises:
        OptionError: The path cannot take a plot, or there are no classes.
        BackendError: It cannot be written.
    """
    target = check_plot_path(path)
    recipes = list(dict.fromkeys(point.recipe for point in sweep.points if point.class_agreement))
    if not recipes:
        raise OptionError("a plot of classes needs class scores, and no output of the model holds any")
    write_svg(target, (10, 3.8 * len(recipes)), lambda figure: _draw_classes(figure, sweep, recipes))


def _draw(figure: Any, judged: Sequence[Point], name: str) -> None:
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (field, label) in zip(panels, AXES, strict=True):
        for recipe, rows in _by_recipe(judged, field):
            rates = [p.agreement for p in rows if p.agreement is not None]
            ends = [[r.rate - r.low for r in rates], [r.high - r.rate for r in rates]]
            panel.errorbar(
                [getattr(p, field) for p in rows], [r.rate for r in rates], ends,
                label=recipe, fmt="o-", markersize=4, capsize=2,
            )  # fmt: skip
        panel.set(xlabel=f"{label}, ratio to the source")
        panel.grid(visible=True, alpha=0.3)
    panels[0].set(ylabel="agreement with the source", title=name)
    panels[-1].legend(fontsize="small")


def _draw_values(figure: Any, valued: Sequence[Point], name: str) -> None:
    def pearson(point: Point) -> float | None:
        return None if point.values is None else point.values.pearson

    def error(point: Point) -> float | None:
        return None if point.values is None or point.values.rmse is None else point.values.rmse.compressed

    shown: list[tuple[str, Callable[[Point], float | None]]] = [("Pearson r to the source", pearson)]
    if any(error(point) is not None for point in valued):
        shown.append(("RMSE to the labels", error))
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (label, figure_of) in zip(panels, shown, strict=True):
        for recipe, rows in _by_recipe(valued, "flops"):
            known = [(p.flops, value) for p in rows if (value := figure_of(p)) is not None]
            panel.plot([x for x, _ in known], [y for _, y in known], "o-", markersize=4, label=recipe)
        panel.set(xlabel="FLOPs, ratio to the source", ylabel=label)
        panel.grid(visible=True, alpha=0.3)
    first = next((p.values.rmse.original for p in valued if p.values is not None and p.values.rmse is not None), None)
    if first is not None:
        panels[-1].axhline(first, color="grey", linewidth=1, linestyle=":", label="the source")
    panels[0].set(title=name)
    panels[-1].legend(fontsize="small")


def _draw_classes(figure: Any, sweep: Sweep, recipes: Sequence[str]) -> None:
    labelled = any(point.class_accuracy for point in sweep.points)
    grid = figure.subplots(len(recipes), 1 + labelled, sharex=True, sharey="col", squeeze=False)
    for panels, recipe in zip(grid, recipes, strict=True):
        (_, rows), *_ = _by_recipe([p for p in sweep.points if p.recipe == recipe], "flops")
        _lines(panels[0], [(p.flops, {c.label: c.rate for c in p.class_agreement}) for p in rows], sweep.dropped)
        panels[0].set(ylabel="agreement per class", title=recipe)
        if labelled:
            accuracy = [(p.flops, {c.label: c.compressed for c in p.class_accuracy}) for p in rows]
            _lines(panels[1], accuracy, sweep.dropped)
            panels[1].set(ylabel="accuracy per class")
            panels[1].set_title("" if not sweep.dropped else "without " + ", ".join(sweep.dropped))
    for panel in grid[-1]:
        panel.set(xlabel="FLOPs, ratio to the source")
    grid[0][-1].legend(fontsize="small")


def _lines(panel: Any, points: Sequence[tuple[float | None, dict[str, float]]], dropped: Sequence[str]) -> None:
    """Draw one line per class; the mean is that of the classes which calibration had."""
    labels = list(dict.fromkeys(label for _, rates in points for label in rates))
    places = [place for place, _ in points]
    for label in labels:
        if label not in dropped:
            panel.plot(places, [rates.get(label, np.nan) for _, rates in points], color="0.75", linewidth=1)
    others = [[rate for label, rate in rates.items() if label not in dropped] for _, rates in points]
    name = "mean of the others" if dropped else "mean of the classes"
    panel.plot(places, [np.mean(rates) if rates else np.nan for rates in others], "o-", markersize=4, label=name)
    for number, label in enumerate(dropped):
        rates = [rates.get(label, np.nan) for _, rates in points]
        panel.plot(places, rates, "s-", color=_LOUD[number % len(_LOUD)], markersize=4, label=label)
    panel.grid(visible=True, alpha=0.3)


def _by_recipe(points: Sequence[Point], field: str) -> Iterator[tuple[str, list[Point]]]:
    """Yield every recipe with its points for which a ratio is known, in the order of that ratio."""
    for recipe in dict.fromkeys(point.recipe for point in points):
        rows = [p for p in points if p.recipe == recipe and getattr(p, field) is not None]
        yield recipe, sorted(rows, key=lambda p: float(getattr(p, field)))
