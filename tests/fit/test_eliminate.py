"""Backward elimination against solving the ridge problem anew without each channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from onnxprune.fit import eliminate as module
from onnxprune.fit.eliminate import Elimination, Problem, eliminate


def made(
    seed: int, channels: int, features: int = 1, outputs: int = 3, *, rows: int = 80, scale: float = 1.0,
    missing: Sequence[int] = (), twins: Sequence[tuple[int, int]] = (), dead: Sequence[int] = (), shuffled: bool = True,
    ridge: float = 1e-3,
) -> Problem:  # fmt: skip
    rng = np.random.default_rng(seed)
    owner = np.tile(np.arange(channels), features)
    owner = rng.permutation(owner) if shuffled else owner
    a = rng.standard_normal((rows, len(owner))) @ (np.eye(len(owner)) + 0.3 * rng.standard_normal((len(owner),) * 2))
    for first, second in twins:
        a[:, np.flatnonzero(owner == second)] = a[:, np.flatnonzero(owner == first)]
    a[:, np.isin(owner, list(dead))] = 0.0
    live = ~np.isin(owner, list(missing))
    a, owner = a[:, live], owner[live]
    y = a @ (rng.standard_normal((a.shape[1], outputs)) * rng.exponential(1, (a.shape[1], 1)))
    y += 0.3 * rng.standard_normal(y.shape) + 1
    a = np.concatenate([a, np.ones((rows, 1))], axis=1)
    gram = a.T @ a
    gram[np.diag_indices(len(owner))] += ridge * float(np.mean(gram.diagonal()[:-1])) if len(owner) else 0.0
    return Problem(gram, a.T @ y, np.append(owner, -1), scale)


def minimum(problem: Problem, live: np.ndarray) -> float:
    """Return the ridge minimum (less the targets' energy) over the features of live channels."""
    stay = (problem.owner < 0) | live[problem.owner]
    gram, cross = problem.gram[np.ix_(stay, stay)], problem.cross[stay]
    return -problem.scale * float(np.sum(cross * np.linalg.lstsq(gram, cross, rcond=None)[0]))


def total(problems: Sequence[Problem], live: np.ndarray) -> float:
    return sum(minimum(problem, live) for problem in problems)


def one_by_one(problems: Sequence[Problem], channels: int) -> Elimination:
    live = np.ones(channels, dtype=bool)
    base = total(problems, live)
    order, error = [], np.zeros(channels + 1)
    for left in range(channels - 1, -1, -1):
        losses = []
        for channel in np.flatnonzero(live):
            live[channel] = False
            losses.append(total(problems, live))
            live[channel] = True
        least = min(losses)
        going = int(np.flatnonzero(live)[next(i for i, x in enumerate(losses) if x <= least + 1e-9 * abs(base))])
        live[going] = False
        order.append(going)
        error[left] = total(problems, live) - base
    return Elimination(np.array(order), error)


CASES = {
    "single": lambda: [made(0, 7)],
    "taps": lambda: [made(1, 6, 4)],
    "two": lambda: [made(2, 6, 1, scale=0.5), made(3, 6, 3, outputs=2, scale=2.0)],
    "partly_read": lambda: [made(4, 6, 2, missing=(1, 4)), made(5, 6, missing=(0,))],
    "twins": lambda: [made(6, 6, 2, twins=[(1, 4)], shuffled=False)],
    "dead": lambda: [made(7, 6, 2, dead=(0, 3))],
    "alone": lambda: [made(8, 1, 2)],
    "few_rows": lambda: [made(9, 6, 4, rows=12)],
}


@pytest.mark.parametrize("name", list(CASES))
def test_it_is_what_solving_anew_finds(name: str) -> None:
    problems = CASES[name]()
    channels = int(max(problem.owner.max() for problem in problems)) + 1
    want, got = one_by_one(problems, channels), eliminate(problems, channels)
    np.testing.assert_array_equal(got.order, want.order)
    np.testing.assert_allclose(got.error, want.error, rtol=1e-8, atol=1e-8 * float(want.error.max()))


@pytest.mark.parametrize("name", list(CASES))
def test_every_width_is_nested_and_its_error_exact(name: str) -> None:
    problems = CASES[name]()
    channels = int(max(problem.owner.max() for problem in problems)) + 1
    found = eliminate(problems, channels)
    base = total(problems, np.ones(channels, dtype=bool))
    for count in range(channels + 1):
        kept = found.kept(count)
        assert len(kept) == count and list(kept) == sorted(kept)
        assert set(kept) <= set(found.kept(min(channels, count + 1)))
        live = np.isin(np.arange(channels), kept)
        assert found.error[count] == pytest.approx(total(problems, live) - base, rel=1e-8, abs=1e-8 * found.error[0])
    assert (np.diff(found.error) <= 0).all() and found.error[-1] == 0.0


def test_channels_of_unequal_sizes() -> None:
    rng = np.random.default_rng(0)
    problem = made(11, 12)
    merged = np.where(problem.owner < 0, -1, np.array([0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 5, 5])[problem.owner])
    problems = [Problem(problem.gram, problem.cross, merged, 1.0), made(12, 6, 2)]
    want, got = one_by_one(problems, 6), eliminate(problems, 6)
    np.testing.assert_array_equal(got.order, want.order)
    np.testing.assert_allclose(got.error, want.error, rtol=1e-8)
    assert rng is not None


def test_ties_go_to_the_lowest_channel() -> None:
    gram = np.diag([*np.full(9, 2.0), 10.0])
    cross = np.zeros((10, 2))
    cross[:9] = 1.0
    found = eliminate([Problem(gram, cross, np.append(np.arange(9)[::-1], -1), 1.0)], 9)
    np.testing.assert_array_equal(found.order, np.arange(9))
    nothing = eliminate([Problem(gram, 0 * cross, np.append(np.arange(9), -1), 1.0)], 9)
    np.testing.assert_array_equal(nothing.order, np.arange(9))
    assert not nothing.error.any()


def test_ties_do_not_depend_on_rounding() -> None:
    for seed in range(20):
        problem = made(seed, 5, 3, twins=[(1, 3)], shuffled=False)
        order = list(eliminate([problem], 5).order)
        assert order.index(1) < order.index(3)


def test_spaces_that_nobody_reads_go_in_order() -> None:
    found = eliminate([], 4)
    np.testing.assert_array_equal(found.order, np.arange(4))
    np.testing.assert_array_equal(found.error, np.zeros(5))


def test_a_singular_problem_without_a_ridge() -> None:
    problem = made(13, 6, 2, rows=8, ridge=0.0)
    found = eliminate([problem], 6)
    assert sorted(found.order) == list(range(6)) and np.isfinite(found.error).all()
    assert (np.diff(found.error) <= 1e-12).all()


@pytest.mark.parametrize("features", [1, 3])
def test_several_at_once_are_close_to_one_by_one(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [made(14, 150, features, outputs=8, rows=900), made(15, 150, 1, outputs=5, rows=600)]
    got = eliminate(problems, 150)
    monkeypatch.setattr(module, "_WIDE", 10_000)
    want = eliminate(problems, 150)
    assert (got.error[:150] <= 1.03 * want.error[:150] + 1e-9).all()
    base = total(problems, np.ones(150, dtype=bool))
    for count in (10, 65, 100, 130):  # the error of every width is that of its channels all the same
        live = np.isin(np.arange(150), got.kept(count))
        assert got.error[count] == pytest.approx(total(problems, live) - base, rel=1e-6)


def test_of_twins_one_stays_when_several_go_at_once() -> None:
    pairs = [(2 * i, 2 * i + 1) for i in range(50)]
    problem = made(16, 100, outputs=60, rows=600, twins=pairs, shuffled=False, ridge=1e-6)
    kept = eliminate([problem], 100).kept(50)
    np.testing.assert_array_equal(kept // 2, np.arange(50))


def test_a_narrow_and_a_shrunk_problem_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = made(17, 40, 2, rows=300)
    want = eliminate([problem], 40)
    monkeypatch.setattr(module, "_SHRINK", 0.0)
    monkeypatch.setattr(module, "_CHUNK", 1)
    got = eliminate([problem], 40)
    np.testing.assert_array_equal(got.order, want.order)
    np.testing.assert_allclose(got.error, want.error, rtol=1e-9, atol=1e-9)
