"""Refitting the weights that earlier zeros left over, with no channel cut: every linear node on its own support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.fit.links import Link
from onnxprune.fit.reconstruct import Fit, Reconstruction
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.linear import add_constants, drop_zero_constants
from onnxprune.graph.shapes import Shapes, concrete_shapes
from onnxprune.runtime.operators import unknown_operators


def obstacle(model: ir.Model, context: Context) -> str | None:
    """Return why the weights of a model cannot be refitted, if so."""
    if context.examples is None:
        return "there is no calibration data"
    foreign = unknown_operators(model)
    if foreign:
        return f"ONNX Runtime cannot run the model (no operator {', '.join(foreign)})"
    return None


def refit_support(
    model: ir.Model, before: ir.Model, context: Context, fit: Fit
) -> tuple[ir.Model, list[dict[str, Any]]]:
    """Return ``model`` with its non-zero weights and its constants solved for anew, and a row per linear node.

    Per output row least squares on the inputs that its weights still read, front to back with inputs from the
    present model (see ``fit/reconstruct``); targets are the source model's, where its values still match by name and
    shape, so that what earlier passes did is made up for too, else those of ``before``. Zeros stay zeros.

    Args:
        model: what is refitted; it is not touched.
        before: the same graph with the weights that it had.
        context: calibration examples and where to run.
        fit: the ridge, the rows, and the rounds that aim at what a ReLU lets through.

    Raises:
        DataError: An activation is NaN or infinite.
    """
    base = prepare(model)
    added = add_constants(base)
    analysis = spaces.analyse(base)
    shapes = concrete_shapes(base, example_shapes(base, context.inputs))
    run = Reconstruction(base, analysis, shapes, fit, context)
    source = teacher(run.links, shapes, context)
    run.original = prepare(before) if source is None else source
    outcome = run.run([], {}, {}, everything=True)
    work = finish(analysis.model)
    drop_zero_constants(work, added)
    return work, outcome.rows


def teacher(links: Sequence[Link], shapes: Shapes, context: Context) -> ir.Model | None:
    """Return the source model, ready to run in pieces, or None where what the linear nodes compute differs in shape."""
    source = prepare(context.original)
    known = concrete_shapes(source, example_shapes(source, context.inputs))
    produced = {str(value.name) for node in source.graph for value in node.outputs}
    for link in links:
        for value in (link.unit.out, link.unit.total):
            if value is None:
                continue
            name = str(value.name)
            if name not in produced or known.get(name) != shapes.get(name):
                return None
    return source
