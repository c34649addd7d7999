"""SuRP in stages with retraining beside iterative magnitude pruning, the same training for both (Isik et al. 2022).

    python benchmarks/stages.py --model resnet20.onnx --train cifar10-train.zip --test cifar10-val.zip --out runs

Prints one Markdown row per method and stage: test accuracy, and decisions that are the dense network's own; the bytes
of the stage as a ``.surp`` file, how many times smaller that is than the dense ``.onnx`` file, and both figures of what
it decodes to; the minutes that the stage trained. Nothing is chosen on the test images. Stages that are done are not
done again: start it as often as it takes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from onnxprune.api import Options, compare, decode
from onnxprune.cli import main

METHODS = ("surp", "magnitude")
HEAD = (
    "| method | zeros | accuracy | agreement | .surp bytes | times smaller | decoded accuracy | agreement | minutes |"
)


def rounds_of(given: argparse.Namespace, method: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run one method, or go on with it; return its folder and rounds, the dense network first."""
    place = Path(given.out) / f"{method}-{Path(given.model).stem}"
    words: list[Any] = ["iterate", method, "--model", given.model, "--data", given.train, "--eval", given.test]
    words += ["--sparsity", given.sparsity, "--epochs", given.epochs, "--lr", given.lr, "--schedule", "cosine"]
    words += ["--optimizer", given.optimizer, "--clip", given.clip, "--weight-decay", 0, "--values", given.values]
    words += ["--loss", given.loss, "--temperature", given.temperature, "--probe", given.probe]
    words += ["--batch-size", given.batch_size, "--seed", given.seed, "--device", given.device]
    words += ["--out", place, "--resume", "--json"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    if done.exit_code:
        raise SystemExit(done.output + (str(done.exception) if done.exception else ""))
    return place, json.loads(done.stdout)["rounds"]


def judged(given: argparse.Namespace, model: Any) -> tuple[float, float]:
    """Return a model's accuracy and its agreement with the dense network, both on the test images."""
    report = compare(given.model, model, given.test, options=Options(threads=given.threads))
    assert report.accuracy is not None
    assert report.agreement is not None
    return report.accuracy.compressed, report.agreement.top1.rate


def row(given: argparse.Namespace, method: str, place: Path, stage: dict[str, Any]) -> str:
    """Return a stage's row of the table."""
    folder, zeros, size = place / f"round-{stage['round']:02d}", 1 - stage["remaining"], int(stage["surp_bytes"])
    accuracy, agreement = judged(given, folder / "model.onnx")
    after, kept = judged(given, decode(folder / "model.surp").model)
    ratio = Path(given.model).stat().st_size / size
    cells = [method, f"{zeros:.1%}", f"{accuracy:.2%}", f"{agreement:.2%}", f"{size:,}", f"{ratio:.1f}"]
    cells += [f"{after:.2%}", f"{kept:.2%}", f"{stage['seconds'] / 60:.1f}"]
    return "| " + " | ".join(cells) + " |"


def run() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a trained .onnx file")
    parser.add_argument("--train", required=True, help="training images: any DATA")
    parser.add_argument("--test", required=True, help="test images: any DATA")
    parser.add_argument("--out", default="runs/stages", help="where the runs are kept")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--sparsity", default="0.8,0.9,0.95,0.98", help="zeros after each stage")
    parser.add_argument("--values", default="refit", help="what a stage starts from")
    parser.add_argument("--probe", type=int, default=2000, help="examples that it is refitted to")
    parser.add_argument("--loss", default="both", help="what is learnt: labels, distill (the dense network) or both")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=7, help="of a stage")
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of a step's gradient")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    report = compare(given.model, given.model, given.test, options=Options(threads=given.threads))
    assert report.accuracy is not None
    print(f"dense: {report.accuracy.original:.2%}, {Path(given.model).stat().st_size:,} bytes\n")
    print(f"{HEAD}\n|" + "---|" * 9, flush=True)
    for method in given.methods:
        place, stages = rounds_of(given, method)
        for stage in stages[1:]:
            print(row(given, method, place, stage), flush=True)


if __name__ == "__main__":
    run()
