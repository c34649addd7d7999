"""The TorchScript way from a module to a graph, for modules that torch's newer exporter refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from warnings import catch_warnings, simplefilter

import onnx
import onnx_ir as ir
import torch
from torch import nn

from onnxprune.errors import ModelError

__all__ = ["OPSETS", "convert"]

OPSETS = (13, 20)
_PROTOBUF_LIMIT = 2**31 - 1
# What tracing a user's module and torch's exporter raise.
_FAILURES = (
    torch.onnx.OnnxExporterError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def convert(
    module: nn.Module, shape: tuple[int, ...], opset: int, names: tuple[str, str], *, fold_bn: bool
) -> ir.Model:
    """Trace a module in evaluation mode and return the graph, with a symbolic first axis.

    Tracing follows one run: a branch that depends on values is frozen as it was taken. The caller compares the
    result with the module at other batch sizes.

    Args:
        module: In evaluation mode, on the CPU.
        shape: Shape of one float32 example.
        opset: Version of the default operator set.
        names: Names of the input and the output.
        fold_bn: Fold BatchNormalization into the convolution before it.

    Raises:
        ModelError: torch cannot trace or convert it, it has several outputs, or it exceeds protobuf's 2 GiB.
    """
    title = type(module).__name__
    weights = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if weights > _PROTOBUF_LIMIT:
        raise ModelError(f"{title} has {weights:,} bytes of weights, TorchScript writes at most 2 GiB: use dynamo")
    # A module in evaluation mode keeps its BatchNormalization when torch is told to preserve the mode.
    mode = torch.onnx.TrainingMode.EVAL if fold_bn else torch.onnx.TrainingMode.PRESERVE
    example = torch.zeros(2, *shape)
    try:
        with _quiet(), TemporaryDirectory(prefix="onnxprune-") as folder:
            found = module(example)
            if not isinstance(found, torch.Tensor):
                kind = type(found).__name__
                raise ModelError(f"{title} returns {kind}: export writes modules that return one tensor")
            torch.onnx.export(
                module,
                (example,),
                str(Path(folder) / "m.onnx"),
                dynamo=False,
                opset_version=opset,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_axes={names[0]: {0: "batch"}, names[1]: {0: "batch"}},
                training=mode,
            )
            model = ir.serde.deserialize_model(onnx.load(Path(folder) / "m.onnx"))
    except _FAILURES as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ModelError(f"torch could not export {title} through TorchScript: {reason}") from error
    for value in model.graph.initializers.values():  # as tensors whose names and notes can be changed
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's notes on tracing; what it prints of graphs would come before the one-line error."""
    with catch_warnings(), redirect_stdout(StringIO()):
        simplefilter("ignore")
        yield
