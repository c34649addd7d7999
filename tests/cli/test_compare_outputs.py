"""``onnxprune compare --outputs-a --outputs-b``: gates, views, and every wrong way to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 3, (500, 4)).astype(np.float32)
    paths = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "labels.npz"
    np.savez(paths[0], logits=before)
    np.savez(paths[1], logits=before + 0.05 * rng.standard_normal(before.shape).astype(np.float32))
    np.savez(paths[2], y=before.argmax(axis=1))
    return paths


def test_outputs_are_judged_and_gated(cli: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, labels = files
    words = ["compare", "--outputs-a", first, "--outputs-b", second, "--labels", labels]
    done = cli(*words, "--min-agreement", 0.9, "--report", tmp_path / "r.html", "--report", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    assert "decisions kept" in done.stdout and "certainly kept" in done.stdout
    assert "<h2>Decisions</h2>" in (tmp_path / "r.html").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["cost"] is None
    assert cli(*words, "--min-agreement", 0.9999).exit_code == 1
    report = json.loads(cli(*words, "--json").stdout)
    assert report["source"]["path"] == str(first) and report["accuracy"]["original"] == 1
    with_data = json.loads(cli(*words[:-2], "--data", labels, "--json").stdout)
    assert with_data["accuracy"] == report["accuracy"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "two models A.onnx B.onnx are wanted, or --outputs-a and --outputs-b"),
        (["m.onnx"], "two models A.onnx B.onnx are wanted"),
        (["--outputs-a", "a.npz"], "--outputs-a and --outputs-b are wanted together"),
        (["m.onnx", "n.onnx", "--outputs-a", "a.npz", "--outputs-b", "b.npz"], "exclude one another"),
        (["m.onnx", "n.onnx", "--labels", "l.npz"], "--labels goes with --outputs-a"),
        (
            ["--outputs-a", "a.npz", "--outputs-b", "b.npz", "--labels", "l.npz", "--data", "digits"],
            "exclude one another",
        ),
        (["--outputs-a", "a.npz", "--outputs-b", "b.npz", "--max-bytes", "1kB"], "is a gate on models"),
    ],
)
def test_wrong_usage_is_one_sentence(cli: Run, words: list[str], sentence: str) -> None:
    done = cli("compare", *words)
    assert done.exit_code == 2
    assert sentence in done.stderr and "Traceback" not in done.output


def test_a_missing_file_is_unusable_data(cli: Run, files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    done = cli("compare", "--outputs-a", tmp_path / "gone.npz", "--outputs-b", files[1])
    assert done.exit_code == 3 and "no such file" in done.stderr
