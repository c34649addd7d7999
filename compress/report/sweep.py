"""A sweep: what a model keeps and costs at many sizes; as a table, JSON and Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onnxprune.budget import Target
from onnxprune.evaluate.evidence import ClassAccuracy, ClassRate, Rate, ValueFigures
from onnxprune.report.figures import interval, number, percent, points
from onnxprune.report.grids import Grid
from onnxprune.report.markdown import code_text, grid_text
from onnxprune.report.plain import to_plain
from onnxprune.report.report import DataUsed, Report, Source
from onnxprune.report.write import check_report_path, write_whole

FORMS = (".json", ".md", ".html")
"""The suffixes that a sweep can be written with."""

SCHEMA: Final = "onnxprune.sweep/1"
AXES: Final = (("flops", "FLOPs"), ("bytes", "weight bytes"), ("latency", "latency"))


@dataclass(frozen=True)
class Point:
    """One recipe at one size.

    ``flops``, ``params``, ``bytes`` and ``latency`` are ratios to the source, None where not known (``latency_low``,
    ``latency_high``: the ends of its interval). ``agreement`` is None without class scores, ``rel_l2`` the relative
    error of the output that is judged, ``drop`` that of the accuracy, None without labels. ``met``: the size was
    reached. ``path`` and ``sha256`` are those of the model, where it was written. ``class_agreement`` goes by the
    source's decisions, ``class_accuracy`` by the labels; ``values`` are the figures of a regression.
    """

    recipe: str
    target: str
    canonical: str
    flops: float | None
    params: float | None
    nonzero: float | None
    bytes: float | None
    latency: float | None
    latency_low: float | None
    latency_high: float | None
    agreement: Rate | None
    accuracy: float | None
    drop: float | None
    rel_l2: float | None
    met: bool
    seconds: float
    path: str | None
    sha256: str | None
    class_agreement: tuple[ClassRate, ...] = ()
    class_accuracy: tuple[ClassAccuracy, ...] = ()
    values: ValueFigures | None = None

    @classmethod
    def of(cls, recipe: str, target: Target, report: Report, seconds: float, path: Path | None) -> Point:
        """Return the point that a report tells of."""
        cost, latency = report.cost, report.latency or {}
        assert cost is not None
        right, error = report.accuracy, report.output_error
        return cls(
            recipe, str(target), str(report.recipe),
            cost.macs.ratio, cost.params.ratio, cost.nonzero.ratio, cost.bytes.ratio,
            latency.get("ratio"), latency.get("low"), latency.get("high"),
            None if report.agreement is None else report.agreement.top1,
            None if right is None else right.compressed,
            None if right is None else right.drop,
            None if error is None else error.rel_l2,
            report.met, seconds, None if path is None else str(path),
            None if report.result is None else report.result.sha256,
            () if report.agreement is None else report.agreement.per_class,
            () if right is None else right.per_class,
            next((output.values for output in report.outputs if output.judged), None),
        )  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """What a sweep found: the source, the examples that all points share, one point per recipe and size.

    ``dropped`` names the classes that calibration went without.
    """

    source: Source
    data: DataUsed
    points: tuple[Point, ...]
    warnings: tuple[str, ...]
    seed: int
    providers: tuple[str, ...]
    versions: Mapping[str, str]
    dropped: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether every size was reached."""
        return all(point.met for point in self.points)

    def to_json(self) -> str:
        """Return the sweep as JSON text; figures that are not finite become null."""
        plain: dict[str, Any] = {"schema": SCHEMA, **to_plain(self, "sweep"), "met": self.met}
        return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sweep_grid(sweep: Sweep) -> Grid:
    """Return one row per point; columns that no point has a figure for are left out."""
    first = next((p.agreement for p in sweep.points if p.agreement is not None), None)
    columns: list[tuple[str, list[str]]] = [
        ("recipe", [p.recipe for p in sweep.points]),
        ("target", [p.target + ("" if p.met else " (not reached)") for p in sweep.points]),
        ("FLOPs", [percent(p.flops) for p in sweep.points]),
        ("params", [percent(p.params) for p in sweep.points]),
        ("bytes", [percent(p.bytes) for p in sweep.points]),
    ]
    if any(p.nonzero != p.params for p in sweep.points):
        columns.append(("nonzero", [percent(p.nonzero) for p in sweep.points]))
    columns.append(("latency", [_latency(p) for p in sweep.points]))
    if first is not None:
        columns.append((f"agreement ({percent(first.confidence)} interval)", [_agreement(p) for p in sweep.points]))
    else:
        columns.append(("output error", ["-" if p.rel_l2 is None else number(p.rel_l2) for p in sweep.points]))
    columns += _value_columns(sweep.points)
    if any(p.accuracy is not None for p in sweep.points):
        columns.append(("accuracy", [percent(p.accuracy) for p in sweep.points]))
        columns.append(("change", ["-" if p.drop is None else points(-p.drop) for p in sweep.points]))
    columns.append(("s", [f"{p.seconds:.0f}" for p in sweep.points]))
    rows = tuple(zip(*(cells for _, cells in columns), strict=True))
    return Grid(tuple(name for name, _ in columns), rows, words=2)


