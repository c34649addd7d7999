"""What interpolative decomposition keeps of a model's decisions, from the published method to the whole of ours.

    python benchmarks/id_quality.py --model resnet20.onnx --calib cifar10-train.zip --eval cifar10-val.zip
    python benchmarks/id_quality.py ... --calib-examples 64 256 1000 4000 --rows allocation      how much data
    python benchmarks/id_quality.py ... --drop-class cat --rows "paper's ID" allocation           a class left out

Prints one row per recipe and size: means over the seeds (each draws its own calibration examples, labels unread),
the 95 % interval of the first seed. Original and result are timed in turn in one process; CPU seconds are the whole
pass's. Nothing is chosen on the evaluation data.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from pathlib import Path
from statistics import fmean

from onnxprune import compress
from onnxprune.api.options import Options
from onnxprune.report.figures import interval, percent
from onnxprune.report.report import Report

ROWS = {
    "paper's ID": "id(flops={size},reconstruct=none,select=pivots)",
    "iditer": "id(flops={size},mode=iditer,reconstruct=none)",
    "symmetric": "id(flops={size},reconstruct=symmetric,allocate=uniform)",
    "asymmetric": "id(flops={size},allocate=uniform)",
    "allocation": "id(flops={size})",
    "surp, zeros kept": "surp(sparsity=0.5),id(flops={size})",
    "surp, zeros filled": "surp(sparsity=0.5),id(flops={size},preserve_zeros=false)",
    "id, then surp": "id(flops={size}),surp(sparsity=0.5)",
}
DEFAULT = ("paper's ID", "iditer", "symmetric", "asymmetric", "allocation")
HEAD = "| model | row | calibration | FLOPs | params | nonzero | top-1 | agreement | 95 % interval | latency | CPU s |"


def measure(model: str, recipe: str, given: argparse.Namespace, count: int, seed: int) -> tuple[Report, float]:
    """Run one recipe; return its report and CPU seconds, evaluation not counted."""
    options = Options(seed=seed, calib_examples=count, drop_classes=tuple(given.drop_class))
    start = time.process_time()
    result = compress(model, recipe, calib=given.calib, eval=given.eval, options=options)
    whole = time.process_time() - start
    return result.report, whole


def row(model: str, name: str, recipe: str, given: argparse.Namespace, count: int) -> None:
    """Print one row, and per class where one was left out."""
    runs = [measure(model, recipe, given, count, seed) for seed in range(given.seeds)]
    reports = [report for report, _ in runs]
    tops = [report.agreement.top1 for report in reports if report.agreement is not None]
    rights = [report.accuracy.compressed for report in reports if report.accuracy is not None]
    ratios = [report.latency["ratio"] for report in reports if report.latency is not None]
    cells = [
        Path(model).stem,
        name,
        str(count),
        f"{fmean(r.cost.macs.ratio or 0 for r in reports):.4f}",
        f"{fmean(r.cost.params.ratio or 0 for r in reports):.3f}",
        f"{fmean(r.cost.nonzero.ratio or 0 for r in reports):.3f}",
        percent(fmean(rights)) if rights else "-",
        percent(fmean(top.rate for top in tops)),
        interval(tops[0].low, tops[0].high),
        f"{fmean(ratios):.2f}",
        f"{fmean(seconds for _, seconds in runs):.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    if given.drop_class:
        agreement = reports[0].agreement
        assert agreement is not None
        rates = ", ".join(f"{c.label} {percent(c.rate)}" for c in agreement.per_class)
        print(f"  per class: {rates}", flush=True)


def arguments(
    doc: str | None, rows: Collection[str], default: Collection[str], sizes: list[float], seeds: int
) -> argparse.ArgumentParser:
    """Return the arguments that all tables of decisions take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="an .onnx file (repeatable)")
    parser.add_argument("--calib", required=True, help="calibration examples, any DATA form")
    parser.add_argument("--eval", required=True, help="evaluation examples, any DATA form")
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(default))
    parser.add_argument("--sizes", nargs="+", type=float, default=sizes)
    parser.add_argument("--seeds", type=int, default=seeds)
    return parser


def run() -> None:
    """Parse the command line and print the table."""
    parser = arguments(__doc__, ROWS, DEFAULT, [0.75, 0.5], 3)
    parser.add_argument("--calib-examples", nargs="+", type=int, default=[1000])
    parser.add_argument("--drop-class", action="append", default=[], help="leave a class out of calibration")
    given = parser.parse_args()
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    for model in given.model:
        for size in given.sizes:
            for count in given.calib_examples:
                for name in given.rows:
                    row(model, name, ROWS[name].format(size=size), given, count)


if __name__ == "__main__":
    sys.exit(run())
