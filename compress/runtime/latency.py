"""Latency of models, measured in turn so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.runtime.session import Session


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward pass: median and 90th percentile over ``runs`` runs at ``batch`` examples."""

    median_ms: float
    p90_ms: float
    runs: int
    batch: int


def measure(sessions: Sequence[Session], feeds: Mapping[str, np.ndarray], *, budget_s: float = 1.0) -> list[Latency]:
    """Time every session on the same feed, interleaved A B A B, after warm-up, within about ``budget_s`` seconds."""
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        for _ in range(3):
            session.run(feeds)
    stop = time.perf_counter() + budget_s
    rounds = 0
    while rounds < 5 or (time.perf_counter() < stop and rounds < 1000):
        for spent, session in zip(times, sessions, strict=True):
            start = time.perf_counter()
            session.run(feeds)
            spent.append(1000 * (time.perf_counter() - start))
        rounds += 1
        if time.perf_counter() > stop + 10 * budget_s:
            break  # a model that needs seconds a run gets fewer rounds
    batch = len(next(iter(feeds.values()))) if feeds else 0
    return [Latency(float(np.median(t)), float(np.percentile(t, 90)), len(t), batch) for t in times]
