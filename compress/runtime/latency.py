"""Latency of models, measured in turn so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.runtime.session import Session, batch_of


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass: median and 90th percentile over ``runs`` runs at ``batch`` examples."""

    median_ms: float
    p90_ms: float
    runs: int
    batch: int


# Runs per turn; the first of a turn is not counted, because the other model's threads may still be spinning.
_TURN = 6
_TURN_SLOW = 2
_TURNS = (3, 200)


def measure(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], *, budget_s: float = 1.0) -> list[Latency]:
    """Time every session on the same feed in turns A B A B, after warm-up, within about ``budget_s`` seconds.

    At least three turns are taken, however long they last.
    """
    times: list[list[float]] = [[] for _ in sessions]
    warm = max((_turn(session, feeds, 2)[-1] for session in sessions), default=0.0)
    runs = _TURN if warm < 1000 * budget_s / _TURN else _TURN_SLOW
    stop = time.perf_counter() + budget_s
    turns = 0
    while turns < _TURNS[0] or (time.perf_counter() < stop and turns < _TURNS[1]):
        for spent, session in zip(times, sessions, strict=True):
            spent.extend(_turn(session, feeds, runs)[1:])
        turns += 1
    batch = batch_of(feeds)
    return [Latency(float(np.median(t)), float(np.percentile(t, 90)), len(t), batch) for t in times]


def _turn(session: Session, feeds: Mapping[str, np.ndarray], runs: int) -> list[float]:
    """Return the milliseconds of consecutive runs."""
    spent = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(feeds)
        spent.append(1000 * (time.perf_counter() - start))
    return spent
