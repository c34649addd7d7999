"""Latency of models, measured in turn so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.runtime.session import Session, batch_of
from onnxprune.runtime.timing import INTERVAL_BLOCKS, Latency, Times, ratio_of_medians, summarise

# Times that a set of models is opened anew: two openings of the same file differ by a percent or so, however long
# each is timed, because weights and threads land elsewhere.
OPENINGS = 8
# Runs per turn, fewest, usual and most; the first of a turn is not counted, because the other model's threads may
# still be spinning and its weights fill the caches.
_RUNS = (2, 6, 101)
_TURNS = 200
# So many turns are to fit into the time where runs are slow.
_WANTED_TURNS = 10
_WARM_SHARE = 0.05

Feeds = Mapping[str, np.ndarray]


def measure(
    sessions: Sequence[Session], feeds: Feeds, *, budget_s: float = 1.0, confidence: float = 0.95, seed: int = 0
) -> list[Latency]:
    """Time every session on the same feed in turns A B A B, after warm-up, within about ``budget_s`` seconds.

    At least six turns are taken, however long they last, so that every ratio to the first session has an interval,
    and at most 200. The interval speaks of these sessions: see :func:`measure_anew`.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    if not sessions:
        return []
    taken = take_turns([session.bound(feeds) for session in sessions], budget_s=budget_s, least=INTERVAL_BLOCKS)
    return _figures([list(times) for times in taken], batch_of(feeds), confidence, seed)


def measure_anew(
    opened: Callable[[], Sequence[Session]],
    feeds: Sequence[Feeds],
    *,
    budget_s: float,
    confidence: float = 0.95,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[list[Latency]]:
    """Time models on every feed over several openings, and return the figures of every model per feed.

    ``opened`` opens all models; it is called :data:`OPENINGS` times, and each opening gets its part of ``budget_s``
    per feed, loading and warm-up not counted. An opening is one block of the interval, which so covers what differs
    from one opening to the next (Kalibera & Jones, 2013). The models take turns, and the first place among them.

    Raises:
        BackendError: ONNX Runtime failed.
    """
    blocks: list[list[list[Times]]] = [[] for _ in feeds]
    for opening in range(OPENINGS):
        for place, found in enumerate(_opening(opened, feeds, opening, budget_s / OPENINGS)):
            blocks[place].append(found)
        if advance is not None:
            advance(1)
    return [
        _figures([list(times) for times in zip(*taken, strict=True)], batch_of(fed), confidence, seed)
        for taken, fed in zip(blocks, feeds, strict=True)
    ]


def _opening(
    opened: Callable[[], Sequence[Session]], feeds: Sequence[Feeds], opening: int, budget_s: float
) -> list[list[Times]]:
    """Return the times of every model per feed, milliseconds [runs]; the sessions are gone when this returns."""
    sessions = opened()
    order = [(place + opening) % len(sessions) for place in range(len(sessions))]
    found = []
    for fed in feeds:
        taken = take_turns([sessions[place].bound(fed) for place in order], budget_s=budget_s, least=1, fill=True)
        by_place = dict(zip(order, taken, strict=True))
        found.append([by_place[place].ravel() for place in range(len(sessions))])
    return found


def _figures(taken: Sequence[Sequence[Times]], batch: int, confidence: float, seed: int) -> list[Latency]:
    """Return the figures of every model from its blocks."""
    ratios = [ratio_of_medians(taken[0], blocks, confidence=confidence, seed=seed) for blocks in taken[1:]]
    return [summarise(blocks, batch, ratio) for blocks, ratio in zip(taken, [None, *ratios], strict=True)]


def take_turns(
    runners: Sequence[Callable[[], object]],
    *,
    budget_s: float,
    least: int,
    fill: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Times]:
    """Run every function in turns and return its milliseconds, float64 [turns, runs], the first of a turn left out.

    At least ``least`` turns are taken and at most 200; ``fill`` lengthens those of fast functions to fill the time.
    """
    warm = max(max(_turn(run, 2, clock)[-1] for run in runners), 1e-6)
    budget, each = 1000 * budget_s, len(runners) * warm
    for run in runners:
        _turn(run, min(_RUNS[2], int(_WARM_SHARE * budget / each)), clock)
    runs = min(_RUNS[1], int(budget / (_WANTED_TURNS * each)))
    if fill:
        runs = max(runs, min(_RUNS[2], int(budget / (_TURNS * each))))
    runs = max(runs, _RUNS[0])
    times: list[list[list[float]]] = [[] for _ in runners]
    stop = clock() + budget_s
    turns = 0
    while turns < least or (clock() < stop and turns < _TURNS):
        for spent, run in zip(times, runners, strict=True):
            spent.append(_turn(run, runs, clock)[1:])
        turns += 1
    return [np.array(spent) for spent in times]


def _turn(run: Callable[[], object], runs: int, clock: Callable[[], float]) -> list[float]:
    """Return the milliseconds of consecutive runs."""
    spent = []
    for _ in range(runs):
        start = clock()
        run()
        spent.append(1000 * (clock() - start))
    return spent
