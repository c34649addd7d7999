"""Latency: figures that make sense; their size is the machine's business."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.runtime.latency import measure
from onnxprune.runtime.session import Settings, open_session

FEEDS = {"x": np.ones((4, 4), dtype=np.float32)}


def test_figures_of_two_models(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as first, open_session(dense(4), Settings()) as second:
        found = measure([first, second], FEEDS, budget_s=0.02)
    assert len(found) == 2
    for figure in found:
        assert 0 < figure.median_ms <= figure.p90_ms
        assert figure.batch == 4
        assert figure.runs >= 3
    assert found[0].runs == found[1].runs  # in turns, so that a machine that slows down slows both


def test_every_session_is_run_in_turn() -> None:
    order: list[str] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, feeds: object) -> None:
            order.append(self.name)

    measure([Recorded("a"), Recorded("b")], FEEDS, budget_s=0.0)  # type: ignore[list-item]
    changes = sum(before != after for before, after in itertools.pairwise(order))
    assert changes >= 5
    assert order.count("a") == order.count("b")


def test_no_budget_still_measures_and_no_sessions_measure_nothing(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as session:
        (figure,) = measure([session], FEEDS, budget_s=0.0)
    assert figure.runs >= 3
    assert measure([], FEEDS, budget_s=0.0) == []
