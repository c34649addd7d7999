"""Fitting synthetic images to what a model remembers of its data: the running statistics of a BatchNormalization.

Exports that keep BatchNormalization know the mean and the variance of every channel that reaches the first one. As
far as that everything is affine in the input, so that the mean is linear in the offsets of the input's channels, and
the variance in the squared amplitudes of the colour axes: two small least-squares problems, for a few softnesses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.data.synthetic import Look, colour_axes, draw, shapes, softened
from onnxprune.errors import BackendError
from onnxprune.graph import constants
from onnxprune.graph.cleanup import folded
from onnxprune.graph.fold_bn import affine
from onnxprune.graph.shapes import refresh_shapes, true_inputs
from onnxprune.runtime.session import Settings, open_session

# Affine in their first input where all others are constants.
_FIRST = frozenset(
    {"Conv", "ConvTranspose", "Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
    | {"AveragePool", "GlobalAveragePool", "Div", "Slice", "Cast"}
)
# Affine where one input is and the others are constants; where several may be.
_ONE, _SEVERAL = frozenset({"Mul", "MatMul", "Gemm"}), frozenset({"Add", "Sub", "Concat"})
_SOFTNESSES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Images that the statistics are taken on: so many pixels, within these numbers.
_PIXELS, _FEWEST, _MOST = 1 << 16, 8, 48
_SEED = 0
# Weight of what is known without the model, against one channel's statistics.
_RIDGE = 0.05
_ROUNDS = 8
# Channels whose variance is below this share of the median are dead: they say nothing.
_DEAD = 1e-2
_TINY = 1e-30
# What the fit gives is rounded to so many digits: the inputs must not depend on the order of sums.
_DIGITS = 4
_CLIPPED = 2

_Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Remembered:
    """What a BatchNormalization knows of its input: mean and variance [channels], and the part in front of it."""

    name: str
    mean: np.ndarray
    variance: np.ndarray
    part: ir.Model | None


def matched(model: ir.Model, settings: Settings, name: str, look: Look) -> Look:
    """Return a look whose images have, in front of the first BatchNormalization, the statistics that it remembers.

    Where there is none that the input reaches in affine steps, or the part in front of it cannot be run or overflows,
    the look stays as it is.
    """
    known = remembered(model, name)
    if known is None:
        return look
    try:
        with _running(known, settings) as run:
            return _fitted(look, known, run)
    except BackendError:
        return look  # whoever runs the model for its own sake will say what is wrong with it


def remembered(model: ir.Model, name: str) -> Remembered | None:
    """Return what the first BatchNormalization knows that is affine in one input alone; None where there is none."""
    if not any(node.op_type == "BatchNormalization" and node.domain == "" for node in model.graph):
        return None
    work = folded(model)
    refresh_shapes(work)
    start = next(value for value in true_inputs(work) if value.name == name)
    reached = {start}
    version = work.opset_imports.get("", 1)
    for node in work.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "BatchNormalization" and node.domain == "" and source in reached:
            found = None if isinstance(affine(node, version), str) else _statistics(node)
            if found is None:
                return None
            assert source is not None
            return Remembered(str(node.name), *found, None if source is start else _part(work, start, source))
        if _is_affine(node, reached):
            reached.update(node.outputs)
    return None


def _is_affine(node: ir.Node, reached: set[ir.Value]) -> bool:
    given = [value for value in node.inputs if value is not None]
    hit = [value in reached for value in given]
    if node.domain != "" or not any(hit):
        return False
    kind = node.outputs[0].dtype
    if node.op_type == "Cast" and (kind is None or not kind.is_floating_point()):
        return False
    known = all(seen or constants.constant(value) is not None for value, seen in zip(given, hit, strict=True))
    if node.op_type in _SEVERAL:
        return known
    return known and sum(hit) == 1 and (node.op_type in _ONE or (node.op_type in _FIRST and hit[0]))


def _statistics(node: ir.Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and variance in float64, or None where training never wrote them."""
    mean, variance = (np.asarray(constants.array(value), dtype=np.float64) for value in node.inputs[3:5])
    untouched = not mean.any() and bool((variance == 1).all())
    return None if untouched or not np.isfinite(mean).all() or not (variance > 0).any() else (mean, variance)


def _part(work: ir.Model, start: ir.Value, end: ir.Value) -> ir.Model:
    graph = ir.convenience.extract(work.graph, inputs=[start], outputs=[end])
    return ir.Model(graph, ir_version=max(work.ir_version, 4))


@contextlib.contextmanager
def _running(known: Remembered, settings: Settings) -> Iterator[_Run]:
    """Open the part; what is yielded turns examples into what the BatchNormalization gets of them."""
    if known.part is None:
        yield _by_channel
        return
    given = known.part.graph.inputs[0]
    dtype = np.float32 if given.dtype is None else given.dtype.numpy()
    with open_session(known.part, settings, label="the first layers of the model") as session:
        step = session.fixed_batch or settings.batch_size

        def run(examples: np.ndarray) -> np.ndarray:
            fed = examples.astype(dtype)
            runs = (session.run({str(given.name): fed[at : at + step]}) for at in range(0, len(fed), step))
            values = _by_channel(np.concatenate([found[session.outputs[0]] for found in runs]))
            if not np.isfinite(values).all():
                raise BackendError("the first layers of the model overflow on synthetic images")
            return values

        yield run


