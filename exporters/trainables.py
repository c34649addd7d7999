"""Which initialisers of a graph are weights that training may change."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OptionError
from onnxprune.exporters.ops import HOST_INPUTS
from onnxprune.graph import constants
from onnxprune.graph.selection import compiled

__all__ = ["choose"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Inputs that hold statistics, bounds or steps rather than weights.
_FIXED = {
    "BatchNormalization": {3, 4},
    "Clip": {1, 2},
    "DequantizeLinear": {1, 2},
    "OneHot": {2},
    "QuantizeLinear": {1, 2},
    "Where": {0},
}
# Operators whose inputs are weights even where they hold one number; elsewhere one number is a constant.
_WEIGHTED = frozenset(
    {"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GroupNormalization", "InstanceNormalization"}
    | {"LayerNormalization", "MatMul", "PRelu", "GRU", "LSTM", "RNN", "RMSNormalization"}
)


def choose(work: ir.Model, stored: set[str], patterns: Iterable[str] | str | None) -> set[str]:
    """Return the names of the initialisers to train.

    Those of floating type that no node reads as a size, a bound, a statistic or a step of quantisation; and, unless
    patterns name them, neither single numbers beside a weight's place nor tensors that hold infinity (masks).

    Args:
        work: A model whose constants are lifted.
        stored: Initialisers of the source; what Constant nodes held is no weight.
        patterns: Names, globs or ``re:`` patterns (one string: parted by ``;``); None for the rule alone.

    Raises:
        OptionError: A pattern is no regular expression, or names nothing that can be trained.
    """
    values = {name: value for name, value in work.graph.initializers.items() if name in stored and _possible(value)}
    if patterns is None:
        return {name for name, value in values.items() if _likely(value)}
    listed = [part.strip() for part in patterns.split(";")] if isinstance(patterns, str) else list(patterns)
    found: set[str] = set()
    for part in listed:
        pattern = compiled("to_torch", "trainable", part)
        names = {name for name in values if pattern.fullmatch(name)}
        if not names:
            raise OptionError(f"trainable='{part}' names no initialiser of floating type that could be trained")
        found |= names
    return found


def _possible(value: ir.Value) -> bool:
    if value.dtype not in _FLOATS or value.is_graph_input() or value.const_value is None:
        return False
    return not any(
        use.idx in _FIXED.get(use.node.op_type, ()) or use.idx in HOST_INPUTS.get(use.node.op_type, ())
        for use in value.uses()
    )


def _likely(value: ir.Value) -> bool:
    tensor = value.const_value
    assert tensor is not None
    if tensor.size < 2 and not any(use.node.op_type in _WEIGHTED for use in value.uses()):
        return False
    whole = bool(np.isfinite(np.asarray(tensor.numpy()).astype(np.float32, copy=False)).all())
    constants.release(tensor)
    return whole
