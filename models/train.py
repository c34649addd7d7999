"""The training loop: one plain function, a held-out split picks the epoch, the test data is read once.

Same seed, same data, same machine: same weights, bit for bit (on one number of threads), also after a kill and a
resume. Several processes (``distributed``) share every batch and do together what one does alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import nn

from onnxprune.data import Examples
from onnxprune.errors import OptionError
from onnxprune.models import distributed
from onnxprune.models.augment import MIXED
from onnxprune.models.average import Average
from onnxprune.models.loop import Epoch, Hooks, Loop, Progress, Step
from onnxprune.models.objectives import Objective, Supervised
from onnxprune.models.optim import optimizer_for
from onnxprune.models.options import TrainOptions
from onnxprune.models.scoring import Scores, accuracy
from onnxprune.models.sources import TrainingData
from onnxprune.models.state import Checkpoints
from onnxprune.models.zoo import build

__all__ = ["Epoch", "Hooks", "Step", "Trained", "accuracy", "fit", "open_device", "seeded", "train_network"]

CACHE_BYTES = 2 * 2**30  # data sets up to this size are decoded once and kept
_CHUNK = 512


@dataclass(frozen=True)
class Trained:
    """A trained module on the CPU, in evaluation mode, with the weights of its best epoch.

    Attributes:
        module: The network.
        epochs: Epochs run.
        best_epoch: The epoch (from 1) whose weights were kept: best by validation, then lowest loss.
        train: On the training examples, not augmented; None where that was not asked for.
        validation: On the held-out examples that picked the epoch.
        test: On the test examples, read once after that.
        last: The last epoch, whose weights are in the last checkpoint.
        seconds: Wall time of the whole training.
    """

    module: nn.Module
    epochs: int
    best_epoch: int
    train: Scores | None
    validation: Scores
    test: Scores
    last: Epoch
    seconds: float

    @property
    def train_accuracy(self) -> float:
        """Return the accuracy on the training examples; NaN for a regression."""
        return math.nan if self.train is None or self.train.accuracy is None else self.train.accuracy

    @property
    def validation_accuracy(self) -> float:
        """Return the accuracy on the held-out examples; NaN for a regression."""
        return math.nan if self.validation.accuracy is None else self.validation.accuracy

    @property
    def test_accuracy(self) -> float:
        """Return the accuracy on the test examples; NaN for a regression."""
        return math.nan if self.test.accuracy is None else self.test.accuracy


def train_network(
    network: str,
    data: TrainingData,
    options: TrainOptions,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    start: Callable[[nn.Module], None] | None = None,
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Build a network of the zoo with seeded weights and train it.

    Args:
        network: A key of the zoo.
        data: What to learn from.
        options: How to train.
        on_epoch: Short for ``hooks`` with nothing else.
        start: Called on the fresh network, to load weights into it.
        hooks: What to call meanwhile.
        checkpoints: Where to leave states and the best weights; None leaves none.

    Raises:
        OptionError: If the network or device is unknown.
        BackendError: If the loss becomes NaN or infinite.
    """
    with seeded(options.seed):
        module = build(network, data.outputs)
    if start is not None:
        start(module)
    return fit(module, data, options, on_epoch, hooks=hooks, checkpoints=checkpoints)


def fit(
    module: nn.Module,
    data: TrainingData,
    options: TrainOptions,
    on_epoch: Callable[[Epoch], None] | None = None,
    *,
    hooks: Hooks | None = None,
    checkpoints: Checkpoints | None = None,
    task: Objective | None = None,
    judge_training: bool = True,
) -> Trained:
    """Train a network in place; the caller's random state stays as it was.

    Args:
        module: Takes ``[n, *input]`` float32, returns logits ``[n, classes]`` or values ``[n, k]``; with a ``task``
            what that asks for.
        data: Training, validation and test examples, with labels or targets where the task wants them.
        options: How to train.
        on_epoch: Short for ``hooks`` with nothing else.
        hooks: What to call meanwhile.
        checkpoints: Where to leave states and the best weights; None leaves none.
        task: What is learnt; None is labels, or the targets of a regression.
        judge_training: Score the training examples at the end.

    Raises:
        OptionError: If the device is unknown or absent, or a state to resume from is of another run.
        ModelError: If that state cannot be read.
        BackendError: If the loss becomes NaN or infinite.
    """
    started = perf_counter()
    hooks = hooks or (Hooks() if on_epoch is None else Hooks(epoch=on_epoch))
    task = task or Supervised(data.regression, options.label_smoothing)
    device = open_device(options.device)
    if (options.amp or options.sync_bn) and device.type != "cuda":
        raise OptionError(f"{'amp' if options.amp else 'sync-bn'} needs a CUDA device, this run is on {device}")
    training, validation = _kept(data.train), _kept(data.validation)
    kind = options.augment
    if kind == "auto":
        kind = "none" if data.preprocess is None and len(data.shape) != 3 else "shift+flip" if data.colour else "affine"
    if kind.endswith(MIXED) and not task.taught:
        raise OptionError(f"augment {kind!r}: labels do not say what a mixture is; it is for learning from a teacher")
    if kind != "none" and len(data.shape) != 3:
        raise OptionError(f"augment {kind!r} is for images; these inputs have shape {data.shape}")
    with seeded(options.seed, device), _deterministic():
        module.to(device)
        if device.type == "cpu":
            # A fifth less time for small images: convolutions need not reorder what lies between them.
            _laid_out(module, torch.channels_last)
        run = Progress(
            module,
            optimizer_for(module, options),
            torch.amp.GradScaler(device.type, enabled=options.amp),
            torch.Generator().manual_seed(options.seed),
            Average(module, options.ema) if options.ema else None,
        )
        loop = Loop(run, training, validation, replace(options, augment=kind), device, hooks, task)
        loop.run_epochs(checkpoints, options)
        module.load_state_dict(run.best_state)
        best = run.epochs[run.best - 1]
        result = Trained(
            module=module,
            epochs=len(run.epochs),
            best_epoch=best.number,
            train=task.score(module, training, device) if judge_training else None,
            validation=best.validation,
            test=task.score(module, data.test, device),
            last=run.epochs[-1],
            seconds=perf_counter() - started,
        )
    _laid_out(module.cpu().eval(), torch.contiguous_format)
    return result


def _laid_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay the weights of two-dimensional convolutions out in place; their outputs follow, values stay.

    ``Module.to`` would refuse networks that have weights of five axes too.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _kept(examples: Examples) -> Examples:
    """Read small data sets into memory once (checking for NaN); leave large ones to be read row by row."""
    first = examples.fetch(np.arange(1))
    if examples.count * sum(array.nbytes for array in first.values()) > CACHE_BYTES:
        return examples
    batches = [batch.arrays for batch in examples.batches(_CHUNK)]
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in first}
    return replace(examples, fetch=lambda rows: {name: array[rows] for name, array in arrays.items()})


def open_device(name: str) -> torch.device:
    """Read ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; of several processes each takes a CUDA device of its own.

    Raises:
        OptionError: If it is none of these, or absent.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", distributed.local_rank() % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"device {name!r}: accepted are auto, cpu, cuda and cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device {name!r}: accepted are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu")
    return device


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the CPU's generator and the device's, and give both their state back afterwards."""
    cuda = []
    if device is not None and device.type == "cuda":
        cuda = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN choose algorithms that give the same bits every time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
