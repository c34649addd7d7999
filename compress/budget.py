"""Targets and gates as numbers: what the user asks for, and whether a result keeps to it."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from onnxprune.errors import OptionError

TARGETS: Final = ("flops", "params", "bytes", "latency", "sparsity", "keep")
MAX_BYTES: Final = "max_bytes"
"""The name of the gate on a file's size."""
_OTHER_WORDS: Final = {
    "macs": "flops",
    "size": "bytes",
    "parameters": "params",
    "weights": "params",
    "speed": "latency",
}
_UNITS: Final = {
    "": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


@dataclass(frozen=True)
class Target:
    """A size to reach: ``sparsity`` is a share of zeros in [0, 1), every other name a fraction in (0, 1].

    ``flops``, ``params``, ``bytes`` and ``latency`` are fractions of the original source model, ``keep`` the
    fraction of channels kept.

    Raises:
        OptionError: if the name is unknown or the value out of range.
    """

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name not in TARGETS:
            raise OptionError(
                f"target {self.name!r} is unknown{_suggestion(self.name)}; accepted are {', '.join(TARGETS)}"
            )
        if self.name == "sparsity":
            fits, accepted = 0 <= self.value < 1, "[0, 1)"
        else:
            fits, accepted = 0 < self.value <= 1, "(0, 1]"
        if not fits:
            raise OptionError(f"target {self.name}={self.value:g} is out of range; {self.name} must be in {accepted}")

    def __str__(self) -> str:
        return f"{self.name}={self.value:g}"


@dataclass(frozen=True)
class Gate:
    """One thing that had to hold: the figure wanted, the one got (None: not measurable), one line of text."""

    name: str
    wanted: float
    got: float | None
    met: bool
    message: str


def parse_target(text: str) -> Target:
    """Read a target such as ``flops=0.5``.

    Raises:
        OptionError: if the text is not ``name=number``, the name is unknown or the number out of range.
    """
    name, equals, number = (part.strip() for part in text.partition("="))
    if not equals or not name or not number:
        raise OptionError(f"target {text!r} is not of the form name=fraction, such as flops=0.5")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise OptionError(f"target {text!r}: {number!r} is not a number; write a fraction, such as {name}=0.5")
    return Target(name, value)


def parse_targets(text: str) -> list[Target]:
    """Read one size at several fractions, such as ``flops=0.9,0.7,0.5``, in the order given.

    Raises:
        OptionError: as :func:`parse_target`, or a fraction stands there twice.
    """
    name, equals, numbers = text.partition("=")
    if not equals:
        return [parse_target(text)]
    found = [parse_target(f"{name}={number}") for number in numbers.split(",")]
    twice = next((target for place, target in enumerate(found) if target in found[:place]), None)
    if twice is not None:
        raise OptionError(f"target {text!r} names {twice} twice")
    return found


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as ``800000``, ``800kB`` or ``1.5 MiB``; parts of a byte are dropped.

    kB, MB and GB are powers of 1,000, KiB, MiB and GiB powers of 1,024.

    Raises:
        OptionError: if the text is no such number, or less than one byte.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    if found is None or found[2] not in _UNITS or ("." in found[1] and not found[2]):
        close = [unit for unit in _UNITS if unit and found is not None and unit.lower() == found[2].lower()]
        hint = f" (did you mean {close[0]}?)" if close else ""
        accepted = ", ".join(unit for unit in _UNITS if unit)
        raise OptionError(
            f"size {text!r} is no number of bytes{hint}; write a whole number, such as 800000, or one with a unit, "
            f"such as 800kB (units are {accepted})"
        )
    size = int(Decimal(found[1]) * _UNITS[found[2]])
    if size < 1:
        raise OptionError(f"size {text!r} is less than one byte; no model is that small")
    return size


def check_share(option: str, wanted: float, *, example: float) -> None:
    """Refuse a gate's figure that is no share, so that a run can say so before it starts.

    Raises:
        OptionError: naming the option and the value.
    """
    if not 0 <= wanted <= 1:
        raise OptionError(f"{option} is {wanted:g}; it must be in [0, 1], such as {example:g}")


def check_ratio(option: str, wanted: float) -> None:
    """Refuse a ratio that no time can have, so that a run can say so before it starts.

    Raises:
        OptionError: naming the option and the value.
    """
    if not 0 < wanted < math.inf:
        raise OptionError(f"{option} is {wanted:g}; it must be a positive number, such as 0.6")


def agreement_gate(hits: int, n: int, wanted: float, confidence: float, *, low: float, needed: int | None) -> Gate:
    """Judge agreement by its one-sided lower bound.

    Args:
        hits: examples on which both models decide alike.
        n: examples compared.
        wanted: the agreement that must be proved, in [0, 1].
        confidence: confidence of the bound, in (0, 1).
        low: the one-sided exact lower bound at that confidence.
        needed: how many examples would prove it for an identical model; None when no number would.

    Raises:
        OptionError: if ``wanted`` is not in [0, 1].
    """
    check_share("min-agreement", wanted, example=0.99)
    met = low >= wanted
    message = (
        f"agreement at least {wanted:g}: lower bound {below(low)} at {100 * confidence:g} % "
        f"({n} {_examples(n)}, {hits} agree): {verdict(met)}"
    )
    if not met and needed is None:
        message += f"; no number of examples can prove an agreement of {wanted:g}"
    elif not met and needed is not None and n < needed:
        message += f"; {n} {_examples(n)} cannot prove it even for an identical model; at least {needed} examples would"
    return Gate("min_agreement", wanted, low, met, message)


def accuracy_drop_gate(drop: float | None, wanted: float) -> Gate:
    """Judge the drop in accuracy (original minus compressed, as a fraction); None means no labels were given.

    Raises:
        OptionError: if ``wanted`` is not in [0, 1].
    """
    check_share("max-accuracy-drop", wanted, example=0.01)
    if drop is None:
        message = f"accuracy drop at most {wanted:g}: no labels to judge it by: not met"
        return Gate("max_accuracy_drop", wanted, None, False, message)
    met = drop <= wanted
    message = f"accuracy drop at most {wanted:g}: {drop:.4g}: {verdict(met)}"
    return Gate("max_accuracy_drop", wanted, drop, met, message)


def size_gate(target: Target, got: float | None) -> Gate:
    """Judge a size reached: at least the wanted share for ``sparsity``, at most the wanted fraction else."""
    bound = "at least" if target.name == "sparsity" else "at most"
    if got is None:
        message = f"{target.name} {bound} {target.value:g}: could not be measured: not met"
        return Gate(target.name, target.value, None, False, message)
    met = got >= target.value if target.name == "sparsity" else got <= target.value
    # Six digits keep a near miss visible: 0.50001 must not read "0.5: not met".
    message = f"{target.name} {bound} {target.value:g}: {got:.6g}: {verdict(met)}"
    return Gate(target.name, target.value, got, met, message)


def latency_gate(high: float | None, wanted: float, where: str) -> Gate:
    """Judge a latency ratio by the upper end of its interval.

    Args:
        high: that end; None where there is no interval.
        wanted: the ratio that it must not exceed.
        where: what was timed, in words, or why nothing was.
    """
    said = f"latency ratio at most {wanted:g}"
    if high is None:
        return Gate("max_latency_ratio", wanted, None, False, f"{said}: could not be measured ({where}): not met")
    met = high <= wanted
    # Six digits keep a near miss visible.
    message = f"{said}: upper end of the interval {high:.6g} ({where}): {verdict(met)}"
    return Gate("max_latency_ratio", wanted, high, met, message)


def bytes_gate(size: int, wanted: int) -> Gate:
    """Judge the size of a model's file, external data included."""
    met = size <= wanted
    message = f"file of at most {wanted:,} bytes: {size:,} bytes: {verdict(met)}"
    return Gate(MAX_BYTES, float(wanted), float(size), met, message)


def _suggestion(name: str) -> str:
    lowered = name.lower()
    close = [_OTHER_WORDS[lowered]] if lowered in _OTHER_WORDS else difflib.get_close_matches(lowered, TARGETS, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def below(bound: float) -> str:
    """Write a lower bound with four digits, rounded down so that it never reads as more than was proved."""
    return f"{math.floor(bound * 10_000) / 10_000:.4f}"


def _examples(n: int) -> str:
    return "example" if n == 1 else "examples"


def verdict(met: bool) -> str:
    """Return the last words of a gate's message."""
    return "met" if met else "not met"
