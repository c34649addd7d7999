"""The experiment of InCoP (2025) on MNIST: lottery tickets, SAP and both of InCoP's rules, several trials of each.

    python benchmarks/incop.py --train mnist-train.zip --test mnist-test.zip --out runs --jobs 2
    python benchmarks/incop.py ... --images 6000 --epochs 5 --chunk 1     # two cores, hours fewer

Rounds that are done are not done again: start it as often as it takes. Prints one Markdown row per method: final test
accuracy, weights left, epochs in all, as means over the trials with their deviation, and for InCoP what lottery
tickets and SAP of the same orders had, and the epochs that SAP took, where as many weights were left. Draws both
beside the weights left. Nothing is chosen on the test images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from onnxprune.cli import main

ORDERS = ((0.5, 1.0), (1.0, 2.0))
_NEAR = 0.98
HEAD = "| method | test accuracy | weights left | epochs | LTH there | SAP there | SAP's epochs there |"
ARMS = [("lth", None), *((method, orders) for method in ("sap", "incop-if", "incop-gf") for orders in ORDERS)]


def fewer(archive: str, count: int, out: Path) -> str:
    """Write a zip of class folders with ``count`` images of another one, the same share of every class."""
    place = out / f"train-{count}.zip"
    if place.is_file():
        return str(place)
    out.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(".part")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(part, "w") as target:
        names = sorted(name for name in source.namelist() if not name.endswith("/"))
        classes: dict[str, list[str]] = {}
        for name in names:
            classes.setdefault(name.rpartition("/")[0], []).append(name)
        share = count / len(names)
        for found in classes.values():
            for name in found[: max(1, round(share * len(found)))]:
                target.writestr(name, source.read(name))
    part.replace(place)
    return str(place)


def arm(given: argparse.Namespace, network: str, method: str, orders: tuple[float, float] | None) -> list[Any]:
    """Run one method on one network, or go on with it; return its rounds over all trials."""
    settled = ["--settled"] if given.settled and method.startswith("incop") else []
    folder = method if orders is None else f"{method}-{orders[0]:g}-{orders[1]:g}"
    place = Path(given.out) / network / (f"{folder}-settled" if settled else folder)
    place.mkdir(parents=True, exist_ok=True)
    words: list[Any] = ["iterate", method, "--model", network, "--data", given.train, "--eval", given.test, *settled]
    words += ["--rounds", given.rounds, "--epochs", given.epochs, "--dense-epochs", given.dense]
    words += ["--rewind", given.rewind, "--chunk", given.chunk, "--epsilon", given.epsilon]
    words += ["--trials", given.trials, "--jobs", given.jobs, "--batch-size", given.batch_size, "--lr", given.lr]
    words += ["--weight-decay", 5e-4, "--schedule", given.schedule, "--augment", "none", "--device", given.device]
    words += ["--out", place, "--resume", "--json", *(["--p", orders[0], "--q", orders[1]] if orders else [])]
    done = CliRunner().invoke(main, [str(word) for word in words])
    if done.exit_code:
        raise SystemExit(done.output + (str(done.exception) if done.exception else ""))
    rows: list[Any] = json.loads(done.stdout)
    return rows


def reached(rounds: list[Any], left: float) -> tuple[float, float] | None:
    """Return test accuracy and epochs so far where a share of the weights is left, between the rounds around it."""
    epochs = list(itertools.accumulate(each["epochs"]["mean"] for each in rounds))
    points = [
        (each["remaining"]["mean"], each["test_accuracy"]["mean"], spent)
        for each, spent in zip(rounds, epochs, strict=True)
    ]
    for (more, before, early), (less, after, late) in itertools.pairwise(points):
        if more > less and more >= left >= less:
            share = math.log(more / left) / math.log(more / less)
            return before + share * (after - before), early + share * (late - early)
    # Runs that end within two hundredths of one another are told beside each other.
    return points[-1][1:] if left >= _NEAR * points[-1][0] and left < points[-1][0] else None


def row(name: str, rounds: list[Any], others: Sequence[list[Any]] = ()) -> str:
    """Return one row of the table; ``others`` are lottery tickets and SAP, where they are to be told beside it."""
    last = rounds[-1]
    epochs = sum(each["epochs"]["mean"] for each in rounds)
    accuracy, left = last["test_accuracy"], last["remaining"]
    cells = [name, f"{accuracy['mean']:.2%} ± {accuracy['deviation']:.2%}", f"{left['mean']:.2%}", f"{epochs:.0f}"]
    there = [reached(other, left["mean"]) for other in others] or [None, None]
    cells += ["" if found is None else f"{found[0]:.2%}" for found in there]
    cells.append("" if there[-1] is None else f"{there[-1][1]:.0f}")
    return "| " + " | ".join(cells) + " |"


def draw(network: str, found: Mapping[str, list[Any]], out: Path) -> None:
    """Draw test accuracy and epochs so far beside the weights left, a line per method."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 8), sharex=True, layout="constrained")
    for name, rounds in found.items():
        left = [each["remaining"]["mean"] for each in rounds]
        accuracy = [each["test_accuracy"]["mean"] for each in rounds]
        deviation = [each["test_accuracy"]["deviation"] for each in rounds]
        above.errorbar(left, accuracy, deviation, marker=".", linewidth=1, label=name)
        below.plot(left, list(itertools.accumulate(e["epochs"]["mean"] for e in rounds)), marker=".", linewidth=1)
    above.set(ylabel="test accuracy", title=network, xscale="log")
    below.set(ylabel="epochs so far", xlabel="weights left")
    below.invert_xaxis()
    above.legend(fontsize="small")
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def run() -> None:
    """Parse the command line and print a table per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="training images: any DATA")
    parser.add_argument("--test", required=True, help="test images: any DATA")
    parser.add_argument("--out", default="runs/incop", help="where the runs are kept")
    parser.add_argument("--networks", nargs="+", default=["lenet5", "vgg_small"])
    parser.add_argument("--images", type=int, default=0, help="of --train, a zip of class folders [default: all]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=10, help="of a round, at most")
    parser.add_argument("--dense", type=int, default=10, help="epochs of the dense network")
    parser.add_argument("--rewind", type=int, default=2, help="the epoch whose weights rounds start from")
    parser.add_argument("--chunk", type=int, default=2, help="epochs between two looks at the flow")
    parser.add_argument("--epsilon", default="auto", help="distance of flows that ends a round")
    parser.add_argument("--settled", action="store_true", help="rounds of InCoP end too when their flow has settled")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.trials < 2:
        parser.error("--trials: at least 2, for a deviation")
    if given.images:
        given.train = fewer(given.train, given.images, Path(given.out))
    for network in given.networks:
        print(f"\n**{network}**\n\n{HEAD}\n|---|---|---|---|---|---|---|", flush=True)
        found: dict[str, list[Any]] = {}
        for method, orders in ARMS:
            name = method if orders is None else f"{method} ({orders[0]:g}, {orders[1]:g})"
            found[name] = arm(given, network, method, orders)
            beside = [found["lth"], found[name.replace(method, "sap")]] if method.startswith("incop") else []
            print(row(name, found[name], beside), flush=True)
        draw(network, found, Path(given.out) / f"{network}{'-settled' if given.settled else ''}.svg")


if __name__ == "__main__":
    run()
