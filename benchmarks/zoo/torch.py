"""Runs every graph of the zoo in torch, as fine-tuning does, and compares it with ONNX Runtime.

    python -m benchmarks.zoo.torch [--cache DIR] [--only NAME ...] [--fast]

``error``: the largest difference over the largest output. Where that is 1e-4 or more, the row fails, and says how far
ONNX Runtime and torch are from the same graph in double precision, which tells rounding from a wrong graph.
``batch``: the same with three examples instead of two, where the graph takes them. ``trained``: Parameters and the
weights in them; ``idle``: Parameters without a gradient.
``written``: whether writing the untrained weights back gives the same bytes. Exit status 1 where a row fails.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.zoo.build import ExportError, build, default_cache, names
from benchmarks.zoo.check import CRASHES, distance, feeds_of, run
from onnxprune.exporters.to_torch import OnnxModule, to_torch
from onnxprune.exporters.write_back import write_back
from onnxprune.graph import io
from onnxprune.graph.shapes import true_inputs

TOLERANCE = 1e-4
HEAD = "| graph | nodes | trained | weights | idle | error | batch | written | seconds | result |"


@dataclass
class Row:
    """The findings of one model; ``failures`` is empty where all is well."""

    name: str
    nodes: int = 0
    parameters: int = 0
    weights: int = 0
    idle: int = 0
    error: float = float("nan")
    batch: float = float("nan")
    written: bool = False
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def check(name: str, path: Path, seed: int = 0) -> Row:
    """Put one model to the proof."""
    row, start = Row(name), time.perf_counter()
    try:
        model = io.load(path)
        module = to_torch(model).eval()
        row.nodes = len(model.graph)
        row.parameters, row.weights = len(module.trained()), sum(p.numel() for p in module.parameters())
        feeds = feeds_of(model, seed)
        row.error = _error(module, model, feeds)
        all_feeds = [feeds]
        if all(value.shape is not None and not isinstance(value.shape[0], int) for value in true_inputs(model)):
            more = {key: np.concatenate([array, array[:1]]) for key, array in feeds.items()}
            row.batch = _error(module, model, more)
            all_feeds.append(more)
        if not row.error < TOLERANCE or row.batch >= TOLERANCE:
            row.failures.append(f"relative error {row.error:.2g}, {row.batch:.2g}: below {TOLERANCE:g} is accepted")
            runtime, own = _rounding(module, model, all_feeds)
            row.failures.append(f"ONNX Runtime is {runtime:.1e}, torch {own:.1e} from double precision")
        row.idle = _idle(module, feeds)
        plain = [ir.serde.serialize_model(each).SerializeToString() for each in (model, write_back(module, model))]
        row.written = plain[0] == plain[1]
    except CRASHES as error:
        row.failures.append(f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:300]}")
    else:
        if not row.written:
            row.failures.append("writing untrained weights back changes the file")
    row.seconds = time.perf_counter() - start
    return row


def _computed(module: OnnxModule, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = module.run({key: torch.from_numpy(array) for key, array in feeds.items()})
    return {key: value.numpy() for key, value in found.items()}


def _error(module: OnnxModule, model: ir.Model, feeds: Mapping[str, np.ndarray]) -> float:
    return distance(_computed(module, feeds), run(model, dict(feeds)))


def _rounding(module: OnnxModule, model: ir.Model, all_feeds: list[dict[str, np.ndarray]]) -> tuple[float, float]:
    """Return how far ONNX Runtime, and torch in single precision, are from torch in double precision at most."""
    exact, worst = to_torch(model).eval().double(), (0.0, 0.0)
    for feeds in all_feeds:
        wide = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in feeds.items()}
        wanted = _computed(exact, wide)
        found = (distance(run(model, dict(feeds)), wanted), distance(_computed(module, feeds), wanted))
        worst = (max(worst[0], found[0]), max(worst[1], found[1]))
    return worst


def _idle(module: OnnxModule, feeds: Mapping[str, np.ndarray]) -> int:
    """Return how many Parameters no output depends on (as torch sees it)."""
    found = module.run({key: torch.from_numpy(array) for key, array in feeds.items()})
    torch.stack(
        [value.double().square().sum() for value in found.values() if value.is_floating_point()]
    ).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
    return sum(parameter.grad is None for parameter in module.parameters())


def line(row: Row) -> str:
    """Return a model's row of the table."""
    cells = [row.name, str(row.nodes), str(row.parameters), f"{row.weights:,}", str(row.idle), f"{row.error:.0e}"]
    cells += [f"{row.batch:.0e}", "same" if row.written else "no", f"{row.seconds:.1f}"]
    return "| " + " | ".join([*cells, "FAILED" if row.failures else "ok"]) + " |"


def main() -> int:
    """Print the table; return 1 when a graph fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where built models lie")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a name, network or pattern")
    parser.add_argument("--fast", action="store_true", help="the small subset of the ordinary tests")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{HEAD}\n|" + "---|" * 10, flush=True)
    failed = 0
    for name in names(args.only, fast=args.fast):
        try:
            path = build(name, args.cache)
        except ExportError as error:
            print(f"{name}: not exported by torch: {error}", file=sys.stderr)
            continue
        row = check(name, path, args.seed)
        failed += bool(row.failures)
        print(line(row), flush=True)
        for failure in row.failures:
            print(f"    FAILED {failure}", flush=True)
    print(f"\n{failed} graphs fail", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
