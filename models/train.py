"""The training loop: one plain function, a held-out split picks the epoch, the test data is read once.

Same seed, same data, same machine: same weights, bit for bit (on one number of threads).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxprune.data import Batch, Examples
from onnxprune.errors import BackendError, OptionError
from onnxprune.models.augment import augmented
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData
from onnxprune.models.zoo import build

__all__ = ["Epoch", "Trained", "accuracy", "fit", "train_network"]

CACHE_BYTES = 2 * 2**30  # data sets up to this size are decoded once and kept
_CHUNK = 512


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave: mean loss and held-out accuracy."""

    number: int
    loss: float
    validation_accuracy: float


@dataclass(frozen=True)
class Trained:
    """A trained module on the CPU, in evaluation mode, with the weights of its best epoch.

    Attributes:
        module: The network.
        epochs: Epochs run.
        best_epoch: The epoch (from 1) whose weights were kept: best validation accuracy, then lowest loss.
        train_accuracy: On the training examples, not augmented.
        validation_accuracy: On the held-out examples that picked the epoch.
        test_accuracy: On the test examples, read once after that.
        seconds: Wall time of the whole training.
    """

    module: nn.Module
    epochs: int
    best_epoch: int
    train_accuracy: float
    validation_accuracy: float
    test_accuracy: float
    seconds: float


def train_network(
    network: str, data: TrainingData, options: TrainOptions, on_epoch: Callable[[Epoch], None] | None = None
) -> Trained:
    """Build a network of the zoo with seeded weights and train it.

    Raises:
        OptionError: If the network or device is unknown.
        BackendError: If the loss becomes NaN or infinite.
    """
    with _seeded(options.seed):
        module = build(network, len(data.classes))
    return fit(module, data, options, on_epoch)


def fit(
    module: nn.Module,
    data: TrainingData,
    options: TrainOptions,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Trained:
    """Train a classifier in place; the caller's random state stays as it was.

    Args:
        module: Takes ``[n, c, h, w]`` float32, returns logits ``[n, classes]``.
        data: Training, validation and test examples with labels.
        options: How to train.
        on_epoch: Called after every epoch.

    Raises:
        OptionError: If the device is unknown or absent.
        BackendError: If the loss becomes NaN or infinite.
    """
    started = perf_counter()
    device = _device(options.device)
    training, validation = _kept(data.train), _kept(data.validation)
    kind = options.augment
    if kind == "auto":
        kind = "shift+flip" if data.colour else "affine"
    with _seeded(options.seed, device), _deterministic():
        module.to(device)
        best = _epochs(module, training, validation, replace(options, augment=kind), device, on_epoch)
        result = Trained(
            module=module,
            epochs=options.epochs,
            best_epoch=best.number,
            train_accuracy=accuracy(module, training, device),
            validation_accuracy=best.validation_accuracy,
            test_accuracy=accuracy(module, data.test, device),
            seconds=perf_counter() - started,
        )
    module.cpu().eval()
    return result


def accuracy(module: nn.Module, examples: Examples, device: torch.device | str = "cpu") -> float:
    """Measure the share of labelled examples whose largest logit is at the label."""
    return _score(module, examples, torch.device(device))[0]


def _epochs(
    module: nn.Module,
    training: Examples,
    validation: Examples,
    options: TrainOptions,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] | None,
) -> Epoch:
    """Run all epochs and load the best one's weights into the module."""
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = _optimizer(module, options)
    best, best_key, best_state = Epoch(0, math.inf, 0.0), (-1.0, -math.inf), {}
    for number in range(1, options.epochs + 1):
        loss = _one_epoch(module, training, optimizer, options, number, generator, device)
        score, held_out_loss = _score(module, validation, device)
        epoch = Epoch(number, loss, score)
        if (score, -held_out_loss) > best_key:
            best, best_key = epoch, (score, -held_out_loss)
            best_state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        if on_epoch is not None:
            on_epoch(epoch)
    module.load_state_dict(best_state)
    return best


def _one_epoch(
    module: nn.Module,
    training: Examples,
    optimizer: torch.optim.Optimizer,
    options: TrainOptions,
    number: int,
    generator: torch.Generator,
    device: torch.device,
) -> float:
    module.train()
    order = torch.randperm(training.count, generator=generator).numpy()
    steps = math.ceil(training.count / options.batch_size)
    total = 0.0
    for step, batch in enumerate(training.take(order).batches(options.batch_size)):
        for group in optimizer.param_groups:
            group["lr"] = _rate(options, (number - 1 + step / steps) / options.epochs)
        images, labels = _tensors(batch)
        images = augmented(images.to(device), options.augment, generator)
        loss = functional.cross_entropy(module(images), labels.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BackendError(
                f"training diverged: the loss is {value} in epoch {number} with lr {options.lr:g}; try a smaller lr"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()
        total += value * len(labels)
    return total / training.count


def _rate(options: TrainOptions, progress: float) -> float:
    if options.schedule == "cosine":
        return options.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if options.schedule == "multistep":
        return options.lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    return options.lr


def _optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    decay = options.weight_decay
    if options.optimizer == "adam":
        return torch.optim.Adam(module.parameters(), lr=options.lr, weight_decay=decay)
    momentum = options.momentum
    return torch.optim.SGD(
        module.parameters(), lr=options.lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0
    )


@torch.no_grad()
def _score(module: nn.Module, examples: Examples, device: torch.device) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy in evaluation mode."""
    module.eval()
    hits, loss = 0, 0.0
    for batch in examples.batches(_CHUNK):
        images, labels = _tensors(batch)
        logits = module(images.to(device)).cpu()
        hits += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
    return hits / examples.count, loss / examples.count


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    (images,) = batch.arrays.values()
    assert batch.labels is not None  # open_training refuses unlabelled data
    return torch.from_numpy(images), torch.from_numpy(batch.labels)


def _kept(examples: Examples) -> Examples:
    """Read small data sets into memory once (checking for NaN); leave large ones to be read row by row."""
    first = examples.fetch(np.arange(1))
    if examples.count * sum(array.nbytes for array in first.values()) > CACHE_BYTES:
        return examples
    batches = [batch.arrays for batch in examples.batches(_CHUNK)]
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in first}
    return replace(examples, fetch=lambda rows: {name: array[rows] for name, array in arrays.items()})


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
def _seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
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
