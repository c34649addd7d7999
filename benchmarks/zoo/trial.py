"""One pass on one graph of the zoo: what it is asked for, what must hold of the result, and what came out."""

from __future__ import annotations

import hashlib
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.zoo.check import Outputs, distance, feeds_of, interface, kept_channels, run
from onnxprune import pipeline, recipe
from onnxprune.data import Examples
from onnxprune.errors import BackendError, OnnxPruneError
from onnxprune.graph import constants, io
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import Cost, measure
from onnxprune.graph.shapes import true_inputs
from onnxprune.graph.spaces import analyse
from onnxprune.runtime.session import Settings

TOLERANCE = 1e-4
IMAGES = 8
# On graphs of more MACs than this, least squares over eight images of 224 by 224 take minutes on one core.
FEW = 2
_LARGE = 5e8
# A neutral pass that differs by less than this may only round otherwise, which double precision tells.
_ROUNDING = 1e-3
# Sizes are met within this share where widths allow.
_UNDER = 0.02
# Nodes that a recipe names by a word: how many of the last ones, of at most so many features. A survey refits what is
# behind a node, and least squares take the third power of the features.
_LAST = {"two": (2, 4608), "three": (3, 320)}
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Setting:
    """A recipe and what it is for: ``neutral`` must change nothing, otherwise the cost ``falls``, if anything does.

    ``zeroed``: half of the channels get zero weights first. ``most`` is the number of parameters from which
    it takes too long. ``late``: it takes long, and its turn comes when all graphs have had the others. In the recipe
    ``{examples}`` is the folder of examples, ``{middle}`` a tensor halfway through the graph, ``{two}`` and
    ``{three}`` are names of linear nodes near its end and ``{less}`` all FLOPs but a third of theirs.
    """

    name: str
    recipe: str
    neutral: bool = False
    falls: str | None = None
    zeroed: bool = False
    most: float = float("inf")
    late: bool = False


def _neutral(name: str, *recipes: str) -> Iterator[Setting]:
    for text in recipes:
        yield Setting(name, text, neutral=True)


def _strong(name: str, falls: str, *recipes: str, most: float = float("inf"), late: bool = False) -> Iterator[Setting]:
    for text in recipes:
        yield Setting(name, text, falls=falls, most=most, late=late)


