"""Writes a PyTorch module as an ONNX file: dynamic batch, no local paths, checked against torch first."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters import torchscript
from onnxprune.exporters.tidy import name_after_parameters, strip_traces
from onnxprune.graph import io
from onnxprune.runtime.session import Settings, open_session

__all__ = ["OPSETS", "Exported", "Exporter", "check_opset", "export", "relative_error"]

Exporter = Literal["dynamo", "torchscript"]

OPSETS = (18, 23)  # below 18 torch silently writes 18; above 23 ONNX Runtime has no kernels yet
TOLERANCE = 1e-4  # largest difference to torch, relative to the largest output
PARITY_BATCHES = (1, 3)
PARITY_SEED = 0


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote.

    Attributes:
        path: The file.
        bytes: Its size, external data included.
        sha256: Its digest.
        opset: Version of the default operator set.
        error: Largest difference to torch on random inputs, relative to the largest output; None unchecked.
    """

    path: Path
    bytes: int
    sha256: str
    opset: int
    error: float | None


def export(
    module: nn.Module,
    example_shape: Sequence[int],
    path: str | os.PathLike[str],
    *,
    opset: int = 20,
    exporter: Exporter = "dynamo",
    input_name: str = "input",
    output_name: str = "logits",
    fold_bn: bool = True,
    metadata: Mapping[str, str] | None = None,
    check: bool = True,
    force: bool = False,
) -> Exported:
    """Write a module with one input and one output as an ONNX file.

    The module is not changed; it is exported in evaluation mode. The file appears at ``path`` only once
    it is valid and, with ``check``, agrees with torch in ONNX Runtime on seeded random inputs.

    Args:
        module: Any module that torch can export.
        example_shape: Shape of one float32 example, without the batch axis.
        path: The file to write; its folder must exist.
        opset: Version of the default operator set.
        exporter: ``dynamo``, or ``torchscript`` for modules that the former refuses; it follows one run and freezes
            branches that depend on values.
        input_name: Name of the graph input, shape ``[batch, *example_shape]``.
        output_name: Name of the graph output.
        fold_bn: Fold BatchNormalization into the convolution or Gemm before it; False keeps the nodes.
        metadata: Entries for the model's ``metadata_props``.
        check: Compare with torch at batch sizes 1 and 3.
        force: Overwrite an existing file.

    Raises:
        OptionError: If the path cannot be written, or opset or exporter are none that are accepted.
        ModelError: If torch cannot export the module or the file disagrees with it.
        BackendError: If ONNX Runtime cannot run the model or the disk fails.
    """
    target = io.check_output(path, source=None, force=force)
    check_opset(opset, exporter)
    if not example_shape or any(size < 1 for size in example_shape):
        raise OptionError(f"input shape {tuple(example_shape)}: give positive sizes without the batch, as 3,32,32")
    frozen = deepcopy(module).cpu().eval()
    names = (input_name, output_name)
    if exporter == "torchscript":
        model = torchscript.convert(frozen, tuple(example_shape), opset, names, fold_bn=fold_bn)
    else:
        model = _convert(frozen, tuple(example_shape), opset, names, fold_bn)
    strip_traces(model)
    name_after_parameters(model)
    model.metadata_props.update(metadata or {})
    error = _parity(frozen, tuple(example_shape), model, target.name) if check else None
    facts = io.save(model, target)
    return Exported(target, facts.bytes, facts.sha256, opset, error)


def check_opset(opset: int, exporter: Exporter = "dynamo") -> None:
    """Check that ``export`` writes this opset with this exporter.

    Raises:
        OptionError: If it does not.
    """
    if exporter not in ("dynamo", "torchscript"):
        raise OptionError(f"exporter '{exporter}': dynamo and torchscript are accepted")
    low, high = OPSETS if exporter == "dynamo" else torchscript.OPSETS
    if not low <= opset <= high:
        raise OptionError(f"opset {opset}: export writes {low} to {high}")


def _convert(module: nn.Module, shape: tuple[int, ...], opset: int, names: tuple[str, str], fold_bn: bool) -> ir.Model:
    title = type(module).__name__
    try:
        with _quiet_torch():
            program = torch.onnx.export(
                module,
                (torch.zeros(2, *shape),),
                dynamo=True,
                opset_version=opset,
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=fold_bn,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(f"torch could not export {title} with a dynamic batch: {_reason(error)}") from error
    if program is None:
        raise ModelError(f"torch returned no ONNX program for {title}")
    model: ir.Model = program.model
    if not fold_bn:
        _simplify_around_bn(model)
    outputs = len(model.graph.outputs)
    if outputs != 1:
        raise ModelError(f"{title} has {outputs} outputs: export writes modules that return one tensor")
    axes = model.graph.inputs[0].shape
    if axes is None or isinstance(axes[0], int):
        raise ModelError(
            f"torch fixed the batch size of {title}: its code depends on the number of examples; "
            "write it for any, as x.flatten(1)"
        )
    written = model.opset_imports.get("", 0)
    if written != opset:
        raise ModelError(f"torch wrote {title} with opset {written} instead of {opset}: ask for {written}")
    return model


def _simplify_around_bn(model: ir.Model) -> None:
    """Do what torch's optimizer does, except fusing BatchNormalization."""
    from onnx_ir.passes import common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common as rules

    optimizer.fold_constants(model)
    kept = [
        rules.collapse_slice_rule,
        rules.collapse_slice2_rule,
        rules.materialize_reshape_shape_rule,
        rules.remove_optional_bias_from_conv_rule,
        rules.remove_optional_bias_from_gemm_rule,
    ]
    rewriter.rewrite(model, pattern_rewrite_rules=kept)
    optimizer.fold_constants(model)
    for tidy in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveUnusedOpsetsPass(),
    ):
        tidy(model)


def _parity(module: nn.Module, shape: tuple[int, ...], model: ir.Model, label: str) -> float:
    """Return the largest relative difference between torch and ONNX Runtime on the CPU."""
    rng = np.random.default_rng(PARITY_SEED)
    worst = 0.0
    with open_session(model, Settings(), label=label) as session:
        for batch in PARITY_BATCHES:
            array = rng.standard_normal((batch, *shape)).astype(np.float32)
            with torch.no_grad():
                wanted = module(torch.from_numpy(array)).numpy()
            (found,) = session.run({session.inputs[0]: array}).values()
            worst = max(worst, relative_error(wanted, found))
    if not worst <= TOLERANCE:
        raise ModelError(
            f"the export of {type(module).__name__} differs from torch by {worst:.2g} relative; "
            f"at most {TOLERANCE:g} is accepted"
        )
    return worst


def relative_error(wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Return the largest difference over the largest magnitude wanted; infinity for other shapes, or NaN in either."""
    if wanted.shape != found.shape or not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return float("inf")
    difference = np.abs(wanted.astype(np.float64) - found).max(initial=0.0)
    return float(difference / max(np.abs(wanted).max(initial=0.0), np.finfo(np.float32).tiny))


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence what torch's exporter says about its own internals.

    Before it raises, torch prints whole graphs to stderr, which the one-line error replaces. What others
    write there is passed on when the export succeeds, and the caller's warnings stay.
    """
    shapes = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = shapes.level
    said = StringIO()
    shapes.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(said):
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=r"(torch|onnxscript|onnx_ir|copyreg)(\.|$)")
            yield
        sys.stderr.write(said.getvalue())
    finally:
        shapes.setLevel(level)


def _reason(error: BaseException) -> str:
    """Find the first line of the innermost cause: the sentence that says what torch stumbled over."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
