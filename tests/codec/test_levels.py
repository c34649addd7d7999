"""SuRP's law in level form: the methods' golden case and the invariants that every prefix keeps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.codec.law import Law, Stop, kappa, scan_order, scan_words
from onnxprune.codec.levels import Refinement, Refiner
from onnxprune.codec.levels import refine as run
from onnxprune.errors import CodecError, OptionError

GOLDEN = np.array([4.0, 3.0, 2.0, 1.0])


def refine(magnitudes: np.ndarray, nonzeros: int, law: Law) -> Refinement:
    return run(magnitudes, Stop(nonzeros=nonzeros), law)


def laplacian(seed: int, count: int = 2000) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).laplace(size=count))


@pytest.mark.parametrize(
    ("nonzeros", "thresholds", "values", "hits", "error"),
    [
        (2, (2.5,), (2.5, 2.5, 0, 0), 2, 5.0),
        (3, (2.5, 1.25), (3.75, 2.5, 1.25, 0), 4, 2.5),
        (4, (2.5, 1.25, 0.625), (3.75, 2.5, 1.875, 0.625), 6, 1.25),
    ],
)
def test_golden_case_level_by_level(
    nonzeros: int, thresholds: tuple[float, ...], values: tuple[float, ...], hits: int, error: float
) -> None:
    found = refine(GOLDEN, nonzeros, Law(alpha=1.0))
    assert found.thresholds == thresholds
    assert found.values.tolist() == list(values)
    assert found.hits == hits
    assert found.levels == len(thresholds)
    assert found.complete
    assert float((GOLDEN - found.values).sum()) == error


def test_a_level_that_meets_the_goal_in_mid_scan_stops_there() -> None:
    found = refine(GOLDEN, 1, Law(alpha=1.0))
    assert np.count_nonzero(found.values) == 1
    assert found.values.max() == 2.5
    assert found.hits == 1


@pytest.mark.parametrize("patience", [1, 20])
def test_alpha_scales_the_first_threshold(patience: int) -> None:
    found = refine(laplacian(0), 10, Law(alpha=3.0, patience=patience))
    assert found.thresholds[0] == 3.0 * laplacian(0).sum() / 2000


def test_patience_counts_the_refreshes_before_a_decay() -> None:
    eager = refine(laplacian(0), 1900, Law(alpha=1.5, decay=0.5, patience=1))
    patient = refine(laplacian(0), 1900, Law(alpha=1.5, decay=0.5, patience=50))
    assert eager.thresholds[0] == patient.thresholds[0]
    assert eager.thresholds[1] < patient.thresholds[1]


def test_kappa_is_the_papers_factor_and_never_below_one() -> None:
    assert kappa(272_474) == pytest.approx(9.99, abs=0.005)
    assert kappa(14_730_000) == pytest.approx(13.70, abs=0.005)
    assert [kappa(count) for count in (0, 1, 2, 3)] == [1.0, 1.0, 1.0, max(1.0, math.log(3 / math.log(3)))]


def test_without_alpha_the_first_level_is_at_kappa() -> None:
    weights = np.abs(np.random.default_rng(0).standard_cauchy(1000))  # tails long enough for a hit at kappa
    assert refine(weights, 1, Law()).thresholds[0] == kappa(1000) * weights.sum() / 1000


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 300),
    st.floats(0, 1),
    st.sampled_from([None, 0.3, 1.0, 13.0]),
    st.sampled_from([1, 20]),
)
def test_every_prefix_stays_below_the_weights_and_is_exactly_as_sparse_as_asked(
    seed: int, count: int, share: float, alpha: float | None, patience: int
) -> None:
    weights = laplacian(seed, count)
    weights[np.random.default_rng(seed).random(count) < 0.2] = 0.0
    alive = int(np.count_nonzero(weights))
    wanted = round(share * alive)
    found = refine(weights, wanted, Law(alpha=alpha, patience=patience, seed=seed))
    assert (found.values >= 0).all()
    assert (found.values <= weights).all()
    assert np.count_nonzero(found.values) == wanted
    assert found.complete
    assert not found.values[weights == 0].any()
    assert found.hits >= wanted


@pytest.mark.parametrize("seed", [0, 7])
def test_supports_nest_and_the_error_falls(seed: int) -> None:
    weights = laplacian(1)
    prefixes = [refine(weights, k, Law(seed=seed)) for k in (1, 10, 100, 250, 999, 1500, 1999, 2000)]
    for shorter, longer in itertools.pairwise(prefixes):
        assert (shorter.values <= longer.values).all()
        assert ((shorter.values > 0) <= (longer.values > 0)).all()
        assert (weights - longer.values).sum() < (weights - shorter.values).sum()
        assert longer.hits > shorter.hits
        assert longer.thresholds[: len(shorter.thresholds)] == shorter.thresholds


def test_thresholds_fall() -> None:
    found = refine(laplacian(2), 2000, Law())
    assert (np.diff(found.thresholds) < 0).all()


def test_error_is_what_the_hits_took_away() -> None:
    weights = laplacian(3, 500)
    found = refine(weights, 500, Law(alpha=1.0))
    # Exhausting a level leaves residuals in (0, threshold].
    assert (weights - found.values > -1e-12).all()
    assert (weights - found.values).max() <= found.thresholds[-2]


def test_level_form_is_close_to_the_sequential_law() -> None:
    """The paper's loop, one hit at a time with the threshold decaying as mean(r) does, at equal hits."""
    weights = laplacian(4, 4000)
    factor = kappa(4000)
    for nonzeros in (400, 1600):
        level = refine(weights, nonzeros, Law())
        residual, rng, alpha, refreshes = weights.copy(), np.random.default_rng(0), factor, 0
        threshold = alpha * residual.mean()
        for _ in range(level.hits):
            while not len(above := np.flatnonzero(residual > threshold)):
                refreshes += 1
                alpha *= 0.9 if refreshes % 20 == 0 else 1.0
                threshold = alpha * residual.mean()
            residual[rng.choice(above)] -= threshold
            threshold *= 1 - 1 / 4000
        error = (weights - level.values).sum()
        assert error == pytest.approx(residual.sum(), rel=0.05)


