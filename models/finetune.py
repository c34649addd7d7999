"""Train a compressed graph further, without the code that it came from: the original's outputs, labels, or both."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxprune.data import Examples
from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters.to_onnx import relative_error
from onnxprune.exporters.to_torch import OnnxModule, to_torch
from onnxprune.exporters.write_back import check_writable, write_back
from onnxprune.models.features import Features, matched
from onnxprune.models.options import TrainOptions
from onnxprune.models.scoring import Scores
from onnxprune.models.sources import TrainingData
from onnxprune.models.state import Checkpoints
from onnxprune.models.teaching import Lesson, Student, Teaching
from onnxprune.models.train import Hooks, Trained, fit, open_device
from onnxprune.runtime.session import Settings, open_session

__all__ = ["Tuned", "finetune", "score_graph", "taught", "whole", "with_defaults"]

_DEFAULTS = {"epochs": 5, "batch_size": 64, "optimizer": "adam", "weight_decay": 0.0, "clip": 1.0}
_RATES = {"sgd": 0.003, "adam": 5e-4, "adamw": 5e-4}

TOLERANCE = 1e-3  # largest difference of ONNX Runtime to torch, relative to the largest output
HALF_TOLERANCE = 3e-2  # the same where weights or inputs have half precision
_TRIED = 4


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning did.

    Attributes:
        model: The graph with what it has learnt; a copy of the given one where it has become no better.
        before: Scores on the validation examples before.
        before_test: Scores on the test examples before.
        trained: How training went.
        better: The best epoch is better by validation than no training; its weights are in ``model``.
        masked: Weights that were held at zero.
        error: Largest difference of ONNX Runtime to torch, relative to the largest output.
    """

    model: ir.Model
    before: Scores
    before_test: Scores
    trained: Trained
    better: bool
    masked: int
    error: float

    @property
    def after(self) -> Scores:
        """Return the scores of the result on the validation examples."""
        return self.trained.validation if self.better else self.before

    @property
    def after_test(self) -> Scores:
        """Return the scores of the result on the test examples."""
        return self.trained.test if self.better else self.before_test


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of training by name, those that are None replaced where fine-tuning has a default of its own.

    Compressed networks whose normalisation is folded start near a good place and are easily shaken out of it: rates
    are lower than for training, and gradients are clipped (docs/training.md has what was compared).
    """
    found = {name: _DEFAULTS.get(name) if value is None else value for name, value in given.items()}
    found |= {name: value for name, value in _DEFAULTS.items() if name not in found}
    if found.get("lr") is None:
        found["lr"] = _RATES.get(str(found["optimizer"]))
    return found


def finetune(
    model: ir.Model,
    teacher: ir.Model | None,
    data: TrainingData,
    options: TrainOptions,
    lesson: Lesson | None = None,
    *,
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
    trainable: str | None = None,
    batchnorm: str = "frozen",
) -> Tuned:
    """Train a graph on examples; the models stay as they are.

    Weights that are zero in a pruned tensor stay exactly zero. The best epoch is the one that agrees most often with
    the teacher on the validation examples (without one, that is right most often); where none is better than the
    graph was, its weights stay.

    Args:
        model: What is trained, from any framework; operators of the default domain, without bodies.
        teacher: The original, with the same inputs and outputs; None with ``loss="labels"``.
        data: Examples; labels are read where the lesson asks for them, and for the accuracies.
        options: How to train; ``augment`` is for a graph with one image as its input.
        lesson: What is learnt from; None is the teacher alone.
        hooks: What to call meanwhile.
        checkpoints: Where to leave states.
        trainable: Initialisers to train: names, globs, ``re:``, parted by ``;``.
        batchnorm: ``frozen`` statistics, or ``train``.

    Raises:
        OptionError: If an option does not fit the graph.
        ModelError: If a graph cannot run in torch, or holds weights in 8 bits.
        DataError: If labels are missing that are asked for.
        BackendError: If the loss becomes NaN or infinite.
    """
    lesson, hooks = lesson or Lesson(), hooks or Hooks()
    if options.sync_bn:
        raise OptionError("sync-bn is for modules of the zoo: a graph has no BatchNorm module to convert")
    check_writable(model)
    module = whole(to_torch(model, trainable=trainable, batchnorm=batchnorm))
    if not module.trained():
        raise ModelError("the graph has no weights that could be trained")
    features = Features() if teacher is None else matched(model, teacher, lesson.features)
    student = Student(module, features.names)
    task = Teaching(student, taught(teacher), lesson, data.train, features)
    options = replace(options, augment=_augment(options.augment, data))
    device = open_device(options.device)
    student.to(device)
    start = deepcopy(student.state_dict())
    before, before_test = (task.score(student, part, device) for part in (data.validation, data.test))

    def held(network: nn.Module) -> None:
        hooks.weights(network)
        module.apply_masks()

    trained = fit(
        student, data, options, hooks=replace(hooks, weights=held), checkpoints=checkpoints, task=task,
        judge_training=False,
    )  # fmt: skip
    better = trained.validation.key > before.key
    if not better:
        student.load_state_dict(start)
    masked = sum(int((~mask).sum()) for mask in module.masks.values())
    result = write_back(module, model)
    return Tuned(result, before, before_test, trained, better, masked, _parity(student, result, data.validation, task))


def score_graph(model: ir.Model, teacher: ir.Model | None, examples: Examples, device: str) -> Scores:
    """Score a graph on examples, and against a teacher where there is one; nothing is trained.

    Raises:
        OptionError, ModelError, DataError: as :func:`finetune`.
    """
    student, place = Student(whole(to_torch(model))), open_device(device)
    task = Teaching(student, taught(teacher), Lesson("labels" if teacher is None else "distill"), examples)
    return task.score(student.to(place), examples, place)


def whole(module: OnnxModule) -> OnnxModule:
    """Return a module whose half precision is computed in single precision: small steps would be lost in it."""
    half = (torch.float16, torch.bfloat16)
    return module.float() if any(tensor.dtype in half for tensor in module.parameters()) else module


def taught(teacher: ir.Model | None) -> OnnxModule | None:
    """Return a teacher as what a :class:`~onnxprune.models.teaching.Teaching` takes, if there is one."""
    return None if teacher is None else whole(to_torch(teacher, keep_zeros=False))


def _augment(asked: str, data: TrainingData) -> str:
    """Decide ``auto``, and refuse what does not fit the input.

    Raises:
        OptionError: If an augmentation is asked for that is not for this input.
    """
    flat = data.preprocess is not None and data.preprocess.layout == "NHWC"
    image = len(data.shape) == 3 and data.shape[0] in (1, 3) and not flat
    if asked == "auto":
        return "auto" if image else "none"
    if asked != "none" and not image:
        raise OptionError(f"augment {asked!r} is for one image of 1 or 3 channels, channels first; give none")
    return asked


@torch.no_grad()
def _parity(student: Student, result: ir.Model, examples: Examples, task: Teaching) -> float:
    """Return how far the written graph is from what was trained, on a few examples.

    Raises:
        ModelError: If it is too far.
    """
    batch = next(examples.take(np.arange(min(_TRIED, examples.count))).batches(_TRIED))
    inputs, _ = task.read(batch)
    ours = student.cpu().eval()(*inputs)
    half = any(array.dtype.itemsize == 2 for array in batch.arrays.values()) or any(
        value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for value in result.graph.initializers.values()
    )
    worst = 0.0
    with open_session(result, Settings(), label="the tuned model") as session:
        theirs = session.run(batch.arrays)
    for name, tensor in ours.items():
        if name not in theirs or not tensor.is_floating_point():
            continue
        worst = max(worst, relative_error(tensor.double().numpy(), np.asarray(theirs[name], dtype=np.float64)))
    if not worst <= (HALF_TOLERANCE if half else TOLERANCE):
        raise ModelError(f"ONNX Runtime differs by {worst:.2g} relative from the graph that was trained in torch")
    return worst
