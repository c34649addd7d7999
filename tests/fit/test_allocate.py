"""Widths for a fraction and for a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.fit.allocate import fraction_widths, uniform_widths

WIDTHS = {"a": 20, "b": 50, "c": 500}


def chain(widths: Mapping[str, int]) -> int:
    """Multiply-accumulates of 3 -> a -> b -> c -> 10, the first two layers at many positions."""
    return 100 * 3 * widths["a"] + 64 * widths["a"] * widths["b"] + widths["b"] * widths["c"] + 10 * widths["c"]


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [(1.0, (20, 50, 500)), (0.5, (10, 25, 250)), (0.29, (5, 14, 145)), (0.3, (6, 15, 150)), (1e-6, (1, 1, 1))],
)
def test_fraction_is_floored_but_never_below_one(keep: float, wanted: tuple[int, ...]) -> None:
    assert tuple(fraction_widths(WIDTHS, keep).values()) == wanted


def test_fraction_survives_rounding() -> None:
    for width in range(1, 200):
        for count in range(1, width + 1):
            assert fraction_widths({"x": width}, count / width) == {"x": count}


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_budget_is_never_passed_and_nearly_used(share: float) -> None:
    limit = int(share * chain(WIDTHS))
    chosen = uniform_widths(WIDTHS, chain, limit)
    assert 0.98 * limit <= chain(chosen) <= limit
    assert all(1 <= chosen[name] <= width for name, width in WIDTHS.items())


def test_fractions_stay_close_to_each_other() -> None:
    chosen = uniform_widths(WIDTHS, chain, chain(WIDTHS) // 2)
    fractions = [chosen[name] / width for name, width in WIDTHS.items()]
    assert max(fractions) - min(fractions) < 0.08


def test_a_budget_that_is_met_already_changes_nothing() -> None:
    assert uniform_widths(WIDTHS, chain, chain(WIDTHS)) == WIDTHS
    assert uniform_widths({}, lambda widths: 7, 1) == {}


def test_an_unreachable_budget_gives_one_channel_everywhere() -> None:
    assert uniform_widths(WIDTHS, chain, 0) == {"a": 1, "b": 1, "c": 1}


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 64), min_size=1, max_size=5),
    st.floats(0.01, 1.0),
)
def test_widths_fit_wherever_they_can(widths: dict[str, int], share: float) -> None:
    def cost(given: Mapping[str, int]) -> int:
        return math.prod(given.values()) + sum(given.values())

    limit = int(share * cost(widths))
    chosen = uniform_widths(widths, cost, limit)
    assert chosen.keys() == widths.keys()
    assert all(1 <= chosen[name] <= widths[name] for name in widths)
    assert cost(chosen) <= max(limit, cost(dict.fromkeys(widths, 1)))
    assert chosen == uniform_widths(widths, cost, limit)