# Refitting every layer takes more than a minute on one core from about so many parameters on.
_REFITTED = 7.5e6
# Sharing a budget out by measurement runs a graph some hundred times: too long from so many parameters on.
_SURVEYED = 1e6
_CUSTOM = "custom(function='{{examples}}/{}')"
SETTINGS: tuple[Setting, ...] = (
    *_neutral("cleanup", "cleanup"),
    *_neutral("fold_bn", "fold_bn"),
    *_neutral("zero_groups", "zero_groups"),
    Setting("zero_groups", "zero_groups", neutral=True, falls="macs", zeroed=True),
    *_neutral("dequantize", "dequantize"),
    *_neutral("surp", "surp(sparsity=0)"),
    *_strong("surp", "nonzero", "surp(sparsity=0.9,values=reconstruction)"),
    *_neutral("magnitude", "magnitude(sparsity=0)"),
    *_strong("magnitude", "nonzero", "magnitude(sparsity=0.9,values=original)"),
    *_neutral("id", "id(keep=1)", "id(keep=1,reconstruct=none)"),
    *_strong("id", "macs", "id(flops=0.5,reconstruct=none,select=pivots)"),
    *_strong("id", "macs", "id(flops=0.5,allocate=uniform)", most=_REFITTED),
    *_neutral("filters", "filters(keep=1)"),
    *_strong("filters", "macs", "filters(flops=0.5)"),
    *_neutral("ispasp", "ispasp(keep=1)"),
    *_strong("ispasp", "macs", "ispasp(flops=0.5)"),
    *_neutral("pca", "pca(keep=1)"),
    *_strong("pca", "macs", "pca(flops=0.5,reconstruct=none)"),
    *_strong("pca", "macs", "pca(flops=0.6,allocate=spectrum)", most=_REFITTED),
    *_strong("pca", "macs", "pca(flops=0.6)", most=_SURVEYED, late=True),
    *_neutral("lrank", "lrank(keep=1)"),
    *_strong("lrank", "macs", "lrank(flops=0.5,reconstruct=none)"),
    *_strong("lrank", "macs", "lrank(flops=0.6,allocate=spectrum)", most=_REFITTED),
    *_strong("lrank", "macs", "lrank(flops=0.6)", most=_SURVEYED, late=True),
    *_neutral("cp", "cp(keep=1)"),
    *_strong("cp", "macs", "cp(flops=0.5,reconstruct=none)"),
    *_strong("cp", "macs", "cp(flops=0.6)", most=_SURVEYED, late=True),
    *_neutral("auto", "auto(flops=1)"),
    *_strong("auto", "macs", "auto(flops={less},only='{two}',methods='lrank;cp')"),
    *_strong("auto", "macs", "auto(flops={less},only='{three}')", most=_REFITTED),
    *_strong("auto", "macs", "auto(flops=0.6)", most=_SURVEYED, late=True),
    *_strong("int8", "bytes", "int8", "int8(mode=dynamic)"),
    Setting("dequantize", "int8,dequantize"),
    *_neutral("distill", "distill(epochs=0)"),
    *_strong("distill", "nonzero", "magnitude(sparsity=0.5,values=original),distill(epochs=1,augment=none)"),
    *_neutral("extract", "extract(recipe=(filters(keep=1)))", "extract(recipe=(filters(keep=1)),outputs={middle})"),
    *_strong("extract", "macs", "extract(recipe=(filters(flops=0.5)),outputs={middle})"),
    *_neutral("replace", "replace(pattern='Relu(x)',by='Relu(x)')"),
    *_neutral("custom", _CUSTOM.format("custom_gs.py:tidy_clips"), _CUSTOM.format("custom_ir.py:fuse_hard_swish")),
)


@dataclass(frozen=True)
class Outcome:
    """What came out: ``status`` is equal, changed, refused, large, slow or failed.

    ``reasons`` say why layers or the whole were left alone; ``detail`` is the sentence of a refusal or failure, or
    empty.
    """

    graph: str
    recipe: str
    status: str
    seconds: float
    detail: str = ""
    reasons: tuple[str, ...] = ()


class Subject:
    """A graph of the zoo with seeded noise: examples to calibrate on, and inputs with outputs to compare."""

    def __init__(self, name: str, path: Path, seed: int = 0) -> None:
        self.name, self.seed = name, seed
        self.model = io.load(path)
        self.feeds = feeds_of(self.model, seed)
        self.want = run(self.model, self.feeds)
        self.shapes = {key: (1, *array.shape[1:]) for key, array in self.feeds.items()}
        self.cost = measure(self.model, self.shapes)
        self.digest = digest(self.model)
        self._zeroed: ir.Model | None = None

    def examples(self, setting: Setting) -> Examples:
        """Return the calibration examples, other numbers than the ones that outputs are compared on."""
        count = FEW if self.cost.macs > _LARGE and setting.name != "distill" else IMAGES
        rng = np.random.default_rng([self.seed, 1])
        arrays = {
            name: rng.integers(0, 100, (count, *array.shape[1:])).astype(array.dtype)
            if array.dtype.kind in "iu"
            else rng.standard_normal((count, *array.shape[1:])).astype(array.dtype)
            for name, array in self.feeds.items()
        }
        return Examples("noise", count, None, lambda rows: {name: array[rows] for name, array in arrays.items()})

    @property
    def zeroed(self) -> ir.Model:
        """The model after a training that left half of the channels of every space without weights."""
        if self._zeroed is None:
            work = prepare(self.model)
            analysis = analyse(work)
            keep = analysis.keep_mask(kept_channels(analysis, 0.5, self.seed))
            for producer in {id(p): p for space in analysis.prunable for p in space.producers}.values():
                stays = keep[analysis.channels_of(analysis.tracer.labels[producer.weight][producer.axis])]
                _silence(producer.weight, producer.axis, stays)
                if producer.node.op_type in ("Conv", "Gemm") and len(producer.node.inputs) > 2:
                    _silence(producer.node.inputs[2], -1, stays)
            self._zeroed = finish(work)
        return self._zeroed

    def middle(self) -> str | None:
        """Return the tensor nearest to the middle of the nodes that alone links what lies before and behind it."""
        nodes = list(self.model.graph)
        last = {value: place for place, node in enumerate(nodes) for value in node.inputs if value is not None}
        ends = set(self.model.graph.outputs)
        fed = [value for value in true_inputs(self.model) if value in last]
        live, found = set(fed), list[tuple[int, str]]()
        for place, node in enumerate(nodes):
            live |= {out for out in node.outputs if out in last or out in ends}
            live = {value for value in live if value in ends or last[value] > place}
            if len(live) == 1 and not live & ends and not live & set(fed):
                found.append((abs(2 * place - len(nodes)), str(next(iter(live)).name)))
        return min(found)[1] if found else None

    def last(self, word: str) -> tuple[str, float] | None:
        """Return the last linear nodes as ``only=`` takes them, and all FLOPs but a third of theirs.

        ``word`` says how many, and up to how many features they read; where no node reads so few, the narrowest are
        taken. None where the graph has no linear node.
        """
        count, most = _LAST[word]
        work = prepare(self.model)
        cost = measure(work, self.shapes)
        linear = [node for node in work.graph if _features(node) and (cost.nodes[str(node.name)].macs or 0) > 0]
        narrow = [node for node in linear if _features(node) <= most] or sorted(linear, key=_features)[:count]
        names = [str(node.name) for node in narrow[-count:]]
        share = sum(cost.nodes[name].macs or 0 for name in names) / max(cost.macs, 1)
        patterns = ";".join(re.sub(r"[^\w./:-]", "?", name) for name in names)
        return (patterns, round(1 - share / 3, 6)) if names else None


