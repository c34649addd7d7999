"""One epoch after another: steps, scores, states on disk. ``train`` sets it up.

Several processes share every batch: the loss and its gradient are those of the joint batch.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.data import Batch, Examples
from onnxprune.errors import BackendError
from onnxprune.models import distributed
from onnxprune.models.augment import augmented
from onnxprune.models.average import Average
from onnxprune.models.costs import weight_macs
from onnxprune.models.objectives import Objective
from onnxprune.models.optim import rate
from onnxprune.models.options import TrainOptions
from onnxprune.models.regularizers import penalty
from onnxprune.models.scoring import Scores
from onnxprune.models.state import Checkpoints, read_state, recorded, write_checkpoint

__all__ = ["Epoch", "Hooks", "Loop", "Progress", "Step"]


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave: mean loss without and with the regulariser's share, and scores."""

    number: int
    loss: float
    penalty: float
    lr: float
    validation: Scores

    @property
    def validation_accuracy(self) -> float:
        """Return the held-out accuracy; NaN for a regression."""
        return math.nan if self.validation.accuracy is None else self.validation.accuracy


@dataclass(frozen=True)
class Step:
    """One step of the optimiser: epoch and step from 1, steps of the epoch, loss of this process's share, rate."""

    epoch: int
    number: int
    steps: int
    loss: float
    lr: float


def _nothing(_: Any) -> None:
    """Do nothing."""


def _never(_: Any) -> bool:
    """Do not stop."""
    return False


@dataclass(frozen=True)
class Hooks:
    """What a run calls: after each epoch (those before a resume too), after each step, and on the weights then.

    ``weights`` runs straight after the optimiser, before anything is measured: it may change weights in place.
    ``stop`` ends the run after an epoch; it is asked of those that are run, not of those before a resume.
    """

    epoch: Callable[[Epoch], None] = _nothing
    step: Callable[[Step], None] = _nothing
    weights: Callable[[nn.Module], None] = _nothing
    stop: Callable[[Epoch], bool] = _never


