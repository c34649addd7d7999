"""Decisions, ranks and losses of score rows, by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from onnxprune.errors import DataError
from onnxprune.evaluate.kinds import are_probabilities, output_kind
from onnxprune.evaluate.scores import (
    UNDECIDED,
    checked_labels,
    cross_entropy,
    decide,
    divergence,
    in_top,
    log_probabilities,
)

RNG = np.random.default_rng(7)


def test_a_tie_goes_to_the_lowest_index_and_nan_decides_nothing() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [0.0, np.nan, 9.0], [-np.inf, np.inf, 0.0], [0.0, 0.0, 0.0]])
    assert decide(scores).tolist() == [0, UNDECIDED, 1, 0]


def test_in_top_is_the_rank_with_ties_to_the_lowest_index() -> None:
    scores = np.array([[5.0, 4, 3, 2, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, np.nan]])
    for label in range(6):
        labels = np.full(3, label)
        assert in_top(scores, labels).tolist() == [label < 5, label < 5, False]


def test_in_top_one_is_the_decision() -> None:
    scores = RNG.integers(0, 3, (200, 8)).astype(np.float64)
    assert in_top(scores, decide(scores), 1).all()


def test_log_probabilities_of_logits_and_of_probabilities_agree() -> None:
    logits = RNG.normal(size=(50, 7)) * 30
    expected = special.log_softmax(logits, axis=1)
    assert np.allclose(log_probabilities(logits, probabilities=False), expected, rtol=1e-12)
    soft = special.softmax(logits, axis=1)
    assert np.allclose(log_probabilities(soft, probabilities=True), np.maximum(expected, -87.4), atol=0.1)


def test_divergence_equals_scipys_entropy() -> None:
    p, q = special.softmax(RNG.normal(size=(2, 20, 5)), axis=2)
    golden = [stats.entropy(a, b) for a, b in zip(p, q, strict=True)]
    assert np.allclose(divergence(np.log(p), np.log(q)), golden, rtol=1e-10)


def test_a_probability_of_zero_gives_a_finite_loss() -> None:
    log_p = log_probabilities(np.array([[1.0, 0.0]]), probabilities=True)
    assert cross_entropy(log_p, np.array([1]))[0] == pytest.approx(87.3365, abs=1e-3)
    assert divergence(log_p, log_p)[0] == 0


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros((4, 10), np.float32), "class scores"),
        (np.zeros((1, 2), np.float16), "class scores"),
        (np.zeros((4, 1), np.float32), "values"),
        (np.zeros(4, np.float32), "values"),
        (np.zeros((), np.float64), "values"),
        (np.zeros((4, 21, 8, 8), np.float32), "values"),
        (np.zeros((4, 10), np.int64), "discrete"),
        (np.zeros((4, 2), np.bool_), "discrete"),
        (np.array(["cat", "dog"]), "discrete"),
    ],
)
def test_what_an_output_is(array: np.ndarray, kind: str) -> None:
    assert output_kind(array) == kind


def test_a_table_of_other_rows_than_examples_is_no_class_scores() -> None:
    assert output_kind(np.zeros((12, 4), np.float32), examples=3) == "values"
    assert output_kind(np.zeros((3, 4), np.float32), examples=3) == "class scores"


def test_probability_rows_are_told_from_logits() -> None:
    soft = special.softmax(RNG.normal(size=(9, 4)), axis=1)
    assert are_probabilities(soft)
    assert are_probabilities(soft.astype(np.float16).astype(np.float64))
    assert not are_probabilities(soft * 1.01)
    assert not are_probabilities(np.array([[1.5, -0.5]]))
    assert are_probabilities(np.zeros((0, 4)))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (np.array([0, 3, 1]), "label 3 is outside the model's 3 classes; labels must be 0 to 2"),
        (np.array([0, -1, 1]), "label -1 is outside the model's 3 classes; labels must be 0 to 2"),
        (np.array([0, 1]), r"labels have shape (2,) for 3 examples; (3,) is wanted"),
        (np.array([[0], [1], [2]]), r"labels have shape (3, 1) for 3 examples; (3,) is wanted"),
        (
            np.array([0.0, 1, 2]),
            "labels are of type float64; whole numbers (class indices) are wanted",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, sentence: str) -> None:
    with pytest.raises(DataError) as error:
        checked_labels(labels, 3, 3)
    assert str(error.value) == sentence


def test_small_unsigned_labels_become_indices() -> None:
    checked = checked_labels(np.array([2, 0], np.uint8), 2, 3)
    assert checked.tolist() == [2, 0]
    assert checked.dtype == np.int64