def _features(node: ir.Node) -> int:
    """Return how many features a node without groups multiplies by stored weights; 0 for all other nodes."""
    group, turned = (node.attributes.get(name) for name in ("group", "transB"))
    stored = constants.array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type not in ("Conv", "Gemm", "MatMul") or stored is None or (group and group.as_int() != 1):
        return 0
    if node.op_type == "Conv":
        return int(np.prod(stored.shape[1:]))
    return int(stored.shape[-1 if turned and turned.as_int() else -2])


def _silence(value: ir.Value | None, axis: int, stays: np.ndarray) -> None:
    data = None if value is None or not value.is_initializer() else constants.array(value)
    if value is None or data is None or data.shape[axis] != len(stays):
        return
    shape = [1] * data.ndim
    shape[axis] = len(stays)
    constants.set_array(value, np.where(stays.reshape(shape), data, np.zeros(1, data.dtype)))


def digest(model: ir.Model) -> str:
    """Return a hash of all that a model holds."""
    return hashlib.blake2b(ir.serde.serialize_model(model).SerializeToString(deterministic=True)).hexdigest()


def attempt(subject: Subject, setting: Setting) -> Outcome:
    """Run a recipe on a graph and judge the result; nothing is raised, whatever the pass does."""
    start = time.perf_counter()
    try:
        status, detail, reasons = _attempt(subject, setting)
    except Exception as error:  # whatever a wrong pass raises is what the zoo looks for
        where = traceback.extract_tb(error.__traceback__)[-1]
        status, reasons = "failed", ()
        detail = f"{type(error).__name__}: {_line(error)} ({Path(where.filename).name}:{where.lineno})"
    return Outcome(subject.name, setting.recipe, status, time.perf_counter() - start, detail, reasons)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _attempt(subject: Subject, setting: Setting) -> tuple[str, str, tuple[str, ...]]:
    middle = subject.middle() if "{middle}" in setting.recipe else None
    if "{middle}" in setting.recipe and middle is None:
        return "refused", "no single tensor links two halves of the graph", ()
    word = next((word for word in _LAST if f"{{{word}}}" in setting.recipe), None)
    named = ("", 1.0) if word is None else subject.last(word)
    if named is None:
        return "refused", "no linear node with stored weights", ()
    source = subject.zeroed if setting.zeroed else subject.model
    before = measure(source, subject.shapes) if setting.zeroed else subject.cost
    want = run(source, subject.feeds) if setting.zeroed else subject.want
    untouched = digest(source) if setting.zeroed else subject.digest
    way = pipeline.Run(subject.examples(setting), Settings(batch_size=IMAGES, threads=1), subject.seed, subject.shapes)
    try:
        words = {"middle": f"'{middle}'", "less": named[1], **dict.fromkeys(_LAST, named[0])}
        text = setting.recipe.format(examples=_EXAMPLES, **words)
        items = recipe.parse(text)
        result, steps = pipeline.run(source, items, way)
    except BackendError:
        raise
    except OnnxPruneError as error:
        several = "\n" in str(error).strip()
        said = str(error).strip().replace("\n", " / ").replace(str(_EXAMPLES), "{examples}")
        return "failed" if several else "refused", said, ()
    if digest(source) != untouched:
        return "failed", "the given model was changed", ()
    got = run(result, subject.feeds)
    far = distance(got, want)
    if setting.neutral and TOLERANCE <= far < _ROUNDING:
        far = in_double(source, result, subject.feeds)
    faults = list(_faults(subject, setting, result, got, far))
    reasons = tuple(_reasons(steps))
    after = steps[-1].cost
    told = any(step.result.skipped or step.result.warnings for step in steps)
    if setting.falls is not None and not _fell(setting.falls, before, after) and not told:
        faults.append(f"{setting.falls} did not fall, and nothing says why")
    if _missed(steps) and not told:
        faults.append("the size was not reached, and nothing says why")
    if faults:
        return "failed", "; ".join(faults), reasons
    return ("equal" if far < TOLERANCE else "changed"), "", reasons


