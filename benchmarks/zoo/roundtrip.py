"""Every graph of the zoo to onnx-graphsurgeon and back: equal outputs, equal metadata.

python -m benchmarks.zoo.roundtrip [--cache F] [--only PATTERN] [--fast]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.zoo.build import ExportError, build, default_cache, names
from benchmarks.zoo.check import distance, feeds_of
from benchmarks.zoo.check import run as run_model
from onnxprune.graph import io
from onnxprune.graph.gs import from_gs, to_gs


def check(path: Path) -> str:
    """Return ``ok`` or what differs after the way there and back."""
    model = io.load(path)
    back = from_gs(to_gs(model), model)
    if dict(back.metadata_props) != dict(model.metadata_props) or back.opset_imports != model.opset_imports:
        return "metadata or opsets differ"
    feeds = feeds_of(model, 0)
    worst = distance(run_model(back, feeds), run_model(model, feeds))
    return "ok" if worst == 0.0 else f"outputs differ by {worst:.1e}"


def main() -> None:
    """Print one line per graph; exit 1 when one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--fast", action="store_true")
    given = parser.parse_args()
    failed = 0
    for name in names(given.only, fast=given.fast):
        try:
            outcome = check(build(name, given.cache))
        except ExportError as error:
            outcome = f"not exported: {error}"
        failed += outcome != "ok"
        print(f"{name}: {outcome}", flush=True)
    print(f"{failed} graphs differ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