@pytest.mark.parametrize("power", [-30, -3, 1, 20])
def test_scaling_by_a_power_of_two_scales_the_code(power: int) -> None:
    weights = laplacian(5)
    plain, scaled = refine(weights, 700, Law(seed=3)), refine(weights * 2.0**power, 700, Law(seed=3))
    assert np.array_equal(plain.values * 2.0**power, scaled.values)
    assert (plain.hits, plain.levels) == (scaled.hits, scaled.levels)


def test_same_seed_same_result_and_the_seed_decides_only_the_last_scan() -> None:
    weights = laplacian(6)
    first, again, other = (refine(weights, 333, Law(seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)
    assert first.thresholds == other.thresholds
    assert np.count_nonzero(other.values) == 333


def test_the_scan_order_is_a_fixed_permutation() -> None:
    assert scan_order(8, 0).tolist() == scan_order(8, 0).tolist()
    assert sorted(scan_order(1000, 5).tolist()) == list(range(1000))
    assert scan_order(1000, 5).tolist() != scan_order(1000, 6).tolist()
    # Part of the format: another order would make another code.
    assert scan_order(8, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_more_nonzeros_than_there_are_is_told() -> None:
    found = refine(np.array([1.0, 0.0, 2.0, 0.0]), 3, Law())
    assert not found.complete
    assert np.count_nonzero(found.values) == 2


@pytest.mark.parametrize(
    "weights", [np.zeros(5), np.zeros(0), np.ones(1), np.full(50, 0.1), np.array([1.0, 1e-3, 1e-7])]
)
def test_degenerate_weights_end(weights: np.ndarray) -> None:
    alive = int(np.count_nonzero(weights))
    assert not refine(weights, 0, Law()).values.any()
    found = refine(weights, alive, Law())
    assert found.complete
    assert np.count_nonzero(found.values) == alive
    assert (found.values <= weights).all()


def test_weights_that_no_threshold_reaches_are_left_out() -> None:
    found = refine(np.array([1.0, 1e-15]), 2, Law())
    assert not found.complete
    assert found.values[1] == 0.0


def test_the_given_magnitudes_are_not_touched() -> None:
    weights = laplacian(0)
    before = weights.copy()
    refine(weights, 500, Law())
    assert np.array_equal(weights, before)
    assert refine(weights.astype(np.float32), 500, Law()).values.dtype == np.float64


def test_the_words_of_a_few_coordinates_are_those_of_all() -> None:
    count = (1 << 20) + 77
    where = np.array([0, 5, (1 << 20) - 1, 1 << 20, count - 1])
    words = np.random.Philox(key=3).random_raw(count)
    assert scan_words(where, count, 3).tolist() == words[where].tolist()


@pytest.mark.parametrize("alpha", [None, 0.5, 3.0])
def test_every_hit_takes_the_threshold_from_the_error(alpha: float | None) -> None:
    weights = laplacian(7, 300)
    law = Law(alpha=alpha, seed=2)
    refiner = Refiner(weights, law)
    before = refiner.state()
    for hits in range(1, 400):
        refiner.advance(Stop(hits=hits))
        after = refiner.state()
        assert after.hits == hits
        step = np.flatnonzero(after.values - before.values)
        assert len(step) == 1
        gained = after.values[step[0]] - before.values[step[0]]
        assert gained == pytest.approx(after.thresholds[-1], rel=1e-12)
        assert weights.sum() - after.values.sum() == pytest.approx(after.relative_l1 * weights.sum(), rel=1e-9)
        assert np.count_nonzero(after.values) >= np.count_nonzero(before.values)
        before = after


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 900), min_size=1, max_size=6), st.sampled_from([None, 0.2, 1.0]))
def test_going_on_is_the_same_as_starting_over(seed: int, stops: list[int], alpha: float | None) -> None:
    weights = laplacian(seed, 400)
    law = Law(alpha=alpha, seed=seed)
    refiner = Refiner(weights, law)
    for hits in sorted(stops):
        refiner.advance(Stop(hits=hits))
        kept, fresh = refiner.state(), run(weights, Stop(hits=hits), law)
        assert np.array_equal(kept.values, fresh.values)
        assert (kept.hits, kept.levels, kept.thresholds) == (fresh.hits, fresh.levels, fresh.thresholds)
        assert kept.relative_l1 == fresh.relative_l1