@dataclass
class Progress:
    """What changes from epoch to epoch; together with the random states all that a resume needs.

    Where there is an ``average``, that is what epochs are judged by and what the best one leaves.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    generator: torch.Generator
    average: Average | None = None
    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop:
    """The loop's surroundings, which stay as they are while it runs."""

    run: Progress
    training: Examples
    validation: Examples
    options: TrainOptions
    device: torch.device
    hooks: Hooks
    task: Objective

    def run_epochs(self, checkpoints: Checkpoints | None, asked: TrainOptions) -> None:
        """Run all epochs that are left; states carry the options as they were asked for."""
        run = self.run
        if checkpoints is not None and checkpoints.resume is not None:
            self._resume(checkpoints.resume, checkpoints, asked)
        elif distributed.rank():
            # Each process drops out units of its own; the batch order comes from the generator they share.
            torch.manual_seed(self.options.seed + distributed.rank())
        parallel = _parallel(run.module, self.options, self.device, self.task.partial)
        while len(run.epochs) < self.options.epochs and not self._stale():
            number = len(run.epochs) + 1
            loss, extra = self._one_epoch(parallel, number)
            with nullcontext() if run.average is None else run.average.worn(run.module):
                found = self.task.score(run.module, self.validation, self.device)
                epoch = Epoch(number, loss, extra, float(run.optimizer.param_groups[0]["lr"]), found)
                run.epochs.append(epoch)
                if run.best == 0 or found.key > run.epochs[run.best - 1].validation.key:
                    run.best = number
                    run.best_state = copy.deepcopy(run.module.state_dict())
                    if checkpoints is not None and distributed.rank() == 0:
                        write_checkpoint(checkpoints.best, run.module, _about(checkpoints, epoch))
            if checkpoints is not None and distributed.rank() == 0:
                self._save(checkpoints, asked)
            self.hooks.epoch(epoch)
            if self.hooks.stop(epoch):
                return

    def _stale(self) -> bool:
        run, patience = self.run, self.options.patience
        return patience > 0 and len(run.epochs) - run.best >= patience

    @cached_property
    def _macs(self) -> dict[str, int] | None:
        """What the regulariser goes by; None where all layers count alike."""
        if self.options.decay_by == "layer" or self.options.reg == "none":
            return None
        inputs, _ = self.task.read(next(self.training.take(np.array([0])).batches(1)))
        return weight_macs(self.run.module, [each.to(self.device) for each in inputs])

    def _one_epoch(self, parallel: nn.Module, number: int) -> tuple[float, float]:
        """Return the mean loss of all examples and the mean of the regulariser's share."""
        self.run.module.train()
        measure = penalty(self.options.reg, self.options.decay, self._macs)
        batch = self.options.batch_size
        order = torch.randperm(self.training.count, generator=self.run.generator).numpy()
        steps = math.ceil(len(order) / batch)
        total, extra = 0.0, 0.0
        shares = (order[first : first + batch] for first in range(0, len(order), batch))
        for step, (joint, share, own) in enumerate(_fed(self.training, shares, self.options.workers)):
            lr = rate(self.options, number - 1 + step / steps, steps)
            for group in self.run.optimizer.param_groups:
                group["lr"] = lr
            value, added = self._step(parallel, share, joint, own, measure, number)
            total, extra = total + value * own, extra + added
            self.hooks.step(Step(number, step + 1, steps, value, lr))
        (joined,) = distributed.summed([total], self.device)
        return joined / len(order), extra / steps

    def _step(
        self,
        parallel: nn.Module,
        share: Batch,
        joint: int,
        own: int,
        measure: Callable[[nn.Module], Tensor] | None,
        number: int,
    ) -> tuple[float, float]:
        run, options = self.run, self.options
        inputs, answers = self.task.read(share)
        places = (joint, distributed.shard(joint) if own else slice(0, 1))
        inputs = tuple(each.to(self.device) for each in inputs)
        if options.augment != "none":
            inputs = tuple(augmented(each, options.augment, run.generator, places) for each in inputs)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=options.amp):
            outputs = parallel(*inputs)
        loss = self.task.loss(outputs, inputs, None if answers is None else answers.to(self.device))
        value = float(loss.detach())
        if not all(map(math.isfinite, distributed.summed([value], self.device))):
            raise BackendError(
                f"training diverged: the loss is {value} in epoch {number} with lr {options.lr:g}; try a smaller lr"
            )
        if distributed.world() > 1:  # the processes' gradients are averaged; each counts by its examples
            loss = loss * (own * distributed.world() / joint)
        added = 0.0
        if measure is not None:
            extra = measure(run.module)
            added = float(extra.detach())
            loss = loss + extra
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        if options.clip:
            run.scaler.unscale_(run.optimizer)
            nn.utils.clip_grad_norm_(run.module.parameters(), options.clip)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        self.hooks.weights(run.module)
        if run.average is not None:
            run.average.update(run.module)
        return value, added

    def _save(self, checkpoints: Checkpoints, asked: TrainOptions) -> None:
        run = self.run
        state = {
            **recorded(asked),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "average": None if run.average is None else run.average.state(),
            "generator": run.generator.get_state(),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "epochs": [asdict(each) | {"validation": each.validation.known} for each in run.epochs],
            "best": run.best,
            "best_state": run.best_state,
        }
        write_checkpoint(checkpoints.last, run.module, _about(checkpoints, run.epochs[-1]) | state)

    def _resume(self, path: Path, checkpoints: Checkpoints, asked: TrainOptions) -> None:
        run, loaded = self.run, read_state(path, asked, checkpoints.about)
        run.module.load_state_dict(loaded["model"])
        run.optimizer.load_state_dict(loaded["optimizer"])
        run.scaler.load_state_dict(loaded["scaler"])
        if run.average is not None:
            run.average.load(loaded["average"])
        run.generator.set_state(loaded["generator"])
        run.epochs = [Epoch(**entry | {"validation": Scores(**entry["validation"])}) for entry in loaded["epochs"]]
        run.best = loaded["best"]
        run.best_state = {name: value.to(self.device) for name, value in loaded["best_state"].items()}
        if distributed.rank():
            torch.manual_seed(self.options.seed + distributed.rank() + distributed.world() * len(run.epochs))
        else:
            torch.set_rng_state(loaded["random"])
            if loaded["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(loaded["cuda"], self.device)
        for epoch in run.epochs:
            self.hooks.epoch(epoch)


def _about(checkpoints: Checkpoints, epoch: Epoch) -> dict[str, Any]:
    """Return the facts that both files of an epoch carry."""
    return {**checkpoints.about, "epoch": epoch.number, "validation": epoch.validation.known}


def _parallel(module: nn.Module, options: TrainOptions, device: torch.device, partial: bool) -> nn.Module:
    """Wrap the module so that the processes' gradients are averaged; a single process has it as it is."""
    if distributed.world() == 1:
        return module
    if options.sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    places = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=places, find_unused_parameters=partial)


def _fed(examples: Examples, shares: Iterator[np.ndarray[Any, Any]], workers: int) -> Iterator[tuple[int, Batch, int]]:
    """Yield the size of each joint batch, this process's share of it, and how much of that counts.

    A process without a share of a small last batch runs one example with no weight, for the others wait for it.
    """

    def read(rows: np.ndarray[Any, Any]) -> tuple[int, Batch, int]:
        own = rows[distributed.shard(len(rows))]
        chosen = own if len(own) else rows[:1]
        return len(rows), next(examples.take(chosen).batches(len(chosen))), len(own)

    if workers == 0:
        yield from map(read, shares)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[tuple[int, Batch, int]]] = deque()
        for rows in shares:
            ahead.append(pool.submit(read, rows))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
