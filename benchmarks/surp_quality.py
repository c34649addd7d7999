"""What zeros among single weights leave of a model's decisions: the code's values, original ones, and refits.

    python benchmarks/surp_quality.py --model resnet20.onnx --calib cifar10-train.zip --eval cifar10-val.zip

Prints one row per rule and sparsity: means over the seeds (each draws its own calibration examples, labels unread), the
95 % interval of the first seed, CPU seconds of the whole pass with its evaluation. Nothing is chosen on the evaluation
data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from id_quality import arguments, measure

from onnxprune.report.figures import interval, percent

ROWS = {
    "surp, the code's values": "surp(sparsity={size},values=reconstruction)",
    "surp, original values": "surp(sparsity={size},values=original)",
    "surp, refit once": "surp(sparsity={size},values=refit,stages=1)",
    "surp, refit": "surp(sparsity={size},values=refit)",
    "surp, refit in 8 stages": "surp(sparsity={size},values=refit,stages=8)",
    "magnitude": "magnitude(sparsity={size},scope=global,values=original)",
    "magnitude over norms": "magnitude(sparsity={size},values=original)",
    "magnitude over norms, refit once": "magnitude(sparsity={size},stages=1)",
    "magnitude over norms, refit in 8 stages": "magnitude(sparsity={size},stages=8)",
    "two of four": "magnitude(nm=2:4,values=original)",
    "two of four, refit": "magnitude(nm=2:4)",
}
UNSIZED = ("two of four", "two of four, refit")
HEAD = "| model | rule | sparsity | top-1 | agreement | 95 % interval | CPU s |"


def row(model: str, name: str, size: float, given: argparse.Namespace) -> None:
    """Print one row."""
    recipe = ROWS[name].format(size=size)
    runs = [measure(model, recipe, given, given.calib_examples, seed) for seed in range(given.seeds)]
    reports = [report for report, _ in runs]
    tops = [report.agreement.top1 for report in reports if report.agreement is not None]
    rights = [report.accuracy.compressed for report in reports if report.accuracy is not None]
    cells = [
        Path(model).stem,
        name,
        f"{fmean(report.steps[0].numbers['sparsity'] for report in reports):.3f}",
        percent(fmean(rights)) if rights else "-",
        percent(fmean(top.rate for top in tops)),
        interval(tops[0].low, tops[0].high),
        f"{fmean(seconds for _, seconds in runs):.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def run() -> None:
    """Parse the command line and print the table."""
    parser = arguments(__doc__, ROWS, ROWS, [0.5, 0.6, 0.7, 0.8, 0.9], 3)
    parser.add_argument("--calib-examples", type=int, default=1000)
    given = parser.parse_args()
    given.drop_class = []
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    for model in given.model:
        for name in given.rows:
            for size in given.sizes[:1] if name in UNSIZED else given.sizes:
                row(model, name, size, given)


if __name__ == "__main__":
    sys.exit(run())