def _value_columns(rows: Sequence[Point]) -> list[tuple[str, list[str]]]:
    """Return what there is to tell of a regression: Pearson's r to the source, RMSE to the labels."""
    found = [p.values for p in rows]
    columns = []
    if any(values is not None for values in found):
        columns.append(("Pearson r", [_pearson(p) for p in rows]))
    if any(values is not None and values.rmse is not None for values in found):
        errors = [values and values.rmse and values.rmse.compressed for values in found]
        columns.append(("RMSE", ["-" if error is None else number(error) for error in errors]))
    return columns


def brief_grid(rows: Sequence[Point]) -> Grid:
    """Return the rows of one recipe for a terminal: what decides, without the ends of the latency's interval."""
    judged = any(p.agreement is not None for p in rows)
    valued = not judged and any(p.values is not None for p in rows)
    cells = [
        (
            p.target + ("" if p.met else " !"),
            percent(p.flops),
            percent(p.bytes),
            "-" if p.latency is None else f"{p.latency:.2f}",
            _agreement(p) if judged else ("-" if p.rel_l2 is None else number(p.rel_l2)),
            _pearson(p) if valued else percent(p.accuracy),
            f"{p.seconds:.0f}",
        )
        for p in rows
    ]
    kept, also = ("agreement", "accuracy") if judged else ("output error", "Pearson r" if valued else "accuracy")
    return Grid(("target", "FLOPs", "bytes", "latency", kept, also, "s"), tuple(cells))


def _pearson(point: Point) -> str:
    values = point.values
    return "-" if values is None or values.pearson is None else f"{values.pearson:.4f}"


def _latency(point: Point) -> str:
    if point.latency is None:
        return "-"
    ends = "" if point.latency_low is None else f" ({point.latency_low:.2f}-{point.latency_high:.2f})"
    return f"{point.latency:.2f}{ends}"


def _agreement(point: Point) -> str:
    rate = point.agreement
    return "-" if rate is None else f"{percent(rate.rate)} ({interval(rate.low, rate.high).removesuffix(' %')})"


def judged_on(sweep: Sweep) -> str:
    """Say what all points were judged on."""
    used = sweep.data.eval
    said = "" if used is None else f"Judged on {number(used.examples)} examples of {used.source}."
    left_out = ", ".join(sweep.dropped)
    return f"{said} Calibrated without {left_out}.".strip() if sweep.dropped else said


def sweep_markdown(sweep: Sweep) -> str:
    """Return the sweep as Markdown text."""
    blocks = [
        "# Sweep",
        f"{code_text(sweep.source.path)}, sha256 {sweep.source.sha256}",
        grid_text(sweep_grid(sweep)),
        f"{judged_on(sweep)} FLOPs, params, bytes and latency are ratios to the source model.".strip(),
        "\n".join(f"- {warning}" for warning in sweep.warnings),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def write_sweep(sweep: Sweep, path: str | os.PathLike[str]) -> None:
    """Write the sweep as .json, .md or .html, at once or not at all.

    Raises:
        OptionError: The path cannot take a report.
        BackendError: It cannot be written.
    """
    target = check_report_path(path, FORMS)
    match target.suffix.lower():
        case ".json":
            text = sweep.to_json()
        case ".md":
            text = sweep_markdown(sweep)
        case _:
            from onnxprune.report.sweep_page import sweep_page

            text = sweep_page(sweep)
    write_whole(text, target)
