"""Plots as SVG files of their own: the same figures give the same bytes, and nothing in them names an address."""

from __future__ import annotations

import io as streams
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxprune.errors import OptionError
from onnxprune.graph import io


def check_plot_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no plot can be written to.

    Raises:
        OptionError: It does not end in .svg, or its folder is missing or not writable.
    """
    target = Path(path)
    if target.suffix.lower() != ".svg":
        raise OptionError(f"plot '{target}' is not accepted; give a path that ends in .svg")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK | os.X_OK):
        raise OptionError(f"plot '{target}' cannot be written: it is a folder, or its own is missing or not writable")
    return target


def write_svg(target: Path, size: tuple[float, float], draw: Callable[[Any], None]) -> None:
    """Write what ``draw`` puts on a matplotlib figure of a size in inches, at once or not at all.

    Raises:
        BackendError: It cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "onnxprune", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        drawn = streams.StringIO()
        figure.savefig(drawn, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    # The document type names an address that some readers would look up.
    text = re.sub(r"<!DOCTYPE.*?>\s*", "", drawn.getvalue(), count=1, flags=re.DOTALL)
    with io.replaced(target) as file:
        file.write(text.encode())
