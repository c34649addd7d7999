"""``onnxprune bench``: what it prints, its gate and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxprune.runtime import memory


@pytest.fixture
def pair(conv_net, tmp_path: Path) -> tuple[Path, Path]:
    """A model, and one with half of its channels."""
    paths = tmp_path / "a.onnx", tmp_path / "[red]b.onnx"
    for path, channels in zip(paths, ((8, 12), (4, 6)), strict=True):
        onnx.save(conv_net(0, channels=channels), path)
    return paths


def test_the_table_and_its_sentences(cli, pair) -> None:
    done = cli("bench", *pair, "--threads", "1,2", "--batch-size", "1", "--batch-size", "8", "--seconds", 0.05)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    plain = " ".join(done.stdout.split())
    assert f"B = {pair[1]}" in done.stdout.replace("\n", "")
    assert "times in milliseconds a run" in plain
    assert "ratio, 95 % interval MACs bytes memory" in plain
    rows = [line.split()[:3] for line in lines if line.startswith(("A  ", "B  "))]
    assert rows == [[name, batch, count] for count in "12" for batch in "18" for name in "AB"]
    assert plain.count("batch 8, 2 threads: B") == 1
    if memory._high_water() is not None:
        assert all(line.endswith("MB") for line in lines if line.startswith(("A  ", "B  ")))


def test_json_holds_everything(cli, pair) -> None:
    done = cli("bench", *pair, "--json", "--seconds", 0.05, "--no-memory", "--seed", 3)
    found = json.loads(done.stdout)
    assert [model["path"] for model in found["models"]] == [str(path) for path in pair]
    assert found["models"][1]["macs_ratio"] < 1
    first, second = found["rows"]
    assert first["latency"]["ratio"] is None
    assert set(second["latency"]["ratio"]) == {"value", "low", "high", "confidence"}
    assert second["memory"] is None
    assert second["latency"]["median_ms"] <= second["latency"]["p90_ms"] <= second["latency"]["p99_ms"]
    assert (found["seed"], found["met"], found["data"]) == (3, True, "random")


def test_real_data_and_one_model(cli, conv_net_path: Path, examples_path: Path) -> None:
    done = cli("bench", conv_net_path, "--data", examples_path, "--seconds", 0.05, "--no-memory")
    assert done.exit_code == 0, done.stderr
    plain = done.stdout.replace("\n", "")
    assert f"inputs: {examples_path}" in plain
    assert "A takes " in plain


def test_the_gate(cli, pair) -> None:
    words = ["bench", *pair, "--seconds", 0.05, "--no-memory", "--max-latency-ratio"]
    done = cli(*words, 1000)
    assert done.exit_code == 0, done.stdout
    done = cli(*words, 1e-6)
    assert done.exit_code == 1
    plain = " ".join(done.stdout.split())
    assert plain.count("latency ratio at most 1e-06: upper end of the interval") == 1
    assert plain.endswith("(B over A at batch 1): not met")
    assert json.loads(cli(*words, 1e-6, "--json").stdout)["met"] is False


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--threads", "0"], 2, "'0' is not a whole number from 1"),
        (["--threads", "1,,2"], 2, "'' is not a whole number from 1"),
        (["--batch-size", "two"], 2, "'two' is not a whole number from 1"),
        (["--seconds", "0"], 2, "--seconds"),
        (["--seconds", "nan"], 2, "seconds is nan"),
        (["--max-latency-ratio", "0.5"], 2, "give a second model"),
        (["--max-latency-ratio", "-1"], 2, "--max-latency-ratio"),
        (["--providers", "tpu"], 2, "'tpu' is unknown"),
        (["--data", "missing.npz"], 3, "missing.npz"),
        (["missing.onnx"], 3, "does not exist"),
    ],
)
def test_bad_input_is_one_sentence(cli, conv_net_path: Path, words: list[str], status: int, said: str) -> None:
    done = cli("bench", conv_net_path, *words)
    assert done.exit_code == status, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("onnxprune: ")
    assert said in line
    assert done.stdout == ""


def test_no_model_at_all_and_other_inputs(cli, conv_net_path: Path, digits_net, tmp_path: Path) -> None:
    assert cli("bench").exit_code == 2
    other = tmp_path / "other.onnx"
    onnx.save(digits_net(), other)
    done = cli("bench", conv_net_path, other)
    assert done.exit_code == 3
    assert "takes other inputs than" in done.stderr
    assert "'input' float32 (batch,64) against 'input' float32 (batch,1,12,12)" in done.stderr


def test_what_the_runtime_does_not_know_is_status_4(cli, conv_net, tmp_path: Path) -> None:
    proto = conv_net(0)
    proto.graph.node[2].domain = "my.ops"
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    path = tmp_path / "plugin.onnx"
    onnx.save(proto, path)
    for more in ([], ["--no-memory"]):
        done = cli("bench", path, *more)
        assert done.exit_code == 4, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith(f"onnxprune: ONNX Runtime cannot load model A ('{path}'): ")
