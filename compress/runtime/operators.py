"""Which operators ONNX Runtime has: a model may carry others, such as TensorRT plugins, that only its target knows."""

from __future__ import annotations

import functools

import onnx_ir as ir

from onnxprune.errors import ModelError

_STANDARD = ("", "ai.onnx.ml")


def unknown_operators(model: ir.Model) -> list[str]:
    """Return the operators of a model that ONNX Runtime cannot run, as ``domain::name``, in order of appearance.

    Standard operators are taken as known, so ONNX Runtime is asked only about a model with others.
    """
    own = {node.op_identifier() for node in model.graph.all_nodes() if node.domain not in _STANDARD}
    if not own:
        return []
    nodes = [*model.graph.all_nodes(), *(node for f in model.functions.values() for node in f.all_nodes())]
    foreign = [
        f"{node.domain}::{node.op_type}"
        for node in nodes
        if node.domain not in _STANDARD and node.op_identifier() not in model.functions
    ]
    return [name for name in dict.fromkeys(foreign) if name not in _registered()]


def is_known(model: ir.Model, domain: str, op: str) -> bool:
    """Return whether ONNX Runtime, or a function of the model itself, has an operator."""
    own = any((function.domain, function.name) == (domain, op) for function in model.functions.values())
    return own or domain in _STANDARD or f"{domain}::{op}" in _registered()


@functools.cache
def _registered() -> frozenset[str]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from onnxprune.runtime.engine import engine

    engine()
    return frozenset(f"{schema.domain}::{schema.name}" for schema in state.get_all_operator_schema())


def require_runnable(name: str, model: ir.Model) -> None:
    """Check that ONNX Runtime has every operator of a model that a pass has to run.

    Raises:
        ModelError: It lacks one.
    """
    foreign = unknown_operators(model)
    if foreign:
        raise ModelError(
            f"{name} has to run the model, but ONNX Runtime has no operator {', '.join(foreign)}; "
            "a pass that writes one (replace) comes last"
        )
