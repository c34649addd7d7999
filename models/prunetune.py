"""Prune a trained network by a threshold, train on with the zeros fixed, and write what is left as ONNX.

The second and third stage of DeepHoyer (Yang, Wen, Li 2020, section 4.3).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import nn

from onnxprune.errors import BackendError, OptionError
from onnxprune.exporters.metadata import describe
from onnxprune.exporters.to_onnx import check_opset, export, relative_error
from onnxprune.graph import io
from onnxprune.graph.cost import Cost, measure
from onnxprune.models import distributed
from onnxprune.models.checkpoint import load_weights
from onnxprune.models.options import TrainOptions
from onnxprune.models.produce import ExportSource, LearnOptions, WriteOptions, named_source, open_for
from onnxprune.models.scoring import Scores, score
from onnxprune.models.sparsity import LayerSparsity, apply_masks, keep_masks, make_masks, sparsity_table
from onnxprune.models.state import Checkpoints
from onnxprune.models.train import Hooks, Trained, fit, open_device
from onnxprune.models.zoo import NETWORKS, build, find
from onnxprune.passes.zero_groups import ZeroGroups
from onnxprune.pipeline import Run, run
from onnxprune.runtime.session import Settings, open_session

__all__ = ["PruneOptions", "PruneTuned", "known_source", "prune_tune"]

TOLERANCE = 1e-4  # largest difference that leaving zero groups out may make, relative to the largest output


@dataclass(frozen=True)
class PruneOptions:
    """What goes: entries below ``threshold`` or ``std_ratio`` standard deviations; ``structured``: whole groups."""

    threshold: float | None = None
    std_ratio: float | None = None
    structured: bool = False


@dataclass(frozen=True)
class PruneTuned:
    """What ``prune_tune`` did.

    Attributes:
        network: The zoo's name.
        table: Zeros per layer after tuning.
        before: Scores on the test data before pruning.
        pruned: After pruning.
        trained: How tuning went; its ``test`` is the result's.
        path: The ONNX file; None in other processes than the first.
        bytes: Its size.
        dense: Cost of the graph with all its groups.
        cost: Cost of the graph that was written.
        removed: What ``zero_groups`` counted; empty where it did not run.
    """

    network: str
    table: tuple[LayerSparsity, ...]
    before: Scores
    pruned: Scores
    trained: Trained
    path: Path | None
    bytes: int
    dense: Cost | None
    cost: Cost | None
    removed: dict[str, object]


def known_source(source: str, start: Path | None) -> ExportSource:
    """Read what to prune: a checkpoint that names its network, or a network's name and its weights.

    Raises:
        OptionError: If a name comes without weights, or is unknown.
        ModelError: If a checkpoint does not say of which network it is.
    """
    found = named_source(ExportSource(source, start))
    find(found.network)
    if found.weights is None:
        raise OptionError(f"{source} from the zoo has no weights of its own: give --from checkpoint.pth")
    return found


def prune_tune(
    source: ExportSource,
    spec: str | None,
    out: str | os.PathLike[str],
    prune: PruneOptions,
    options: TrainOptions,
    write: WriteOptions | None = None,
    *,
    learn: LearnOptions | None = None,
    hooks: Hooks | None = None,
) -> PruneTuned:
    """Prune, tune with the zeros fixed, write; with ``structured`` zero groups leave the written graph.

    Args:
        source: From ``known_source``.
        spec: DATA to tune and test on; None is what the checkpoint names.
        out: The ONNX file; ``.last.pth`` and ``.best.pth`` of the same name lie beside it.
        prune: What goes.
        options: How to tune.
        write: How to write.
        learn: Validation share and what else concerns the data; ``resume`` goes on with a run that was killed.
        hooks: What to call meanwhile.

    Raises:
        OptionError: If an option or the output path is not usable; nothing was trained then.
        ModelError: If the weights do not fit.
        DataError: If the data is not usable.
        BackendError: If training diverges or the file cannot be written.
    """
    write, learn, hooks = write or WriteOptions(), learn or LearnOptions(), hooks or Hooks()
    spec = spec or source.data
    if spec is None:
        raise OptionError("the checkpoint names no data: give --data")
    files = [Path(out).with_suffix(f".{name}.pth") for name in ("last", "best")]
    for file in (Path(out), *(files if learn.resume is None else ())):
        io.check_output(file, source=source.weights, force=write.force)
    check_opset(write.opset, write.exporter)
    data = open_for(source.network, spec, options, learn)
    module = build(source.network, data.outputs)
    load_weights(module, source.weights or "", trust_pickle=learn.trust_pickle)
    masks = make_masks(module, threshold=prune.threshold, std_ratio=prune.std_ratio, structured=prune.structured)
    device = open_device(options.device)
    before = score(module.to(device), data.test, device, regression=data.regression)
    apply_masks(module, masks)
    pruned = score(module, data.test, device, regression=data.regression)
    about = {"network": source.network, "classes": data.outputs, "data": data.spec, "class_names": list(data.classes)}
    about["preprocess"] = None if data.preprocess is None else data.preprocess.to_json()
    checkpoints = Checkpoints(files[0], files[1], learn.resume, about)
    held = replace(hooks, weights=_both(hooks.weights, keep_masks(masks)))
    trained = fit(module, data, options, hooks=held, checkpoints=checkpoints)
    table = tuple(sparsity_table(trained.module))
    if distributed.rank():
        return PruneTuned(source.network, table, before, pruned, trained, None, 0, None, None, {})
    metadata = describe(data.preprocess, data.classes, data.spec)
    dense, small, removed = _graphs(trained.module, source.network, write, metadata, prune.structured)
    costs = measure(dense), measure(small)
    facts = io.save(small, out)
    return PruneTuned(source.network, table, before, pruned, trained, Path(out), facts.bytes, *costs, removed)


def _both(first: Callable[[nn.Module], None], second: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    def call(module: nn.Module) -> None:
        first(module)
        second(module)

    return call


def _graphs(
    module: nn.Module, network: str, write: WriteOptions, metadata: dict[str, str], structured: bool
) -> tuple[ir.Model, ir.Model, dict[str, object]]:
    """Return the exported graph, the same without its zero groups, and what was removed."""
    found = NETWORKS[network]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(
            module,
            found.input_shape,
            file,
            opset=write.opset,
            exporter=write.exporter,
            output_name="value" if found.regression else "logits",
            fold_bn=not write.keep_bn,
            metadata=metadata,
        )
        dense = io.load(file)
        if not structured:
            return dense, dense, {}
        small, steps = run(dense, [ZeroGroups()], Run(None, Settings()))
        _check_same(dense, small, found.input_shape)
        return dense, small, dict(steps[0].result.numbers)


def _check_same(dense: ir.Model, small: ir.Model, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    outputs: list[np.ndarray] = []
    for model in (dense, small):
        with open_session(model, Settings(), label="model.onnx") as session:
            outputs.append(*session.run({session.inputs[0]: array}).values())
    error = relative_error(*outputs)
    if not error <= TOLERANCE:
        raise BackendError(
            f"the graph without its zero groups differs by {error:.2g} relative; {TOLERANCE:g} is accepted"
        )
