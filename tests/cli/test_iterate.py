"""``onnxprune iterate``: runs, trials, the authors' spellings, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]
SHORT = ("--data", "digits", "--epochs", 1, "--batch-size", 200, "--device", "cpu")


def _refused(done: Result, status: int, words: str) -> None:
    assert done.exit_code == status, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_network_of_the_zoo_and_its_folder(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("iterate", "lth", "--model", "lenet300", *SHORT, "--rounds", 2, "--prune", 0.5)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "lth-lenet300-0"
    assert done.stdout.splitlines()[-1].endswith("README.md tells more")
    assert "round 2: 25.00% of the weights left" in done.stdout
    rounds = json.loads((folder / "rounds.json").read_text())
    assert [row["epochs"] for row in rounds] == [1, 1, 1]
    _refused(cli("iterate", "lth", "--model", "lenet300", *SHORT, "--rounds", 2, "--prune", 0.5), 2, "go on with")
    words = ("--rounds", 3, "--prune", 0.5, "--resume", "--json")
    again = cli("iterate", "lth", "--model", "lenet300", *SHORT, *words)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rounds"][:3] == rounds
    # Every round is a model like any other.
    dense, sparse = (folder / f"round-{number:02d}" / "model.onnx" for number in (0, 2))
    judged = cli("compare", dense, sparse, "--data", "digits:test", "--json")
    assert json.loads(judged.stdout)["agreement"]["top1"]["rate"] > 0.5
    made = cli("iterate", "magnitude", "--model", sparse, *SHORT, "--sparsity", "0.9", "--out", tmp_path / "m")
    assert made.exit_code == 0, made.output
    assert "10.00% of the weights left" in made.stdout


def test_the_authors_spellings_and_several_trials(cli: Run, tmp_path: Path) -> None:
    words = ("--net_warmup", 1, "--prune_p", 1.0, "--prune_q", 2.0, "--exper_imp_total_iter", 1, "--exper_num_trial", 2)
    call = (
        "iterate", "ciap", "--net_arch", "lenet300", "--data", "digits:train", "--eval", "digits:test",
        "--net_train_epochs", 1, "--batch-size", 200,
        *words, "--exper_type", "efficiency", "--epsilon", 0.5, "--chunk", 1, "--out", tmp_path, "--device", "cpu",
    )  # fmt: skip
    done = cli(*call)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "incop-if-lenet300-trials.json").read_text())
    assert [row["trials"] for row in rows] == [2, 2]
    for seed in (0, 1):
        asked = json.loads((tmp_path / f"incop-if-lenet300-{seed}" / "run.json").read_text())
        assert asked["sap"] == {"p": 1.0, "q": 2.0, "eta": 0.0, "gamma": 1.0, "beta": 0.9}
        assert (asked["method"], asked["warmup"], asked["train seed"]) == ("incop-if", 1, seed)
    assert json.loads(cli(*call, "--resume", "--json").stdout) == rows


def test_a_configuration_of_stages(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "recon.yaml").write_text("sparsity: [0.5, 0.7]\nretrain: 1\nbatch_size: 200\ndata: digits\n")
    out = tmp_path / "run"
    words = ("--config", tmp_path / "recon.yaml", "--out", out, "--device", "cpu", "--dense-epochs", 1)
    done = cli("iterate", "surp", "--model", "lenet300", *words)
    assert done.exit_code == 0, done.output
    rounds = json.loads((out / "rounds.json").read_text())
    assert [row["remaining"] for row in rounds] == pytest.approx([1, 0.5, 0.3], abs=0.01)
    for row in rounds:
        place = out / f"round-{row['round']:02d}"
        assert row["surp_bytes"] == (place / "model.surp").stat().st_size < (place / "model.onnx").stat().st_size / 3
        # A file ends where the held-out examples allow, not where its stream does.
        assert row["surp_validation_accuracy"] >= row["validation_accuracy"] - 0.0025
    assert (out / "rate.svg").is_file()


def test_a_teacher_and_refitted_starts(cli: Run, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    assert cli("iterate", "lth", "--model", "lenet300", *SHORT, "--rounds", 1, "--out", dense).exit_code == 0
    file = dense / "round-00" / "model.onnx"
    words = ("iterate", "magnitude", "--model", file, *SHORT, "--sparsity", "0.9", "--values", "refit")
    done = cli(*words, "--teacher", file, "--temperature", 4, "--out", tmp_path / "run", "--json")
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout)["rounds"][-1]
    assert last["test_agreement"] > 0.5
    asked = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (asked["lesson loss"], asked["values"], asked["teacher"]) == ("both", "refit", str(file))
    _refused(cli(*words, "--teacher", file, "--loss", "labels", "--out", tmp_path / "no"), 2, "give --loss both")
    _refused(cli(*words, "--loss", "hints", "--out", tmp_path / "no"), 2, "accepted are distill, labels, both")
    _refused(cli(*words, "--loss", "both", "--feature", "none", "--out", tmp_path / "no"), 2, "feature 'none'")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("snip",), 2, "accepted are lth, sap"),
        (("sap", "--p", "2"), 2, "0 < p <= 1 <= q"),
        (("incop-if", "--epsilon", "small"), 2, "a number is accepted, or auto"),
        (("surp", "--sparsity", "many"), 2, "numbers with commas"),
        (("lth", "--trials", "0"), 2, "at least 1"),
        (("lth", "--trials", "2", "--from", "runs"), 2, "--from names one run"),
        (("lth", "--exper_type", "speed"), 2, "performance and efficiency"),
        (("lth", "--scope", "row"), 2, "accepted are global"),
    ],
)
def test_refusals(cli: Run, tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    out = tmp_path / "run"
    _refused(cli("iterate", *words, "--model", "lenet300", *SHORT, "--out", out), status, said)
    assert not out.exists()


def test_models_and_data_that_do_not_do(cli: Run, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    _refused(cli("iterate", "lth", "--model", "lenet301", *SHORT, *out), 2, "did you mean")
    _refused(cli("iterate", "lth", "--model", "cnn3d", "--data", "voxels", *out), 2, "is a regression")
    _refused(cli("iterate", "lth", "--model", "lenet300", *out), 3, "give --data")
    _refused(cli("iterate", "lth", "--model", tmp_path / "none.onnx", *SHORT, *out), 3, "none.onnx")
