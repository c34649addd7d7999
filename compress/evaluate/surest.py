"""The changed decisions that the original was surest of, streamed: a bounded heap, not all scores."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.evaluate.evidence import Flip
from onnxprune.evaluate.scores import UNDECIDED, Rows, Scores, log_probabilities

EXAMPLES = 24
"""How many changed decisions a report names."""

# (confidence or -1, minus the index, margin, class before, class after, label): the least sure one is the smallest.
_Entry = tuple[float, int, float, int, int, int | None]


class SurestFlips:
    """Changed decisions by the original's confidence; of equal ones the lowest index comes first.

    Scores are read both ways, as logits and as probabilities, until it is known which they are.
    """

    def __init__(self) -> None:
        self._heaps: dict[bool, list[_Entry]] = {False: [], True: []}

    def update(self, original: Scores, before: Rows, after: Rows, labels: Rows | None, rows: Rows) -> None:
        """Add one batch: the original's scores [n, classes], both models' decisions, labels, the rows' indices."""
        changed = np.flatnonzero(before != after)
        if not len(changed):
            return
        for probabilities, heap in self._heaps.items():
            # Logits are negative here and there, and have no logarithm.
            with np.errstate(invalid="ignore", divide="ignore"):
                shares = np.exp(log_probabilities(original[changed], probabilities=probabilities))
            for place, row in enumerate(changed.tolist()):
                ordered = np.sort(shares[place])
                sure, margin = min(1.0, float(ordered[-1])), min(1.0, float(ordered[-1] - ordered[-2]))
                known = bool(np.isfinite(shares[place]).all())
                entry: _Entry = (
                    sure if known else -1.0, -int(rows[row]), margin if known else -1.0,
                    int(before[row]), int(after[row]), None if labels is None else int(labels[row]),
                )  # fmt: skip
                if len(heap) < EXAMPLES:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)

    def found(self, names: Sequence[str], *, probabilities: bool) -> tuple[Flip, ...]:
        """Return the flips, the surest first; ``names`` has one name per class."""
        return tuple(_flip(entry, names) for entry in sorted(self._heaps[probabilities], key=_order))


def _order(entry: _Entry) -> tuple[Any, ...]:
    return -entry[0], -entry[1]


def _flip(entry: _Entry, names: Sequence[str]) -> Flip:
    sure, index, margin, before, after, label = entry
    known = sure >= 0
    return Flip(
        index=-index,
        before=names[before],
        after="NaN" if after == UNDECIDED else names[after],
        label=None if label is None else names[label],
        confidence=sure if known else None,
        margin=margin if known else None,
    )