def in_double(before: ir.Model, after: ir.Model, feeds: Outputs) -> float:
    """Return the distance of two models' outputs when torch runs both in double precision."""
    import torch

    from onnxprune.exporters.to_torch import to_torch

    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    given = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    with torch.no_grad():
        old, new = (to_torch(each, keep_zeros=False).eval().double().run(given) for each in (before, after))
    return distance(*({name: tensor.numpy() for name, tensor in each.items()} for each in (new, old)))


def _faults(subject: Subject, setting: Setting, result: ir.Model, got: Outputs, far: float) -> Iterator[str]:
    io.check(result)
    if interface(result) != interface(subject.model):
        yield "names, types or shapes of inputs or outputs, or the opset, changed"
    if any(not np.isfinite(array).all() for array in got.values() if array.dtype.kind == "f"):
        yield "outputs are not finite"
    if setting.neutral and not far < TOLERANCE:
        yield f"relative error {far:.2g}, below {TOLERANCE:g} is accepted"
    elif far == float("inf"):
        yield "outputs have other names or shapes"


def _fell(what: str, before: Cost, after: Cost) -> bool:
    return bool(getattr(after, what) < getattr(before, what))


def _missed(steps: Sequence[pipeline.Step]) -> bool:
    return any(_over(name, *sizes) for step in steps for name, sizes in step.result.reached.items())


def _over(name: str, wanted: float, got: float) -> bool:
    return name != "sparsity" and got > wanted * (1 + 1e-9)


def _reasons(steps: Sequence[pipeline.Step]) -> Iterator[str]:
    """Yield why layers were left alone, each reason once without the names in it, and sizes that were missed."""
    said = dict[str, None]()
    for step in steps:
        for name, (wanted, got) in step.result.reached.items():
            if _over(name, wanted, got):
                said[f"{name} stays above what was asked for"] = None
            elif got < wanted - _UNDER and name != "sparsity":
                said[f"{name} is more than {_UNDER:.0%} under what was asked for"] = None
        for text in (*step.result.skipped.values(), *step.result.warnings):
            said[general(text)] = None
    yield from said


def general(text: str) -> str:
    """Return a sentence without names, numbers and folders, so that it can be counted."""
    short = re.sub(r"cost speed: .*; align", "cost speed: ...; align", text.replace(f"{_EXAMPLES}/", ""))
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"'[^']*'", "'...'", short))
