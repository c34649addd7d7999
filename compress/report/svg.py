"""Charts within a page: SVG elements without colours or fonts of their own, the same bytes for the same figures."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib writes these; the page's style decides how each looks, light and dark.
INK, MUTED, MAIN, LIGHT, BAD = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_STYLED: Final = {INK: "--ink", MUTED: "--muted", MAIN: "--main", LIGHT: "--line", BAD: "--bad"}
SIZE = 9.5
_WIDTH = 5.0


def shares(axes: Axes, along: str = "x") -> None:
    """Mark one axis in per cent, with lines across."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.5g} %"))
    axes.grid(axis=along, color=LIGHT, linewidth=0.8)  # type: ignore[arg-type]  # "x" or "y"


def chart_svg(name: str, draw: Callable[[Axes], None], *, height: float) -> str:
    """Draw on one pair of axes and return an ``svg`` element that scales with its box."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": f"onnxprune {name}",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": SIZE,
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
        axes.spines["bottom"].set_color(LIGHT)
        axes.tick_params(length=0, colors=INK, labelsize=SIZE)
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
