"""A schedule of sparsities: a pass of onnxprune prunes the graph as it is, and training goes on from there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir
import torch

from onnxprune.data import Examples
from onnxprune.errors import OptionError
from onnxprune.exporters.to_torch import OnnxModule
from onnxprune.graph import constants
from onnxprune.models.iterative.choosing import Mask
from onnxprune.models.iterative.options import IterateOptions
from onnxprune.models.iterative.weights import Snapshot, snapshot
from onnxprune.passes.magnitude import Magnitude
from onnxprune.passes.surp import Surp
from onnxprune.pipeline import Run, run
from onnxprune.runtime.session import Settings

__all__ = ["Stager"]


class Stager:
    """Prunes by ``surp`` (successive refinement, Isik, Weissman, No 2022) or ``magnitude``.

    Args:
        options: The method, and the values to start from.
        calibration: Examples that are refitted to.
        model: The network.
        names: Its weights that are pruned.

    Raises:
        OptionError: Weights are to be refitted, and nodes share one, which a refit would part.
    """

    def __init__(self, options: IterateOptions, calibration: Examples, model: ir.Model, names: Iterable[str]) -> None:
        if options.starting_values == "refit":
            shared = next((name for name in names if len(model.graph.initializers[name].uses()) > 1), None)
            if shared is not None:
                raise OptionError(f"values refit: '{shared}' is the weight of several nodes; give values original")
        self.options = options
        self.calibration = calibration if options.starting_values == "refit" else None

    def stage(
        self, model: ir.Model, module: OnnxModule, axes: Mapping[str, int], sparsity: float
    ) -> tuple[Snapshot, dict[str, Mask]]:
        """Return weights and masks with this share of zeros among the weights that are pruned.

        What was zero before stays so: a magnitude of zero is never announced, and is the smallest there is.

        Args:
            model: The network as it is now.
            module: Its trainable form, whose names count.
            axes: The weights that are pruned.
            sparsity: Share of zeros.
        """
        pruner = Surp if self.options.method == "surp" else Magnitude
        item = pruner(sparsity=sparsity, values=self.options.starting_values)
        result, _ = run(model, [item], Run(self.calibration, Settings()))
        stored = snapshot(module)
        masks: dict[str, Mask] = {}
        for name in axes:
            data = constants.array(result.graph.initializers[name])
            assert data is not None
            stored[name] = torch.from_numpy(data.astype("float64")).to(stored[name].dtype)
            masks[name] = data != 0
        return stored, masks
