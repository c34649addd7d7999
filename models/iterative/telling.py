"""A run in words and pictures: what a person opens first in its folder, and what several seeds say together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.models import distributed
from onnxprune.models.iterative.options import IterateOptions
from onnxprune.report.plots import write_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onnxprune.models.iterative.rounds import Iteration

__all__ = ["aggregate", "tell"]

_WORDS = {
    "lth": "Lottery tickets (Frankle, Carbin 2019): every round prunes a share of what is left and goes back to early "
    "weights.",
    "sap": "Adaptive pruning (Diao et al. 2023): every round prunes what the PQ index allows and goes back to early "
    "weights.",
    "incop-if": "InCoP-IF: as adaptive pruning, but a round's training ends once information flows as in the dense "
    "network.",
    "incop-gf": "InCoP-GF: as adaptive pruning, but a round's training ends once gradients flow as in the dense "
    "network.",
    "surp": "SuRP (Isik, Weissman, No 2022) in stages: the code's values at the next sparsity, then training with "
    "zeros fixed.",
    "magnitude": "Magnitude pruning in stages: the smallest weights go, then training with zeros fixed.",
}


def tell(found: Iteration, options: IterateOptions, name: str) -> None:
    """Write README.md and the plots of a run; of several processes the first does."""
    if distributed.rank():
        return
    rounds = found.rounds
    lines = [
        f"# {options.method}, {name}",
        "",
        _WORDS[options.method],
        "",
        f"{found.epochs} epochs in all, {sum(each['seconds'] for each in rounds):.0f} s. The test accuracy decided "
        "nothing; a held-out part of the training examples did.",
        "",
        *_table(rounds),
        "",
        "`round-00` is the dense network; every round has its `model.onnx`, with zeros in dense weights: "
        "`onnxprune compare round-00/model.onnx round-05/model.onnx --data D` tells what they changed, "
        "`onnxprune encode` makes them small. `rounds.json` has the weights left per layer, `run.json` what was asked "
        "for, `rewind.pth` the weights that rounds start from, `similarity.npz` the layers' correlations.",
        "",
        "![accuracy and weights left](accuracy.svg)",
        "",
        "![epochs](epochs.svg)",
    ]
    folder = found.folder
    _plot(folder.path / "accuracy.svg", lambda axes: _accuracy(axes, rounds))
    _plot(folder.path / "epochs.svg", lambda axes: _epochs(axes, rounds))
    if any(row.get("distances") for row in rounds):
        lines += ["", "![distance of flows](flow.svg)"]
        _plot(folder.path / "flow.svg", lambda axes: _flow(axes, rounds))
    if "surp_bytes" in rounds[-1]:
        lines += ["", "![rate: bytes of the .surp file](rate.svg)"]
        _plot(folder.path / "rate.svg", lambda axes: _rate(axes, rounds))
    noted = folder.load_arrays("similarity.npz")
    places = sorted(key for key in noted if key.startswith("round_"))
    if places:
        lines += ["", "![similarity of layers, last round](similarity.svg)"]
        _plot(folder.path / "similarity.svg", lambda axes: _similarity(axes, noted[places[-1]]))
    folder.write_text("README.md", "\n".join(lines) + "\n")


def _plot(file: Path, draw: Callable[[Axes], None]) -> None:
    write_svg(file, (6.0, 3.6), lambda figure: draw(figure.subplots()))


def aggregate(folders: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Return mean and deviation of every figure per round over several runs, and write them to ``out`` as JSON.

    Raises:
        OptionError: The runs are not of the same rounds.
    """
    runs = [json.loads((folder / "rounds.json").read_text(encoding="utf-8")) for folder in folders]
    if len({len(run) for run in runs}) != 1:
        raise OptionError("the trials have different numbers of rounds: go on with those that were stopped (--resume)")
    found = []
    for rows in zip(*runs, strict=True):
        row: dict[str, Any] = {"round": rows[0]["round"], "trials": len(rows)}
        for name, value in rows[0].items():
            if name == "round" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            values = [float(each[name]) for each in rows if isinstance(each.get(name), int | float)]
            row[name] = {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
        found.append(row)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _table(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    coded = "surp_bytes" in rounds[-1]
    heads = ["round", "weights left", "held-out accuracy", "test accuracy", "epochs", "ended by"]
    heads += [".surp", "decoded, test accuracy"] if coded else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rounds:
        cells = [
            str(row["round"]),
            f"{row['left']:,} ({row['remaining']:.2%})",
            f"{row['validation_accuracy']:.2%}",
            f"{row['test_accuracy']:.2%}",
            str(row["epochs"]),
            str(row.get("ended", "epochs")),
        ]
        if coded:
            cells += [f"{row['surp_bytes']:,.0f} bytes", f"{row['surp_test_accuracy']:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _accuracy(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    left = [row["remaining"] for row in rounds]
    axes.plot(left, [row["test_accuracy"] for row in rounds], marker="o", label="test")
    axes.plot(left, [row["validation_accuracy"] for row in rounds], marker=".", label="held out")
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("share of the weights left")
    axes.set_ylabel("accuracy")
    axes.legend()


def _epochs(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    places = [row["round"] for row in rounds]
    epochs = [row["epochs"] for row in rounds]
    axes.bar(places, epochs, label="in the round")
    axes.plot(places, np.cumsum(epochs), marker=".", color="C1", label="so far")
    axes.set_xlabel("round")
    axes.set_ylabel("epochs")
    axes.legend()


def _flow(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    points = [(row["round"], value) for row in rounds for value in row.get("distances") or () if math.isfinite(value)]
    axes.scatter([x for x, _ in points], [y for _, y in points], s=12, label="after each look")
    epsilon = rounds[0].get("epsilon")
    if epsilon:
        axes.axhline(epsilon, color="C1", linewidth=1, label="near enough")
    axes.set_xlabel("round")
    axes.set_ylabel("distance to the dense flow")
    axes.legend()


def _rate(axes: Axes, rounds: Sequence[Mapping[str, Any]]) -> None:
    sizes = [row["surp_bytes"] / 1024 for row in rounds]
    axes.plot(sizes, [row["surp_test_accuracy"] for row in rounds], marker="o", label="decoded")
    axes.plot(sizes, [row["test_accuracy"] for row in rounds], marker=".", label="as trained")
    axes.set_xscale("log")
    axes.set_xlabel("KiB of the .surp file")
    axes.set_ylabel("test accuracy")
    axes.legend()


def _similarity(axes: Axes, matrix: np.ndarray) -> None:
    shown = axes.imshow(matrix, vmin=0, vmax=max(float(matrix.max()), 1e-9))
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    axes.figure.colorbar(shown, ax=axes, label="mean correlation")
