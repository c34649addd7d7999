"""The law one hit at a time: against the direct scan, its invariants, its edges."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from onnxprune.codec.law import Law, Stop
from onnxprune.codec.levels import refine
from onnxprune.codec.sequential import announce
from onnxprune.errors import CodecError, OptionError

Weights = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def scan() -> Iterator[Any]:
    """The direct scan of benchmarks/, which is no part of the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
        yield importlib.import_module("benchmarks.surp_reference").scan


@pytest.mark.parametrize("options", [{}, {"alpha": 3.0}, {"paper": True}, {"patience": 1}, {"masked": True}])
def test_the_error_is_distributed_as_the_direct_scans(laplacian: Weights, scan: Any, options: dict[str, Any]) -> None:
    weights = np.abs(laplacian(0, 2000))
    if options.get("masked"):
        weights[::4] = 0.0
    law = {key: value for key, value in options.items() if key in {"alpha", "patience"}}
    form = {key: value for key, value in options.items() if key in {"masked", "paper"}}
    hits = 700
    fast = [
        weights.sum() - announce(weights, Stop(hits=hits), Law(seed=seed, **law), **form).values.sum()
        for seed in range(20)
    ]
    slow = [scan(weights, hits, seed, **options).sum() for seed in range(20)]
    # At a given number of hits most runs have one and the same error but for its last digits.
    assert ks_2samp(np.round(fast, 8), np.round(slow, 8)).pvalue > 0.001
    assert np.mean(fast) == pytest.approx(np.mean(slow), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [3.0, 10.0])
def test_the_error_is_distributed_as_the_direct_scans_at_twenty_thousand(
    laplacian: Weights, scan: Any, alpha: float
) -> None:
    weights = np.abs(laplacian(1, 20_000))
    fast = [1 - announce(weights, Stop(hits=4000), Law(alpha=alpha, seed=s)).relative_l1 for s in range(20)]
    slow = [1 - scan(weights, 4000, s, alpha=alpha).sum() / weights.sum() for s in range(20)]
    assert ks_2samp(np.round(fast, 10), np.round(slow, 10)).pvalue > 0.001
    assert np.mean(fast) == pytest.approx(np.mean(slow), rel=1e-3)


@pytest.mark.parametrize("paper", [False, True])
def test_every_hit_takes_its_threshold_off_a_larger_residual(laplacian: Weights, paper: bool) -> None:
    weights = np.abs(laplacian(2, 400))
    run = announce(weights, Stop(hits=500), Law(seed=3), paper=paper)
    residual = weights.copy()
    for where, threshold in zip(run.announced, run.thresholds, strict=True):
        assert residual[where] > threshold > 0
        residual[where] -= threshold
    assert run.hits == 500
    assert np.allclose(weights - residual, run.values, rtol=0, atol=1e-12)
    assert run.relative_l1 == pytest.approx(residual.sum() / weights.sum(), rel=1e-9)
    assert np.array_equal(run.values > 0, np.isin(np.arange(400), run.announced))


def test_the_first_threshold_and_its_decay(laplacian: Weights) -> None:
    weights = np.abs(laplacian(2, 400))
    for paper, part in ((False, 1.0), (True, np.log(400 / np.log(400)))):
        run = announce(weights, Stop(hits=5), Law(alpha=0.5), paper=paper)
        assert run.thresholds[0] == 0.5 * weights.sum() / 400
        assert run.thresholds[1:] / run.thresholds[:-1] == pytest.approx([1 - part / 400] * 4, rel=1e-12)


@pytest.mark.parametrize("alpha", [3.0, 10.0, 13.0])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_level_form_is_within_five_percent_at_equal_hits(laplacian: Weights, alpha: float, share: float) -> None:
    weights = np.abs(laplacian(4, 20_000))
    run = announce(weights, Stop(sparsity=1 - share), Law(alpha=alpha))
    level = refine(weights, Stop(hits=run.hits), Law(alpha=alpha))
    assert level.relative_l1 == pytest.approx(run.relative_l1, rel=0.05)


@pytest.mark.parametrize(
    ("stop", "reads"),
    [
        (Stop(sparsity=0.75), lambda run: np.count_nonzero(run.values) == 250),
        (Stop(nonzeros=13), lambda run: np.count_nonzero(run.values) == 13),
        (Stop(hits=77), lambda run: run.hits == 77),
        (Stop(relative_l1=0.3), lambda run: 0.25 < run.relative_l1 <= 0.3),
        (Stop(bits=2000), lambda run: 2000 <= run.index_bits + np.count_nonzero(run.values) < 2020),
        (Stop(), lambda run: np.count_nonzero(run.values) == 1000),
    ],
)
def test_stops(laplacian: Weights, stop: Stop, reads: Any) -> None:
    run = announce(np.abs(laplacian(5, 1000)), stop, Law())
    assert run.complete
    assert reads(run)


def test_same_seed_same_announcements(laplacian: Weights) -> None:
    weights = np.abs(laplacian(6, 500))
    first, again, other = (announce(weights, Stop(hits=200), Law(seed=seed)) for seed in (1, 1, 2))
    assert first.announced.tolist() == again.announced.tolist() != other.announced.tolist()
    longer = announce(weights, Stop(hits=201), Law(seed=1))
    assert longer.announced[:200].tolist() == first.announced.tolist()


@pytest.mark.parametrize("power", [-30, 20])
def test_scaling_by_a_power_of_two_scales_the_code(laplacian: Weights, power: int) -> None:
    weights = np.abs(laplacian(7, 300))
    plain, scaled = (announce(w, Stop(hits=250), Law()) for w in (weights, weights * 2.0**power))
    assert np.array_equal(plain.values * 2.0**power, scaled.values)
    assert plain.announced.tolist() == scaled.announced.tolist()


def test_edges() -> None:
    for weights in (np.zeros(0), np.zeros(5)):
        assert announce(weights, Stop(nonzeros=3), Law()).hits == 0
    found = announce(np.array([1.0, -0.0, 2.0], dtype=np.float16), Stop(nonzeros=3), Law())
    assert not found.complete
    assert found.values[1] == 0.0
    assert np.count_nonzero(found.values) == 2
    assert announce(np.array([1.0, 1e-15]), Stop(hits=10_000), Law()).hits < 10_000
    for bad in (np.nan, np.inf, -1.0):
        with pytest.raises(CodecError):
            announce(np.array([1.0, bad]), Stop(nonzeros=1), Law())
    with pytest.raises(OptionError, match="the sequential law cannot stop at bytes=3"):
        announce(np.ones(3), Stop(bytes=3), Law())


def test_the_running_sum_is_renewed(laplacian: Weights) -> None:
    weights = np.abs(laplacian(8, 3000))
    run = announce(weights, Stop(hits=70_000), Law(patience=1))
    assert run.hits == 70_000
    assert run.relative_l1 == pytest.approx((weights - run.values).sum() / weights.sum(), rel=1e-6)
