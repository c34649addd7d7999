"""The sentences under a benchmark: faster, slower, smaller not faster, and off what the MACs say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxprune.report.bench import BenchModel, deviation, meaning, ratio_text, setting_text, share
from onnxprune.runtime.timing import Latency, Ratio

A = BenchModel("A", "a.onnx", 100, "0" * 64, 10, 10, 1000, 1, 40, 1.0, 1.0, 1.0)
HALF = replace(A, name="B", macs=500, macs_ratio=0.5, bytes_ratio=0.5, nonzero_ratio=0.5)
SPARSE = replace(A, name="B", nonzero=2, nonzero_ratio=0.2)
TWIN = replace(A, name="B")


def timed(value: float, low: float | None, high: float | None) -> Latency:
    return Latency(2.0, 2.1, 80, 4, 2.2, 2.0, 8, Ratio(value, low, high, 0.95))


@pytest.mark.parametrize(
    ("model", "latency", "said"),
    [
        (A, replace(timed(1, 1, 1), ratio=None), "A takes 2 ms a run, 2,000 examples a second."),
        (
            HALF,
            timed(0.52, 0.51, 0.53),
            "B is 1.92 times as fast as A (ratio 0.52, 0.51-0.53); its MACs are 0.50 of those.",
        ),
        (
            HALF,
            timed(0.99, 0.97, 1.02),
            "B is smaller, not faster: the interval holds 1 (ratio 0.99, 0.97-1.02); its MACs are 0.50 of those, "
            "and its time is 98 % above what they say.",
        ),
        (
            SPARSE,
            timed(1.0, 0.98, 1.01),
            "B is smaller, not faster: the interval holds 1 (ratio 1.00, 0.98-1.01); its MACs are the same, "
            "and a zero takes as long to multiply by as any other weight.",
        ),
        (
            TWIN,
            timed(1.001, 0.99, 1.01),
            "B and A cannot be told apart: the interval holds 1 (ratio 1.001, 0.99-1.01); its MACs are the same.",
        ),
        (
            TWIN,
            timed(1.05, 1.02, 1.08),
            "B is slower than A: it takes 1.05 times as long (1.02-1.08); its MACs are the same.",
        ),
        (
            HALF,
            timed(0.3, 0.29, 0.31),
            "B is 3.33 times as fast as A (ratio 0.30, 0.29-0.31); "
            "its MACs are 0.50 of those, and its time is 40 % below what they say.",
        ),
        (
            HALF,
            timed(0.5, None, None),
            "B takes 0.50 of A's time; the turns were too few for an interval; its MACs are 0.50 of those.",
        ),
        (
            replace(HALF, macs=None, macs_ratio=None),
            timed(0.5, 0.4, 0.6),
            "B is 2.00 times as fast as A (ratio 0.50, 0.40-0.60); its MACs are not known.",
        ),
        (
            TWIN,
            replace(timed(1, 1, 1), ratio=None),
            "B cannot be compared: the runs of A took no time that the clock shows.",
        ),
    ],
)
def test_what_a_ratio_means(model: BenchModel, latency: Latency, said: str) -> None:
    assert meaning(A, model, latency, (), 16) == said


def test_widths_are_named_where_the_macs_promise_more() -> None:
    names = [f"conv{place} ({width})" for place, width in enumerate((45, 90, 181, 362, 363, 361))]
    found = meaning(A, HALF, timed(0.65, 0.64, 0.66), names, 16)
    assert found.endswith(
        "and its time is 30 % above what they say; widths that are no multiple of 16 may be why (align=auto avoids "
        "them): conv0 (45), conv1 (90), conv2 (181), conv3 (362) and 2 more."
    )
    assert "conv0" not in meaning(A, HALF, timed(0.52, 0.51, 0.53), names, 16)


@pytest.mark.parametrize(
    ("value", "low", "high", "off"),
    [
        (0.56, 0.55, 0.57, 0.12),
        (0.44, 0.43, 0.45, -0.12),
        (0.54, 0.53, 0.55, None),  # within 10 %
        (0.60, 0.49, 0.70, None),  # the data does not tell it from the MACs
        (0.60, None, None, 0.2),
    ],
)
def test_what_counts_as_a_miss(value: float, low: float | None, high: float | None, off: float | None) -> None:
    found = deviation(HALF, Ratio(value, low, high, 0.95))
    assert found == (None if off is None else pytest.approx(off))
    assert deviation(replace(HALF, macs_ratio=None), Ratio(value, low, high, 0.95)) is None
    assert deviation(HALF, None) is None


def test_figures_never_round_to_a_promise() -> None:
    assert [share(value) for value in (0.5, 1.0, 0.0, 0.998, 1.0004, 0.999999, 12.345)] == [
        "0.50", "1.00", "0.00", "0.998", "1.0004", "0.999999", "12.35",
    ]  # fmt: skip
    assert share(1 - 1e-9) == "0.999999999"
    assert ratio_text(Ratio(0.5, 0.49, 0.999, 0.95)) == "0.50, 0.49-0.999"
    assert [setting_text(1, None), setting_text(8, 1), setting_text(8, 2)] == [
        "batch 1", "batch 8, 1 thread", "batch 8, 2 threads",
    ]  # fmt: skip
