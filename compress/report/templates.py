"""The pages' templates, which lie beside this file."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

from onnxprune.report.figures import number, percent

if TYPE_CHECKING:
    import jinja2


def template(name: str) -> jinja2.Template:
    """Return a template: everything that it is given is escaped, and a name that it lacks is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = number
    return environment.get_template(name)


def _text(name: str) -> str:
    return importlib.resources.files("onnxprune.report").joinpath(name).read_text("utf-8")
