"""The certificate: never wrong, exact at its edge, blind to rows that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxprune.evaluate.certificate import certified
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.scores import decide

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 5))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def test_an_error_of_half_the_margin_certifies_nothing() -> None:
    before = np.array([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [2.0, 2.0]])
    after = np.array([[2.0, 2.0], [2.25, 1.75], [3.0, 1.0], [2.0, 2.0]])
    assert certified(before, after).tolist() == [False, True, True, False]


def test_rows_that_are_not_finite_are_not_certified() -> None:
    before = np.array([[3.0, 1.0], [np.inf, 1.0], [3.0, 1.0]])
    after = np.array([[np.nan, 1.0], [np.inf, 1.0], [np.inf, 1.0]])
    assert not certified(before, after).any()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_certified_is_kept(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    if data.draw(st.booleans()):
        numbers = st.floats(-4, 4, width=32)
    else:
        numbers = st.floats(allow_nan=False, allow_infinity=False, width=np.dtype(dtype).itemsize * 8)
    before = data.draw(arrays.arrays(dtype, shape, elements=numbers)).astype(np.float64)
    moved = data.draw(arrays.arrays(dtype, shape, elements=numbers)).astype(np.float64)
    with np.errstate(over="ignore"):
        after = moved if data.draw(st.booleans()) else before + moved * data.draw(st.sampled_from([1.0, 1e-3, 1e-17]))
    kept = decide(before) == decide(after)
    assert kept[certified(before, after)].all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 3), st.integers(1, 40))
def test_kept_decisions_are_at_least_the_certified_ones(seed: int, noise: float, batch: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(40, 4)).astype(np.float32)
    after = (before + noise * rng.normal(size=before.shape)).astype(np.float32)
    comparison = Comparison()
    for start in range(0, 40, batch):
        comparison.update({"y": before[start : start + batch]}, {"y": after[start : start + batch]})
    agreement = comparison.result().agreement
    assert agreement is not None and agreement.certified is not None
    assert agreement.certified == certified(before.astype(float), after.astype(float)).sum() / 40
    assert round(agreement.certified * 40) <= agreement.flips.kept


def test_a_model_and_itself_are_certified_but_for_ties() -> None:
    scores = np.array([[1.0, 0.0], [5.0, 5.0]])
    comparison = Comparison()
    comparison.update({"y": scores}, {"y": scores})
    agreement = comparison.result().agreement
    assert agreement is not None
    assert agreement.certified == pytest.approx(0.5)
    assert agreement.top1.rate == 1
