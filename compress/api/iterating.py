"""Iterative pruning of a model by name or file: opening it and its data, running, telling what came out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.api.opening import ModelLike, open_model
from onnxprune.api.options import Options
from onnxprune.data import DataLike
from onnxprune.errors import DataError, OptionError
from onnxprune.runtime.session import input_specs

if TYPE_CHECKING:
    from onnxprune.models.iterative.options import IterateOptions
    from onnxprune.models.iterative.rounds import Iteration
    from onnxprune.models.options import TrainOptions
    from onnxprune.models.sources import TrainingData
    from onnxprune.models.teaching import Lesson
    from onnxprune.models.train import Hooks

# A stage's .surp file loses at most this much accuracy on held-out examples, of which it looks at this many at most.
_SLACK = 0.0025
_LOOKED_AT = 5000

__all__ = ["Subject", "iterate", "open_subject"]


@dataclass(frozen=True)
class Subject:
    """What is pruned: a dense graph, its examples, what the folder calls it, and whether it is trained already."""

    model: ir.Model
    data: TrainingData
    name: str
    trained: bool


def iterate(
    model: str | os.PathLike[str],
    method: IterateOptions,
    data: DataLike | None = None,
    *,
    training: TrainOptions | None = None,
    out: str | os.PathLike[str] | None = None,
    test: DataLike | None = None,
    resume: bool = False,
    options: Options | None = None,
    val_share: float = 0.1,
    hooks: Hooks | None = None,
    on_round: Callable[[dict[str, Any], ir.Model], None] | None = None,
    lesson: Lesson | None = None,
    teacher: ModelLike | None = None,
) -> Iteration:
    """Prune a network in rounds and leave a folder that tells of it. Needs the train extra.

    Args:
        model: A network of the zoo, a checkpoint that ``train`` wrote, or an ``.onnx`` file from anywhere.
        method: What happens in a round.
        data: Labelled examples; None takes what the file names.
        training: How a round trains.
        out: The run's folder; None is ``runs/METHOD-MODEL-SEED``.
        test: Examples to be tested on instead of a part of ``data``.
        resume: Go on with what the folder holds.
        options: Preprocessing, classes left out, downloads.
        val_share: Share of the data held out.
        hooks: What to call meanwhile.
        on_round: Called with every round's figures and model.
        lesson: What rounds learn from; None is labels, with a teacher both.
        teacher: Whose outputs that may be; None is the dense network, once it is trained.

    Raises:
        OptionError, ModelError, DataError, BackendError: as their docstrings say.
    """
    from onnxprune.models import require_torch

    require_torch("iterate")
    from onnxprune.models.iterative.folder import RunFolder
    from onnxprune.models.iterative.rounds import iterate as prune
    from onnxprune.models.iterative.telling import tell
    from onnxprune.models.options import options_for
    from onnxprune.models.teaching import Lesson

    subject = open_subject(
        model, data, test, training.seed if training else 0, options=options or Options(), val_share=val_share
    )
    training = training or options_for(subject.name)
    if method.warmup is None and subject.trained and (method.staged or not method.flowing):
        method = replace(method, warmup=0, rewind=None)
    place = Path(out) if out is not None else Path("runs") / f"{method.method}-{subject.name}-{training.seed}"
    about = {"model": subject.name, "data": subject.data.train.source}
    if teacher is not None:
        lesson = lesson or Lesson("both")
        if lesson.loss == "labels":
            raise OptionError("a teacher is given and loss labels, which reads none: give --loss both or distill")
        about["teacher"] = str(teacher) if isinstance(teacher, str | os.PathLike) else "in memory"
    found = prune(
        subject.model, subject.data, method, training, RunFolder(place), about,
        resume=resume, hooks=hooks, on_round=on_round,
        measured=_coded(subject.data, training.device) if method.staged else None,
        lesson=lesson, teacher=None if teacher is None else open_model(teacher, options or Options()).model,
    )  # fmt: skip
    tell(found, method, subject.name)
    return found


def _coded(data: TrainingData, device: str) -> Callable[[Path, ir.Model], Mapping[str, float]]:
    """Return what writes a round's model as one ``.surp`` file and says its size, and what it decodes to is worth.

    A stream goes on until it tells the tiniest weight that is left, long after what it tells is worth anything. So it
    ends where the decoded network is about as right on the held-out examples as the trained one.
    """
    import numpy as np

    from onnxprune.api.shortening import shortest
    from onnxprune.graph.io import replaced
    from onnxprune.models import distributed
    from onnxprune.models.finetune import score_graph

    held = data.validation
    if held.count > _LOOKED_AT:
        held = held.take(np.linspace(0, held.count - 1, _LOOKED_AT).astype(np.int64))

    def measure(place: Path, model: ir.Model) -> Mapping[str, float]:
        def accuracy(graph: ir.Model) -> float:
            return float(score_graph(graph, None, held, device).accuracy or 0.0)

        least = accuracy(model) - _SLACK
        written = shortest(model, lambda graph: accuracy(graph) >= least)
        # Scores are sums over all processes, which therefore come to the same file.
        if distributed.rank() == 0:
            with replaced(place / "model.surp") as file:
                file.write(written.data)
        decoded = written.model()
        figures = {"surp_bytes": float(len(written.data))}
        for name, part in (("validation", data.validation), ("test", data.test)):
            figures[f"surp_{name}_accuracy"] = float(score_graph(decoded, None, part, device).accuracy or 0.0)
        return figures

    return measure


def open_subject(
    model: str | os.PathLike[str],
    data: DataLike | None,
    test: DataLike | None,
    seed: int,
    *,
    options: Options,
    val_share: float = 0.1,
) -> Subject:
    """Open what is to be pruned: a file as it is, a network of the zoo with fresh or loaded weights.

    Raises:
        OptionError, ModelError, DataError: as their docstrings say.
    """
    if Path(model).suffix == ".onnx":
        return _file(model, data, test, seed, options, val_share)
    from onnxprune.models.produce import ExportSource, graph_to_train, named_source
    from onnxprune.models.sources import open_training
    from onnxprune.models.zoo import find

    source = named_source(ExportSource(str(model)))
    found = find(source.network)
    if found.regression:
        raise OptionError(f"{source.network} is a regression: iterate prunes classifiers")
    spec = data if data is not None else source.data
    if not isinstance(spec, str):
        raise DataError("name the data to train on: give --data, such as digits or mnist:ROOT")
    if test is not None and not isinstance(test, str):
        raise DataError(f"{source.network} is tested on a DATA form, such as test.zip; arrays are for .onnx files")
    opened = open_training(
        spec, found.input_shape, test=test, seed=seed, download=options.download, val_share=val_share,
        drop_classes=options.drop_classes,
    )  # fmt: skip
    return Subject(graph_to_train(source, opened, seed), opened, source.network, source.weights is not None)


def _file(
    model: str | os.PathLike[str],
    data: DataLike | None,
    test: DataLike | None,
    seed: int,
    options: Options,
    val_share: float,
) -> Subject:
    from onnxprune.models.tuning_data import open_tuning

    loaded = open_model(model, options)
    given = data if data is not None else loaded.data
    if given is None:
        raise DataError("the model names no data to learn from; give --data")
    opened = open_tuning(
        given, test, input_specs(loaded.model), preprocess=loaded.preprocess, classes=loaded.classes,
        val_share=val_share, drop_classes=options.drop_classes, seed=seed, download=options.download,
    )  # fmt: skip
    return Subject(loaded.model, opened, Path(model).stem, trained=True)
