"""Puts every rule of the surgery to the proof on the graph zoo: one row per graph, failures at the end.

    python -m benchmarks.zoo.run [--cache DIR] [--only NAME ...] [--fast] [--reasons]

``spaces``: how many sets of channels can be cut. ``prunable``: the share of MACs in nodes with at least one
axis that can be cut. ``lowest``: the MAC ratio with one channel everywhere. ``keep=1``: the largest difference to
the dense model over its largest output. ``keep=0.75`` and ``0.5``: the same against the dense model with the cut
channels zeroed where they are read, and the MAC ratio. A row that fails says so in ``result``; the exit status is 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from benchmarks.zoo.build import ExportError, build, default_cache, names
from benchmarks.zoo.check import KEEPS, Row, check

HEAD = "| graph | spaces | prunable | lowest | keep=1 | " + " | ".join(f"keep={k:g} (MACs)" for k in KEEPS)


def line(row: Row) -> str:
    """Return a model's row of the table."""
    nan = float("nan")
    cuts = [f"{row.errors.get(keep, nan):.0e} ({row.ratios.get(keep, nan):.3f})" for keep in KEEPS]
    cells = [row.name, str(row.spaces), f"{row.share:.3f}", f"{row.lowest:.3f}", f"{row.neutral:.0e}", *cuts]
    return "| " + " | ".join([*cells, f"{row.seconds:.1f}", "FAILED" if row.failures else "ok"]) + " |"


def main() -> int:
    """Print the table; return 1 when a graph fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where built models lie")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a name, network or pattern")
    parser.add_argument("--fast", action="store_true", help="the small subset of the ordinary tests")
    parser.add_argument("--reasons", action="store_true", help="print what holds back most MACs under every row")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs and of the channels that stay")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{HEAD} | seconds | result |\n|" + "---|" * (7 + len(KEEPS)), flush=True)
    failed, refused = 0, []
    for name in names(args.only, fast=args.fast):
        try:
            path = build(name, args.cache)
        except ExportError as error:
            refused.append(f"{name}: {error}")
            continue
        row = check(name, path, args.seed)
        failed += bool(row.failures)
        print(line(row), flush=True)
        for failure in row.failures:
            print(f"    FAILED {failure}", flush=True)
        for share, reason in row.reasons if args.reasons else ():
            print(f"    {share:.3f} {reason}", flush=True)
    if refused:
        print("\nNot exported by torch:\n" + "\n".join(refused))
    print(f"\n{failed} graphs fail", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
