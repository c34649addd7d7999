"""The README's figures: recipes on small trained networks, before and after, measured side by side.

    python benchmarks/quickstart.py                      LeNets trained here on the embedded digits
    python benchmarks/quickstart.py --model M.onnx --calib D --eval D     any model and data of yours

Prints one Markdown table per model. The original and the result are timed in turn in one process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from onnxprune import compress
from onnxprune.cli import main
from onnxprune.report.figures import interval, percent

RECIPES = (
    "surp(sparsity=0.5)",
    "surp(sparsity=0.8)",
    "id(flops=0.75,reconstruct=none)",
    "id(flops=0.5,reconstruct=none)",
    "surp(sparsity=0.5),id(flops=0.9,reconstruct=none)",
    "surp(sparsity=0.5),id(flops=0.5,reconstruct=none)",
)
HEAD = "| recipe | FLOPs | parameters | nonzero | agreement (95 % interval) | accuracy | latency | seconds |"


def table(title: str, model: str, calib: str | None, judged: str | None) -> None:
    """Run every recipe on one model and print its rows."""
    print(f"\n**{title}**\n\n{HEAD}\n|---|---|---|---|---|---|---|---|")
    for recipe in RECIPES:
        start = time.process_time()
        report = compress(model, recipe, calib=calib, eval=judged).report
        seconds = time.process_time() - start
        cost, agreement, accuracy, latency = report.cost, report.agreement, report.accuracy, report.latency
        assert agreement is not None
        assert latency is not None
        top1 = agreement.top1
        right = "-" if accuracy is None else f"{percent(accuracy.original)} -> {percent(accuracy.compressed)}"
        cells = [
            f"`{recipe}`",
            percent(cost.macs.ratio),
            percent(cost.params.ratio),
            percent(cost.nonzero.ratio),
            f"{percent(top1.rate)} ({interval(top1.low, top1.high)})",
            right,
            percent(latency["ratio"]),
            f"{seconds:.1f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def trained(folder: Path, network: str) -> str:
    """Train a network on the embedded digits with the default options and return the file."""
    path = str(folder / f"{network}.onnx")
    main(["train", network, "--data", "digits", "--out", path, "--json"], standalone_mode=False)
    return path


def run() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="an .onnx file (repeatable)")
    parser.add_argument("--calib", help="calibration examples, any DATA form")
    parser.add_argument("--eval", help="evaluation examples, any DATA form")
    given = parser.parse_args()
    if given.model:
        for model in given.model:
            table(Path(model).name, model, given.calib, given.eval)
        return
    with tempfile.TemporaryDirectory() as folder:
        for network in ("lenet5", "lenet300"):
            table(f"{network}, embedded digits", trained(Path(folder), network), None, None)


if __name__ == "__main__":
    run()
