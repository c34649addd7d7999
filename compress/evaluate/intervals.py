"""Binomial intervals and tests, exact and by scores: how much a count of examples proves."""

from __future__ import annotations

import bisect
import math

from scipy import special

from onnxprune.errors import DataError, OptionError

# Beyond so many examples one more moves the bound by less than its rounding.
_TOLD_APART = 10**8


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided exact interval (low, high) for a rate (Clopper & Pearson, 1934).

    Raises:
        DataError: if there are no examples, or ``hits`` is not within 0..n.
        OptionError: if ``confidence`` is not in (0, 1).
    """
    _check(hits, n, confidence)
    tail = (1 - confidence) / 2
    return _lower(hits, n, tail), _upper(hits, n, tail)


def lower_bound(hits: int, n: int, confidence: float = 0.95) -> float:
    """Return the one-sided exact lower bound for a rate (Clopper & Pearson, 1934).

    Raises:
        DataError: if there are no examples, or ``hits`` is not within 0..n.
        OptionError: if ``confidence`` is not in (0, 1).
    """
    _check(hits, n, confidence)
    return _lower(hits, n, 1 - confidence)


def wilson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided score interval (low, high) for a rate (Wilson, 1927).

    Raises:
        DataError: if there are no examples, or ``hits`` is not within 0..n.
        OptionError: if ``confidence`` is not in (0, 1).
    """
    _check(hits, n, confidence)
    z = float(special.ndtri(1 - (1 - confidence) / 2))
    rate, scale = hits / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # At the ends the interval closes exactly; rounding must not leave it a hair inside.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def paired_difference(both: int, lost: int, gained: int, neither: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval (low, high) for the drop (lost - gained) / n of a rate on the same n examples.

    The square-and-add score interval with a correlation that is corrected for continuity (Newcombe, 1998, method 10):
    Wilson's intervals of both rates, put together by the correlation of the two outcomes.

    Args:
        both: examples that both models have right.
        lost: examples that only the first has right.
        gained: examples that only the second has right.
        neither: examples that none has right.
        confidence: in (0, 1).

    Raises:
        DataError: if there are no examples, or a count is negative.
        OptionError: if ``confidence`` is not in (0, 1).
    """
    n = both + lost + gained + neither
    if min(both, lost, gained, neither) < 0:
        raise DataError(f"the counts {both}, {lost}, {gained}, {neither} hold a negative one; none may be")
    first, second = both + lost, both + gained
    low_first, high_first = wilson(first, n, confidence)
    low_second, high_second = wilson(second, n, confidence)
    product = both * neither - lost * gained
    spread = math.sqrt(first * (n - first)) * math.sqrt(second * (n - second))
    phi = (max(0.0, product - n / 2) if product > 0 else product) / spread if spread else 0.0
    below, above = first / n - low_first, high_second - second / n
    low = math.sqrt(max(0.0, below * below - 2 * phi * below * above + above * above))
    below, above = second / n - low_second, high_first - first / n
    high = math.sqrt(max(0.0, below * below - 2 * phi * below * above + above * above))
    drop = (lost - gained) / n
    return max(-1.0, drop - low), min(1.0, drop + high)


def examples_needed(rate: float, confidence: float = 0.95) -> int | None:
    """Return the smallest n for which n agreements out of n prove a rate, or None when no n does (rate 1).

    n of n proves (1 - confidence) ** (1 / n), so n is log(1 - confidence) / log(rate), rounded up.

    Raises:
        OptionError: if ``rate`` is not in [0, 1] or ``confidence`` not in (0, 1).
    """
    if not 0 <= rate <= 1:
        raise OptionError(f"rate is {rate:g}; it must be in [0, 1]")
    check_confidence(confidence)
    if rate == 1:
        return None
    if rate == 0:
        return 1
    n = max(1, math.ceil(math.log(1 - confidence) / math.log(rate)))
    if n > _TOLD_APART:
        return n
    # The logarithms can be off by one example either way; the bound itself decides.
    while n > 1 and _lower(n - 1, n - 1, 1 - confidence) >= rate:
        n -= 1
    while _lower(n, n, 1 - confidence) < rate:
        n += 1
    return n


def most_flips(n: int, rate: float, confidence: float = 0.95) -> int | None:
    """Return the most disagreements among ``n`` examples that still prove a rate, or None when not even none do.

    Raises:
        DataError: if there are no examples.
        OptionError: if ``rate`` is not in [0, 1] or ``confidence`` not in (0, 1).
    """
    if not 0 <= rate <= 1:
        raise OptionError(f"rate is {rate:g}; it must be in [0, 1]")
    _check(n, n, confidence)
    # The bound falls with every flip, so that the flips that prove the rate come first.
    proving = bisect.bisect_left(range(n + 1), True, key=lambda flips: _lower(n - flips, n, 1 - confidence) < rate)
    return proving - 1 if proving else None


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the exact two-sided p-value that losses and gains are equally likely (McNemar, 1947).

    Raises:
        DataError: if a count is negative.
    """
    if lost < 0 or gained < 0:
        raise DataError(f"lost is {lost} and gained is {gained}; neither count may be negative")
    if lost == gained:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(lost, gained), lost + gained, 0.5)))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside (0, 1).

    Raises:
        OptionError: naming the value.
    """
    if not 0 < confidence < 1:
        raise OptionError(f"confidence is {confidence:g}; it must lie strictly between 0 and 1, such as 0.95")


def _lower(hits: int, n: int, tail: float) -> float:
    return 0.0 if hits == 0 else float(special.betaincinv(hits, n - hits + 1, tail))


def _upper(hits: int, n: int, tail: float) -> float:
    return 1.0 if hits == n else float(special.betainccinv(hits + 1, n - hits, tail))


def _check(hits: int, n: int, confidence: float) -> None:
    if n < 1:
        raise DataError(f"a rate of {n} examples cannot be bounded; at least one example is needed")
    if not 0 <= hits <= n:
        raise DataError(f"hits is {hits} for {n} examples; it must be between 0 and {n}")
    check_confidence(confidence)
