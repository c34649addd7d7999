"""BatchNormalization in inference form, folded into the linear node in front of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import float_attribute, int_attribute
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.names import take_over

Barred = Callable[[Sequence[str]], str | None]


@dataclass(frozen=True)
class Affine:
    """What inference-time batch normalisation does to channel c: ``scale[c] * x + shift[c]`` (float64)."""

    scale: np.ndarray
    shift: np.ndarray


def nothing_barred(names: Sequence[str]) -> str | None:
    """Let every BatchNormalization be folded."""
    return None


def affine(node: ir.Node, version: int) -> Affine | str:
    """Return the affine map of a BatchNormalization node, or why it is none (methods: Ioffe and Szegedy, 2015).

    ``s = gamma / sqrt(var + eps)``, ``t = beta - s * mean``, per channel of axis 1.
    """
    if len([out for out in node.outputs[1:] if out.uses() or out.is_graph_output()]):
        return "it is in training form (its statistics are read)"
    if version >= 14 and int_attribute(node, "training_mode", 0) == 1:
        return "it is in training form (training_mode = 1)"
    if version < 9 and int_attribute(node, "spatial", 1) != 1:
        return "it normalises every position on its own (spatial = 0)"
    given = [constants.array(value) for value in node.inputs[1:5]]
    if len(given) < 4 or any(data is None for data in given):
        return "its parameters are computed, not stored"
    gamma, beta, mean, variance = (np.asarray(data, dtype=np.float64) for data in given)
    scale = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    return Affine(scale, beta - scale * mean)


def fold_batch_norms(model: ir.Model, barred: Barred = nothing_barred) -> tuple[ir.Model, int, dict[str, str]]:
    """Fold every BatchNormalization that follows Conv, ConvTranspose or Gemm.

    Args:
        model: the model, which stays as it is.
        barred: tells from the names of the BatchNormalization and of the node in front of it why the two must stay
            apart; None where they may be folded.

    Returns:
        An equal model, how many nodes were folded, and the reason for each one that was not.
    """
    work = prepare(model)
    version = work.opset_imports.get("", 1)
    skipped: dict[str, str] = {}
    folded = 0
    for node in [n for n in work.graph if n.op_type == "BatchNormalization" and n.domain == ""]:
        reason = _fold_one(work.graph, node, version, barred)
        if reason is None:
            folded += 1
        else:
            skipped[str(node.name)] = reason
    return finish(work), folded, skipped


def _fold_one(graph: ir.Graph, norm: ir.Node, version: int, barred: Barred) -> str | None:
    source = norm.inputs[0]
    linear = source.producer() if source is not None else None
    known = linear is not None and linear.domain == "" and linear.op_type in ("Conv", "ConvTranspose", "Gemm")
    reason = barred([str(node.name) for node in (norm, linear if known else None) if node is not None])
    if reason is not None:
        return reason
    if source is None or linear is None or not known:
        return "no Conv, ConvTranspose or Gemm is in front of it"
    if len(source.uses()) > 1 or source.is_graph_output():
        return f"the output of '{linear.name}' is read elsewhere too"
    mapped = affine(norm, version)
    if isinstance(mapped, str):
        return mapped
    weight = constants.array(linear.inputs[1])
    if weight is None or (_bias(linear) is not None and constants.array(_bias(linear)) is None):
        return f"the weight or bias of '{linear.name}' is computed, not stored"
    if linear.op_type == "Gemm" and float_attribute(linear, "beta", 1.0) != 1.0:
        return f"'{linear.name}' scales its bias (beta)"
    for value in (linear.inputs[1], _bias(linear)):
        if value is not None and (len(value.uses()) > 1 or value.is_graph_output()):
            return f"'{value.name}' of '{linear.name}' is read inside a body or is a graph output too"
    if not _write(graph, linear, weight, mapped):
        return f"the folded weights of '{linear.name}' do not fit into {weight.dtype}"
    out = norm.outputs[0]
    if out.is_graph_output():
        take_over(out, linear.outputs[0])
    else:
        out.replace_all_uses_with(linear.outputs[0])
    graph.remove(norm, safe=True)
    return None


def _bias(linear: ir.Node) -> ir.Value | None:
    return linear.inputs[2] if len(linear.inputs) > 2 else None


def _write(graph: ir.Graph, linear: ir.Node, weight: np.ndarray, mapped: Affine) -> bool:
    """Write the folded weight and bias; return False, with nothing written, where a finite number would overflow."""
    value, bias_value = linear.inputs[1], _bias(linear)
    assert value is not None
    wide = weight.astype(np.float64)
    if linear.op_type == "ConvTranspose":
        # W[I, O/g, k...]: output channel = group * (O/g) + index on axis 1, and inputs of a group are one block.
        groups = int_attribute(linear, "group", 1)
        blocks = wide.reshape(groups, -1, *wide.shape[1:])
        scale = mapped.scale.reshape(groups, 1, wide.shape[1], *[1] * (wide.ndim - 2))
        scaled = (blocks * scale).reshape(wide.shape)
    else:
        axis = 1 if linear.op_type == "Gemm" and not int_attribute(linear, "transB", 0) else 0
        scaled = wide * mapped.scale.reshape([-1 if i == axis else 1 for i in range(wide.ndim)])
    old = constants.array(bias_value)
    bias = mapped.shift + (0.0 if old is None else mapped.scale * old.astype(np.float64))
    if not _fits(scaled, weight.dtype) or not _fits(bias, weight.dtype):
        return False
    constants.set_array(value, scaled)
    if bias_value is not None:
        constants.set_array(bias_value, bias)
        return True
    dtype = value.dtype
    assert dtype is not None
    added = constants.add_array(graph, f"{value.name}_bias", bias.astype(weight.dtype), dtype)
    linear.resize_inputs(3)
    linear.replace_input_with(2, added)
    return True


def _fits(data: np.ndarray, dtype: np.dtype[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(np.isfinite(data), np.isfinite(data.astype(dtype).astype(np.float64))))
