"""Comparison of two models: golden cases, bounds that always hold, and every refusal and warning."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import log_loss, r2_score

from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence, Flips
from onnxprune.evaluate.intervals import clopper_pearson, mcnemar_p


def one_hot(classes: list[int], width: int = 3) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[classes] * 5


def compared(
    original: np.ndarray,
    compressed: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    cuts: list[int] | None = None,
    **options: Any,
) -> Evidence:
    comparison = Comparison(**options)
    edges = [0, *sorted(cuts or []), len(original)]
    for start, stop in pairwise(edges):
        part = slice(start, stop)
        comparison.update({"out": original[part]}, {"out": compressed[part]}, None if labels is None else labels[part])
    return comparison.result()


def test_the_golden_case() -> None:
    labels = np.array([0, 1, 1, 2])
    evidence = compared(one_hot([0, 1, 2, 2]), one_hot([0, 2, 2, 2]), labels)
    agreement, accuracy = evidence.agreement, evidence.accuracy
    assert agreement is not None
    assert accuracy is not None
    assert agreement.top1.rate == 0.75
    assert (agreement.top1.low, agreement.top1.high) == clopper_pearson(3, 4, 0.95)
    assert agreement.top1.method == "clopper-pearson"
    assert agreement.top5 is None
    assert replace(agreement.flips, examples=(), margins=()) == Flips(3, 1, 0, 0, 1, (("1", "2", 1),))
    assert (accuracy.original, accuracy.compressed, accuracy.drop) == (0.75, 0.5, 0.25)
    assert accuracy.mcnemar_p == mcnemar_p(1, 0)
    # The bound |accuracy change| <= 1 - agreement is tight here.
    assert abs(accuracy.drop) == 1 - agreement.top1.rate
    assert [(each.label, each.count, each.rate) for each in agreement.per_class] == [
        ("0", 1, 1.0),
        ("1", 1, 0.0),
        ("2", 2, 1.0),
    ]
    assert [astuple(each) for each in accuracy.per_class] == [
        ("0", 1, 1.0, 1.0),
        ("1", 2, 0.5, 0.0),
        ("2", 1, 1.0, 1.0),
    ]


def test_a_model_agrees_with_itself() -> None:
    scores = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    evidence = compared(scores, scores)
    assert evidence.agreement is not None
    assert evidence.agreement.top1.rate == 1
    assert evidence.agreement.top5 is not None
    assert evidence.agreement.top5.rate == 1
    assert replace(evidence.agreement.flips, margins=()) == Flips(40, None, None, None, 0, ())
    assert evidence.accuracy is None
    assert evidence.output_error is not None
    assert astuple(evidence.output_error) == pytest.approx((0, 0, 0, 1, 0), abs=1e-12)
    assert evidence.outputs[0].r2 == 1
    assert evidence.warnings == ()


def test_top5_losses_and_flips_against_plain_computations() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=(300, 9)).astype(np.float32)
    after = (before + rng.normal(size=before.shape)).astype(np.float32)
    labels = rng.integers(0, 9, 300)
    evidence = compared(before, after, labels)
    agreement, accuracy = evidence.agreement, evidence.accuracy
    assert agreement is not None
    assert accuracy is not None
    flips = agreement.flips
    top1, now = before.argmax(axis=1), after.argmax(axis=1)
    best = np.argsort(-after, axis=1, kind="stable")[:, :5]
    assert agreement.top5 is not None
    assert agreement.top5.rate == np.mean([label in row for label, row in zip(top1, best, strict=True)])
    assert accuracy.top5 is not None
    assert accuracy.top5.compressed == np.mean([label in row for label, row in zip(labels, best, strict=True)])
    assert accuracy.loss.original == pytest.approx(
        log_loss(labels, special.softmax(before.astype(np.float64), axis=1)), rel=1e-6
    )
    assert flips.lost == int(((top1 == labels) & (now != labels)).sum())
    assert flips.gained == int(((top1 != labels) & (now == labels)).sum())
    assert flips.changed_wrong is not None
    assert flips.lost + flips.gained + flips.changed_wrong == flips.count
    assert flips.kept + flips.count == 300
    counts = [count for _, _, count in flips.confusion]
    assert len(counts) == 20
    assert counts == sorted(counts, reverse=True)


def test_probabilities_and_their_logits_give_the_same_divergence_and_loss() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(2, 30, 5))
    labels = rng.integers(0, 5, 30)
    as_logits = compared(*logits, labels)
    as_probabilities = compared(*special.softmax(logits, axis=2), labels)
    for one, other in ((as_logits, as_probabilities),):
        assert one.output_error is not None
        assert other.output_error is not None
        assert one.output_error.kl == pytest.approx(other.output_error.kl, rel=1e-9)
        assert one.accuracy is not None
        assert other.accuracy is not None
        assert astuple(one.accuracy.loss) == pytest.approx(astuple(other.accuracy.loss), rel=1e-9)


def test_a_first_batch_that_happens_to_sum_to_one_does_not_make_logits_probabilities() -> None:
    before = np.array([[0.25, 0.75], [3.0, -1.0]])
    after = np.array([[0.75, 0.25], [2.0, -1.0]])
    whole, cut = compared(before, after), compared(before, after, cuts=[1])
    assert whole == cut


def test_class_names_are_used_where_they_fit() -> None:
    named = compared(one_hot([0, 1]), one_hot([0, 2]), classes=["ant", "bee", "cat"])
    assert named.agreement is not None
    assert named.agreement.flips.confusion == (("bee", "cat", 1),)
    assert [each.label for each in named.agreement.per_class] == ["ant", "bee"]
    unnamed = compared(one_hot([0, 1]), one_hot([0, 2]), classes=["ant"])
    assert unnamed.agreement is not None
    assert unnamed.agreement.flips.confusion == (("1", "2", 1),)
    assert unnamed.warnings == ("1 class names are known for an output of 3 classes; classes are numbered",)


def test_nan_in_the_compressed_model_is_a_changed_decision_and_warned_about() -> None:
    before, after = one_hot([0, 1, 2]), one_hot([0, 1, 2])
    after[1, 0] = np.nan
    evidence = compared(before, after, np.array([0, 1, 2]))
    assert evidence.agreement is not None
    assert replace(evidence.agreement.flips, examples=(), margins=()) == Flips(2, 1, 0, 0, 1, (("1", "NaN", 1),))
    assert [(each.index, each.after) for each in evidence.agreement.flips.examples] == [(1, "NaN")]
    assert evidence.accuracy is not None
    assert evidence.accuracy.compressed == pytest.approx(2 / 3)
    assert evidence.accuracy.loss.original is not None
    assert evidence.accuracy.loss.compressed is None
    assert evidence.output_error is not None
    assert evidence.output_error.max_abs == 0
    assert evidence.output_error.kl == 0
    assert evidence.warnings == (
        "compressed model: output 'out' is NaN for 1 of 3 examples; "
        "they are counted as changed decisions and left out of the output errors",
    )


def test_a_compressed_model_of_nothing_but_nan_is_still_judged() -> None:
    evidence = compared(one_hot([0, 1]), np.full((2, 3), np.nan, np.float32), np.array([0, 1]))
    assert evidence.agreement is not None
    assert evidence.agreement.top1.rate == 0
    assert evidence.output_error is not None
    assert astuple(evidence.output_error) == (None, None, None, None, None)


def test_infinite_scores_decide_but_are_left_out_of_the_errors() -> None:
    before, after = one_hot([0, 1]), one_hot([0, 1])
    after[1, 1] = np.inf
    evidence = compared(before, after)
    assert evidence.agreement is not None
    assert evidence.agreement.top1.rate == 1
    assert evidence.warnings == (
        "output 'out' is infinite for 1 of 2 examples; they are left out of the output errors",
    )


def test_nan_in_the_original_is_refused() -> None:
    comparison = Comparison()
    comparison.update({"out": one_hot([0, 1])}, {"out": one_hot([0, 1])})
    broken = one_hot([0, 1])
    broken[1, 2] = np.nan
    with pytest.raises(ModelError) as error:
        comparison.update({"out": broken}, {"out": one_hot([0, 1])})
    assert str(error.value) == (
        "original model: output 'out' is NaN for example 3 (counted from 0); "
        "a model can be judged only where its outputs are numbers"
    )


def test_values_are_judged_by_error_r2_and_cosine() -> None:
    rng = np.random.default_rng(5)
    before = 1000 + rng.normal(size=(60, 2, 3))
    after = before + 0.1 * rng.normal(size=before.shape)
    evidence = compared(before, after)
    assert evidence.agreement is None
    assert evidence.output_error is not None
    assert evidence.output_error.kl is None
    output = evidence.outputs[0]
    assert (output.kind, output.judged) == ("values", True)
    flat_before, flat_after = before.reshape(60, -1), after.reshape(60, -1)
    golden = r2_score(flat_before, flat_after, multioutput="variance_weighted")
    assert output.r2 == pytest.approx(golden, rel=1e-9)
    moved = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert output.rel_l2 == pytest.approx(moved, rel=1e-12)
    assert output.max_abs == np.abs(after - before).max()
    assert output.mean_abs == pytest.approx(np.abs(after - before).mean(), rel=1e-12)


def test_one_number_per_example_has_no_cosine_and_a_constant_no_r2() -> None:
    output = compared(np.ones((5, 1)), np.ones((5, 1)) * 2).outputs[0]
    assert output.cosine is None
    assert output.r2 is None
    assert output.rel_l2 == 1
    zero = compared(np.zeros((5, 3, 1)), np.ones((5, 3, 1))).outputs[0]
    assert zero.rel_l2 is None
    assert zero.cosine == 0


def test_several_outputs_are_judged_by_the_first_class_scores() -> None:
    rng = np.random.default_rng(6)
    original = {
        "features": rng.normal(size=(4, 2, 2)),
        "logits": one_hot([0, 1, 2, 0]),
        "aux": one_hot([0, 1, 2, 0]),
        "label": np.array([0, 1, 2, 0]),
        "name": np.array(["a", "b", "c", "a"]),
        "total": np.float32(3.0),
    }
    compressed = {**original, "label": np.array([0, 1, 2, 1]), "extra": np.zeros(4)}
    comparison = Comparison()
    comparison.update(original, {key: np.asarray(value) for key, value in compressed.items()}, examples=4)
    evidence = comparison.result()
    assert [each.name for each in evidence.outputs] == list(original)
    assert [each.name for each in evidence.outputs if each.judged] == ["logits"]
    assert {each.name: each.equal for each in evidence.outputs if each.kind == "discrete"} == {
        "label": 0.75,
        "name": 1.0,
    }
    assert evidence.warnings == ("output 'extra' is in the compressed model only: not compared",)


def test_outputs_whose_size_depends_on_the_data_are_warned_about() -> None:
    comparison = Comparison()
    comparison.update(
        {"boxes": np.zeros((12, 4)), "logits": one_hot([0, 1])},
        {"boxes": np.zeros((9, 4)), "logits": one_hot([0, 1])},
        examples=2,
    )
    evidence = comparison.result()
    assert evidence.agreement is not None
    assert evidence.outputs[0].max_abs is None
    assert evidence.warnings == ("output 'boxes' has shape (12, 4) and compressed (9, 4): not compared",)


def test_outputs_of_varying_width_have_errors_but_no_r2() -> None:
    comparison = Comparison()
    for length in (3, 5):
        tokens = np.arange(2 * length * 4, dtype=np.float64).reshape(2, length, 4)
        comparison.update({"out": tokens}, {"out": tokens + 1})
    output = comparison.result().outputs[0]
    assert output.r2 is None
    assert output.max_abs == 1
    assert output.cosine is not None


def test_labels_without_class_scores_are_warned_about() -> None:
    evidence = compared(np.ones((2, 1)), np.ones((2, 1)), np.array([0, 1]))
    assert evidence.accuracy is None
    assert evidence.warnings == ("labels were given, but no output holds class scores: accuracy is not judged",)


@pytest.mark.parametrize(
    ("original", "compressed", "sentence"),
    [
        ({}, {}, "original model: no outputs were given; at least one is needed"),
        (
            {"a": one_hot([0])},
            {"b": one_hot([0])},
            "compressed model: output 'a' of the original is missing; its outputs are 'b'",
        ),
        (
            {"a": one_hot([0])},
            {},
            "compressed model: output 'a' of the original is missing; its outputs are none",
        ),
        (
            {"a": one_hot([0])},
            {"a": one_hot([0], 4)},
            "compressed model: output 'a' is float32 of shape (1, 4); class scores of shape (1, 3) are wanted",
        ),
        (
            {"a": one_hot([0])},
            {"a": np.zeros((1, 3), np.int64)},
            "compressed model: output 'a' is int64 of shape (1, 3); class scores of shape (1, 3) are wanted",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    original: dict[str, np.ndarray], compressed: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(ModelError) as error:
        Comparison().update(original, compressed)
    assert str(error.value) == sentence


def test_labels_must_be_in_every_batch_or_in_none() -> None:
    comparison = Comparison()
    comparison.update({"a": one_hot([0])}, {"a": one_hot([0])}, np.array([0]))
    with pytest.raises(DataError, match=r"^labels: some batches have them and some do not; give"):
        comparison.update({"a": one_hot([0])}, {"a": one_hot([0])})


def test_nothing_compared_and_a_bad_confidence_are_refused() -> None:
    comparison = Comparison()
    comparison.update({"a": np.zeros((0, 3))}, {"a": np.zeros((0, 3))})
    with pytest.raises(DataError, match=r"^no examples were compared; at least one is needed$"):
        comparison.result()
    with pytest.raises(OptionError, match=r"^confidence is 95; it must lie strictly between 0 and 1"):
        Comparison(confidence=95)


def numbers(value: object) -> list[object]:
    """Flatten evidence into a list of its figures."""
    if isinstance(value, tuple | list):
        return [item for each in value for item in numbers(each)]
    return [value]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    n, classes = draw(st.integers(1, 40)), draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    before = rng.normal(size=(n, classes)) * draw(st.sampled_from([1e-3, 1.0, 50.0])) + draw(
        st.sampled_from([0.0, 1e3])
    )
    after = before + rng.normal(size=before.shape) * draw(st.sampled_from([0.0, 0.1, 3.0]))
    if draw(st.booleans()):
        before, after = special.softmax(before, axis=1), special.softmax(after, axis=1)
    cuts = draw(st.lists(st.integers(0, n), max_size=5))
    return before, after, rng.integers(0, classes, n), cuts


@given(pairs())
@settings(deadline=None, max_examples=150)
def test_batches_may_be_cut_anywhere_and_the_bounds_hold(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, list[int]],
) -> None:
    before, after, labels, cuts = case
    whole = compared(before, after, labels)
    cut = compared(before, after, labels, cuts=cuts)
    for one, other in zip(numbers(astuple(whole)), numbers(astuple(cut)), strict=True):
        assert one == (pytest.approx(other, rel=1e-12, abs=1e-12) if isinstance(other, float) else other)
    assert whole.agreement is not None
    assert whole.accuracy is not None
    assert abs(whole.accuracy.drop) <= 1 - whole.agreement.top1.rate + 1e-12
    margin = np.sort(before, axis=1)[:, -1] - np.sort(before, axis=1)[:, -2]
    unsafe = np.mean(margin <= 2 * np.abs(after - before).max(axis=1))
    assert whole.agreement.top1.rate >= 1 - unsafe - 1e-12


def test_classes_of_one_name_are_told_apart() -> None:
    evidence = compared(one_hot([0, 1]), one_hot([0, 2]), classes=["crane", "bee", "crane"])
    assert evidence.agreement is not None
    assert evidence.agreement.flips.confusion == (("bee", "crane (2)", 1),)
    assert [each.label for each in evidence.agreement.per_class] == ["crane (0)", "bee"]


def test_half_precision_outputs_are_summed_in_double() -> None:
    before = np.full((4, 3, 3), 60000, np.float16)
    evidence = compared(before, before / 2)
    assert evidence.output_error is not None
    assert evidence.output_error.rel_l2 == pytest.approx(0.5, rel=1e-12)
    assert evidence.output_error.mean_abs == 30000


def test_examples_are_counted_by_the_class_scores_when_no_one_tells() -> None:
    comparison = Comparison()
    outputs = {"total": np.asarray(np.float32(3)), "logits": one_hot([0, 1])}
    comparison.update(outputs, outputs)
    assert comparison.result().examples == 2


def test_one_dimensional_values_and_lone_numbers_are_compared() -> None:
    evidence = compared(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]))
    assert evidence.examples == 3
    assert evidence.outputs[0].max_abs == 1
    assert evidence.outputs[0].r2 == pytest.approx(0.5)
    comparison = Comparison()
    comparison.update({"loss": np.asarray(2.0)}, {"loss": np.asarray(3.0)})
    assert comparison.result().outputs[0].rel_l2 == 0.5
