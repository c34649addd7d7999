"""SuRP's law as both ends of the code know it: its controls, where to stop, and thresholds from counts alone.

Isik, Weissman, No (2022): weights are an exponential source under L1 distortion, whose optimal reconstruction puts a
point mass at zero. The greedy code announces "one more coordinate above the threshold" again and again; every prefix
is a sparse model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import CodecError, OptionError

_SMALLEST_ALPHA = 1e-6
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Law:
    """The controls of the code.

    ``alpha`` scales the first threshold, None means kappa = ln(n / ln n); ``decay`` multiplies it at every
    ``patience``-th refresh; ``seed`` fixes the scan order. ``centroid``: the code's magnitudes end below the weights';
    a decoded one is moved up by this share of the last threshold, to the middle of where the weight lies.
    """

    alpha: float | None = None
    decay: float = 0.9
    patience: int = 20
    seed: int = 0
    centroid: float = 0.5

    def __post_init__(self) -> None:
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise OptionError(f"alpha={self.alpha} is not accepted; give a finite number above 0")
        if not 0 < self.decay < 1:
            raise OptionError(f"decay={self.decay} is not accepted; give a number in (0, 1)")
        if self.patience < 1:
            raise OptionError(f"patience={self.patience} is not accepted; give a whole number of 1 or more")
        if not 0 <= self.centroid <= 1:
            raise OptionError(f"centroid={self.centroid} is not accepted; give a number in [0, 1]")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed={self.seed} is not accepted; give a whole number in [0, 2^64)")
        for name in ("alpha", "decay", "centroid"):
            value = getattr(self, name)
            if value is not None:  # whole numbers too are written as the doubles that they stand for
                object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class Stop:
    """Where a code ends: at whichever given condition is met first; without any, when every weight is non-zero.

    ``sparsity``: share of zeros, not below it; ``nonzeros``: that many coordinates; ``hits``: that many announcements;
    ``relative_l1``: error over the sum of magnitudes, at most; ``bits``, ``bytes``: of the coded body (for the
    sequential law ``bits`` is an estimate); ``fraction``: of a stored body.
    """

    sparsity: float | None = None
    nonzeros: int | None = None
    hits: int | None = None
    relative_l1: float | None = None
    bits: int | None = None
    bytes: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        for name in ("sparsity", "relative_l1", "fraction"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise OptionError(f"{name}={share} is not accepted; give a number in [0, 1]")
        for name in ("nonzeros", "hits", "bits", "bytes"):
            number = getattr(self, name)
            if number is not None and number < 0:
                raise OptionError(f"{name}={number} is not accepted; give a whole number of 0 or more")

    def support(self, count: int) -> int | None:
        """Return how many non-zero coordinates of ``count`` end the code; None where none is asked for."""
        limits = [] if self.nonzeros is None else [self.nonzeros]
        if self.sparsity is not None:
            limits.append(count - math.ceil(self.sparsity * count - 1e-9))
        return min(limits, default=None)

    def size(self) -> int | None:
        """Return the limit on the body in bytes, None for no limit."""
        limits = [self.bits // 8] if self.bits is not None else []
        return min([*limits, self.bytes] if self.bytes is not None else limits, default=None)

    def refuse(self, what: str, *names: str) -> None:
        """Raise OptionError where one of the conditions ``names`` is given, which ``what`` cannot meet."""
        for name in names:
            if getattr(self, name) is not None:
                raise OptionError(f"{what} cannot stop at {name}={getattr(self, name)}; give another condition")


def kappa(count: int) -> float:
    """Return ln(n / ln n), at least 1: the factor between mean and first threshold (Isik et al., 2022)."""
    if count < 3:
        return 1.0
    return max(1.0, math.log(count / math.log(count)))


def l2_norm(weights: np.ndarray) -> float:
    """Return the L2 norm of float64 weights of any shape, 0 for none; their squares may leave the range of doubles."""
    peak = float(np.abs(weights).max(initial=0.0))
    return peak * float(np.linalg.norm(weights / peak)) if peak else 0.0


def scan_order(count: int, seed: int) -> np.ndarray:
    """Return the fixed pseudo-random order in which a level is scanned: stable argsort of Philox-4x64 words."""
    words = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(words, kind="stable")


def scan_words(where: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the Philox words of the ascending coordinates ``where`` without holding those of all ``count``."""
    source = np.random.Philox(key=seed)
    words = np.empty(len(where), dtype=np.uint64)
    for start in range(0, count, _CHUNK):
        part = source.random_raw(min(_CHUNK, count - start))
        low, high = np.searchsorted(where, (start, start + len(part)))
        words[low:high] = part[where[low:high] - start]
    return words


