"""Figures as people read them: percentages that never round to a promise, thousands, bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.report.plain import to_plain

UNKNOWN = "unknown"


def percent(share: float | None) -> str:
    """Write a share as a percentage; only exactly 1 reads 100 % and only exactly 0 reads 0 %."""
    if share is None:
        return UNKNOWN
    for decimals in range(1, 9):
        text = f"{100 * share:.{decimals}f}"
        # 9,999 kept of 10,000 must not read as all of them.
        if not ((float(text) == 100 and share != 1) or (float(text) == 0 and share != 0)):
            return f"{text.rstrip('0').rstrip('.')} %"
    return f"{100 * share:.9g} %"


def interval(low: float, high: float) -> str:
    """Write the two ends of an interval of shares."""
    return f"{percent(low).removesuffix(' %')}-{percent(high)}"


def points(difference: float) -> str:
    """Write a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.2f} points" if difference else "0 points"


def number(value: object) -> str:
    """Write anything a report holds in one line: thousands apart, four digits, compact JSON for the rest."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return json.dumps(to_plain(value, "number"), ensure_ascii=False)


def settings(options: Mapping[str, Any]) -> str:
    """Write options as a recipe does: name=value, comma apart."""
    return ", ".join(f"{name}={number(value)}" for name, value in options.items())


def amount(n: int, word: str) -> str:
    """Write a count with its noun, which takes an s for any number but one."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
