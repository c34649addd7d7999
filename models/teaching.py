"""A graph learns from another one's outputs, from labels, or from both: the objective of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnxprune.data import Batch, Examples
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate.evidence import OutputKind
from onnxprune.evaluate.kinds import are_probabilities, check_asked, judged_kind, judged_scores
from onnxprune.evaluate.maps import IGNORED, fitting_map
from onnxprune.evaluate.regression import fitting_values
from onnxprune.exporters.to_torch import OnnxModule
from onnxprune.models import distributed
from onnxprune.models.features import Features
from onnxprune.models.scoring import Scores

__all__ = ["LOSSES", "Lesson", "Student", "Teaching"]

LOSSES = ("distill", "labels", "both")
_CHUNK = 256
_DECIDED = ("class scores", "class maps")
_NONE = Features()
_LEAST = 1e-12  # below any variance or probability that counts


@dataclass(frozen=True)
class Lesson:
    """What is learnt from.

    Attributes:
        loss: ``distill`` (the teacher's outputs; labels are not read), ``labels``, or ``both`` with equal weight.
        temperature: Class scores are divided by it before they are compared (Hinton, Vinyals, Dean 2015, section 2).
        features: Inner values whose difference counts as well: names, globs, ``re:`` patterns, or ``auto``
            (:func:`~onnxprune.models.features.matched`).
        feature_weight: Factor of their mean; each is a mean squared error over the teacher's variance.
        label_smoothing: Share of a label spread over all classes.
        kinds: What outputs are taken as (``--output-kind``), by name.

    Raises:
        OptionError: If a value is out of range.
    """

    loss: str = "distill"
    temperature: float = 1.0
    features: tuple[str, ...] = ()
    feature_weight: float = 1.0
    label_smoothing: float = 0.0
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise OptionError(f"loss {self.loss!r}: accepted are {', '.join(LOSSES)}")
        if not 0 < self.temperature < float("inf"):
            raise OptionError(f"temperature {self.temperature}: a positive number is accepted")
        if not 0 <= self.feature_weight < float("inf"):
            raise OptionError(f"feature-weight {self.feature_weight}: 0 or a positive number is accepted")
        if self.features and self.loss == "labels":
            raise OptionError("features are the teacher's: give --loss distill or both")


class Student(nn.Module):
    """A graph whose forward takes its inputs in order and returns outputs and inner values by name.

    Of inner values in ``staying`` (a teacher's) it returns the given positions of the given axes alone.
    """

    def __init__(
        self,
        module: OnnxModule,
        features: Sequence[str] = (),
        staying: Mapping[str, Mapping[int, np.ndarray]] | None = None,
    ) -> None:
        super().__init__()
        self.module, self.features = module, tuple(features)
        self._staying = [
            (name, axis, torch.from_numpy(indices))
            for name, axes in (staying or {}).items()
            for axis, indices in axes.items()
        ]

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run the graph; half precision is computed in the type of its weights."""
        found = self.module.run(dict(zip(self.module.inputs, inputs, strict=True)), self.features)
        for name, axis, indices in self._staying:
            found[name] = found[name].index_select(axis, indices.to(found[name].device))
        return found


class Teaching:
    """An :class:`~onnxprune.models.objectives.Objective` for graphs.

    Class scores and maps are compared by the Kullback-Leibler divergence from the teacher's, at the lesson's
    temperature and times its square; values by the squared error over the teacher's variance; embeddings by one minus
    the cosine. Integer outputs are left alone.

    Args:
        student: What learns; it is asked for its outputs once, on ``first``.
        teacher: What it learns from; None with ``loss="labels"``.
        lesson: How.
        first: A few examples, to see what the outputs are.
        features: The inner values that the lesson asks for, as the two graphs have them.

    Raises:
        OptionError: If there is nothing to learn from, or a feature is not in both graphs.
        DataError: If labels are wanted that the examples lack.
    """

    def __init__(
        self,
        student: Student,
        teacher: OnnxModule | None,
        lesson: Lesson,
        first: Examples,
        features: Features = _NONE,
    ) -> None:
        if teacher is None and lesson.loss != "labels":
            raise OptionError(f"loss {lesson.loss!r} learns from the original's outputs: give --teacher, or labels")
        self.lesson, self.names = lesson, student.module.inputs
        self.teacher = None if teacher is None else Student(teacher.eval(), features.names, features.staying)
        check_asked(lesson.kinds, student.module.outputs)
        batch = next(first.batches(min(2, first.count)))
        inputs, _ = self.read(batch)
        with torch.no_grad():
            outputs = student.eval()(*inputs)
            wanted = outputs if self.teacher is None else self.teacher(*inputs)
        self._check_alike(student, outputs, wanted)
        self.features = features.names
        arrays = {name: _array(outputs[name]) for name in student.module.outputs}
        self.kinds: dict[str, OutputKind] = {
            name: judged_kind(name, array, len(batch.rows), lesson.kinds, batch.targets)
            for name, array in arrays.items()
        }
        # Decided once: whether a network ends in a softmax does not change while it is trained.
        self.probable = {name for name, kind in self.kinds.items() if kind in _DECIDED and _probable(wanted[name])}
        self.decided = judged_scores(self.kinds, lesson.kinds)
        self.marked = self._marked(batch, arrays)
        if lesson.loss != "labels" and all(kind == "discrete" for kind in self.kinds.values()):
            raise OptionError("every output is of whole numbers: there is nothing to distil; features may be")
        if lesson.loss != "distill" and self.marked is None:
            raise DataError(
                f"{first.source}: the examples have no labels that fit an output; loss {lesson.loss!r} needs them"
            )
        self.partial = self._leaves_out(student, batch)

    @property
    def taught(self) -> bool:
        """Return whether the teacher alone says what is right."""
        return self.lesson.loss == "distill"

    def _leaves_out(self, student: Student, batch: Batch) -> bool:
        """Return whether some weights get no gradient from the loss."""
        inputs, answers = self.read(batch)
        weights = list(student.parameters())
        loss = self.loss(student(*inputs), inputs, answers)
        return any(each is None for each in torch.autograd.grad(loss, weights, allow_unused=True))

    def read(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the inputs in the graph's order, and labels [n] or targets [n, ...] where there are any."""
        inputs = []
        for name in self.names:
            tensor = torch.from_numpy(np.ascontiguousarray(batch.arrays[name]))
            inputs.append(tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)
        answers = batch.labels if batch.labels is not None else batch.targets
        return tuple(inputs), None if answers is None else torch.from_numpy(np.ascontiguousarray(answers))

    def loss(self, outputs: dict[str, Tensor], inputs: tuple[Tensor, ...], answers: Tensor | None) -> Tensor:
        """Return the mean loss of these examples; the teacher sees the same inputs."""
        wanted = None if self.lesson.loss == "labels" else self._taught(inputs)
        return self._loss(outputs, wanted, answers)

    @torch.no_grad()
    def score(self, module: nn.Module, examples: Examples, device: torch.device) -> Scores:
        """Measure loss, agreement with the teacher and accuracy."""
        module.eval()
        sums = [0.0] * 6  # examples, loss, decisions compared, alike, decisions with a label, right
        own = range(examples.count)[distributed.shard(examples.count)]
        for batch in examples.take(list(own)).batches(_CHUNK) if len(own) else ():
            inputs, answers = self.read(batch)
            inputs = tuple(each.to(device) for each in inputs)
            outputs = module(*inputs)
            wanted = self._taught(inputs)
            answers = None if answers is None else answers.to(device)
            found = [float(self._loss(outputs, wanted, answers)) * len(batch.rows)]
            found += self._hits(outputs, wanted, batch.labels)
            sums = [total + value for total, value in zip(sums, [len(batch.rows), *found], strict=True)]
        count, loss, compared, alike, labelled, right = distributed.summed(sums, device)
        return Scores(
            loss / count,
            accuracy=right / labelled if labelled else None,
            agreement=alike / compared if compared else None,
        )

    @torch.no_grad()
    def _taught(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor] | None:
        """Run the teacher, if there is one, where the inputs are."""
        return None if self.teacher is None else self.teacher.to(inputs[0].device)(*inputs)

    def _hits(
        self, outputs: dict[str, Tensor], wanted: dict[str, Tensor] | None, labels: np.ndarray | None
    ) -> list[float]:
        if self.decided is None:
            return [0.0] * 4
        decided = outputs[self.decided].argmax(1).cpu()
        found = [0.0, 0.0] if wanted is None else _equal(decided, wanted[self.decided].argmax(1).cpu())
        return [*found, *([0.0, 0.0] if labels is None else _equal(decided, torch.from_numpy(labels)))]

    def _loss(self, outputs: dict[str, Tensor], wanted: dict[str, Tensor] | None, answers: Tensor | None) -> Tensor:
        parts: list[Tensor] = []
        if wanted is not None and self.lesson.loss != "labels":
            kinds = ((name, kind) for name, kind in self.kinds.items() if kind != "discrete")
            parts += [self._distance(name, kind, outputs[name].float(), wanted[name].float()) for name, kind in kinds]
            for name in self.features:
                share = self.lesson.feature_weight / len(self.features)
                parts.append(share * _relative(outputs[name].float(), wanted[name].float()))
        if self.lesson.loss != "distill":
            parts.append(self._marking(outputs, answers))
        return torch.stack(parts).sum()

    def _distance(self, name: str, kind: OutputKind, found: Tensor, wanted: Tensor) -> Tensor:
        if kind in _DECIDED:
            heat = self.lesson.temperature
            ours, theirs = (functional.log_softmax(self._logits(name, each) / heat, 1) for each in (found, wanted))
            return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1).mean() * heat**2
        if kind == "embedding":
            return (1 - functional.cosine_similarity(found.flatten(1), wanted.flatten(1))).mean()
        return _relative(found, wanted)

    def _marking(self, outputs: dict[str, Tensor], answers: Tensor | None) -> Tensor:
        name = self.marked
        if answers is None or name is None:
            raise DataError(f"some examples have no labels; loss {self.lesson.loss!r} needs them")
        found = outputs[name].float()
        if self.kinds[name] == "values":
            return functional.mse_loss(found.reshape(answers.shape), answers.float())
        if self.kinds[name] == "class maps":
            answers = answers.reshape(len(answers), *found.shape[2:])
        answers = answers.long()
        judged = (answers >= 0) & ((answers != IGNORED) | (found.shape[1] > IGNORED))
        loss = functional.cross_entropy(
            self._logits(name, found), torch.where(judged, answers, -100), label_smoothing=self.lesson.label_smoothing
        )
        return torch.nan_to_num(loss) if not judged.any() else loss

    def _logits(self, name: str, scores: Tensor) -> Tensor:
        """Return what a softmax makes the scores' probabilities of: their logarithm where they are probabilities."""
        return scores.clamp_min(_LEAST).log() if name in self.probable else scores

    def _marked(self, batch: Batch, arrays: Mapping[str, np.ndarray]) -> str | None:
        """Return the output that the labels are of."""
        if batch.labels is not None:
            return self.decided
        for name, array in arrays.items():
            fits = {"class maps": fitting_map, "values": fitting_values}.get(self.kinds[name])
            if fits is not None and fits(batch.targets, array) is not None:
                return name
        return None

    def _check_alike(self, student: Student, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
        if self.teacher is None:
            return
        for what in ("inputs", "outputs"):
            names = [sorted(getattr(each.module, what)) for each in (student, self.teacher)]
            if names[0] != names[1]:
                left, right = (", ".join(each) for each in names)
                raise ModelError(f"the model has the {what} {left}, the teacher {right}; they must have the same")
        for name, tensor in ours.items():
            if tensor.shape != theirs[name].shape:
                shapes = " against ".join(str(tuple(each.shape)) for each in (tensor, theirs[name]))
                said = f"'{name}' has other shapes in model and teacher: {shapes}"
                raise ModelError(said) if name in student.module.outputs else OptionError(said)


def _equal(ours: Tensor, theirs: Tensor) -> list[float]:
    return [float(ours.numel()), float((ours == theirs).sum())]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _probable(scores: Tensor) -> bool:
    """Return whether scores [n, C, ...] are probabilities over axis 1."""
    return are_probabilities(scores.movedim(1, -1).reshape(-1, scores.shape[1]).double().numpy())


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error over the variance of what is wanted."""
    spread = wanted.var(correction=0) if wanted.numel() > 1 else wanted.new_ones(())
    return functional.mse_loss(found, wanted) / spread.clamp_min(_LEAST)
