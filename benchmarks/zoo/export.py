"""Gives a network seeded weights of realistic statistics and exports it with either of torch's exporters."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from benchmarks.zoo.networks import NETWORKS, TOKENS, Network

OPSET, SCRIPT_OPSET = 20, 17
_STATISTICS_BATCH = 8
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# What torch's exporters and the passes behind them raise for a network that they cannot treat.
_REFUSALS = (
    torch.onnx.OnnxExporterError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def export(name: str, variant: str, path: Path, seed: int) -> str | None:
    """Write a network's export and return None, or return why torch refuses it."""
    torch.manual_seed(seed)
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer exports nowhere
    network = NETWORKS[name]
    module = network.make()
    settle(module, network)
    try:
        if variant == "script":
            _script(module.eval(), example(network, 2), path)
        else:
            _dynamo(module.eval(), example(network, 2), path, fold=variant == "folded")
    except _REFUSALS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
    return None


def example(network: Network, batch: int) -> torch.Tensor:
    """Return seeded inputs of a network."""
    if network.integers:
        return torch.randint(0, TOKENS, (batch, *network.shape))
    return torch.randn(batch, *network.shape)


def settle(module: nn.Module, network: Network) -> None:
    """Give parameters that start at zero or at a constant values of their own, and norms the statistics of noise.

    torchvision starts some heads, biases and layer scales at zero or 1e-6; a mistake in what they multiply would
    not show.
    """
    with torch.no_grad():
        for title, parameter in module.named_parameters():
            if title.endswith("layer_scale"):
                parameter.uniform_(0.2, 0.6)
            elif parameter.dim() > 1 and not parameter.any():
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif parameter.dim() == 1 and (parameter == parameter[0]).all():
                scale = bool(parameter[0] == 1)
                parameter.uniform_(0.6, 1.4) if scale else parameter.normal_(0, 0.1)
        norms = [part for part in module.modules() if isinstance(part, _NORMS)]
        if not norms:
            return
        module.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None  # one pass sets the statistics outright
            norm.reset_running_stats()
        module(example(network, _STATISTICS_BATCH))
        module.eval()


def _script(module: nn.Module, given: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        module,
        (given,),
        str(path),
        dynamo=False,
        opset_version=SCRIPT_OPSET,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
    )


def _dynamo(module: nn.Module, given: torch.Tensor, path: Path, *, fold: bool) -> None:
    program = torch.onnx.export(
        module,
        (given,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        optimize=fold,
        verbose=False,
    )
    if program is None:
        raise ValueError("torch returned no program")
    if not fold:
        _tidy(program.model)
    program.save(str(path), external_data=False)


def _tidy(model: ir.Model) -> None:
    """Fold constants and drop what is dead, which torch's optimizer does besides folding BatchNormalization."""
    from onnx_ir.passes import common as passes
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.RemoveUnusedOpsetsPass()(model)
