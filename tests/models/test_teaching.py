"""What a graph learns from: distances to a teacher's outputs, labels, and what they are measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from scipy.special import log_softmax

from onnxprune.data import Examples
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.exporters.to_torch import to_torch
from onnxprune.models.features import Features, matched
from onnxprune.models.teaching import Lesson, Student, Teaching

CPU = torch.device("cpu")


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    """Return a model from its text, with weights from a seed by name."""
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
    for name, array in weights.items():
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.FLOAT
        old = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        old.replace_all_uses_with(value)
        model.graph.register_initializer(value)
        if old in model.graph.inputs:
            model.graph.inputs.remove(old)
    return model


def linear(seed: int, tail: str = "y = MatMul(x, w)", shape: str = "N, 4") -> ir.Model:
    text = f"g (float[N, 6] x, float[6, 4] w) => (float[{shape}] y) {{ {tail} }}"
    return graph(text, w=np.random.default_rng(seed).standard_normal((6, 4)).astype(np.float32))


def examples(count: int = 12, **more: Any) -> Examples:
    inputs = np.random.default_rng(9).standard_normal((count, 6)).astype(np.float32)
    return Examples("arrays", count, more.pop("labels", None), lambda rows: {"x": inputs[rows]}, **more)


def learnt(lesson: Lesson, *models: ir.Model, given: Examples | None = None) -> tuple[float, Teaching, Student]:
    """Return the loss over all examples, the objective and its student."""
    features = matched(models[0], models[1], lesson.features) if len(models) > 1 else Features()
    student = Student(to_torch(models[0]), features.names)
    teacher = to_torch(models[1]) if len(models) > 1 else None
    given = given or examples()
    task = Teaching(student, teacher, lesson, given, features)
    return task.score(student, given, CPU).loss, task, student


def scores(seed: int) -> np.ndarray:
    weights = np.random.default_rng(seed).standard_normal((6, 4)).astype(np.float32)
    return examples().fetch(np.arange(12))["x"].astype(np.float64) @ weights


@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_class_scores_are_compared_by_divergence_at_a_temperature(heat: float) -> None:
    found, task, student = learnt(Lesson(temperature=heat), linear(1), linear(2))
    ours, theirs = (log_softmax(scores(seed) / heat, axis=1) for seed in (1, 2))
    assert found == pytest.approx(float((np.exp(theirs) * (theirs - ours)).sum(1).mean()) * heat**2, rel=1e-5)
    measured = task.score(student, examples(), CPU)
    assert measured.agreement == float((scores(1).argmax(1) == scores(2).argmax(1)).mean())
    assert measured.accuracy is None


def test_probabilities_are_compared_as_what_they_came_from() -> None:
    softmax = "t = MatMul(x, w) y = Softmax <axis = 1> (t)"
    plain, _, _ = learnt(Lesson(), linear(1), linear(2))
    found, task, _ = learnt(Lesson(), linear(1, softmax), linear(2, softmax))
    assert task.probable == {"y"}
    assert found == pytest.approx(plain, rel=1e-4)


def test_values_count_by_their_variance_and_embeddings_by_their_angle() -> None:
    ours, theirs = scores(1), scores(2)
    found, _, _ = learnt(Lesson(kinds={"y": "values"}), linear(1), linear(2))
    assert found == pytest.approx(float(((ours - theirs) ** 2).mean() / theirs.var()), rel=1e-5)
    found, task, student = learnt(Lesson(kinds={"y": "embedding"}), linear(1), linear(2))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert found == pytest.approx(float((1 - (ours * theirs).sum(1) / norms).mean()), rel=1e-5)
    assert task.score(student, examples(), CPU).agreement is None


def test_inner_values_count_where_they_are_named() -> None:
    two = "h = MatMul(x, w) y = Relu(h)"
    without, _, _ = learnt(Lesson(), linear(1, two), linear(2, two))
    found, _, _ = learnt(Lesson(features=("h",), feature_weight=0.5), linear(1, two), linear(2, two))
    extra = ((scores(1) - scores(2)) ** 2).mean() / scores(2).var()
    assert found - without == pytest.approx(0.5 * float(extra), rel=1e-4)
    with pytest.raises(OptionError, match="feature 'z' is of no value that both graphs compute"):
        learnt(Lesson(features=("z",)), linear(1), linear(2))


def test_labels_and_both() -> None:
    labels = np.arange(12) % 4
    given = examples(labels=labels)
    entropy = float(-log_softmax(scores(1), axis=1)[np.arange(12), labels].mean())
    found, task, student = learnt(Lesson("labels"), linear(1), given=given)
    assert found == pytest.approx(entropy, rel=1e-5)
    assert task.score(student, given, CPU).accuracy == float((scores(1).argmax(1) == labels).mean())
    apart, _, _ = learnt(Lesson(), linear(1), linear(2), given=given)
    found, _, _ = learnt(Lesson("both"), linear(1), linear(2), given=given)
    assert found == pytest.approx(entropy + apart, rel=1e-5)


def test_real_targets_and_maps_of_labels() -> None:
    targets = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)
    given = examples(targets=targets)
    found, task, _ = learnt(Lesson("labels", kinds={"y": "values"}), linear(1), given=given)
    assert task.marked == "y"
    assert found == pytest.approx(float(((scores(1) - targets) ** 2).mean()), rel=1e-5)
    # Four scores at each of one position; the label 255 is not judged.
    shaped = "t = MatMul(x, w) s = Constant <value_ints: ints = [-1, 4, 1]> () y = Reshape(t, s)"
    marks = (np.arange(12) % 4).reshape(12, 1)
    marks[0] = 255
    found, task, _ = learnt(Lesson("labels"), linear(1, shaped, "N, 4, 1"), given=examples(targets=marks))
    assert task.kinds == {"y": "class maps"}
    entropy = -log_softmax(scores(1), axis=1)[np.arange(1, 12), marks[1:, 0]].mean()
    assert found == pytest.approx(float(entropy), rel=1e-5)


def test_whole_numbers_teach_nothing_and_unused_weights_are_noticed() -> None:
    _, task, _ = learnt(Lesson(), linear(1), linear(2))
    assert not task.partial
    both = "g (float[N, 6] x, float[6, 4] w, float[6, 4] v) => (float[N, 4] y, int64[N, 1] k) {{ {} }}"
    text = both.format("y = MatMul(x, w) t = MatMul(x, v) k = ArgMax <axis = 1> (t)")
    weights = {name: np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32) for name in "wv"}
    _, task, _ = learnt(Lesson(), graph(text, **weights), graph(text, **weights))
    assert task.kinds["k"] == "discrete"
    assert task.partial
    only = "g (float[N, 6] x, float[6, 4] w) => (int64[N, 1] k) { t = MatMul(x, w) k = ArgMax <axis = 1> (t) }"
    with pytest.raises(OptionError, match="nothing to distil"):
        learnt(Lesson(), *(graph(only, w=weights["w"]) for _ in range(2)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "teach"}, "accepted are distill, labels, both"),
        ({"temperature": 0.0}, "a positive number"),
        ({"feature_weight": -1.0}, "feature-weight -1.0"),
        ({"loss": "labels", "features": ("h",)}, "features are the teacher's"),
    ],
)
def test_lessons_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Lesson(**options)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    with pytest.raises(OptionError, match="give --teacher"):
        learnt(Lesson(), linear(1))
    with pytest.raises(DataError, match="no labels that fit"):
        learnt(Lesson("labels"), linear(1))
    with pytest.raises(ModelError, match="the teacher z"):
        learnt(Lesson(), linear(1), graph("g (float[N, 6] x) => (float[N, 6] z) { z = Relu(x) }"))
    with pytest.raises(ModelError, match=r"\(2, 4\) against \(2, 6\)"):
        learnt(Lesson(), linear(1), graph("g (float[N, 6] x) => (float[N, 6] y) { y = Relu(x) }"))
