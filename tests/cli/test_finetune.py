"""``onnxprune finetune``: the verb, its files, its refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result

Run = Callable[..., Result]
SHORT = ("--epochs", 3, "--batch-size", 16, "--lr", 0.003, "--device", "cpu")


@pytest.fixture
def files(conv_net: Callable[..., Any], cli: Run, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The original, a pruned copy, and unlabelled images."""
    model, pruned, data = tmp_path / "model.onnx", tmp_path / "pruned.onnx", tmp_path / "x.npz"
    onnx.save(conv_net(0), model)
    images = np.random.default_rng(5).standard_normal((400, 1, 12, 12)).astype(np.float32)
    np.savez(data, x=images)
    recipe = "magnitude(sparsity=0.7,values=original)"
    assert cli("apply", recipe, "--in", model, "--out", pruned, "--data", data).exit_code == 0
    return model, pruned, data


def _refused(done: Result, status: int, words: str) -> None:
    assert done.exit_code == status, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_pruned_model_learns_from_the_original(cli: Run, files: tuple[Path, ...], tmp_path: Path) -> None:
    model, pruned, data = files
    out, table = tmp_path / "tuned.onnx", tmp_path / "run.csv"
    words = ("finetune", pruned, "--teacher", model, "--data", data, "--out", out, *SHORT)
    done = cli(*words, "--csv", table, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["test"]["after"]["agreement"] > document["test"]["before"]["agreement"]
    assert document["examples"] == {"train": 320, "validation": 40, "test": 40}
    assert document["masked"] > 0
    assert document["bytes"] == out.stat().st_size
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["validation_agreement"]) <= 1
    told = cli("explain", out, "--in", model).stdout
    assert "fine-tuned: " in told
    assert "earlier run 1:" in told
    _refused(cli("apply", "--replay", out, "--in", pruned, "--out", tmp_path / "a.onnx"), 3, "was fine-tuned")
    _refused(cli(*words), 2, "exists already; give --force")
    shown = cli(*words, "--force")
    assert shown.exit_code == 0, shown.output
    assert "weights were held at zero" in shown.stdout
    assert shown.stdout.splitlines()[0].startswith("held-out (40 examples): agreement ")
    # What was tuned is a model like any other: a recipe on it remembers all that came before.
    again = tmp_path / "again.onnx"
    assert cli("apply", "cleanup", "--in", out, "--out", again, "--data", data).exit_code == 0
    assert len(json.loads(cli("explain", again, "--json").stdout)["history"]) == 2


def test_scoring_trains_nothing(cli: Run, files: tuple[Path, ...]) -> None:
    model, pruned, data = files
    done = cli("finetune", pruned, "--teacher", model, "--data", data, "--evaluate", "--json")
    assert done.exit_code == 0, done.output
    assert 0.2 < json.loads(done.stdout)["test"]["agreement"] < 1


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--loss", "distill"), 2, "learns from the original's outputs: give --teacher"),
        (("--loss", "both", "--teacher", "M"), 3, "no labels that fit"),
        (("--loss", "teach", "--teacher", "M"), 2, "accepted are distill, labels, both"),
        (("--teacher", "M", "--feature", "nowhere"), 2, "'nowhere' is of no value that both graphs"),
        (("--teacher", "M", "--trainable", "nowhere"), 2, "names no initialiser"),
        (("--teacher", "M", "--batchnorm", "fixed"), 2, "frozen and train are accepted"),
        (("--teacher", "M", "--sync-bn"), 2, "sync-bn is for modules of the zoo"),
        (("--teacher", "M", "--output-kind", "logits=words"), 2, "there is no such kind"),
        (("--teacher", "M", "--drop-class", "1"), 2, "needs examples with labels"),
        (("--teacher", "M", "--lr", "-1"), 2, "a positive number is accepted"),
    ],
)
def test_refusals(
    cli: Run, files: tuple[Path, ...], tmp_path: Path, words: tuple[str, ...], status: int, said: str
) -> None:
    model, pruned, data = files
    given = [str(model) if word == "M" else word for word in words]
    out = tmp_path / "tuned.onnx"
    _refused(cli("finetune", pruned, "--data", data, "--out", out, *given), status, said)
    assert not out.exists()


def test_without_data_or_with_made_up_data(cli: Run, files: tuple[Path, ...], tmp_path: Path) -> None:
    model, pruned, _ = files
    words = ("finetune", pruned, "--teacher", model, "--out", tmp_path / "tuned.onnx")
    _refused(cli(*words), 3, "give --data")
    _refused(cli(*words, "--data", "random"), 3, "teach nothing about decisions")
    _refused(cli("finetune", pruned, "--teacher", model), 2, "Missing option '--out'")


def test_diverging_says_so(cli: Run, files: tuple[Path, ...], tmp_path: Path) -> None:
    model, pruned, data = files
    words = ("--optimizer", "sgd", "--lr", "1e30", "--schedule", "none")
    done = cli("finetune", pruned, "--teacher", model, "--data", data, "--out", tmp_path / "t.onnx", *words)
    _refused(done, 4, "training diverged")
    assert not (tmp_path / "t.onnx").exists()
