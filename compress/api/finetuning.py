"""Fine-tuning a model file: opening both models and the examples, training, and saying so in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.api import provenance
from onnxprune.api.opening import Loaded, ModelLike, open_model, output_kinds
from onnxprune.api.options import Options
from onnxprune.data import DataLike
from onnxprune.errors import DataError
from onnxprune.graph import io
from onnxprune.runtime.session import input_specs

if TYPE_CHECKING:
    from onnxprune.models.finetune import Tuned
    from onnxprune.models.options import TrainOptions
    from onnxprune.models.scoring import Scores
    from onnxprune.models.sources import TrainingData
    from onnxprune.models.teaching import Lesson
    from onnxprune.models.train import Hooks

__all__ = ["Finetuned", "Study", "finetune", "score_files"]


@dataclass(frozen=True)
class Study:
    """What a graph is trained on and how, besides the options of training.

    Attributes:
        test: Examples to be tested on; None takes them from the data.
        val_share: Share of the data held out, which picks the epoch.
        trainable: Initialisers to train: names, globs, ``re:``, parted by ``;``; None for all weights.
        batchnorm: ``frozen`` statistics, or ``train``.
        last: Where the state goes after every epoch, to go on from; None leaves none.
        best: Where the best weights go, beside ``last``.
        resume: A ``last`` file of a run that was stopped.
    """

    test: DataLike | None = None
    val_share: float = 0.1
    trainable: str | None = None
    batchnorm: str = "frozen"
    last: Path | None = None
    best: Path | None = None
    resume: Path | None = None


@dataclass(frozen=True)
class Finetuned:
    """A tuned model with the figures before and after; ``metadata`` is what its file says of the run."""

    model: ir.Model
    tuned: Tuned
    data: TrainingData
    metadata: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> io.FileFacts:
        """Write the model; the file is the old one or the whole new one.

        Raises:
            BackendError: The checker refuses it, or the disk fails.
        """
        return io.save(self.model, path)


def finetune(
    model: ModelLike,
    teacher: ModelLike | None = None,
    data: DataLike | None = None,
    *,
    lesson: Lesson | None = None,
    training: TrainOptions | None = None,
    study: Study | None = None,
    options: Options | None = None,
    hooks: Hooks | None = None,
) -> Finetuned:
    """Train a model further: towards the teacher's outputs, towards labels, or both. Needs the train extra.

    Args:
        model: A compressed model, from any framework; it stays as it is.
        teacher: The original; None learns from labels.
        data: Examples, labelled or not; None takes what the model's metadata names.
        lesson: What is learnt from; None is the teacher's outputs, or labels where there is none.
        training: How; None is ``models.finetune.with_defaults``.
        study: On what.
        options: Preprocessing, classes left out, kinds of outputs; its seed is that of ``training``.
        hooks: What to call meanwhile.

    Raises:
        OptionError: If an option does not fit the model or the data.
        ModelError: If a model cannot be used, or cannot run in torch.
        DataError: If the data cannot be used.
        BackendError: If training diverges.
    """
    from onnxprune.models import require_torch

    require_torch("finetune")
    from onnxprune.models.finetune import finetune as tune
    from onnxprune.models.finetune import with_defaults
    from onnxprune.models.options import TrainOptions
    from onnxprune.models.state import Checkpoints
    from onnxprune.models.teaching import Lesson

    chosen, study = options or Options(), study or Study()
    training = training or TrainOptions(**with_defaults({}))
    loaded = open_model(model, chosen)
    original = None if teacher is None else open_model(teacher, replace(chosen, output_kinds={}))
    lesson = lesson or Lesson("labels" if teacher is None else "distill")
    lesson = replace(lesson, kinds=output_kinds(loaded.model, chosen))
    examples = _examples(loaded, original, data, study, chosen, training.seed)
    about = _about(loaded, original, lesson, study)
    checkpoints = None
    if study.last is not None:
        best = study.best or study.last.with_suffix(".best.pth")
        checkpoints = Checkpoints(study.last, best, study.resume, about)
    tuned = tune(
        loaded.model,
        None if original is None else original.model,
        examples,
        training,
        lesson,
        hooks=hooks,
        checkpoints=checkpoints,
        trainable=study.trainable,
        batchnorm=study.batchnorm,
    )
    used = {name: getattr(training, name) for name in ("epochs", "batch_size", "optimizer", "lr", "seed")}
    told = {**about, **used, "best_epoch": tuned.trained.best_epoch if tuned.better else 0}
    told["examples"] = examples.train.count
    if tuned.after.agreement is not None:
        told["validation_agreement"] = round(tuned.after.agreement, 6)
    provenance.write_tuning(tuned.model, loaded.model.metadata_props, told)
    return Finetuned(tuned.model, tuned, examples, told)


def score_files(
    model: ModelLike,
    teacher: ModelLike | None,
    data: DataLike | None,
    *,
    device: str = "auto",
    study: Study | None = None,
    options: Options | None = None,
) -> Scores:
    """Score a model on the test side of the examples, against the teacher where there is one; train nothing.

    Raises:
        OptionError, ModelError, DataError: as :func:`finetune`.
    """
    from onnxprune.models import require_torch

    require_torch("finetune")
    from onnxprune.models.finetune import score_graph

    chosen, study = options or Options(), study or Study()
    loaded = open_model(model, chosen)
    original = None if teacher is None else open_model(teacher, chosen)
    examples = _examples(loaded, original, data, study, chosen, chosen.seed)
    return score_graph(loaded.model, None if original is None else original.model, examples.test, device)


def _examples(
    loaded: Loaded, original: Loaded | None, data: DataLike | None, study: Study, options: Options, seed: int
) -> TrainingData:
    from onnxprune.models.tuning_data import open_tuning

    known = [loaded] if original is None else [loaded, original]
    given = data if data is not None else next((each.data for each in known if each.data), None)
    if given is None:
        raise DataError("the model names no data to learn from; give --data")
    return open_tuning(
        given,
        study.test,
        input_specs(loaded.model),
        preprocess=next((each.preprocess for each in known if each.preprocess), None),
        classes=next((each.classes for each in known if each.classes), None),
        val_share=study.val_share,
        drop_classes=options.drop_classes,
        seed=seed,
        download=options.download,
    )


def _about(loaded: Loaded, original: Loaded | None, lesson: Lesson, study: Study) -> dict[str, Any]:
    """Return what a run is of: a state is gone on with, and metadata tells, only the same."""
    about: dict[str, Any] = {
        "source_sha256": loaded.facts.sha256,
        "teacher_sha256": None if original is None else original.facts.sha256,
        "loss": lesson.loss,
        "temperature": lesson.temperature,
        "features": list(lesson.features),
        "feature_weight": lesson.feature_weight,
        "trainable": study.trainable,
        "batchnorm": study.batchnorm,
    }
    return json.loads(json.dumps(about))  # type: ignore[no-any-return]  # what a checkpoint gives back, too
