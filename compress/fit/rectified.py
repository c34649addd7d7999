"""Refitting towards what a ReLU lets through: where the original is cut off, any negative number will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnxprune.fit.moments import Moments
from onnxprune.fit.solve import Solution
from onnxprune.graph.linear import Unit

# Bytes of rows that one problem may keep; larger ones are fitted to the sums alone.
_ROOM = 256 << 20
# Rows that become double at a time: what the processor's cache holds.
_BLOCK = 512

Refit = Callable[[Moments], Solution]


def rectifies(unit: Unit) -> bool:
    """Return whether what the unit computes is read by ReLU alone."""
    seen = unit.total if unit.other is not None and unit.total is not None else unit.out
    uses = [use.node for use in seen.uses()]
    return bool(uses) and not seen.is_graph_output() and all(n.op_type == "Relu" and n.domain == "" for n in uses)


class RectifiedRows:
    """The sampled rows of one problem with one group: features, targets, and what is added before the ReLU."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = []
        self._bytes = 0

    def add(self, features: np.ndarray, targets: np.ndarray, skip: np.ndarray) -> None:
        """Add rows: features [1, rows, F], targets and skip [rows, O]; nothing is kept beyond the room."""
        if self._parts is None:
            return
        part = (np.asarray(features[0], np.float32), targets.astype(np.float32), skip.astype(np.float32))
        self._bytes += sum(array.nbytes for array in part)
        if self._bytes > _ROOM:
            self._parts = None
        else:
            self._parts.append(part)

    def improved(self, sums: Moments, first: Solution, refit: Refit, rounds: int, keep: np.ndarray) -> Solution:
        """Return the best of ``first`` and of up to ``rounds`` further solutions, by the error behind the ReLU.

        Every round aims at the original where it is positive, and elsewhere at the present value as long as that is
        negative: the projection onto what the ReLU cannot tell apart (alternating least squares on the rectified
        error, as in Zhang, Zou, He, Sun, 2016). The Gram matrix stays; only the right-hand side is summed anew, for
        the features in ``keep`` [F]: every solution is zero outside of them.
        """
        if not self._parts:
            return first
        if not keep.all():
            for place, (features, targets, skip) in enumerate(self._parts):
                self._parts[place] = (features[:, keep], targets, skip)
        best, lowest = first, np.inf
        present = first
        for left in range(rounds, -1, -1):
            fresh = replace(sums, cross=np.zeros_like(sums.cross), energy=np.zeros_like(sums.energy))
            error = self._aim(fresh, present, keep, summed=left > 0)
            if error >= lowest:
                break
            best, lowest = present, error
            if left:
                present = refit(fresh)
        return replace(best, folded=first.folded, fitted=first.fitted)

    def _aim(self, fresh: Moments, present: Solution, keep: np.ndarray, *, summed: bool) -> float:
        """Return the squared error of ``present`` behind the ReLU.

        With ``summed``, ``fresh`` is filled with the targets that it suggests.
        """
        # Rows and targets are kept in single precision; sums are in double.
        error, matrix, shift = 0.0, present.matrix[0][keep].astype(np.float32), present.shift.astype(np.float32)
        sums = np.zeros((len(matrix), matrix.shape[1]))
        for features, targets, skip in self._parts or ():
            wanted = targets + skip
            got = (matrix.T @ features.T).T + (shift + skip)
            error += float(np.square(np.maximum(got, 0.0) - np.maximum(wanted, 0.0)).sum(dtype=np.float64))
            if not summed:
                continue
            aims = (np.where(wanted > 0.0, wanted, np.minimum(got, 0.0)) - skip).astype(np.float64)
            for start in range(0, len(aims), _BLOCK):
                part = slice(start, start + _BLOCK)
                # In this order the product takes two thirds of the time: outputs are few beside features.
                sums += (aims[part].T @ features[part].astype(np.float64)).T
            fresh.cross[0, -1] += aims.sum(axis=0)
            fresh.energy[0] += np.square(aims).sum(axis=0)
        fresh.cross[0, :-1][keep] = sums
        return error
