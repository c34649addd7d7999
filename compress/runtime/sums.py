"""First moments of a tensor: a whole map summed over the examples, batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SumsResult:
    """``total`` [C, places...], float64: the sum over all examples of every place of a map; ``rows`` counts them.

    Where every position is a row of its own there are no places: ``total`` is [C], and ``rows`` counts positions.
    """

    total: np.ndarray
    rows: int


class Sums:
    """Streamed sums over the channels of one axis.

    With ``places`` the tensor is [N, C, places...] and only examples are summed over; otherwise all axes but the
    channels' are. With ``absolute`` magnitudes are summed.
    """

    def __init__(self, axis: int, *, places: bool, absolute: bool = False) -> None:
        self.axis, self.places, self.absolute = axis, places, absolute
        self._total: np.ndarray | None = None
        self._rows = 0

    def update(self, array: np.ndarray) -> None:
        """Add one batch."""
        part = np.abs(array) if self.absolute else array
        axis = self.axis % array.ndim
        over = (0,) if self.places else tuple(i for i in range(array.ndim) if i != axis)
        with np.errstate(invalid="ignore", over="ignore"):  # finite() tells of it
            added = part.sum(axis=over, dtype=np.float64)
            self._total = added if self._total is None else self._total + added
        self._rows += int(np.prod([array.shape[i] for i in over]))

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""
        return self._total is None or bool(np.isfinite(self._total).all())

    def result(self) -> SumsResult:
        """Return the sums; the observer may go on."""
        return SumsResult(np.zeros(0) if self._total is None else self._total.copy(), self._rows)
