"""Controls and stops: what is accepted, and the thresholds that both ends share."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxprune.codec.law import Law, Ledger, Stop
from onnxprune.errors import OptionError


@pytest.mark.parametrize(
    ("kind", "given", "accepted"),
    [
        (Law, {"alpha": 0.0}, "a finite number above 0"),
        (Law, {"alpha": math.inf}, "a finite number above 0"),
        (Law, {"alpha": math.nan}, "a finite number above 0"),
        (Law, {"decay": 1.0}, "a number in (0, 1)"),
        (Law, {"patience": 0}, "a whole number of 1 or more"),
        (Law, {"seed": -1}, "a whole number in [0, 2^64)"),
        (Stop, {"sparsity": 1.5}, "a number in [0, 1]"),
        (Stop, {"relative_l1": -0.1}, "a number in [0, 1]"),
        (Stop, {"fraction": math.nan}, "a number in [0, 1]"),
        (Stop, {"hits": -1}, "a whole number of 0 or more"),
        (Stop, {"bytes": -4}, "a whole number of 0 or more"),
    ],
)
def test_values_out_of_range(kind: Any, given: dict[str, float], accepted: str) -> None:
    ((name, value),) = given.items()
    with pytest.raises(OptionError) as caught:
        kind(**given)
    assert str(caught.value) == f"{name}={value} is not accepted; give {accepted}"


def test_a_stops_numbers() -> None:
    assert Stop().support(10) is None
    assert Stop(sparsity=0.25).support(10) == 7
    assert Stop(sparsity=0.25, nonzeros=3).support(10) == 3
    assert Stop(sparsity=1 / 3).support(3) == 2
    assert Stop().size() is None
    assert Stop(bits=17).size() == 2
    assert Stop(bits=80, bytes=4).size() == 4


def test_thresholds_follow_from_counts_alone() -> None:
    ledger = Ledger(Law(alpha=1.0), 4, 10.0)
    assert ledger.open() == 2.5
    assert ledger.most == math.inf
    assert [ledger.relative_l1(hits) for hits in (0, 1, 2)] == [1.0, 0.75, 0.5]
    assert [ledger.hits_for(target) for target in (1.0, 0.75, 0.74, 0.5)] == [0, 1, 2, 2]
    ledger.close(2)
    assert ledger.open() == 1.25
    assert ledger.most == 1
    ledger.close(0)  # nothing above it: the next decay comes at once
    assert ledger.open() == 1.25 * 0.9
    assert ledger.levels == 3


def test_an_exhausted_ledger_ends() -> None:
    assert Ledger(Law(), 0, 0.0).open() is None
    assert Ledger(Law(), 5, 0.0).open() is None
    ledger = Ledger(Law(patience=1), 5, 1.0)
    opened = 0
    while ledger.open() is not None:
        ledger.close(0)
        opened += 1
    assert 100 < opened < 200
