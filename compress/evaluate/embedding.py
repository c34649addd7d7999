"""Embeddings: the angle between both models' vectors, and whether each example keeps its nearest neighbour."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.evaluate.differences import cosines
from onnxprune.evaluate.evidence import EmbeddingFigures
from onnxprune.evaluate.regression import as_rows
from onnxprune.evaluate.scores import Rows

SAMPLED = 1000
"""At most so many examples are searched for neighbours."""

_SEED = 0x9E3779B97F4A7C15


class EmbeddingSums:
    """Cosines of all examples, and the vectors of a fixed sample: the examples of the lowest seeded hash."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._fits = True
        self._rows = 0
        self._cosine = 0.0
        # (minus the hash, minus the index, arrival, both vectors): the first to go is the highest hash.
        self._heap: list[tuple[int, int, int, NDArray[np.float64], NDArray[np.float64]]] = []
        self._arrived = 0

    def update(self, original: NDArray[Any], compressed: NDArray[Any], targets: object, rows: Rows) -> None:
        """Add one batch [n, ...] of examples with these indices; rows that are not finite in both are left out."""
        if original.shape != compressed.shape:
            self._fits = False
        if not self._fits or not original.size:
            return
        before, after = as_rows(original), as_rows(compressed)
        usable = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
        self._rows += int(np.count_nonzero(usable))
        # Values near the float64 limit have no finite length; their cosine counts as 0.
        with np.errstate(over="ignore", invalid="ignore"):
            self._cosine += float(np.nan_to_num(cosines(before[usable], after[usable])).sum())
        places = np.flatnonzero(usable)
        for place, drawn in zip(places.tolist(), hashed(rows[places]).tolist(), strict=True):
            if len(self._heap) == SAMPLED and -drawn <= self._heap[0][0]:
                continue
            self._arrived += 1
            entry = (-drawn, -int(rows[place]), -self._arrived, before[place].copy(), after[place].copy())
            if len(self._heap) < SAMPLED:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heapreplace(self._heap, entry)

    def result(self) -> EmbeddingFigures | None:
        """Return what all batches so far show; None where nothing could be compared."""
        if not self._fits or not self._rows:
            return None
        sample = sorted(self._heap, key=lambda entry: (-entry[1], -entry[2]))
        nearest = None
        if len(sample) > 2:
            first, second = (np.stack([entry[place] for entry in sample]) for place in (3, 4))
            nearest = float((neighbours(first) == neighbours(second)).mean())
        return EmbeddingFigures(self._cosine / self._rows, nearest, len(sample))


def neighbours(vectors: NDArray[np.float64]) -> Rows:
    """Return each row's nearest other row [n] by cosine, the lowest index on a tie; at least two rows [n, width]."""
    # The largest element is divided out first, so that no square overflows.
    scaled = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    units = np.divide(scaled, norms, out=np.zeros_like(scaled), where=norms > 0)
    likeness = units @ units.T
    np.fill_diagonal(likeness, -np.inf)
    return np.asarray(likeness.argmax(axis=1), dtype=np.int64)


def hashed(rows: Rows) -> NDArray[np.uint64]:
    """Return a seeded hash of every index (splitmix64: Steele, Lea, Flood, 2014): a draw that batches do not change."""
    with np.errstate(over="ignore"):
        mixed = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(_SEED)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))
