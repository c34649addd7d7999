"""Choosing how many channels every space keeps for a budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping

Widths = Mapping[str, int]
# Single channels are added until the cost is this close to the limit, or this many times.
_CLOSE = 0.995
_SINGLE_STEPS = 256


def fraction_widths(widths: Widths, keep: float) -> dict[str, int]:
    """Return ``max(1, floor(keep * C))`` for every space (methods: floor with 1e-9 against rounding)."""
    return {name: max(1, math.floor(keep * width + 1e-9)) for name, width in widths.items()}


def uniform_widths(widths: Widths, cost: Callable[[Widths], int], limit: int) -> dict[str, int]:
    """Return the widest uniform fraction whose cost stays within ``limit``, then single channels that still fit.

    ``cost`` must not fall when a width grows. Where even one channel everywhere is too much, that is returned:
    the caller compares the cost it reached.
    """
    steps = sorted({count / width for width in widths.values() for count in range(1, width + 1)})
    if not steps or cost(widths) <= limit:
        return dict(widths)
    fits = bisect.bisect_right(steps, limit, key=lambda keep: cost(fraction_widths(widths, keep)))
    chosen = fraction_widths(widths, steps[fits - 1] if fits else 0.0)
    for _ in range(_SINGLE_STEPS):
        spent = cost(chosen)
        if spent >= _CLOSE * limit:
            break
        # One channel more where it still fits, the space with the smallest fraction first.
        order = sorted(widths, key=lambda name: (chosen[name] / widths[name], name))
        wider = ({**chosen, name: chosen[name] + 1} for name in order if chosen[name] < widths[name])
        fitting = next((candidate for candidate in wider if cost(candidate) <= limit), None)
        if fitting is None:
            break
        chosen = fitting
    return chosen