def test_a_stop_that_lies_behind_changes_nothing() -> None:
    refiner = Refiner(laplacian(1), Law(alpha=1.0))
    refiner.advance(Stop(hits=333))
    before = refiner.state()
    for stop in (Stop(hits=10), Stop(sparsity=0.999), Stop(relative_l1=0.99)):
        refiner.advance(stop)
        assert np.array_equal(refiner.state().values, before.values)
        assert refiner.state().hits == 333


@pytest.mark.parametrize("target", [0.9, 0.5, 0.1, 0.01])
def test_a_wanted_error_is_met_by_the_first_hit_that_meets_it(target: float) -> None:
    weights = laplacian(3)
    found = run(weights, Stop(relative_l1=target), Law(patience=1))
    one_less = run(weights, Stop(hits=found.hits - 1), Law(patience=1))
    assert found.relative_l1 <= target < one_less.relative_l1
    assert (weights - found.values).sum() / weights.sum() == pytest.approx(found.relative_l1, rel=1e-9)


def test_the_first_condition_that_is_met_ends_the_code() -> None:
    weights = laplacian(3)
    both = run(weights, Stop(hits=300, sparsity=0.5, relative_l1=0.2), Law())
    assert both.hits == 300
    assert both.complete
    assert run(weights, Stop(sparsity=0.75), Law()).values.nonzero()[0].size == 500


def test_without_a_stop_everything_is_said() -> None:
    weights = laplacian(3, 50)
    found = run(weights, Stop(), Law())
    assert np.count_nonzero(found.values) == 50
    assert found.complete
    found = run(weights, Stop(relative_l1=1e-9), Law())
    assert found.relative_l1 <= 1e-9


def test_the_masked_form_takes_the_mean_over_what_is_left() -> None:
    weights = laplacian(8)
    holed = weights.copy()
    holed[::3] = 0.0
    alone = run(holed[holed > 0], Stop(nonzeros=600), Law(alpha=2.0))
    masked = run(holed, Stop(nonzeros=600), Law(alpha=2.0), masked=True)
    assert masked.thresholds == pytest.approx(alone.thresholds, rel=1e-12)
    assert masked.hits == pytest.approx(alone.hits, rel=0.01)
    assert not masked.values[::3].any()
    assert run(holed, Stop(nonzeros=600), Law(alpha=2.0)).thresholds[0] < masked.thresholds[0]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_narrow_weights_are_refined_as_they_are(kind: type) -> None:
    weights = laplacian(9).astype(kind)
    found = run(weights, Stop(sparsity=0.5), Law())
    wide = run(weights.astype(np.float64), Stop(sparsity=0.5), Law())
    assert np.array_equal(found.values, wide.values)
    assert (found.values <= weights.astype(np.float64)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0])
def test_weights_that_are_no_magnitudes_are_refused(bad: float) -> None:
    with pytest.raises(CodecError, match="a weight is NaN, infinite or a negative magnitude"):
        run(np.array([1.0, bad, 2.0]), Stop(nonzeros=1), Law())


def test_a_negative_zero_is_a_zero() -> None:
    found = run(np.array([1.0, -0.0, 2.0]), Stop(), Law())
    assert found.values[1] == 0.0


def test_a_sum_beyond_the_range_is_refused() -> None:
    with pytest.raises(CodecError, match="too large for their sum"):
        run(np.full(4, 1e308), Stop(), Law())


@pytest.mark.parametrize("stop", [Stop(bits=8), Stop(bytes=8), Stop(fraction=0.5)])
def test_what_only_an_encoder_knows_is_refused(stop: Stop) -> None:
    with pytest.raises(OptionError, match="the level law cannot stop at"):
        run(np.ones(3), stop, Law())


@pytest.mark.parametrize("count", range(1, 16))
def test_a_handful_of_weights(count: int) -> None:
    weights = laplacian(count, count)
    for wanted in range(count + 1):
        found = run(weights, Stop(nonzeros=wanted), Law())
        assert np.count_nonzero(found.values) == wanted
