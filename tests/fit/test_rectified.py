"""Refits behind a ReLU: a reference in double, channels that are gone, and what does not fit into memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from onnxprune.fit import rectified
from onnxprune.fit.moments import Moments
from onnxprune.fit.rectified import RectifiedRows
from onnxprune.fit.solve import Solution, refit

FEATURES, OUTPUTS, ROWS = 12, 5, 700


class Problem:
    """Rows in three batches, of which some channels are to go."""

    def __init__(self, seed: int, drop: int) -> None:
        rng = np.random.default_rng(seed)
        mixing = rng.standard_normal((FEATURES, FEATURES)) / 3 + np.eye(FEATURES)
        self.features = np.maximum(rng.standard_normal((ROWS, FEATURES)) @ mixing, 0.0).astype(np.float32)
        self.weights = rng.standard_normal((FEATURES, OUTPUTS)) / 2
        self.shift = 0.2 * rng.standard_normal(OUTPUTS) - 0.3
        self.skip = rng.standard_normal((ROWS, OUTPUTS)).astype(np.float32)
        self.targets = self.features @ self.weights + self.shift
        self.keep = np.ones(FEATURES, dtype=bool)
        self.keep[rng.choice(FEATURES, drop, replace=False)] = False
        self.sums = Moments.empty(1, FEATURES, OUTPUTS)
        self.rows = RectifiedRows()
        for part in np.array_split(np.arange(ROWS), 3):
            self.sums.update(self.features[None, part], self.targets[part])
            self.rows.add(self.features[None, part], self.targets[part], self.skip[part])

    def refit(self, sums: Moments) -> Solution:
        found = partial(refit, taps=1, ridge=1e-4, shiftable=True, preserve_zeros=False)
        return found(sums, self.weights[None], self.shift, self.keep[None])

    def error(self, solution: Solution) -> float:
        """Return the squared error behind the ReLU, in double."""
        got = self.features.astype(np.float64) @ solution.matrix[0] + solution.shift + self.skip
        return float(np.square(np.maximum(got, 0.0) - np.maximum(self.targets + self.skip, 0.0)).sum())

    def reference(self, rounds: int) -> Solution:
        """Aim at the original where it is positive, else at the present value as long as that is negative."""
        present = self.refit(self.sums)
        for _ in range(rounds):
            got = self.features.astype(np.float64) @ present.matrix[0] + present.shift + self.skip
            wanted = self.targets + self.skip
            aims = np.where(wanted > 0.0, wanted, np.minimum(got, 0.0)) - self.skip
            sums = Moments.empty(1, FEATURES, OUTPUTS)
            sums.update(self.features[None], aims)
            later = self.refit(sums)
            if self.error(later) >= self.error(present):
                break
            present = later
        return present


@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_are_those_of_the_reference(rounds: int) -> None:
    for seed in range(5):
        problem = Problem(seed, 4)
        first = problem.refit(problem.sums)
        found = problem.rows.improved(problem.sums, first, problem.refit, rounds, problem.keep)
        wanted = problem.reference(rounds)
        assert problem.error(found) <= problem.error(first) * (1 + 1e-6)
        np.testing.assert_allclose(found.matrix, wanted.matrix, atol=2e-5)
        np.testing.assert_allclose(found.shift, wanted.shift, atol=2e-5)
        assert not found.matrix[0][~problem.keep].any()
        assert (found.folded, found.fitted) == (first.folded, first.fitted)


def test_more_rounds_are_never_worse() -> None:
    errors = []
    for rounds in (0, 1, 2, 5):
        problem = Problem(1, 5)
        first = problem.refit(problem.sums)
        found = problem.rows.improved(problem.sums, first, problem.refit, rounds, problem.keep)
        errors.append(problem.error(found))
        assert rounds or (found.matrix == first.matrix).all()
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_nothing_to_make_up_for() -> None:
    problem = Problem(0, 0)
    first = problem.refit(problem.sums)
    found = problem.rows.improved(problem.sums, first, problem.refit, 3, problem.keep)
    assert problem.error(found) <= 1e-9 * float(np.square(problem.targets).sum())


def test_a_solution_that_does_worse_is_not_taken() -> None:
    problem = Problem(2, 3)
    first = problem.refit(problem.sums)
    worse = replace(first, matrix=np.zeros_like(first.matrix))
    assert problem.rows.improved(problem.sums, first, lambda sums: worse, 3, problem.keep).matrix is first.matrix


def test_rows_beyond_the_room_leave_the_first_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectified, "_ROOM", 20_000)
    problem = Problem(3, 3)
    first = problem.refit(problem.sums)
    assert problem.rows.improved(problem.sums, first, problem.refit, 3, problem.keep) is first