def checked(magnitudes: np.ndarray) -> float:
    """Return the float64 sum of magnitudes [n] that the thresholds start from.

    Raises:
        CodecError: A magnitude is negative, NaN or infinite, or their sum leaves the range.
    """
    if magnitudes.ndim != 1:
        raise CodecError(f"weights of {magnitudes.ndim} dimensions cannot be coded; flatten them first")
    with np.errstate(over="ignore"):
        total = float(np.sum(magnitudes, dtype=np.float64))
    lowest = float(magnitudes.min(initial=0.0))
    if math.isnan(total) or lowest < 0 or (math.isinf(total) and not np.isfinite(magnitudes).all()):
        raise CodecError("a weight is NaN, infinite or a negative magnitude and cannot be coded; mend the model first")
    if math.isinf(total):
        raise CodecError("the weights are too large for their sum; divide every tensor by its norm first")
    return total


class Ledger:
    """Thresholds of the level form, from numbers that encoder and decoder share: equal bits on both sides.

    Inside a level the threshold stays; ``close`` takes the level's hits away from the sum of residuals.

    Attributes:
        threshold: of the open level.
        consumed: sum of what all closed levels announced.
        levels: opened so far, empty ones included.
    """

    def __init__(self, law: Law, count: int, total: float) -> None:
        """``count`` coordinates share the mean of ``total`` = the sum of magnitudes."""
        self.law, self.count, self.total = law, count, total
        self.alpha = kappa(count) if law.alpha is None else law.alpha
        self.consumed = self.threshold = 0.0
        self.levels = self._refreshes = 0
        self._smallest = _SMALLEST_ALPHA * min(1.0, self.alpha)
        self._bound = math.inf

    def open(self) -> float | None:
        """Return the next level's threshold, None when the code has nothing left to say."""
        while self.count and self.alpha > self._smallest:
            if self.levels:  # the first threshold is alpha times the mean itself; every later one is a refresh
                self._refreshes += 1
                self.alpha *= self.law.decay if self._refreshes % self.law.patience == 0 else 1.0
            self.threshold = self.alpha * (self.total - self.consumed) / self.count
            self.levels += 1
            if self.threshold < np.finfo(np.float64).tiny:
                return None
            if self.most != 0:
                return self.threshold
            self._jump()
        return None

    @property
    def most(self) -> float:
        """How often one coordinate can be hit in the open level: no residual is above the level before."""
        return math.ceil(self._bound / self.threshold) - 1 if math.isfinite(self._bound) else math.inf

    def close(self, hits: int) -> None:
        """End the open level, which had ``hits``; after none, refreshes up to the next decay are jumped over."""
        if hits:
            self.consumed += hits * self.threshold
            self._bound = self.threshold
        else:
            self._jump()

    def _jump(self) -> None:
        self._refreshes += self.law.patience - 1 - self._refreshes % self.law.patience

    def relative_l1(self, hits: int) -> float:
        """Return the relative L1 error after ``hits`` of the open level."""
        return (self.total - (self.consumed + hits * self.threshold)) / self.total if self.total else 0.0

    def hits_for(self, target: float) -> int:
        """Return the fewest hits of the open level that bring the relative L1 error to ``target``."""
        hits = max(0, math.ceil((self.total * (1 - target) - self.consumed) / self.threshold))
        while hits and self.relative_l1(hits - 1) <= target:
            hits -= 1
        while self.relative_l1(hits) > target:
            hits += 1
        return hits
