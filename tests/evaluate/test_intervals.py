"""Intervals and tests against scipy's own, and at their ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from onnxprune.errors import DataError, OptionError
from onnxprune.evaluate.intervals import (
    clopper_pearson,
    examples_needed,
    lower_bound,
    mcnemar_p,
    most_flips,
    paired_difference,
    wilson,
)
from onnxprune.evaluate.scores import decide

CASES = [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (357, 360), (360, 360), (9999, 10000), (24_321, 50_000)]
CONFIDENCES = [0.5, 0.9, 0.95, 0.999]


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize(("hits", "n"), CASES)
def test_exact_and_score_intervals_equal_scipys(hits: int, n: int, confidence: float) -> None:
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        golden = binomtest(hits, n).proportion_ci(confidence, method=method)
        assert ours(hits, n, confidence) == pytest.approx((golden.low, golden.high), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("confidence", CONFIDENCES)
@pytest.mark.parametrize(("hits", "n"), CASES)
def test_the_one_sided_bound_equals_scipys(hits: int, n: int, confidence: float) -> None:
    golden = binomtest(hits, n, alternative="greater").proportion_ci(confidence)
    assert lower_bound(hits, n, confidence) == pytest.approx(golden.low, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (0, 1), (3, 3), (10, 2), (2, 10), (200, 150)])
def test_mcnemar_equals_the_binomial_test(lost: int, gained: int) -> None:
    golden = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar_p(lost, gained) == pytest.approx(golden, rel=1e-10)


def test_the_paired_interval_is_newcombes() -> None:
    # The worked example of Newcombe (1998), method 10.
    assert paired_difference(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("counts", [(0, 0, 0, 1), (90, 4, 1, 5), (0, 3, 3, 0), (50, 0, 0, 50), (357, 3, 0, 0)])
def test_the_paired_interval_holds_the_drop_and_turns_with_the_models(counts: tuple[int, int, int, int]) -> None:
    both, lost, gained, neither = counts
    low, high = paired_difference(*counts)
    assert -1 <= low <= (lost - gained) / sum(counts) <= high <= 1
    assert low < high
    assert paired_difference(both, gained, lost, neither) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("chances", [(0.8, 0.06, 0.03, 0.11), (0.9, 0.02, 0.02, 0.06), (0.5, 0.2, 0.1, 0.2)])
def test_the_paired_interval_covers_the_true_drop(chances: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    true = chances[1] - chances[2]
    covered = 0
    for counts in rng.multinomial(100, chances, 2000):
        low, high = paired_difference(*counts.tolist())
        covered += low <= true <= high
    assert covered / 2000 >= 0.935


def test_the_paired_interval_refuses_negative_counts_and_no_examples() -> None:
    with pytest.raises(DataError, match="negative"):
        paired_difference(3, -1, 0, 2)
    with pytest.raises(DataError, match="at least one example"):
        paired_difference(0, 0, 0, 0)


def test_all_of_n_prove_the_nth_root() -> None:
    assert lower_bound(299, 299, 0.95) == pytest.approx(0.05 ** (1 / 299), rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "confidence", "n"),
    [(0.99, 0.95, 299), (0.999, 0.95, 2995), (0.5, 0.5, 1), (0.0, 0.95, 1), (0.9, 0.9, 22)],
)
def test_examples_needed(rate: float, confidence: float, n: int) -> None:
    assert examples_needed(rate, confidence) == n


def test_rates_next_to_certainty_have_an_answer() -> None:
    for digits in range(1, 16):
        rate = 1 - 10**-digits
        found = examples_needed(rate, 0.95)
        assert found == pytest.approx(math.log(0.05) / math.log(rate), rel=1e-6, abs=1)


def test_no_number_of_examples_proves_certainty() -> None:
    assert examples_needed(1.0, 0.95) is None


@given(st.floats(0.01, 0.9999), st.floats(0.01, 0.9999))
@settings(deadline=None, max_examples=200)
def test_examples_needed_is_the_smallest_that_will_do(rate: float, confidence: float) -> None:
    n = examples_needed(rate, confidence)
    assert n is not None
    assert lower_bound(n, n, confidence) >= rate
    assert n == 1 or lower_bound(n - 1, n - 1, confidence) < rate


@given(st.integers(1, 3000), st.floats(0, 0.9999) | st.just(1.0), st.floats(0.01, 0.9999))
@settings(deadline=None, max_examples=200)
def test_most_flips_are_the_most_that_still_prove(n: int, rate: float, confidence: float) -> None:
    flips = most_flips(n, rate, confidence)
    needed = examples_needed(rate, confidence)
    assert (flips is None) == (needed is None or n < needed)
    if flips is not None:
        assert lower_bound(n - flips, n, confidence) >= rate
        assert flips == n or lower_bound(n - flips - 1, n, confidence) < rate


@pytest.mark.parametrize(("confidence", "examples", "moved"), [(0.95, 300, 0.02), (0.95, 1000, 0.2), (0.8, 60, 0.4)])
def test_bounds_of_decisions_on_logits_cover_the_true_agreement(confidence: float, examples: int, moved: float) -> None:
    rng = np.random.default_rng(0)
    draws, classes = 2000, 10
    # Logits of a pool and of a model whose noise moves some decisions: its share over the pool is the truth.
    pool = rng.standard_normal((20_000, classes)) * 2
    other = pool + moved * rng.standard_normal(pool.shape)
    same = decide(pool) == decide(other)
    truth = float(same.mean())
    assert 0.5 < truth < 0.995
    hits = [int(same[rng.integers(0, len(same), examples)].sum()) for _ in range(draws)]
    bounds = [(lower_bound(k, examples, confidence), 1.0) for k in range(examples + 1)]
    intervals = [clopper_pearson(k, examples, confidence) for k in range(examples + 1)]
    for ends in (bounds, intervals):
        covers = np.array([low <= truth <= high for low, high in ends])
        exact = float(binom.pmf(np.arange(examples + 1), examples, truth)[covers].sum())
        simulated = float(covers[hits].mean())
        assert exact >= confidence
        assert simulated >= confidence - 3 * math.sqrt(confidence * (1 - confidence) / draws)
        assert simulated == pytest.approx(exact, abs=3 * math.sqrt(exact * (1 - exact) / draws) + 1e-3)


@given(st.integers(1, 2000), st.data(), st.floats(0.5, 0.999))
@settings(deadline=None)
def test_every_interval_holds_the_rate_and_the_exact_one_is_ordered(
    n: int, data: st.DataObject, confidence: float
) -> None:
    hits = data.draw(st.integers(0, n))
    for interval in (clopper_pearson, wilson):
        low, high = interval(hits, n, confidence)
        assert 0 <= low <= hits / n + 1e-12
        assert hits / n - 1e-12 <= high <= 1
    # One side at the same confidence is closer than two.
    assert lower_bound(hits, n, confidence) >= clopper_pearson(hits, n, confidence)[0] - 1e-12


@pytest.mark.parametrize("interval", [clopper_pearson, lower_bound, wilson])
def test_what_cannot_be_bounded_is_refused(interval: object) -> None:
    assert callable(interval)
    with pytest.raises(DataError, match=r"^a rate of 0 examples cannot be bounded; at least one"):
        interval(0, 0, 0.95)
    with pytest.raises(DataError, match=r"^hits is 3 for 2 examples; it must be between 0 and 2$"):
        interval(3, 2, 0.95)
    with pytest.raises(DataError, match=r"^hits is -1 for 2 examples; it must be between 0 and 2$"):
        interval(-1, 2, 0.95)
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(OptionError, match=r"^confidence is .*; it must lie strictly between 0 and 1"):
            interval(1, 2, confidence)


def test_a_rate_out_of_range_and_negative_counts_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^rate is 99; it must be in \[0, 1\]$"):
        examples_needed(99, 0.95)
    with pytest.raises(OptionError, match=r"^rate is -1; it must be in \[0, 1\]$"):
        most_flips(10, -1, 0.95)
    with pytest.raises(DataError, match=r"^lost is -1 and gained is 2; neither count may be negative$"):
        mcnemar_p(-1, 2)
