"""Latency: who runs when, and figures that make sense; their size is the machine's business."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.runtime import latency
from onnxprune.runtime.latency import OPENINGS, measure, measure_anew, take_turns
from onnxprune.runtime.session import Session, Settings, open_session

FEEDS = {"x": np.ones((4, 4), dtype=np.float32)}


class Clock:
    """A clock that only the runs move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += seconds

        return run


class Fake:
    """Stands in for a session: notes when it is bound and run."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def bound(self, feeds: object) -> Callable[[], None]:
        return lambda: self.order.append(self.name)


def test_figures_of_two_models(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as first, open_session(dense(4), Settings()) as second:
        found = measure([first, second], FEEDS, budget_s=0.02)
    assert len(found) == 2
    for figure in found:
        assert 0 < figure.median_ms <= figure.p90_ms <= figure.p99_ms
        assert figure.mean_ms > 0
        assert figure.batch == 4
        assert figure.runs >= figure.blocks >= 6
    assert found[0].runs == found[1].runs  # in turns, so that a machine that slows down slows both
    assert found[0].ratio is None
    ratio = found[1].ratio
    assert ratio is not None
    assert ratio.value == found[1].median_ms / found[0].median_ms
    assert 0 < ratio.low <= ratio.high  # type: ignore[operator]


def test_every_session_is_run_in_turn() -> None:
    order: list[str] = []
    measure([Fake("a", order), Fake("b", order)], FEEDS, budget_s=0.0)  # type: ignore[list-item]
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes >= 11
    assert order.count("a") == order.count("b")


def test_no_budget_still_measures_and_no_sessions_measure_nothing(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as session:
        (figure,) = measure([session], FEEDS, budget_s=0.0)
    assert figure.runs >= 6
    assert measure([], FEEDS, budget_s=0.0) == []


def test_times_are_those_of_the_clock_and_the_first_of_a_turn_is_left_out() -> None:
    clock = Clock()
    taken = take_turns([clock.run("a", 0.004), clock.run("b", 0.002)], budget_s=1.0, least=6, clock=clock)
    assert [times.shape for times in taken] == [(28, 5), (28, 5)]  # 1 s in rounds of 6 x 6 ms
    assert np.allclose(taken[0], 4)
    assert np.allclose(taken[1], 2)
    turns = ["".join(run) for _, run in itertools.groupby(clock.order)]
    assert {len(turn) for turn in turns[-56:]} == {6}


def test_slow_models_get_short_turns_and_the_least_that_is_asked_for() -> None:
    for least in (1, 6):
        clock = Clock()
        (times,) = take_turns([clock.run("a", 2.0)], budget_s=1.0, least=least, clock=clock)
        assert times.shape == (least, 1)
    clock = Clock()
    (times,) = take_turns([clock.run("a", 0.04)], budget_s=1.0, least=6, clock=clock)
    assert len(times) >= 10  # short turns, so that there are enough of them


def test_fast_models_fill_the_time_only_when_asked_to() -> None:
    sizes = []
    for fill in (False, True):
        clock = Clock()
        (times,) = take_turns([clock.run("a", 0.0001)], budget_s=1.0, least=6, fill=fill, clock=clock)
        sizes.append(times.shape)
    assert sizes == [(200, 5), (200, 49)]


def test_models_are_opened_anew_and_each_goes_first() -> None:
    order: list[str] = []
    opened: list[list[Fake]] = []
    steps: list[int] = []

    def open_them() -> list[Session]:
        order.append("|")
        opened.append([Fake(name, order) for name in "abc"])
        return opened[-1]  # type: ignore[return-value]

    other = {"x": np.ones((2, 4), np.float32)}
    found = measure_anew(open_them, [FEEDS, other], budget_s=0.0, advance=steps.append)
    assert len(opened) == len(steps) == OPENINGS
    firsts = [run[0] for run in "".join(order).split("|")[1:]]
    assert firsts[:4] == ["a", "b", "c", "a"]
    assert [[figure.batch for figure in row] for row in found] == [[4] * 3, [2] * 3]
    assert {figure.blocks for row in found for figure in row} == {OPENINGS}
    assert [figure.ratio is None for figure in found[0]] == [True, False, False]


def test_times_stay_with_their_model_whoever_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = {"a": 1.0, "b": 0.5, "c": 3.0}

    def turns(runners: list[Callable[[], str]], **_: object) -> list[np.ndarray]:
        return [np.full((2, 3), spent[run()]) for run in runners]

    class Named(Fake):
        def bound(self, feeds: object) -> Callable[[], str]:  # type: ignore[override]
            return lambda: self.name

    monkeypatch.setattr(latency, "take_turns", turns)
    (row,) = measure_anew(lambda: [Named(n, []) for n in "abc"], [FEEDS], budget_s=0.0)  # type: ignore[misc]
    assert [figure.median_ms for figure in row] == [1.0, 0.5, 3.0]
    assert [figure.ratio.value for figure in row[1:] if figure.ratio is not None] == [0.5, 3.0]
    assert {figure.runs for figure in row} == {6 * OPENINGS}
