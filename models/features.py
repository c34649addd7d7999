"""Inner values that a graph learns from its teacher: choosing them, and leaving out the teacher's cut channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OptionError
from onnxprune.graph.correspondence import staying_channels
from onnxprune.graph.selection import compiled

__all__ = ["AUTO", "Features", "matched"]

AUTO = "auto"
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Features:
    """Inner values to match.

    Attributes:
        names: Values that both graphs compute.
        staying: By name and axis, the teacher's positions that the student still has, where some are gone.
    """

    names: tuple[str, ...] = ()
    staying: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)


def matched(model: ir.Model, teacher: ir.Model, asked: Sequence[str]) -> Features:
    """Choose inner values of two graphs by name.

    Args:
        model: The student; what its metadata say of cut channels says which of the teacher's are compared.
        teacher: The original.
        asked: Names, globs, ``re:`` patterns, or ``auto``: what layers with weights read, in both graphs.

    Raises:
        OptionError: A name or pattern is of no value that both graphs compute.
        ModelError: The metadata are not readable.
    """
    if not asked:
        return Features()
    theirs = {str(out.name) for node in teacher.graph for out in node.outputs}
    alike = [str(out.name) for node in model.graph for out in node.outputs if str(out.name) in theirs]
    found: list[str] = []
    for each in asked:
        fitting = _read(model, alike) if each == AUTO else _named(alike, each)
        if not fitting:
            raise OptionError(f"feature '{each}' is of no value that both graphs compute")
        found += fitting
    names = tuple(dict.fromkeys(found))
    return Features(names, staying_channels(teacher, model, names))


def _named(alike: Sequence[str], asked: str) -> list[str]:
    if asked in alike:
        return [asked]
    pattern = compiled("finetune", "feature", asked)
    return [name for name in alike if pattern.fullmatch(name)]


def _read(model: ir.Model, alike: Sequence[str]) -> list[str]:
    """Return what layers with weights of their own read, in the graph's order."""
    read = {
        str(node.inputs[0].name)
        for node in model.graph
        if node.op_type in _WEIGHTED
        and node.inputs[0] is not None
        and any(value is not None and value.is_initializer() for value in node.inputs[1:2])
    }
    return [name for name in alike if name in read]
