"""``apply --replay`` and ``passes NAME``: what they take, refuse and print."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import recipe


@pytest.fixture
def made(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> Path:
    """A model made by the command line."""
    out = tmp_path / "pruned.onnx"
    words = ("--in", conv_net_path, "--out", out, "--data", examples_path, "--threads", 1)
    done = cli("apply", "surp(sparsity=0.5),id(flops=0.7)", *words, "--seed", 4, "--batch-size", 16)
    assert done.exit_code == 0, done.stderr
    return out


@pytest.fixture
def replay(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path):
    """Run ``apply --replay`` on a model."""

    def run(made: Path, *words: object, source: Path = conv_net_path, data: Path = examples_path):
        given = ("--in", source, "--out", tmp_path / "again.onnx", "--data", data, "--threads", 1)
        return cli("apply", "--replay", made, *given, *words)

    return run


def test_a_replay_writes_the_same_bytes_and_says_so(replay, made: Path, tmp_path: Path) -> None:
    done = replay(made, "--report", tmp_path / "r.md")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"wrote {tmp_path / 'again.onnx'}, the same bytes as {made}"
    assert (tmp_path / "again.onnx").read_bytes() == made.read_bytes()
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "- recipe: `surp(sparsity=0.5),id(flops=0.7)`" in text
    assert "| after step | parameters | nonzero | MACs | bytes | agreement | seconds |" in text
    assert "| 1. surp(sparsity=0.5) |" in text


def test_other_storage_is_warned_of(replay, made: Path, tmp_path: Path) -> None:
    done = replay(made, "--sparse-storage", "--json")
    assert done.exit_code == 0, done.stderr
    if (tmp_path / "again.onnx").read_bytes() != made.read_bytes():
        assert "byte for byte" in json.loads(done.stdout)["warnings"][-1]


def test_gates_judge_a_replay(replay, made: Path, tmp_path: Path) -> None:
    done = replay(made, "--min-agreement", 1.0)
    assert done.exit_code == 1
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["surp,id"], "RECIPE 'surp,id' and --replay exclude one another: '{made}' holds its recipe"),
        (["--target", "flops=0.5"], "--target and --replay exclude one another: '{made}' says what was used"),
        (["--seed", "0"], "--seed and --replay exclude one another: '{made}' says what was used"),
        (["--calib-examples", "9"], "--calib-examples and --replay exclude one another: '{made}' says what was used"),
        (["--drop-class", "1"], "--drop-class and --replay exclude one another: '{made}' says what was used"),
        (["--batch-size", "32"], "--batch-size and --replay exclude one another: '{made}' says what was used"),
    ],
)
def test_what_a_replay_excludes(replay, made: Path, words: list[str], sentence: str) -> None:
    done = replay(made, *words)
    assert done.exit_code == 2
    assert sentence.format(made=made) in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_neither_recipe_nor_replay(cli, conv_net_path: Path, tmp_path: Path) -> None:
    done = cli("apply", "--in", conv_net_path, "--out", tmp_path / "o.onnx")
    assert done.exit_code == 2
    assert "a RECIPE is missing, such as surp,id; or give --replay P.onnx" in done.stderr


def test_a_replay_never_writes_over_what_it_replays(cli, made: Path, conv_net_path: Path) -> None:
    before = made.read_bytes()
    done = cli("apply", "--replay", made, "--in", conv_net_path, "--out", made, "--force")
    assert done.exit_code == 2
    assert f"--out '{made}' is the model to replay itself" in done.stderr
    assert made.read_bytes() == before


def test_another_source_or_other_data_is_status_3(replay, made: Path, conv_net, tmp_path: Path) -> None:
    onnx.save(conv_net(5), tmp_path / "other.onnx")
    done = replay(made, source=tmp_path / "other.onnx")
    assert done.exit_code == 3
    assert "source model" in done.stderr
    assert "has sha256" in done.stderr
    np.savez(tmp_path / "d.npz", input=np.random.default_rng(3).standard_normal((200, 1, 12, 12)).astype(np.float32))
    done = replay(made, data=tmp_path / "d.npz")
    assert done.exit_code == 3
    assert "calibration data of" in done.stderr
    assert not (tmp_path / "again.onnx").exists()


def test_a_model_that_does_not_say_how_it_was_made(replay, conv_net_path: Path) -> None:
    done = replay(conv_net_path)
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1] == (
        f"onnxprune: '{conv_net_path}' does not say how it was made: its metadata has no 'onnxprune.recipe'"
    )


@pytest.mark.parametrize("name", sorted(recipe.PASSES))
def test_every_pass_is_documented_from_its_options(
    cli, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_script.py").touch()  # the example of custom
    (described,) = json.loads(cli("passes", name, "--json").stdout)
    found = recipe.pass_class(name)
    assert described["name"] == name
    assert described["lossless"] is found.lossless
    assert [item.name for item in recipe.parse(described["example"])] == [name]
    assert all(each["help"] and each["accepted"] for each in described["options"])
    shown = " ".join(cli("passes", name).stdout.split())
    assert f"lossless: {'yes' if found.lossless else 'no'}" in shown
    assert "needs: " in shown
    assert f'example: onnxprune apply "{name}' in shown
    for each in described["options"]:
        assert each["name"] in shown
    if described["default_size"]:
        assert "size, where none is given: " in shown
