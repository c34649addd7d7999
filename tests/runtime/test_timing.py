"""What times prove: percentiles, ratios and their intervals, on made-up times."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import OptionError
from onnxprune.runtime import timing
from onnxprune.runtime.timing import INTERVAL_BLOCKS, ratio_of_medians, summarise


def blocks(seed: int, count: int, runs: int, level: float = 1.0, drift: float = 0.0) -> list[np.ndarray]:
    """Return times whose blocks share a state: a level of each block's own, noise within."""
    rng = np.random.default_rng(seed)
    states = level * np.exp(drift * rng.standard_normal(count))
    return [state * np.exp(0.02 * np.abs(rng.standard_normal(runs))) for state in states]


def test_figures_are_those_of_all_runs() -> None:
    found = summarise([np.arange(1.0, 61.0), np.arange(61.0, 101.0)], 4)
    assert (found.median_ms, found.mean_ms) == (50.5, 50.5)
    assert found.p90_ms == pytest.approx(np.percentile(np.arange(1, 101), 90))
    assert found.p99_ms == pytest.approx(np.percentile(np.arange(1, 101), 99))
    assert (found.runs, found.blocks, found.batch, found.ratio) == (100, 2, 4, None)


def test_a_constant_factor_is_found_exactly_however_the_machine_drifts() -> None:
    first = blocks(0, 30, 5, drift=0.5)
    found = ratio_of_medians(first, [block / 2 for block in first])
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.confidence == 0.95


def test_the_resampled_medians_are_medians_of_what_was_drawn() -> None:
    taken = [np.array([3.0, 1.0]), np.array([2.0]), np.array([9.0, 8.0, 7.0])]
    drawn = np.array([[1, 1, 1], [3, 0, 0], [0, 2, 1], [2, 1, 0], [0, 0, 3]])
    wanted = [np.median(np.concatenate([np.tile(b, n) for b, n in zip(taken, row, strict=True)])) for row in drawn]
    assert timing._medians(taken, drawn).tolist() == wanted


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = blocks(0, 12, 7, drift=0.1), blocks(1, 12, 9, drift=0.1)
    whole = ratio_of_medians(first, other, seed=3)
    monkeypatch.setattr(timing, "_CHUNK", 100)
    assert ratio_of_medians(first, other, seed=3) == whole
    assert ratio_of_medians(first, other, seed=4) != whole


@pytest.mark.parametrize("count", [INTERVAL_BLOCKS, 8, 30])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(count: int) -> None:
    true, covered, tries = 0.8, 0, 200
    for seed in range(tries):
        # Blocks of the two models differ on their own, as two openings of a file do.
        pair = blocks(2 * seed, count, 9, drift=0.03), blocks(2 * seed + 1, count, 9, true, drift=0.03)
        found = ratio_of_medians(*pair, seed=seed)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        covered += found.low <= true <= found.high
    assert covered / tries > 0.9


def test_single_runs_would_claim_too_much() -> None:
    first, other = blocks(0, 10, 50, drift=0.1), blocks(1, 10, 50, drift=0.1)
    by_block = ratio_of_medians(first, other)
    by_run = ratio_of_medians(np.concatenate(first)[:, None], np.concatenate(other)[:, None])  # type: ignore[arg-type]
    assert by_block is not None
    assert by_run is not None
    assert by_block.high - by_block.low > 2 * (by_run.high - by_run.low)  # type: ignore[operator]


def test_a_higher_confidence_is_wider() -> None:
    first, other = blocks(0, 20, 5, drift=0.1), blocks(1, 20, 5, drift=0.1)
    narrow, wide = (ratio_of_medians(first, other, confidence=level) for level in (0.8, 0.99))
    assert narrow is not None
    assert wide is not None
    assert wide.low < narrow.low <= narrow.high < wide.high  # type: ignore[operator]


def test_too_few_blocks_have_no_interval_and_no_time_no_ratio() -> None:
    few = blocks(0, INTERVAL_BLOCKS - 1, 5)
    found = ratio_of_medians(few, few)
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert ratio_of_medians([np.zeros(3)] * 6, blocks(0, 6, 3)) is None


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        ratio_of_medians(blocks(0, 6, 3), blocks(0, 6, 3), confidence=confidence)
