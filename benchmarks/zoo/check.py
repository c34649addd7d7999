"""What every model of the zoo must pass: neutral cuts change nothing, real ones equal the masked dense model."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from benchmarks.zoo.mask import mask_readers
from onnxprune.errors import OnnxPruneError
from onnxprune.graph import factors, io, surgery
from onnxprune.graph.cleanup import cleanup, finish, prepare
from onnxprune.graph.cost import example_shapes, lookup, measure, node_macs
from onnxprune.graph.shapes import Shapes, concrete_shapes, true_inputs
from onnxprune.graph.spaces import Analysis, analyse, predicted_macs, predicted_shapes

NEUTRAL_TOLERANCE, CUT_TOLERANCE = 1e-5, 1e-4
KEEPS = (0.75, 0.5)
# What a rule or a rewrite that is wrong may raise; the zoo lists it as this graph's failure and goes on.
CRASHES = (
    OnnxPruneError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)
Outputs = dict[str, np.ndarray]


@dataclass
class Row:
    """The findings of one model; ``failures`` is empty where all is well."""

    name: str
    spaces: int = 0
    share: float = float("nan")
    lowest: float = float("nan")
    neutral: float = float("nan")
    errors: dict[float, float] = field(default_factory=dict)
    ratios: dict[float, float] = field(default_factory=dict)
    seconds: float = 0.0
    analysis_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    reasons: list[tuple[float, str]] = field(default_factory=list)


def check(name: str, path: Path, seed: int = 0) -> Row:
    """Put one model to the proof."""
    row, start = Row(name), time.perf_counter()
    try:
        given = io.load(path)
        feeds = feeds_of(given, seed)
        want = run(given, feeds)
        source, _ = cleanup(given)
        if not telling(want):
            row.failures.append("the dense model's outputs are zero, saturated or not finite: they prove nothing")
        _survey(row, source)
    except CRASHES as error:
        row.failures.append(f"analysis: {_said(error)}")
        return row
    for keep in (1.0, *KEEPS):
        try:
            _cut(row, source, feeds, want, keep, seed)
        except CRASHES as error:
            row.failures.append(f"keep={keep:g}: {_said(error)}")
    row.seconds = time.perf_counter() - start
    return row


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _survey(row: Row, source: ir.Model) -> None:
    """Count spaces and MACs, and what each reason for freezing costs at the lowest reachable size."""
    work = prepare(source)
    start = time.perf_counter()
    analysis = analyse(work)
    row.analysis_seconds = time.perf_counter() - start
    row.spaces = len(analysis.prunable)
    shapes = concrete_shapes(work, example_shapes(work))
    lowest = predicted_shapes(analysis, shapes, {space.name: [0] for space in analysis.prunable})
    dense, least = _macs(work, shapes), _macs(work, lowest)
    total = max(sum(dense.values()), 1)
    row.share = sum(macs for name, macs in dense.items() if least[name] < macs) / total
    row.lowest = sum(least.values()) / total
    row.reasons = _reasons(analysis, dense, least)


def _macs(model: ir.Model, shapes: Shapes) -> dict[str, int]:
    return {str(node.name): node_macs(node, lookup(shapes)) or 0 for node in model.graph}


def _reasons(analysis: Analysis, dense: Mapping[str, int], least: Mapping[str, int]) -> list[tuple[float, str]]:
    """Return the share of MACs that every reason holds back, the dearest first."""
    count = int(analysis.component.max(initial=-1)) + 1
    frozen = [space for space in analysis.spaces if space.frozen is not None]
    # A frozen factor of a grid holds the grid's positions back too.
    stuck = [(str(space.frozen), factors.owners(analysis.grids, space.channels, count) >= 0) for space in frozen]
    held: Counter[str] = Counter()
    first: dict[str, str] = {}
    for node in analysis.model.graph:
        name = str(node.name)
        if not dense[name] or 2 * least[name] < dense[name]:
            continue
        found = {analysis.tracer.refused[name]} if name in analysis.tracer.refused else set()
        for value in [*node.inputs, *node.outputs]:
            for labels in analysis.tracer.axes(value):
                if labels is not None:
                    channels = analysis.channels_of(labels)
                    found |= {reason for reason, inside in stuck if inside[channels].any()}
        text = "only spaces of few channels in" if least[name] < dense[name] else "no axis carries channels of"
        for reason in found or {first.setdefault(text + node.op_type, f"{text} {node.op_type} '{name}', ...")}:
            held[reason] += least[name]
    total = max(sum(dense.values()), 1)
    return [(macs / total, reason) for reason, macs in held.most_common(6)]


def kept_channels(analysis: Analysis, keep: float, seed: int) -> dict[str, np.ndarray]:
    """Return random channels of every prunable space, at least one."""
    rng = np.random.default_rng(seed)
    kept = {}
    for space in analysis.prunable:
        count = max(1, round(keep * space.width))
        kept[space.name] = np.sort(rng.permutation(space.width)[:count])
    return kept


def _cut(row: Row, source: ir.Model, feeds: Outputs, want: Outputs, keep: float, seed: int) -> None:
    """Cut a copy, check it, and compare it with the dense model whose dropped channels are masked."""
    work = prepare(source)
    analysis = analyse(work)
    kept = kept_channels(analysis, keep, seed)
    shapes = concrete_shapes(work, example_shapes(work))
    predicted = predicted_macs(analysis, shapes, kept)
    if keep < 1:
        masked = prepare(source)
        mask_readers(masked, analysis, kept)
        before, want = want, run(masked, feeds)
        if not analysis.keep_mask(kept).all() and (distance(before, want) < CUT_TOLERANCE or not telling(want)):
            row.failures.append(f"keep={keep:g}: masking changes nothing or saturates, so equality proves nothing")
    dense = sum(_macs(work, shapes).values())
    surgery.cut(analysis, kept)
    result = finish(work)
    io.check(result)
    counted = measure(result).macs
    row.ratios[keep] = counted / max(dense, 1)
    if counted != predicted:
        row.failures.append(f"keep={keep:g}: {counted:,} MACs, {predicted:,} predicted")
    error = distance(run(result, feeds), want)
    row.errors[keep] = error
    row.neutral = row.errors.get(1.0, row.neutral)
    tolerance = NEUTRAL_TOLERANCE if keep == 1 else CUT_TOLERANCE
    if not error < tolerance:
        row.failures.append(f"keep={keep:g}: relative error {error:.2g}, below {tolerance:g} is accepted")
    if interface(result) != interface(source):
        row.failures.append(f"keep={keep:g}: names, types or shapes of inputs or outputs, or the opset, changed")


def interface(model: ir.Model) -> list[str]:
    """Return what a caller sees of a model; initialisers that old IR versions list as inputs are not part of it."""
    seen = [f"{v.name} {v.dtype} {v.shape}" for v in [*true_inputs(model), *model.graph.outputs]]
    return [*seen, f"{sorted(model.opset_imports.items())} {model.ir_version}"]


def feeds_of(model: ir.Model, seed: int) -> Outputs:
    """Return seeded inputs: noise, or small whole numbers; symbolic sizes become 2."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in true_inputs(model):
        assert value.dtype is not None and value.shape is not None
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        kind = value.dtype.numpy()
        noise = rng.integers(0, 100, shape) if kind.kind in "iu" else rng.standard_normal(shape)
        feeds[str(value.name)] = np.asarray(noise, dtype=kind)
    return feeds


def run(model: ir.Model, feeds: Outputs) -> Outputs:
    """Run a model in ONNX Runtime on one thread, without optimisations that could hide a wrong graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="onnxprune-zoo-") as folder:
        path = io.to_scratch(model, Path(folder))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [out.name for out in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


def telling(outputs: Outputs) -> bool:
    """Return whether outputs are finite and at least half of each one's values count beside the largest."""
    sizes = [np.abs(out.astype(np.float64)) for out in outputs.values()]
    return all(bool(np.isfinite(out).all() and np.median(out) > CUT_TOLERANCE * out.max()) for out in sizes)


def distance(got: Outputs, want: Outputs) -> float:
    """Return the largest difference over the largest value, the worst over all outputs."""
    if got.keys() != want.keys() or any(got[name].shape != want[name].shape for name in want):
        return float("inf")
    worst = 0.0
    for name, dense in want.items():
        wide = dense.astype(np.float64)
        scale = max(float(np.abs(wide).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        worst = max(worst, float(np.abs(got[name] - wide).max(initial=0.0)) / scale)
    return worst if np.isfinite(worst) else float("inf")
