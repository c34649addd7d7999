"""Rounds of pruning and training: lottery tickets, adaptive pruning, and both with an end by flow.

A run is one dense phase and then rounds; every round leaves all that the next one needs in the run's folder, so that
a run that was killed goes on with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters.to_torch import to_torch
from onnxprune.exporters.write_back import check_writable, write_back
from onnxprune.graph import io
from onnxprune.models import distributed
from onnxprune.models.features import matched
from onnxprune.models.finetune import taught, whole
from onnxprune.models.iterative import flow
from onnxprune.models.iterative.choosing import Mask, narrower
from onnxprune.models.iterative.folder import RunFolder
from onnxprune.models.iterative.options import IterateOptions
from onnxprune.models.iterative.stages import Stager
from onnxprune.models.iterative.weights import (
    Snapshot,
    magnitudes,
    output_axes,
    present_masks,
    remaining,
    restore,
    snapshot,
)
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData
from onnxprune.models.teaching import Lesson, Student, Teaching
from onnxprune.models.train import Epoch, Hooks, Trained, fit, open_device

__all__ = ["Iteration", "iterate"]

_HELD = 2 << 30  # data up to this size are decoded once for all rounds
_REFERENCE, _SIMILARITY = "flow.npz", "similarity.npz"
_MOVES = 2  # of the dense flow, at least, before their median means anything
_ROUNDING = 1e-6
_SEEDS = 1000  # rounds draw batches of their own


@dataclass(frozen=True)
class Iteration:
    """A finished run: its rounds as ``rounds.json`` has them, and the last model."""

    folder: RunFolder
    rounds: tuple[dict[str, Any], ...]
    model: ir.Model

    @property
    def epochs(self) -> int:
        """Return the epochs spent in all."""
        return sum(int(each["epochs"]) for each in self.rounds)


@dataclass(frozen=True)
class _Reference:
    """What rounds are compared with: the dense flow, how near is near enough, the dense network's held-out figure."""

    flow: np.ndarray
    epsilon: float
    best: float


def iterate(
    model: ir.Model,
    data: TrainingData,
    options: IterateOptions,
    training: TrainOptions,
    folder: RunFolder,
    about: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    hooks: Hooks | None = None,
    on_round: Callable[[dict[str, Any], ir.Model], None] | None = None,
    measured: Callable[[Path, ir.Model], Mapping[str, float]] | None = None,
    lesson: Lesson | None = None,
    teacher: ir.Model | None = None,
) -> Iteration:
    """Prune a graph in rounds.

    The validation examples pick every round's epoch (by agreement where a teacher is learnt from, else by accuracy)
    and end its training; the test examples are scored once a round, for the table, and decide nothing. The last round
    trains its whole budget.

    Args:
        model: The dense graph, trained or not; it stays as it is.
        data: Labelled examples.
        options: What happens in a round.
        training: How a round trains, its epochs at most.
        folder: Where the run is kept.
        about: What else tells this run from others, such as the model's name.
        resume: Go on with what the folder holds.
        hooks: What to call meanwhile; ``epoch`` of every round's epochs.
        on_round: Called with a round's figures and its model, once that is stored.
        measured: Called with a round's folder and model before, in every process, of which the first is to write;
            returns more figures of it.
        lesson: What rounds learn from, besides ``training``'s label smoothing; None is labels. The dense phase learns
            from labels.
        teacher: Whose outputs the lesson is of; None is the dense network at the end of its phase.

    Raises:
        OptionError: If an option does not fit, or the folder holds another run.
        ModelError: If the graph cannot run in torch, or has nothing to prune.
        DataError: If labels are missing.
        BackendError: If training diverges, or the disk fails.
    """
    check_writable(model)
    lesson = replace(lesson or Lesson("labels"), label_smoothing=training.label_smoothing)
    matched(model, teacher or model, lesson.features)  # refuses what neither has before anything is trained
    run = _Run(model, data, options, training, folder, hooks or Hooks(), lesson, teacher)
    if options.staged:
        options = _ahead(options, run)
        run.options = options
    asked = {**(about or {}), **asdict(options), **{f"train {k}": v for k, v in asdict(training).items()}}
    asked |= {f"lesson {k}": v for k, v in asdict(lesson).items()}
    if distributed.world() > 1 and resume:
        raise OptionError("--resume is for a run of one process")
    done = folder.begin(asked, resume=resume) if distributed.rank() == 0 else []
    last = (options.rounds if not options.staged else len(options.sparsities)) + 1
    for row in done[:last]:
        run.rounds.append(row)
    if done:
        run.reload(len(run.rounds) - 1)
    while len(run.rounds) < last:
        number = len(run.rounds)
        row = run.dense() if number == 0 else run.prune(number, final=number == last - 1)
        result = run.keep(row, measured)
        if on_round is not None and distributed.rank() == 0:
            on_round(row, result)
    return Iteration(folder, tuple(run.rounds), write_back(run.module, model))


