"""Options of passes: their ranges, their words, what is refused and in which sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from onnxprune.contract import Tap, check_options, option, options_of
from onnxprune.errors import OptionError


@dataclass(frozen=True)
class Sample:
    share: float | None = option(None, float, "a share", low=0.0, above=True, high=1.0)
    count: int = option(3, int, "a count", low=1)
    word: str = option("slow", str, "a word", choices=("slow", "fast"))
    free: str = option("", str, "any text")
    flag: bool = option(True, bool, "a switch")
    rest: float = option(0.5, float, "half open", low=0.0, high=1.0, below=True)
    name: ClassVar[str] = "sample"

    def __post_init__(self) -> None:
        check_options(self)


def test_options_come_from_the_fields_in_order() -> None:
    specs = list(options_of(Sample))
    assert [spec.name for spec in specs] == ["share", "count", "word", "free", "flag", "rest"]
    assert [spec.accepted for spec in specs] == [
        "a number in (0, 1]",
        "a whole number in [1, inf)",
        "slow or fast",
        "text",
        "true or false",
        "a number in [0, 1)",
    ]


def test_large_limits_are_written_out() -> None:
    @dataclass(frozen=True)
    class Large:
        count: int = option(1, int, "", low=0, high=1_000_000)

    assert next(options_of(Large)).accepted == "a whole number in [0, 1000000]"


@pytest.mark.parametrize(
    "given",
    [
        {"share": 1.0},
        {"share": 1},
        {"share": None},
        {"share": 5e-324},
        {"count": 10**12},
        {"word": "fast"},
        {"flag": False},
        {"rest": 0.0},
        {"share": np.float32(0.5)},
        {"share": np.float64(0.5)},
        {"count": np.int64(4)},
    ],
)
def test_accepted(given: dict[str, Any]) -> None:
    Sample(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, "sample: share=0.0 is not accepted; give a number in (0, 1]"),
        ({"share": 1.0000001}, "sample: share=1.0000001 is not accepted; give a number in (0, 1]"),
        ({"share": float("nan")}, "sample: share=nan is not accepted; give a number in (0, 1]"),
        ({"share": True}, "sample: share=True is not accepted; give a number in (0, 1]"),
        ({"share": "0.5"}, "sample: share=0.5 is not accepted; give a number in (0, 1]"),
        ({"count": 0}, "sample: count=0 is not accepted; give a whole number in [1, inf)"),
        ({"count": 2.0}, "sample: count=2.0 is not accepted; give a whole number in [1, inf)"),
        ({"count": None}, "sample: count=None is not accepted; give a whole number in [1, inf)"),
        ({"count": False}, "sample: count=False is not accepted; give a whole number in [1, inf)"),
        ({"word": "quick"}, "sample: word=quick is not accepted; give slow or fast"),
        ({"flag": 1}, "sample: flag=1 is not accepted; give true or false"),
        ({"rest": 1.0}, "sample: rest=1.0 is not accepted; give a number in [0, 1)"),
        ({"rest": float("inf")}, "sample: rest=inf is not accepted; give a number in [0, 1)"),
        ({"free": 3}, "sample: free=3 is not accepted; give text"),
    ],
)
def test_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Sample(**given)
    assert str(caught.value) == message


def test_infinity_is_refused_where_there_is_no_upper_limit() -> None:
    @dataclass(frozen=True)
    class Open:
        size: float = option(1.0, float, "", low=0.0)
        name: ClassVar[str] = "open"

    with pytest.raises(OptionError, match=r"size=inf is not accepted; give a number in \[0, inf\)"):
        check_options(Open(size=float("inf")))


def test_a_tap_is_a_key() -> None:
    assert {Tap("x", 1): "seen"}[Tap("x", 1)] == "seen"
