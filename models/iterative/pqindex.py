"""The PQ index, a measure of sparsity, and how much of a network it says can go (Diao et al., ICLR 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OptionError

__all__ = ["Sap", "pq_index"]

Values = npt.NDArray[np.floating]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Sap:
    """Sparsity-informed adaptive pruning: the norms p and q, and how far to follow what they say.

    Attributes:
        p: Order of the first norm, 0 < p <= 1.
        q: Order of the second, at least 1 and above p.
        eta: Slack of the bound: more of it prunes more; at least 0.
        gamma: Factor of the share that the bound says can go; above 0.
        beta: Largest share that goes at once, in (0, 1].

    Raises:
        OptionError: If a value is out of range.
    """

    p: float = 0.5
    q: float = 1.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not (0 < self.p <= 1 <= self.q < math.inf and self.p < self.q):
            raise OptionError(f"p={self.p:g}, q={self.q:g}: 0 < p <= 1 <= q with p below q is accepted")
        if not 0 <= self.eta < math.inf:
            raise OptionError(f"eta={self.eta:g}: 0 or a positive number is accepted")
        if not 0 < self.gamma < math.inf:
            raise OptionError(f"gamma={self.gamma:g}: a positive number is accepted")
        if not 0 < self.beta <= 1:
            raise OptionError(f"beta={self.beta:g}: a share in (0, 1] is accepted")

    def survivors(self, values: Values) -> float:
        """Return r, the least number of weights that must stay: at most as many as there are, 0 where all are zero.

        With d entries, r = d (1 + eta)^(-q / (q - p)) (1 - PQI)^(pq / (q - p)), in which d cancels (equation 5):
        zeros among the entries change nothing.
        """
        ratio = _ratio(values, self.p, self.q)
        power = self.q / (self.q - self.p)
        return float(ratio ** (self.p * power) * (1 + self.eta) ** -power)

    def count(self, values: Values) -> int:
        """Return how many of these weights go: of d the share gamma (1 - ceil(r) / d), at most beta, rounded down."""
        total = values.size
        if not total:
            return 0
        stay = min(total, math.ceil(self.survivors(values) - _ROUNDING))
        share = min(self.gamma * (1 - stay / total), self.beta)
        return max(0, math.floor(total * share + _ROUNDING))


def pq_index(values: Values, p: float, q: float) -> float:
    """Return 1 - d^(1/q - 1/p) ||w||_p / ||w||_q of d entries [any shape], in [0, 1).

    0 where all magnitudes are equal (or there are none), 1 - d^(1/q - 1/p) where a single entry is not zero.
    """
    if not values.size:
        return 0.0
    ratio = _ratio(values, p, q)
    if ratio == 0:
        return 0.0
    return max(0.0, float(1 - values.size ** (1 / q - 1 / p) * ratio))


def _ratio(values: Values, p: float, q: float) -> float:
    """Return ||w||_p / ||w||_q, 0 where all are zero; magnitudes are scaled first, which changes nothing."""
    wide = np.abs(np.asarray(values, dtype=np.float64).ravel())
    top = float(wide.max(initial=0.0))
    if top == 0:
        return 0.0
    wide = wide / top
    return float((wide**p).sum() ** (1 / p) / (wide**q).sum() ** (1 / q))