def _ahead(options: IterateOptions, run: _Run) -> IterateOptions:
    """Return the options without the stages that the graph is past already.

    Raises:
        OptionError: It is past all of them.
    """
    trained = run.module.trained()
    weights = [trained[name].detach() for name in run.axes]
    zeros = 1 - sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    left = tuple(stage for stage in options.sparsities if stage > zeros + _ROUNDING)
    if not left:
        raise OptionError(f"the graph has {zeros:.2%} zeros already: give sparsities above that")
    return replace(options, sparsities=left)


class _Run:
    """The network between rounds."""

    def __init__(
        self,
        model: ir.Model,
        data: TrainingData,
        options: IterateOptions,
        training: TrainOptions,
        folder: RunFolder,
        hooks: Hooks,
        lesson: Lesson,
        teacher: ir.Model | None,
    ) -> None:
        self.model, self.options, self.training, self.folder, self.hooks = model, options, training, folder, hooks
        self.data = replace(data, train=data.train.held(_HELD), validation=data.validation.held(_HELD))
        self.module = whole(to_torch(model, batchnorm="train", dropout=True, keep_zeros=False))
        self.lesson, self.teacher = lesson, teacher
        # What flows are measured with and the dense network learns from; rounds may have another.
        self.plain = Student(self.module)
        self.labels = Teaching(self.plain, None, Lesson("labels", label_smoothing=lesson.label_smoothing), data.train)
        self.student, self.task = self.plain, self.labels
        self.device = open_device(training.device)
        self.axes = output_axes(model, self.module)
        self.masks: dict[str, Mask] = present_masks(self.module, self.axes)
        self.rewind: Snapshot = snapshot(self.module)
        restore(self.module, self.rewind, self.masks)
        self.rounds: list[dict[str, Any]] = []
        self.edges = flow.layer_edges(model) if options.flowing else None
        self.reference: _Reference | None = None
        self.probe = data.train.take(np.arange(min(options.probe, data.train.count))).held(_HELD)
        self.stager = Stager(options, self.probe, model, self.axes) if options.staged else None

    @property
    def warmup(self) -> int:
        """Return the epochs of the dense phase."""
        return self.training.epochs if self.options.warmup is None else self.options.warmup

    def dense(self) -> dict[str, Any]:
        """Train the dense network, and remember the weights to go back to and how it flows."""
        rewind = self.warmup if self.options.rewind is None else min(self.options.rewind, self.warmup)
        flows: list[np.ndarray] = []
        if not self.warmup:
            self.rewind = snapshot(self.module)
            row = self._row(0, None)
            self._refer(self._flow(), flows, row, float(row["validation_accuracy"]))
            return row

        def watch(epoch: Epoch) -> None:
            if epoch.number == rewind:
                self.rewind = snapshot(self.module)
            if self.options.flowing and (self.warmup - epoch.number) % self.options.chunk == 0:
                flows.append(self._flow())
            self.hooks.epoch(epoch)

        if rewind == 0:
            self.rewind = snapshot(self.module)
        trained = self._fit(0, self.warmup, replace(self.hooks, epoch=watch))
        row = self._row(0, trained)
        # The weights that are kept are the best epoch's, which need not be the last one's.
        self._refer(self._flow(), flows, row, float(row["validation_accuracy"]))
        return row

    def learn(self) -> None:
        """Let rounds learn what the lesson says."""
        if self.lesson.loss == "labels" or self.task is not self.labels:
            return
        teacher = self.teacher or io.load(self.folder.round_path(0) / "model.onnx")
        features = matched(self.model, teacher, self.lesson.features)
        self.student = Student(self.module, features.names)
        self.task = Teaching(self.student, taught(teacher), self.lesson, self.data.train, features)

    def prune(self, number: int, *, final: bool) -> dict[str, Any]:
        """Prune, go back or stay, and train."""
        self.learn()
        options = self.options
        if self.stager is not None:
            stage = options.sparsities[number - 1]
            start, self.masks = self.stager.stage(write_back(self.module, self.model), self.module, self.axes, stage)
        else:
            layers = magnitudes(self.module, self.axes, self.masks)
            self.masks, start = narrower(layers, options.rule, options.scope), self.rewind
        restore(self.module, start, self.masks)
        seen: list[float] = []
        ended: list[str] = []
        flows: list[np.ndarray] = []

        def near(epoch: Epoch) -> bool:
            if self.reference is None or final or epoch.number % options.chunk:
                return False
            flows.append(self._flow())
            seen.append(flow.distance(flows[-1], self.reference.flow, relative=options.relative))
            if seen[-1] < self.reference.epsilon:
                ended.append("flow")
            elif (epoch.validation.accuracy or 0.0) >= self.reference.best:
                ended.append("accuracy")
            elif options.settled and len(flows) > 1:
                moved = flow.distance(flows[-1], flows[-2], relative=options.relative)
                if moved < self.reference.epsilon:
                    ended.append("settled")
            return bool(ended)

        trained = self._fit(number, self.training.epochs, replace(self.hooks, stop=near))
        row = self._row(number, trained)
        row["ended"] = ended[0] if ended else "epochs"
        if options.flowing and not final:
            row["distance"], row["distances"] = seen[-1] if seen else None, seen
        return row

    def keep(self, row: dict[str, Any], measured: Callable[[Path, ir.Model], Mapping[str, float]] | None) -> ir.Model:
        """Store a round, and return its model."""
        self.rounds.append(row)
        result = write_back(self.module, self.model)
        if row["round"] == 0 and self.teacher is None:
            self.teacher = result
        if measured is not None:
            place = self.folder.round_path(int(row["round"]))
            if distributed.rank() == 0:
                place.mkdir(exist_ok=True)
            row |= measured(place, result)
        if distributed.rank():
            return result
        if row["round"] == 0:
            self.folder.save_weights(self.folder.path / "rewind.pth", self.rewind)
            if self.reference is not None:
                noted = {"flow": self.reference.flow, "epsilon": np.array(self.reference.epsilon)}
                self.folder.save_arrays(_REFERENCE, noted | {"best": np.array(self.reference.best)})
        self._note_similarity(int(row["round"]))
        self.folder.store(int(row["round"]), self.rounds, snapshot(self.module), self.masks, result)
        return result

    def reload(self, number: int) -> None:
        """Take up where the folder says a round ended."""
        weights, self.masks = self.folder.load(number)
        self.rewind = self.folder.load_weights(self.folder.path / "rewind.pth")
        restore(self.module, weights, self.masks)
        stored = self.folder.load_arrays(_REFERENCE)
        if stored and self.options.flowing:
            self.reference = _Reference(stored["flow"], float(stored["epsilon"]), float(stored["best"]))

    def _fit(self, number: int, epochs: int, hooks: Hooks) -> Trained:
        def held(network: Any) -> None:
            self.hooks.weights(network)
            self.module.apply_masks()

        options = replace(self.training, epochs=epochs, seed=self.training.seed + _SEEDS * number)
        self.student.to(self.device)
        return fit(
            self.student, self.data, options, hooks=replace(hooks, weights=held), task=self.task, judge_training=False
        )

    def _flow(self) -> np.ndarray:
        """Return how the network flows now; nothing where nobody asks."""
        if self.edges is None:
            return np.zeros(0)
        place = next(iter(self.module.parameters())).device
        if self.options.method == "incop-if":
            signed = self.options.signed
            return flow.information_flow(self.module, self.edges, self.probe, self.labels, place, signed=signed)
        return flow.gradient_flow(self.plain, self.edges, self.model, self.probe, self.labels, place)

    def _refer(self, dense: np.ndarray, flows: list[np.ndarray], row: dict[str, Any], best: float) -> None:
        """Remember the dense flow, and decide how near is near enough."""
        if self.edges is None:
            return
        options = self.options
        epsilon = options.epsilon
        if epsilon is None:
            if len(flows) < _MOVES + 1:
                raise OptionError(
                    f"epsilon auto needs at least {(_MOVES + 1) * options.chunk} epochs of the dense network, to see "
                    "how its flow moves; give --dense-epochs, --chunk or --epsilon"
                )
            moves = [flow.distance(a, b, relative=options.relative) for a, b in pairwise(flows)]
            epsilon = median(moves)
        self.reference = _Reference(dense, epsilon, best)
        row["epsilon"] = epsilon

    def _note_similarity(self, number: int) -> None:
        """Add the similarity of all layers' outputs to what the folder has of it."""
        try:
            edges = self.edges or flow.layer_edges(self.model)
        except ModelError:  # a single layer is like no other
            return
        noted = self.folder.load_arrays(_SIMILARITY)
        place = next(iter(self.module.parameters())).device
        noted["layers"] = np.array(edges.layers)
        noted[f"round_{number:02d}"] = flow.similarity(self.module, edges, self.probe, self.labels, place)
        self.folder.save_arrays(_SIMILARITY, noted)

    def _row(self, number: int, trained: Trained | None) -> dict[str, Any]:
        """Return a round's figures."""
        p, q = self.options.sap.p, self.options.sap.q
        layers = remaining(magnitudes(self.module, self.axes, self.masks), p, q)
        total, left = (sum(getattr(layer, name) for layer in layers) for name in ("total", "left"))
        if trained is None:
            parts = (self.data.validation, self.data.test)
            validation, test = (self.task.score(self.student.to(self.device), part, self.device) for part in parts)
            self.student.cpu()
        else:
            validation, test = trained.validation, trained.test
        row: dict[str, Any] = {
            "round": number,
            "weights": total,
            "left": left,
            "remaining": left / total,
            "epochs": 0 if trained is None else trained.epochs,
            "best_epoch": 0 if trained is None else trained.best_epoch,
            "seconds": 0.0 if trained is None else round(trained.seconds, 3),
        }
        row |= {f"validation_{name}": value for name, value in validation.known.items()}
        row |= {f"test_{name}": value for name, value in test.known.items()}
        row["layers"] = [asdict(layer) for layer in layers]
        return row
