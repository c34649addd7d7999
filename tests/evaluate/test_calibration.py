"""Calibration error and margins: by hand, against a plain loop, and however the examples are cut into batches."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.evaluate.calibration import BINS, MARGINS, sureness
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence, MarginBin


def compared(before: np.ndarray, after: np.ndarray, labels: np.ndarray | None, batch: int = 64) -> Evidence:
    comparison = Comparison()
    for start in range(0, len(before), batch):
        part = slice(start, start + batch)
        comparison.update({"y": before[part]}, {"y": after[part]}, None if labels is None else labels[part])
    return comparison.result()


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def by_loop(shares: np.ndarray, labels: np.ndarray) -> float:
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    error = 0.0
    for place in range(BINS):
        inside = (sure > place / BINS) & (sure <= (place + 1) / BINS)
        if inside.any():
            error += inside.sum() / len(sure) * abs(right[inside].mean() - sure[inside].mean())
    return error


def test_calibration_by_hand() -> None:
    # 0.9 and 0.9 share a bin (one right of two), 0.6 is alone in another and right.
    shares = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    found = compared(shares, shares, np.array([0, 1, 1])).accuracy
    assert found is not None and found.calibration_error is not None
    assert found.calibration_error.original == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6)) / 3)


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_calibration_is_the_plain_loops_whatever_the_batches(as_probabilities: bool) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 2, (2, 500, 7))
    labels = np.where(rng.random(500) < 0.6, before.argmax(axis=1), rng.integers(0, 7, 500))
    given = [softmax(scores) if as_probabilities else scores for scores in (before, after)]
    for batch in (500, 33, 1):
        found = compared(*given, labels, batch).accuracy
        assert found is not None and found.calibration_error is not None
        assert found.calibration_error.original == pytest.approx(by_loop(softmax(before), labels), abs=1e-12)
        assert found.calibration_error.compressed == pytest.approx(by_loop(softmax(after), labels), abs=1e-12)


def test_calibration_is_not_defined_without_probabilities() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 1.0]])
    broken = np.array([[np.nan, 0.0], [0.0, 1.0]])
    found = compared(scores, broken, np.array([0, 1])).accuracy
    assert found is not None and found.calibration_error is not None
    assert found.calibration_error.original is not None
    assert found.calibration_error.compressed is None
    assert compared(scores, scores, None).accuracy is None


@pytest.mark.parametrize("batch", [1, 13, 300])
def test_margins_count_every_example_and_every_change(batch: int) -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(0, 2, (300, 5))
    after = before + rng.normal(0, 0.7, before.shape)
    agreement = compared(before, after, None, batch).agreement
    assert agreement is not None
    bins = agreement.flips.margins
    assert [each.up_to for each in bins] == [(place + 1) / MARGINS for place in range(MARGINS)]
    assert sum(each.examples for each in bins) == 300
    assert sum(each.flipped for each in bins) == agreement.flips.count > 0
    top = np.sort(softmax(before), axis=1)
    margin, changed = top[:, -1] - top[:, -2], before.argmax(1) != after.argmax(1)
    closest = margin <= 0.1
    assert bins[0] == MarginBin(0.1, int(closest.sum()), int((closest & changed).sum()))
    # Small changes flip near-ties.
    assert bins[0].flipped / bins[0].examples > bins[-1].flipped / bins[-1].examples


def test_a_tie_is_in_the_first_bin_and_a_sure_decision_in_the_last() -> None:
    sure, margin = sureness(np.array([[0.0, 0.0], [900.0, 0.0], [np.inf, 0.0]]), probabilities=False)
    assert sure.tolist()[:2] == [0.5, 1.0] and margin.tolist()[:2] == [0.0, 1.0]
    assert np.isnan([sure[2], margin[2]]).all()
    scores = np.array([[0.0, 0.0], [900.0, 0.0], [1.0, 0.0]])
    agreement = compared(scores, scores, None).agreement
    assert agreement is not None
    assert [each.examples for each in agreement.flips.margins] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 1]
