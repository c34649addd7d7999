"""Targets and gates: what is accepted, what every refusal says, and how a verdict reads."""

from __future__ import annotations

import pytest

from onnxprune.budget import (
    TARGETS,
    Gate,
    Target,
    accuracy_drop_gate,
    agreement_gate,
    bytes_gate,
    latency_gate,
    parse_bytes,
    parse_target,
    size_gate,
)
from onnxprune.errors import OptionError


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_read_and_written_back(name: str) -> None:
    target = parse_target(f"{name}=0.5")
    assert target == Target(name, 0.5)
    assert str(target) == f"{name}=0.5"
    assert parse_target(str(target)) == target


def test_spaces_and_the_ends_of_the_ranges_are_accepted() -> None:
    assert parse_target(" flops = 1 ") == Target("flops", 1.0)
    assert parse_target("sparsity=0") == Target("sparsity", 0.0)
    assert parse_target("bytes=1e-3").value == 0.001


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("flops", "target 'flops' is not of the form name=fraction, such as flops=0.5"),
        ("", "target '' is not of the form name=fraction, such as flops=0.5"),
        ("=0.5", "target '=0.5' is not of the form name=fraction, such as flops=0.5"),
        ("flops=", "target 'flops=' is not of the form name=fraction, such as flops=0.5"),
        (
            "flops=50%",
            "target 'flops=50%': '50%' is not a number; write a fraction, such as flops=0.5",
        ),
        ("keep=nan", "target 'keep=nan': 'nan' is not a number; write a fraction, such as keep=0.5"),
        ("keep=inf", "target 'keep=inf': 'inf' is not a number; write a fraction, such as keep=0.5"),
        (
            "flop=0.5",
            "target 'flop' is unknown (did you mean 'flops'?); accepted are "
            "flops, params, bytes, latency, sparsity, keep",
        ),
        (
            "MACs=0.5",
            "target 'MACs' is unknown (did you mean 'flops'?); accepted are "
            "flops, params, bytes, latency, sparsity, keep",
        ),
        ("zzz=0.5", "target 'zzz' is unknown; accepted are flops, params, bytes, latency, sparsity, keep"),
        ("flops=0", "target flops=0 is out of range; flops must be in (0, 1]"),
        ("params=1.5", "target params=1.5 is out of range; params must be in (0, 1]"),
        ("sparsity=1", "target sparsity=1 is out of range; sparsity must be in [0, 1)"),
        ("sparsity=-0.1", "target sparsity=-0.1 is out of range; sparsity must be in [0, 1)"),
    ],
)
def test_a_bad_target_says_what_is_accepted(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_target(text)
    assert str(error.value) == sentence


def test_an_agreement_that_is_proved() -> None:
    gate = agreement_gate(360, 360, 0.99, 0.95, low=0.99171, needed=299)
    assert gate == Gate(
        "min_agreement",
        0.99,
        0.99171,
        True,
        "agreement at least 0.99: lower bound 0.9917 at 95 % (360 examples, 360 agree): met",
    )


def test_an_agreement_that_is_missed_although_there_are_examples_enough() -> None:
    gate = agreement_gate(357, 360, 0.99, 0.95, low=0.97860, needed=299)
    assert not gate.met
    assert gate.message == ("agreement at least 0.99: lower bound 0.9786 at 95 % (360 examples, 357 agree): not met")


def test_too_few_examples_are_told_apart_from_a_bad_model() -> None:
    gate = agreement_gate(100, 100, 0.99, 0.95, low=0.97048, needed=299)
    assert gate.message == (
        "agreement at least 0.99: lower bound 0.9704 at 95 % (100 examples, 100 agree): not met; "
        "100 examples cannot prove it even for an identical model; at least 299 examples would"
    )


def test_perfect_agreement_cannot_be_proved_by_any_number_of_examples() -> None:
    gate = agreement_gate(1, 1, 1.0, 0.95, low=0.05, needed=None)
    assert gate.message == (
        "agreement at least 1: lower bound 0.0500 at 95 % (1 example, 1 agree): not met; "
        "no number of examples can prove an agreement of 1"
    )


def test_a_lower_bound_is_never_rounded_up_to_the_gate() -> None:
    gate = agreement_gate(9, 10, 0.99, 0.95, low=0.98999, needed=5)
    assert not gate.met
    assert "lower bound 0.9899 " in gate.message


@pytest.mark.parametrize("wanted", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(wanted: float) -> None:
    with pytest.raises(OptionError, match=r"min-agreement is .*; it must be in \[0, 1\], such as 0.99"):
        agreement_gate(1, 1, wanted, 0.95, low=0.5, needed=1)
    with pytest.raises(OptionError, match=r"max-accuracy-drop is .*; it must be in \[0, 1\], such as 0.01"):
        accuracy_drop_gate(0.0, wanted)


def test_an_accuracy_drop_is_met_at_its_limit() -> None:
    assert accuracy_drop_gate(0.01, 0.01).met
    assert accuracy_drop_gate(-0.5, 0.0).met
    gate = accuracy_drop_gate(0.0138888, 0.01)
    assert gate == Gate("max_accuracy_drop", 0.01, 0.0138888, False, "accuracy drop at most 0.01: 0.01389: not met")


def test_an_accuracy_drop_without_labels_is_not_met() -> None:
    gate = accuracy_drop_gate(None, 0.01)
    assert not gate.met
    assert gate.got is None
    assert gate.message == "accuracy drop at most 0.01: no labels to judge it by: not met"


@pytest.mark.parametrize(
    ("target", "got", "met", "message"),
    [
        (Target("flops", 0.5), 0.498, True, "flops at most 0.5: 0.498: met"),
        (Target("flops", 0.5), 0.50001, False, "flops at most 0.5: 0.50001: not met"),
        (Target("sparsity", 0.8), 0.8, True, "sparsity at least 0.8: 0.8: met"),
        (Target("sparsity", 0.8), 0.79, False, "sparsity at least 0.8: 0.79: not met"),
        (Target("latency", 0.5), None, False, "latency at most 0.5: could not be measured: not met"),
    ],
)
def test_a_size_is_judged_in_its_own_direction(target: Target, got: float | None, met: bool, message: str) -> None:
    assert size_gate(target, got) == Gate(target.name, target.value, got, met, message)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("800000", 800_000),
        (" 800kB ", 800_000),
        ("2 MB", 2_000_000),
        ("1.5MB", 1_500_000),
        ("0.1 GB", 100_000_000),
        ("1KiB", 1024),
        ("1.5MiB", 1_572_864),
        ("2GiB", 2_147_483_648),
        ("0.0015kB", 1),
        ("1.1kB", 1100),
    ],
)
def test_bytes_are_read_with_a_unit_or_without(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is no number of bytes; write"),
        ("many", "is no number of bytes; write"),
        ("-5", "is no number of bytes; write"),
        ("1.5", "is no number of bytes; write"),
        ("1e6", "is no number of bytes; write"),
        ("1,000", "is no number of bytes; write"),
        ("5TB", "is no number of bytes; write"),
        ("5 kb", "is no number of bytes (did you mean kB?); write"),
        ("5mib", "is no number of bytes (did you mean MiB?); write"),
        ("\u0663", "is no number of bytes; write"),
    ],
)
def test_what_is_no_number_of_bytes_says_what_is(text: str, found: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_bytes(text)
    assert str(error.value) == (
        f"size {text!r} {found} a whole number, such as 800000, or one with a unit, such as 800kB "
        "(units are kB, MB, GB, KiB, MiB, GiB)"
    )


@pytest.mark.parametrize("text", ["0", "0MB", "0.0001kB"])
def test_no_model_is_smaller_than_a_byte(text: str) -> None:
    with pytest.raises(OptionError, match=r"is less than one byte; no model is that small$"):
        parse_bytes(text)


def test_a_time_is_judged_in_one_direction() -> None:
    assert latency_gate(0.5, 0.5, "x") == Gate(
        "max_latency_ratio", 0.5, 0.5, True, "latency ratio at most 0.5: upper end of the interval 0.5 (x): met"
    )
    assert not latency_gate(0.500001, 0.5, "x").met
    unknown = latency_gate(None, 0.5, "no clock")
    assert (unknown.got, unknown.met) == (None, False)
    assert unknown.message == "latency ratio at most 0.5: could not be measured (no clock): not met"


def test_a_file_is_judged_to_the_byte() -> None:
    assert bytes_gate(2_000_000, 2_000_000).met
    gate = bytes_gate(2_000_001, 2_000_000)
    assert gate == Gate(
        "max_bytes", 2e6, 2_000_001.0, False, "file of at most 2,000,000 bytes: 2,000,001 bytes: not met"
    )
