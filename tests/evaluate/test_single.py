"""One model's own figures: equal to plain computations, refused where they cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss

from onnxprune.errors import DataError, ModelError
from onnxprune.evaluate.evidence import ClassScore
from onnxprune.evaluate.intervals import clopper_pearson
from onnxprune.evaluate.single import Tally


def test_accuracy_top5_and_loss_whatever_the_batches() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(90, 7)), rng.integers(0, 7, 90)
    whole, cut = Tally(), Tally()
    whole.update({"logits": scores}, labels)
    for start in range(0, 90, 13):
        cut.update({"logits": scores[start : start + 13]}, labels[start : start + 13])
    result = whole.result()
    assert result.accuracy is not None
    assert result.top5 is not None
    hits = int((scores.argmax(axis=1) == labels).sum())
    assert (result.accuracy.rate, result.accuracy.low, result.accuracy.high) == (
        hits / 90,
        *clopper_pearson(hits, 90),
    )
    assert result.loss == pytest.approx(log_loss(labels, special.softmax(scores, axis=1)), rel=1e-9)
    assert [
        sum(each.count for each in result.per_class),
        sum(each.predicted for each in result.per_class),
    ] == [90] * 2
    again = cut.result()
    assert again.loss == pytest.approx(result.loss, rel=1e-12)
    assert (again.accuracy, again.top5, again.per_class) == (result.accuracy, result.top5, result.per_class)


def test_without_labels_only_the_predictions_are_told() -> None:
    tally = Tally(classes=["ant", "bee", "cat"])
    tally.update({"logits": np.eye(3)[[0, 0, 2]]})
    result = tally.result()
    assert (result.examples, result.output, result.classes) == (3, "logits", 3)
    assert (result.accuracy, result.top5, result.loss) == (None, None, None)
    assert result.per_class == (
        ClassScore("ant", 0, 2, None, None, None),
        ClassScore("cat", 0, 1, None, None, None),
    )


def test_the_first_output_of_class_scores_is_judged() -> None:
    tally = Tally()
    tally.update({"boxes": np.zeros((5, 4)), "logits": np.eye(2)}, np.array([0, 1]), examples=2)
    assert tally.result().output == "logits"


def test_no_class_scores_is_a_warning() -> None:
    tally = Tally()
    tally.update({"depth": np.zeros((2, 1))})
    result = tally.result()
    assert result.output is None
    assert result.warnings == ("no output holds class scores: accuracy is not judged",)


def test_names_that_do_not_fit_are_warned_about() -> None:
    tally = Tally(classes=["ant"])
    tally.update({"logits": np.eye(2)}, np.array([0, 1]))
    assert tally.result().warnings == ("1 class names are known for an output of 2 classes; classes are numbered",)


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"^no examples were evaluated; at least one is needed$"):
        Tally().result()
    with pytest.raises(ModelError, match=r"^model: no outputs were given; at least one is needed$"):
        Tally().update({})
    with pytest.raises(ModelError, match=r"^model: output 'y' is NaN for example 0 \(counted"):
        Tally().update({"y": np.array([[np.nan, 1.0]])})
    with pytest.raises(DataError, match=r"^label 2 is outside the model's 2 classes; labels must be 0 to 1$"):
        Tally().update({"y": np.eye(2)}, np.array([0, 2]))
    tally = Tally()
    tally.update({"y": np.zeros((0, 2))})
    tally.update({"y": np.eye(2)}, np.array([0, 1]))
    with pytest.raises(DataError, match=r"^labels: some batches have them and some do not; "):
        tally.update({"y": np.eye(2)})
    with pytest.raises(ModelError, match=r"^model: output 'y' is float64 of shape \(3, 3\); class"):
        tally.update({"y": np.eye(3)}, np.array([0, 1, 2]))
