"""Runs every pass over the graph zoo, in settings that must change nothing and in strong ones.

    python -m benchmarks.zoo.passes [--cache DIR] [--only NAME ...] [--fast] [--pass NAME ...] [--limit SECONDS]

A neutral setting must give the source's outputs; after a strong one the model passes the checker, runs with the
same interface and finite outputs, and its cost falls, or the step says what was left alone; a refusal is one
sentence; the given model is never touched. One row per setting: on how many graphs the outputs are equal or
changed, it was refused, not tried because the graph is large, took longer than the limit, or failed. With
``--log FILE`` outcomes are kept, and a second run goes on where the first one ended. The exit status is 1 where
something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.zoo.build import ExportError, build, default_cache, names
from benchmarks.zoo.trial import SETTINGS, Outcome, Setting, Subject, attempt, general
from onnxprune.recipe import PASSES

LIMIT = 120.0
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_SHOWN = 4


class Worker:
    """A process that tries one setting after the other; it is put down where one takes too long."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._process: multiprocessing.process.BaseProcess | None = None
        self._line: Connection | None = None

    def attempt(self, name: str, path: Path, setting: Setting) -> Outcome:
        """Return what came out, in at most the limit of seconds."""
        if self._process is None or self._line is None:
            context = multiprocessing.get_context("spawn")
            self._line, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        try:
            self._line.send((name, path, SETTINGS.index(setting)))
            if self._line.poll(self.limit):
                outcome: Outcome = self._line.recv()
                return outcome
        except (EOFError, OSError):
            self.close()
            return Outcome(name, setting.recipe, "failed", 0.0, "the process died")
        self.close()
        return Outcome(name, setting.recipe, "slow", self.limit)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._line = None


def _serve(line: Connection) -> None:
    logging.disable(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    subject: Subject | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            name, path, place = line.recv()
            if subject is None or subject.name != name:
                subject = None
                subject = Subject(name, path)
            setting = SETTINGS[place]
            if subject.cost.params > setting.most:
                line.send(Outcome(name, setting.recipe, "large", 0.0))
            else:
                line.send(attempt(subject, setting))


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, however that ended: a pass may go on for minutes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def chosen(wanted: Sequence[str]) -> list[Setting]:
    """Return the settings of these passes, or all."""
    return [setting for setting in SETTINGS if not wanted or setting.name in wanted]


def label(setting: Setting) -> str:
    """Return a setting as the table has it: short, and unlike all others."""
    text = re.sub(r"function='{examples}/(.*)'", r"\1", setting.recipe).replace("{middle}", "middle")
    text = re.sub(r"flops={less},only='{(\w+)}'", r"\1 nodes", text)
    return f"{text} on zeroed channels" if setting.zeroed else text


def table(settings: Sequence[Setting], outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of the report: the table, why layers were left alone, refusals, failures."""
    counted = ("equal", "changed", "refused", "large", "slow", "failed")
    yield "| recipe | graphs | " + " | ".join(counted) + " | slowest |"
    yield "|" + "---|" * (3 + len(counted))
    by = {id(setting): [o for o in outcomes if o.recipe == _key(setting)] for setting in settings}
    for setting in settings:
        found = by[id(setting)]
        totals = Counter(o.status for o in found)
        last = max((o for o in found if o.status not in ("large", "slow")), key=lambda o: o.seconds, default=None)
        slowest = "" if last is None else f"{last.graph} {last.seconds:.1f} s"
        cells = [f"`{label(setting)}`", str(len(found)), *(str(totals[word]) for word in counted), slowest]
        yield "| " + " | ".join(cells) + " |"
    for setting in settings:
        told = Counter(reason for o in by[id(setting)] for reason in o.reasons)
        told.update(f"refused: {general(o.detail)}" for o in by[id(setting)] if o.status == "refused")
        if told:
            yield f"\n`{label(setting)}`, what was said on how many graphs:"
            yield from (f"- {count}: {text}" for text, count in told.most_common(_SHOWN))
    slow = [o for o in outcomes if o.status == "slow"]
    if slow:
        yield "\nNot run to the end: " + ", ".join(f"{o.graph} {o.recipe}" for o in slow)
    failed = [o for o in outcomes if o.status == "failed"]
    yield f"\n{len(failed)} of {len(outcomes)} fail"
    yield from (f"- FAILED {o.graph} {o.recipe}: {o.detail}" for o in failed)


def _key(setting: Setting) -> str:
    return f"{setting.recipe} (zeroed)" if setting.zeroed else setting.recipe


def _known(log: Path | None) -> dict[tuple[str, str], Outcome]:
    if log is None or not log.is_file():
        return {}
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return {(row["graph"], row["recipe"]): Outcome(**{**row, "reasons": tuple(row["reasons"])}) for row in rows}


def main() -> int:
    """Print the table; return 1 when something fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where built models lie")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a name, network or pattern")
    parser.add_argument("--fast", action="store_true", help="the small subset of the ordinary tests")
    parser.add_argument("--pass", action="append", default=[], dest="passes", choices=sorted(PASSES), metavar="NAME")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one pass on one graph")
    parser.add_argument("--log", type=Path, help="JSON lines of outcomes; those in it already are not made again")
    args = parser.parse_args()
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    paths: dict[str, Path] = {}
    for name in names(args.only, fast=args.fast):
        try:
            paths[name] = build(name, args.cache)
        except ExportError as error:
            print(f"{name}: torch cannot export it: {error}", flush=True)
    settings, known, worker = chosen(args.passes), _known(args.log), Worker(args.limit)
    outcomes = []
    # Small graphs and quick settings first: what is wrong shows early.
    graphs = sorted(paths, key=lambda name: paths[name].stat().st_size)
    for name, setting in sorted(product(graphs, settings), key=lambda pair: pair[1].late):
        outcome = known.get((name, _key(setting)))
        if outcome is None:
            outcome = dataclasses.replace(worker.attempt(name, paths[name], setting), recipe=_key(setting))
            if args.log is not None:
                with args.log.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        if outcome.status == "failed":
            print(f"FAILED {name} {outcome.recipe}: {outcome.detail}", flush=True)
        outcomes.append(outcome)
    worker.close()
    print("\n".join(table(settings, outcomes)))
    return 1 if any(o.status == "failed" for o in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