def _by_channel(values: np.ndarray) -> np.ndarray:
    """Return values [n, channels, ...] as float64 [n, channels, places]."""
    return values.astype(np.float64).reshape(*values.shape[:2], -1)


def _fitted(look: Look, known: Remembered, run: _Run) -> Look:
    """Fit offsets to the means, softness and amplitudes to the variances, the contrast to what clipping takes of it."""
    canvas, gain = look.canvas, np.asarray(look.gain)
    alive = known.variance >= _DEAD * np.median(known.variance[known.variance > 0])
    variance = known.variance[alive]

    def answer(planes: np.ndarray) -> np.ndarray:
        return run(canvas.place(planes * gain[:, None, None]))[:, alive]

    planes = np.zeros((canvas.channels + 1, canvas.channels, canvas.height, canvas.width))
    planes[range(1, canvas.channels + 1), range(canvas.channels)] = 1.0
    flat = answer(planes)
    base, slopes = flat[0], flat[1:] - flat[0]
    wanted = known.mean[alive] - base.mean(axis=1)
    shift = _offsets(slopes.mean(axis=2), wanted, variance, np.asarray(look.offset) / gain)
    # Padding makes even a flat image vary over the places.
    uneven = (base + np.tensordot(shift, slopes, 1)).var(axis=1)
    target = np.maximum(variance - uneven, variance / 20)
    drawn = np.stack([shapes(canvas, rng) for rng in _streams(canvas.height * canvas.width)])
    before = np.asarray(look.colours) ** 2
    best: tuple[float, float, np.ndarray] | None = None
    for softness in _SOFTNESSES:
        layers = softened(drawn, softness)
        each = []
        for axis, direction in enumerate(colour_axes(canvas.channels)):
            found = answer(layers[:, axis, None] * direction[:, None, None]) - base
            # A colour is as often its own negative: the mean over all draws is zero.
            each.append((found**2).mean(axis=(0, 2)))
        energies = np.stack(each, axis=1)
        energy = _energies(energies, target, before)
        miss = float((np.log(np.maximum(energies @ energy, _TINY) / target) ** 2).mean())
        if best is None or miss < best[0]:
            best = (miss, softness, energy)
    assert best is not None
    look = replace(look, colours=_rounded(np.sqrt(best[2])), softness=best[1], offset=_rounded(shift * gain))
    return _contrasted(look, known, alive, run)


def _offsets(slopes: np.ndarray, wanted: np.ndarray, variance: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Solve for the offset of every input channel: slopes [inputs, channels], in units of the channels' deviations."""
    rows = slopes.T / np.sqrt(variance)[:, None]
    right = rows.T @ ((wanted - prior @ slopes) / np.sqrt(variance))
    return np.asarray(prior + np.linalg.solve(rows.T @ rows + _RIDGE * np.eye(len(prior)), right))


def _energies(each: np.ndarray, target: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the squared amplitude of every colour axis, so that ``each`` [channels, axes] sums up to ``target``.

    First one factor for all, then each by non-negative least squares in ratios: rows are weighted by
    1 / (predicted * target), which makes the squared differences those of logarithms near the solution.
    """
    from scipy.optimize import nnls

    predicted = np.maximum(each @ before, _TINY)
    scaled = each * before * float(np.exp(np.log(target / predicted).mean()))
    found, size = np.ones(len(before)), len(before)
    for _ in range(_ROUNDS):
        weight = 1 / np.sqrt(np.maximum(scaled @ found, _DEAD * target) * target)
        rows = np.concatenate([scaled * weight[:, None], np.sqrt(_RIDGE) * np.eye(size)])
        found, _ = nnls(rows, np.concatenate([target * weight, np.full(size, np.sqrt(_RIDGE))]))
    return np.asarray(found * before * np.exp(np.log(target / predicted).mean()))


def _contrasted(look: Look, known: Remembered, alive: np.ndarray, run: _Run) -> Look:
    """Make up for what clipping takes of the contrast, and say how near the statistics are then."""
    mean, variance = known.mean[alive], known.variance[alive]

    def measured() -> tuple[np.ndarray, np.ndarray]:
        found = run(np.stack([draw(look, rng) for rng in _streams(look.canvas.height * look.canvas.width)]))[:, alive]
        return found.mean(axis=(0, 2)), np.log(np.maximum(found.var(axis=(0, 2)), _TINY) / variance)

    if look.low is not None and look.high is not None:
        look = replace(look, offset=_rounded(np.clip(look.offset, look.low, look.high)))
        for _ in range(_CLIPPED):
            factor = np.exp(np.clip(-0.5 * measured()[1].mean(), -1, 1))
            look = replace(look, colours=_rounded(factor * np.asarray(look.colours)))
    reached, logs = measured()
    off, ratio = np.sqrt(((reached - mean) ** 2 / variance).mean()), np.exp(np.sqrt((logs**2).mean()))
    told = f"match the statistics that '{known.name}' remembers: the mean within {off:.2f} standard deviations"
    return replace(look, told=f"{told}, the variance within a factor of {ratio:.2f}")


def _streams(pixels: int) -> Iterator[np.random.Generator]:
    """Yield the generators of the images that statistics are taken on: always the same, fewer of larger ones."""
    for row in range(max(_FEWEST, min(_MOST, _PIXELS // pixels))):
        yield np.random.default_rng([_SEED, row])


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
