"""Puts what a module has learnt back into the graph that it was made from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import Tensor

from onnxprune.errors import ModelError
from onnxprune.exporters.plan import fingerprint
from onnxprune.exporters.tensors import to_array
from onnxprune.exporters.to_torch import OnnxModule
from onnxprune.graph import constants
from onnxprune.graph.names import free_name, value_names

__all__ = ["check_writable", "write_back"]


def check_writable(model: ir.Model) -> None:
    """Check that trained values can be written into a model, before anything is trained.

    Raises:
        ModelError: Weights are stored in 8 bits or fewer.
    """
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "DequantizeLinear" and node.inputs else None
        if constants.stored(value) is not None:
            raise ModelError(
                f"weight '{value.name}' is stored quantised: take it back to floating point with the pass dequantize, "  # type: ignore[union-attr]  # stored: it is there
                "train, and quantise again"
            )


def write_back(module: OnnxModule, model: ir.Model) -> ir.Model:
    """Return a copy of a model whose initialisers hold what the module has learnt.

    Graph, names, element types and metadata stay. Values that did not change keep their very bytes. A shared
    initialiser whose readers were untied and trained apart is parted: ``name``, ``name/1``, ...

    Args:
        module: Made by ``to_torch`` from this model.
        model: Stays as it is.

    Raises:
        ModelError: The module was made from another graph, weights are stored quantised, or a value is not finite.
    """
    if fingerprint(model) != module.fingerprint:
        raise ModelError("the module was made from another graph: give the very model that to_torch got")
    check_writable(model)
    work = model.clone()
    work.meta.update(model.meta)
    module.apply_masks()
    learnt: dict[str, Tensor] = {**module.trained(), **module.statistics()}
    copies = {copy.name for copy in module.copies}
    for name, tensor in learnt.items():
        if name in work.graph.initializers and name not in copies:
            _store(work.graph.initializers[name], name, tensor)
    _part(work, module, learnt)
    return work


def _part(work: ir.Model, module: OnnxModule, learnt: dict[str, Tensor]) -> None:
    """Give readers whose copy differs from the shared initialiser one of their own."""
    taken = value_names(work.graph)
    for copy in module.copies:
        source = work.graph.initializers[copy.source]
        data = _rounded(source, copy.name, learnt[copy.name])
        if _same(np.asarray(source.const_value.numpy()), data):  # type: ignore[union-attr]  # initialisers have values
            continue
        name = free_name(copy.name, taken)
        value = constants.add_tensor(work.graph, name, ir.Tensor(data, dtype=source.dtype, name=name))
        reader = next(n for n in work.graph if n.outputs and n.outputs[0].name == copy.output)
        reader.replace_input_with(copy.place, value)


def _store(value: ir.Value, name: str, tensor: Tensor) -> None:
    data = _rounded(value, name, tensor)
    assert value.const_value is not None
    if not _same(np.asarray(value.const_value.numpy()), data):
        constants.set_array(value, data)


def _rounded(value: ir.Value, name: str, tensor: Tensor) -> np.ndarray:
    """Return a tensor's values in the element type of an initialiser."""
    assert value.const_value is not None
    with np.errstate(over="ignore"):
        data = to_array(tensor).astype(value.const_value.numpy().dtype)
    if not np.isfinite(data.astype(np.float64)).all():
        before = np.asarray(value.const_value.numpy()).astype(np.float64)
        if np.isfinite(before).all():
            raise ModelError(f"'{name}' holds NaN or infinite values after training, or values that its type lacks")
    return data


def _same(before: np.ndarray, after: np.ndarray) -> bool:
    return before.shape == after.shape and before.tobytes() == after.tobytes()
