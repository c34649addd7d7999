"""What a sweep of five sizes takes beside one run of `apply`: CPU seconds, in processes of their own.

python benchmarks/sweep_time.py --model resnet20.onnx --calib cifar10-train.zip --eval cifar10-val.zip
python benchmarks/sweep_time.py ... --recipe auto
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile

TARGETS = "flops=0.9,0.8,0.7,0.6,0.5"


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU seconds of a command line of onnxprune."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "onnxprune", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="an .onnx file")
    parser.add_argument("--calib", required=True, help="calibration examples, any DATA form")
    parser.add_argument("--eval", required=True, help="evaluation examples, any DATA form")
    parser.add_argument("--recipe", default="id", help="a recipe in which one pass names no size")
    given = parser.parse_args()
    fed = ["--in", given.model, "--calib", given.calib, "--eval", given.eval]
    with tempfile.TemporaryDirectory() as folder:
        first, *_, last = TARGETS.removeprefix("flops=").split(",")
        for size in (first, last):
            out = f"{folder}/{size}.onnx"
            once = cpu_seconds(["apply", given.recipe, *fed, "--out", out, "--target", f"flops={size}"])
            print(f"apply {given.recipe}, flops={size}: {once:.1f} CPU s", flush=True)
        whole = cpu_seconds(["sweep", given.recipe, *fed, "--target", TARGETS])
    print(f"sweep {given.recipe}, {TARGETS}: {whole:.1f} CPU s, {whole / once:.2f} times the last")


if __name__ == "__main__":
    main()
