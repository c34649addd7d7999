"""Choosing how many channels every space keeps for a budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping

import numpy as np

Widths = Mapping[str, int]
# Channels are added until the cost is this close to the limit, or this many times.
_CLOSE = 0.995
_SINGLE_STEPS = 256


def fraction_widths(widths: Widths, keep: float, align: Widths | None = None, *, up: bool = False) -> dict[str, int]:
    """Return ``max(1, floor(keep * C))`` for every space (methods: floor with 1e-9 against rounding).

    Where ``align`` names a block for a space, the count goes to the next multiple of it below (above with ``up``),
    at least one block and at most the whole space.
    """
    found = {}
    for name, width in widths.items():
        count, block = max(1, math.floor(keep * width + 1e-9)), 1 if align is None else align.get(name, 1)
        if count < width:
            blocks = -(-count // block) if up else count // block
            count = min(width, max(1, blocks) * block)
        found[name] = count
    return found


def uniform_widths(
    widths: Widths, cost: Callable[[Widths], int], limit: int, align: Widths | None = None
) -> dict[str, int]:
    """Return the widest uniform fraction whose cost stays within ``limit``, then single blocks that still fit.

    ``cost`` must not fall when a width grows. Where even one block everywhere is too much, that is returned:
    the caller compares the cost it reached.
    """
    blocks = {name: 1 if align is None else align.get(name, 1) for name in widths}
    steps = sorted({count / width for name, width in widths.items() for count in _counts(width, blocks[name])})
    if not steps or cost(widths) <= limit:
        return dict(widths)
    fits = bisect.bisect_right(steps, limit, key=lambda keep: cost(fraction_widths(widths, keep, align)))
    chosen = fraction_widths(widths, steps[fits - 1] if fits else 0.0, align)
    for _ in range(_SINGLE_STEPS):
        spent = cost(chosen)
        if spent >= _CLOSE * limit:
            break
        # One block more where it still fits, the space with the smallest fraction first.
        order = sorted(widths, key=lambda name: (chosen[name] / widths[name], name))
        wider = (
            {**chosen, name: min(widths[name], chosen[name] + blocks[name])}
            for name in order
            if chosen[name] < widths[name]
        )
        fitting = next((candidate for candidate in wider if cost(candidate) <= limit), None)
        if fitting is None:
            break
        chosen = fitting
    return chosen


def _counts(width: int, block: int) -> list[int]:
    return [*range(block, width, block), width]


def ranked_widths(
    scores: Mapping[str, np.ndarray], cost: Callable[[Widths], int], limit: int, align: Widths | None = None
) -> dict[str, int]:
    """Return widths that drop the lowest scores of all spaces together until the cost is within ``limit``.

    Every space keeps one block at least; a space keeps whole blocks, rounded up.
    """
    full = {name: len(values) for name, values in scores.items()}
    pooled = np.sort(np.concatenate([np.zeros(0), *scores.values()]))

    def widths(dropped: int) -> dict[str, int]:
        floor = pooled[dropped] if dropped < len(pooled) else np.inf
        found = {}
        for name, values in scores.items():
            block = 1 if align is None else align.get(name, 1)
            count = max(1, int((values >= floor).sum()))
            found[name] = min(full[name], -(-count // block) * block)
        return found

    dropped = bisect.bisect_left(range(len(pooled) + 1), True, key=lambda count: cost(widths(count)) <= limit)
    return widths(min(dropped, len(pooled)))
