"""The command line of training: configuration files, logs, resuming, scoring, and prune-tune."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from onnxprune.models.zoo import NETWORKS, build

Run = Callable[..., Result]
SHORT = ("train", "lenet300", "--data", "digits", "--epochs", 2, "--batch-size", 100)


def _refused(done: Result, status: int, words: str) -> None:
    assert done.exit_code == status, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_list_names_all(cli: Run) -> None:
    shown = cli("train", "--list")
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["network", *NETWORKS]


def test_a_configuration_file(cli: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"data: digits\nout: {tmp_path / 'm.onnx'}\nepochs: 3\nbatch_size: 100\nno-bias-decay: true\n"
        "schedule: step\nmilestones: [1, 2]\ndrop-class: [7, 8]\n"
    )
    done = cli("train", "lenet300", "--config", config, "--epochs", 2, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["epochs"] == 2
    assert document["examples"]["train"] < 1293
    assert document["examples"]["test"] == 360
    options = torch.load(tmp_path / "m.last.pth", weights_only=True)["options"]
    assert (options["batch_size"], options["no_bias_decay"], options["milestones"]) == (100, True, (1, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "no option 'epoch'; did you mean 'epochs'?"),
        ("amp: maybe", "amp 'maybe': true or false is accepted"),
        ("lr: {a: 1}", "lr holds entries of its own"),
        ("- 1", "holds list; options by name are accepted"),
        ("a: [", "cannot be read"),
    ],
)
def test_wrong_configuration_files(cli: Run, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    _refused(cli(*SHORT, "--out", tmp_path / "m.onnx", "--config", tmp_path / "c.yaml"), 2, words)
    _refused(cli(*SHORT, "--config", tmp_path / "no.yaml"), 2, "cannot be read: No such file")


def test_logs(cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logs = ("--csv", tmp_path / "m.csv", "--tensorboard", tmp_path / "tb", "--print-freq", 5)
    done = cli(*SHORT, "--out", tmp_path / "m.onnx", *logs)
    assert done.exit_code == 0, done.output
    with (tmp_path / "m.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert "epoch 2 step 10/13 loss" in done.stderr
    assert any((tmp_path / "tb").iterdir())
    assert "best: epoch" in done.stdout and "last: epoch 2" in done.stdout


def test_resume_from_and_evaluate(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    first = json.loads(cli(*SHORT, "--out", out, "--json").stdout)
    _refused(cli(*SHORT, "--out", tmp_path / "n.onnx", "--resume", out), 3, "holds more than tensors or is damaged")
    again = cli(*SHORT, "--out", out, "--force", "--resume", tmp_path / "m.last.pth", "--json")
    assert json.loads(again.stdout)["sha256"] == first["sha256"]
    best = tmp_path / "m.best.pth"
    shown = cli("train", "lenet300", "--data", "digits", "--evaluate", "--from", best, "--json")
    assert json.loads(shown.stdout)["test"] == first["scores"]["test"]
    _refused(cli("train", "lenet300", "--data", "digits", "--evaluate"), 2, "give --from checkpoint.pth")
    more = cli(*SHORT, "--from", best, "--lr", 1e-6, "--out", tmp_path / "more.onnx", "--json")
    assert json.loads(more.stdout)["accuracy"]["test"] == pytest.approx(first["accuracy"]["test"], abs=0.02)
    (tmp_path / "m.onnx").unlink()
    _refused(cli(*SHORT, "--out", out), 2, "m.last.pth")


def test_regression(cli: Run, tmp_path: Path) -> None:
    words = ("--data", "voxels", "--epochs", 1, "--out", tmp_path / "v.onnx")
    done = cli("train", "cnn3d", *words, "--json")
    document = json.loads(done.stdout)
    assert set(document["scores"]["test"]) == {"loss", "rmse", "pearson"}
    assert document["metadata"] == {"onnxprune.data": "voxels"}
    shown = cli("train", "cnn3d", *words, "--force")
    assert "RMSE" in shown.stdout and "Pearson r" in shown.stdout
    judged = cli("evaluate", tmp_path / "v.onnx", "--data", "voxels:test", "--json")
    assert judged.exit_code == 0, judged.output
    _refused(cli("train", "lenet5", "--data", "voxels", "--out", tmp_path / "x.onnx"), 3, "voxels")
    _refused(cli("train", "cnn3d", *words, "--force", "--drop-class", "1"), 2, "a regression has no classes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--reg", "group-l1"), "reg 'group-l1'"),
        (("--structured",), "--structured says over what --reg is taken"),
        (("--val-share", 0.6), "val-share 0.6: a share above 0 and below 0.5"),
        (("--milestones", "1,x"), "--milestones '1,x': epochs with commas"),
        (("--milestones", "3,1"), "milestones (3, 1): rising epochs"),
        (("--world-size", 2), "--world-size without torchrun needs --rank and --dist-url"),
        (("--multiprocessing-distributed",), "give --dist-url"),
        (("--nproc-per-node", 2), "--nproc-per-node is for --multiprocessing-distributed"),
        (("--drop-class", "cat"), "class 'cat' is unknown"),
        (("--warmup", -1), "warmup -1.0: 0 or a positive number"),
        (("--label-smoothing", 1), "label-smoothing 1.0: 0 up to"),
        (("--decay-by", "flops"), "decay-by 'flops': accepted are layer, macs"),
        (("--gamma", 0), "gamma 0.0: a factor"),
    ],
)
def test_wrong_options(cli: Run, tmp_path: Path, words: tuple[object, ...], said: str) -> None:
    _refused(cli(*SHORT, "--out", tmp_path / "m.onnx", *words), 2, said)
    assert not list(tmp_path.iterdir())


def test_prune_tune(cli: Run, tmp_path: Path) -> None:
    trained = cli(*SHORT, "--out", tmp_path / "m.onnx", "--reg", "3", "--decay", 1e-3, "--decay-by", "macs")
    assert trained.exit_code == 0, trained.output
    options = torch.load(tmp_path / "m.last.pth", weights_only=True)["options"]
    assert (options["reg"], options["decay"], options["decay_by"]) == ("hs", 1e-3, "macs")
    out = tmp_path / "s.onnx"
    words = ("prune-tune", tmp_path / "m.best.pth", "--std-ratio", 0.5, "--epochs", 1, "--out", out)
    document = json.loads(cli(*words, "--json").stdout)
    assert document["network"] == "lenet300"
    assert document["compression"] > 1.3
    assert 0.0 <= document["validation"]["accuracy"] <= 1.0 and document["validation"] != document["test"]["tuned"]
    assert [row["name"] for row in document["layers"]] == ["fc1.weight", "fc2.weight", "fc3.weight", "total"]
    assert document["cost"]["written"]["nonzero"] < document["cost"]["dense"]["params"]
    options = torch.load(tmp_path / "s.last.pth", weights_only=True)["options"]
    assert (options["optimizer"], options["lr"]) == ("adam", 1e-4)
    shown = cli(*words, "--force", "--structured")
    assert shown.exit_code == 0, shown.output
    assert (
        "times fewer weights" in shown.stdout
        and "tuned   held-out" in shown.stdout
        and "zero groups left the graph" in shown.stdout
    )
    _refused(cli(*words), 2, "--force")
    _refused(cli("prune-tune", tmp_path / "m.best.pth", "--out", tmp_path / "t.onnx"), 2, "give either --threshold")
    torch.save(build("lenet300").state_dict(), tmp_path / "w.pth")
    _refused(
        cli("prune-tune", tmp_path / "w.pth", "--threshold", 1, "--out", tmp_path / "t.onnx"), 3, "of which network"
    )
