"""DeepHoyer on LeNets: none, L1 and Hoyer-Square side by side, at several strengths, trained, pruned and tuned.

    python benchmarks/deephoyer.py --train mnist-train.zip --test mnist-test.zip
    python benchmarks/deephoyer.py --train mnist-train.zip --test mnist-test.zip --structured --network lenet5
    python benchmarks/deephoyer.py ... --arms none l1=1e-5 hs=1e-4,3e-4 --out runs/deephoyer

What lies in --out is not done again: start it as often as it takes, with the same options, and once the dense
network is there several with different arms at once.
Each arm starts from the same dense network. Prints one Markdown row per strength: accuracy on the held-out tenth of
the training images, which a strength is to be chosen by, and on the test images, that of the ONNX file in ONNX
Runtime; non-zero weights, compression, what is left of MACs and of every layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from onnxprune.cli import main

ARMS = {
    False: ["none", "l1=1e-5,3e-5,1e-4", "hs=3e-5,5e-5,1e-4"],
    True: ["none", "group-lasso=1e-3,3e-3", "group-hs=3e-4,1e-3,3e-3,1e-2"],
}

# What the dense network depends on.
DENSE = ("network", "train", "test", "epochs", "augment", "batch_size", "seed")


def call(*words: object) -> dict[str, Any]:
    """Run one command and return its JSON."""
    done = CliRunner().invoke(main, [str(word) for word in words])
    if done.exit_code:
        raise SystemExit(done.output + (str(done.exception) if done.exception else ""))
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def keep(place: Path, found: str, options: argparse.Namespace, depends: tuple[str, ...]) -> None:
    """Write what a run gave, with the options that it depends on."""
    place.write_text(json.dumps({"found": found, "options": {name: getattr(options, name) for name in depends}}))


def reread(place: Path, options: argparse.Namespace) -> str:
    """Return what a run gave.

    Raises:
        SystemExit: If it was made with other options.
    """
    kept = json.loads(place.read_text())
    for name, value in kept["options"].items():
        if getattr(options, name) != value:
            asked = getattr(options, name)
            raise SystemExit(f"{place} was made with --{name.replace('_', '-')} {value}, not {asked}")
    return str(kept["found"])


def common(options: argparse.Namespace) -> tuple[object, ...]:
    """Return what the dense network and every arm are trained with."""
    data = ("--data", options.train, "--eval", options.test, "--device", options.device, "--seed", options.seed)
    return (*data, "--augment", options.augment, "--optimizer", "adam", "--batch-size", options.batch_size, "--json")


def by_macs(options: argparse.Namespace) -> str:
    """Return what tells an arm whose strengths go by MACs from others, in names of files."""
    return "-by-macs" if options.decay_by == "macs" else ""


def trained(options: argparse.Namespace, folder: Path, dense: Path, reg: str, decay: str) -> Path:
    """Train from the dense network with a regulariser, or find that done; return the checkpoint."""
    if reg == "none":
        return dense
    out = folder / f"{reg}-{decay}{by_macs(options)}.onnx"
    kept = out.with_suffix(".json")
    if kept.is_file():
        reread(kept, options)
    else:
        regular = ("--reg", reg, "--decay", decay, "--decay-by", options.decay_by)
        words = ("--epochs", options.sparse, "--from", dense, "--out", out, "--force", *regular)
        words += ("--lr", 1e-3, "--weight-decay", 1e-4 if options.structured else 0)
        call("train", options.network, *common(options), "--schedule", options.schedule, *words)
        keep(kept, "", options, (*DENSE, "schedule", "sparse"))
    # The last epoch: the best by validation may be an early one, not sparse yet.
    return out.with_suffix(".last.pth")


def arm(options: argparse.Namespace, folder: Path, dense: Path, reg: str, decay: str) -> tuple[Path, str]:
    """Train one arm, prune it, tune it and judge the file, or read what that gave; return the file and its row."""
    by, bound = ("threshold", options.threshold) if options.threshold else ("std-ratio", options.std_ratio)
    form = "structured" * options.structured
    strength = f"{decay}{by_macs(options)}" if decay else ""
    small = folder / ("-".join(word for word in (reg, strength, form, by, f"{bound:g}") if word) + ".onnx")
    kept = small.with_suffix(".json")
    if kept.is_file():
        return small, reread(kept, options)
    start = trained(options, folder, dense, reg, decay)
    words: list[object] = [f"--{by}", bound, "--schedule", options.schedule, "--out", small, "--force"]
    words += ["--epochs", options.tune, "--lr", 1e-3, "--weight-decay", 1e-4, *["--structured"] * options.structured]
    tuned = call("prune-tune", start, *common(options), *words)
    judged = call("evaluate", small, "--data", options.test, "--json")
    rows = " ".join(f"{row['rows_kept']}x{row['columns_kept']}" for row in tuned["layers"][:-1])
    macs = tuned["cost"]["written"]["macs"] / tuned["cost"]["dense"]["macs"]
    nonzero = tuned["layers"][-1]["nonzero"]
    accuracy = f"{tuned['validation']['accuracy']:.2%} | {judged['accuracy']['rate']:.2%}"
    cells = [f"{reg} {strength}".strip(), accuracy, f"{nonzero:,}", f"{tuned['compression']:.1f}x", f"{macs:.1%}", rows]
    row = f"| {' | '.join(cells)} |"
    keep(kept, row, options, (*DENSE, "schedule", "sparse", "tune"))
    return small, row


def distilled(options: argparse.Namespace, folder: Path, small: Path, row: str) -> str:
    """Let the file of an arm learn from the dense network, or read what that gave; return its row."""
    written = small.with_name(f"{small.stem}-distilled.onnx")
    kept = written.with_suffix(".json")
    if kept.is_file():
        return reread(kept, options)
    lesson = ("--teacher", folder / "dense.onnx", "--loss", "both", "--temperature", 4, "--augment", "shift")
    words = ("--epochs", options.distill, "--lr", 3e-3, "--out", written, "--force")
    taught = call("finetune", small, *common(options), *lesson, *words)
    judged = call("evaluate", written, "--data", options.test, "--json")
    name, _, _, *left = row.split(" | ")
    accuracy = (f"{taught['validation']['after']['accuracy']:.2%}", f"{judged['accuracy']['rate']:.2%}")
    row = " | ".join((f"{name}, distilled", *accuracy, *left))
    keep(kept, row, options, (*DENSE, "schedule", "sparse", "tune", "distill"))
    return row


def run(options: argparse.Namespace) -> None:
    """Train the dense network and print the table."""
    with contextlib.ExitStack() as stack:
        place = options.out or stack.enter_context(tempfile.TemporaryDirectory())
        folder = Path(place) / options.network
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "dense.json"
        if kept.is_file():
            found = reread(kept, options)
        else:
            words = ("--epochs", options.epochs, "--out", folder / "dense.onnx", "--force")
            dense = call("train", options.network, *common(options), *words)
            judged = call("evaluate", folder / "dense.onnx", "--data", options.test, "--json")
            found = f"held-out {dense['accuracy']['validation']:.2%}, test {judged['accuracy']['rate']:.2%}"
            keep(kept, found, options, DENSE)
        print(f"\n**{options.network}**, dense: {found}\n")
        print("| regulariser | held-out | test | non-zeros | compression | MACs | rows x columns left |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for word in options.arms or ARMS[options.structured]:
            reg, _, strengths = word.partition("=")
            for decay in strengths.split(","):
                small, row = arm(options, folder, folder / "dense.best.pth", reg, decay)
                print(row, flush=True)
                if options.distill:
                    print(distilled(options, folder, small, row), flush=True)


def parser() -> argparse.ArgumentParser:
    """Make the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--train", required=True, help="training images: any DATA")
    made.add_argument("--test", required=True, help="test images: any DATA")
    made.add_argument("--network", default="lenet300", choices=["lenet300", "lenet5"])
    made.add_argument("--structured", action="store_true")
    made.add_argument("--out", help="where networks and rows are kept [default: nowhere]")
    made.add_argument("--epochs", type=int, default=250, help="of the dense training")
    made.add_argument("--sparse", type=int, help="epochs of each regularised training [default: --epochs]")
    made.add_argument("--tune", type=int, default=100, help="epochs after pruning")
    made.add_argument("--distill", type=int, default=0, help="epochs of learning from the dense network after that")
    made.add_argument("--augment", default="affine", help="of every training")
    made.add_argument("--schedule", default="cosine", help="of the rate, in regularised training and in tuning")
    made.add_argument("--arms", nargs="+", help="none, or REGULARISER=STRENGTH,STRENGTH")
    made.add_argument("--decay-by", default="layer", choices=["layer", "macs"], help="what a layer's strength goes by")
    made.add_argument("--std-ratio", type=float, help="pruning [default: 0.25, with --structured 0.1]")
    made.add_argument("--threshold", type=float, help="in place of --std-ratio")
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="auto")
    return made


if __name__ == "__main__":
    given = parser().parse_args()
    given.sparse = given.sparse or given.epochs
    given.std_ratio = given.std_ratio or (0.1 if given.structured else 0.25)
    run(given)
