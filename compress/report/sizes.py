"""The size table: ways to store one model, with their bytes and what each does to decisions; and its plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.evaluate.evidence import Rate
from onnxprune.graph import io
from onnxprune.report.figures import interval, number, percent
from onnxprune.report.grids import Grid
from onnxprune.report.markdown import code_text, grid_text
from onnxprune.report.plain import to_plain
from onnxprune.report.plots import check_plot_path, write_svg
from onnxprune.report.write import check_report_path

FORMS = (".json", ".md")
"""The suffixes that a table of sizes can be written with."""

SCHEMA = "onnxprune.sizes/1"

# The two ways in which a .surp file holds weights: what the code itself says, or the model's own in float16.
CODED, OWN = "surp", "surp own"


@dataclass(frozen=True)
class SizeRow:
    """One way to store the model.

    ``kind``: raw, zstd, fp16, int8, surp or surp own (the model's own weights where it is not zero). ``bytes`` are
    those of the whole file; ``ratio`` to the raw one; bits per weight over all coded weights, and over those that
    are not zero. ``relative_l1`` is the stream's. ``agreement`` with the model as it is, ``accuracy`` against
    labels; None where there was nothing to judge on.
    """

    name: str
    kind: str
    bytes: int
    ratio: float
    nonzeros: int
    bits_per_weight: float
    bits_per_survivor: float | None
    relative_l1: float | None
    agreement: Rate | None
    accuracy: float | None


@dataclass(frozen=True)
class SizeTable:
    """What ``size_table`` found.

    ``weights``: how many are coded. ``examples`` of ``data`` judged; points that an agreement decides were chosen on
    ``choosing_examples`` of ``choosing``, which are others. ``accuracy`` is the model's own.
    """

    path: str
    sha256: str
    weights: int
    data: str | None
    examples: int
    choosing: str | None
    choosing_examples: int
    accuracy: float | None
    seed: int
    rows: tuple[SizeRow, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        """Return the table as JSON text."""
        return json.dumps({"schema": SCHEMA, **to_plain(self, "sizes")}, indent=2, ensure_ascii=False) + "\n"


def sizes_grid(table: SizeTable) -> Grid:
    """Return the table as text; agreement and accuracy only where something was judged."""
    first = next((row.agreement for row in table.rows if row.agreement is not None), None)
    columns = ["stored as", "bytes", "ratio", "bits/w", "bits/nz"]
    columns += [] if first is None else [f"agreement ({percent(first.confidence)})"]
    columns += [] if table.accuracy is None else ["accuracy"]
    rows = []
    for row in table.rows:
        survivor, rate = row.bits_per_survivor, row.agreement
        cells = [row.name, number(row.bytes), percent(row.ratio), f"{row.bits_per_weight:.2f}"]
        cells.append("-" if survivor is None else f"{survivor:.2f}")
        if first is not None:
            cells.append(
                "-" if rate is None else f"{percent(rate.rate)} ({interval(rate.low, rate.high).removesuffix(' %')})"
            )
        if table.accuracy is not None:
            cells.append(percent(row.accuracy))
        rows.append(tuple(cells))
    return Grid(tuple(columns), tuple(rows))


def legend(table: SizeTable) -> str:
    """Say what the names and figures mean, and what the rows were judged on."""
    said = (
        f"{number(table.weights)} weights are coded; bits/w and bits/nz share the whole file out to them and to those "
        "that are not zero. .surp S ends at sparsity S; +own has the model's own values there, in float16."
    )
    if table.data is None:
        return said
    said += f" Agreement with the model as it is, on {number(table.examples)} examples of {table.data}."
    if table.choosing is None:
        return said
    others = f"{number(table.choosing_examples)} other examples of {table.choosing}"
    return f"{said} >= A is the smallest file found that keeps that share of decisions on {others}."


def sizes_markdown(table: SizeTable) -> str:
    """Return the table as Markdown text."""
    blocks = [
        "# Sizes",
        f"{code_text(table.path)}, sha256 {table.sha256}",
        grid_text(sizes_grid(table)),
        legend(table),
        *(f"- {warning}" for warning in table.warnings),
    ]
    return "\n\n".join(blocks) + "\n"


def write_sizes(table: SizeTable, path: str | os.PathLike[str]) -> None:
    """Write the table as .json or .md, at once or not at all.

    Raises:
        OptionError: The path cannot take a report.
        BackendError: It cannot be written.
    """
    target = check_report_path(path, FORMS)
    text = table.to_json() if target.suffix.lower() == ".json" else sizes_markdown(table)
    with io.replaced(target) as file:
        file.write(text.encode())


def write_plot(table: SizeTable, path: str | os.PathLike[str]) -> None:
    """Draw agreement against bytes as SVG; the same table gives the same file.

    Raises:
        OptionError: The path cannot take a plot, or nothing was judged.
        BackendError: It cannot be written.
    """
    target = check_plot_path(path)
    if not any(row.agreement is not None for row in table.rows):
        raise OptionError("a plot shows agreement, which takes examples; give --data")
    write_svg(target, (7, 4.5), lambda figure: _figure(figure.add_subplot(), table))


def _figure(axes: Any, table: SizeTable) -> None:
    for kind, label in ((CODED, ".surp"), (OWN, ".surp, own values")):
        rows = sorted((row for row in table.rows if row.kind == kind), key=lambda row: row.bytes)
        _draw(axes, rows, label, line=True)
    for row in table.rows:
        if row.kind not in (CODED, OWN):
            _draw(axes, [row], row.name, line=False)
    axes.set(xscale="log", xlabel="bytes", ylabel="agreement", title=Path(table.path).name)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()


def _draw(axes: Any, rows: Sequence[SizeRow], label: str, *, line: bool) -> None:
    points = [(row.bytes, row.agreement) for row in rows if row.agreement is not None]
    if not points:
        return
    middle = [rate.rate for _, rate in points]
    errors = [[rate.rate - rate.low for _, rate in points], [rate.high - rate.rate for _, rate in points]]
    axes.errorbar(
        [size for size, _ in points], middle, errors, label=label, fmt="o-" if line else "s", markersize=4, capsize=2
    )
