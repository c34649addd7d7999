"""The flips a report names: the surest of all, whatever the batches, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Flip
from onnxprune.evaluate.surest import EXAMPLES, SurestFlips


def flips(before: np.ndarray, after: np.ndarray, batch: int, labels: np.ndarray | None = None) -> tuple[Flip, ...]:
    comparison = Comparison()
    for start in range(0, len(before), batch):
        part = slice(start, start + batch)
        truth = None if labels is None else labels[part]
        comparison.update({"y": before[part]}, {"y": after[part]}, truth)
    agreement = comparison.result().agreement
    assert agreement is not None
    return agreement.flips.examples


@pytest.mark.parametrize("as_probabilities", [False, True])
def test_the_surest_come_first_and_batches_change_nothing(as_probabilities: bool) -> None:
    rng = np.random.default_rng(3)
    before, after = rng.normal(0, 3, (2, 200, 6))
    if as_probabilities:
        before, after = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (before, after))
    labels = rng.integers(0, 6, 200)
    found = flips(before, after, 200, labels)
    assert found == flips(before, after, 7, labels) == flips(before, after, 1, labels)
    assert len(found) == EXAMPLES
    shares = before if as_probabilities else np.exp(before) / np.exp(before).sum(axis=1, keepdims=True)
    changed = np.flatnonzero(before.argmax(1) != after.argmax(1))
    wanted = changed[np.argsort(-shares[changed].max(axis=1), kind="stable")][:EXAMPLES]
    assert [each.index for each in found] == wanted.tolist()
    first, row = found[0], wanted[0]
    top = np.sort(shares[row])
    assert first.confidence == pytest.approx(top[-1])
    assert first.margin == pytest.approx(top[-1] - top[-2])
    assert (first.before, first.after) == (str(before[row].argmax()), str(after[row].argmax()))
    assert first.label == str(labels[row])


def test_of_equally_sure_ones_the_lowest_index_comes_first() -> None:
    before = np.tile([4.0, 0.0, 1.0], (60, 1))
    after = np.tile([0.0, 4.0, 1.0], (60, 1))
    assert [each.index for each in flips(before, after, 13)] == list(range(EXAMPLES))
    assert flips(before, after, 13)[0].label is None


def test_scores_that_are_not_finite_are_the_least_sure() -> None:
    before = np.array([[np.inf, 0.0], [1.0, 0.0]])
    found = flips(before, before[:, ::-1], 2)
    assert [(each.index, each.confidence, each.margin) for each in found][1] == (0, None, None)


def test_examples_are_named_by_their_row_in_the_source() -> None:
    surest = SurestFlips()
    scores = np.array([[2.0, 0.0], [3.0, 0.0]])
    surest.update(scores, np.array([0, 0]), np.array([1, 1]), None, np.array([70, 5]))
    assert [each.index for each in surest.found(["a", "b"], probabilities=False)] == [5, 70]
