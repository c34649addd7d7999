"""``onnxprune encode`` and ``decode``: what they print and write, their tables, and every refusal's sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.codec import container
from onnxprune.codec.container import read_header
from onnxprune.codec.law import Law, Stop
from onnxprune.graph import io, skeleton


@pytest.fixture
def pair(conv_net_path: Path, tmp_path: Path, cli) -> tuple[Path, Path]:
    """A model and its .surp file."""
    out = tmp_path / "model.surp"
    assert cli("encode", conv_net_path, "--out", out).exit_code == 0
    return conv_net_path, out


def test_encode_and_decode_print_what_they_did(cli, pair, tmp_path: Path) -> None:
    model, file = pair
    done = cli("encode", model, "--out", file, "--sparsity", 0.8, "--force")
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"wrote {file}\n"
    plain = " ".join(done.stdout.split())
    assert "coded weights 4,876 in 4 tensors" in plain
    assert "of them not zero 975 (sparsity 80 %)" in plain
    assert "bits per weight" in plain
    assert f"{file.stat().st_size:,}" in plain
    back = tmp_path / "back.onnx"
    done = cli("decode", file, "--out", back)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == f"wrote {back}\n"
    assert "(sparsity 80 %)" in " ".join(done.stdout.split())
    onnx.checker.check_model(back, full_check=True)


def test_json(cli, pair, tmp_path: Path) -> None:
    model, file = pair
    words = ("--relative-l1", 0.1, "--alpha", 5, "--decay", 0.8, "--patience", 1, "--seed", 3, "--no-normalize")
    found = json.loads(cli("encode", model, "--out", file, "--force", "--json", *words).stdout)
    assert found["bytes"] == file.stat().st_size
    assert found["relative_l1"] <= 0.1
    assert found["table"] is None
    assert {"ratio", "sparsity", "bits_per_weight", "bits_per_survivor", "skipped", "warnings"} <= found.keys()
    with file.open("rb") as stream:
        header = read_header(stream)
    law = header.shape.law
    assert (law.alpha, law.decay, law.patience, law.seed) == (5.0, 0.8, 1, 3)
    assert {tensor.norm for tensor in header.tensors} == {1.0}
    found = json.loads(cli("decode", file, "--out", tmp_path / "b.onnx", "--hits", 100, "--json").stdout)
    assert found["hits"] == 100
    assert found["all_hits"] == header.shape.hits
    assert found["path"] == str(tmp_path / "b.onnx")
    assert (found["verified"], found["fitted"], found["warnings"]) == (True, False, [])


@pytest.mark.parametrize("words", [("--fraction", 0.3), ("--bytes", 900), ("--sparsity", 0.9), ("--hits", 300)])
def test_partial_models(cli, pair, tmp_path: Path, words) -> None:
    out = tmp_path / "part.onnx"
    done = cli("decode", pair[1], "--out", out, "--json", *words)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0 < found["hits"] < found["all_hits"]
    zeros = sum(int((numpy_helper.to_array(t) == 0).sum()) for t in onnx.load(out).graph.initializer if len(t.dims) > 1)
    assert zeros == found["weights"] - found["nonzeros"]


def test_only_ignore_and_fitted(cli, pair, tmp_path: Path) -> None:
    model, file = pair
    pruned = tmp_path / "pruned.onnx"
    assert cli("decode", file, "--out", pruned).exit_code == 0
    fitted = tmp_path / "fitted.surp"
    done = cli("encode", pruned, "--out", fitted, "--values", "fitted", "--json")
    assert json.loads(done.stdout)["fitted"] is True
    assert cli("decode", fitted, "--out", tmp_path / "f.onnx").exit_code == 0
    one, two = onnx.load(pruned), onnx.load(tmp_path / "f.onnx")
    for a, b in zip(one.graph.initializer, two.graph.initializer, strict=True):
        assert np.allclose(numpy_helper.to_array(a), numpy_helper.to_array(b), rtol=1e-3)
    done = cli("encode", model, "--out", tmp_path / "o.surp", "--only", "conv*;fc1", "--ignore", "conv2", "--json")
    found = json.loads(done.stdout)
    assert found["tensors"] == 2
    assert sorted(found["skipped"]) == ["conv2", "fc2"]


def test_the_size_table(cli, pair, examples_path: Path, tmp_path: Path) -> None:
    model, file = pair
    done = cli("encode", model, "--out", file, "--force", "--table")
    assert done.exit_code == 0, done.stderr
    assert "int8 + zstd" in done.stdout
    assert "agreement" not in done.stdout.split("stored as")[1].splitlines()[0]
    reports = tmp_path / "sizes.json", tmp_path / "sizes.md"
    plot = tmp_path / "sizes.svg"
    words = [word for path in reports for word in ("--report", path)]
    done = cli("encode", model, "--out", file, "--force", "--data", examples_path, "--plot", plot, *words)
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    table = json.loads(reports[0].read_text())
    assert table["schema"] == "onnxprune.sizes/1"
    rows = [line for line in done.stdout.splitlines() if line.startswith(tuple(row["name"] for row in table["rows"]))]
    assert len(rows) == len(table["rows"]) == 18 - len(table["warnings"])
    kinds = [row["kind"] for row in table["rows"]]
    assert list(dict.fromkeys(kinds)) == ["raw", "zstd", "fp16", "int8", "surp", "surp own"]
    assert table["rows"][0]["agreement"]["rate"] == 1.0
    assert table["examples"] == 150
    assert table["choosing_examples"] == 50
    assert "| raw |" in reports[1].read_text()
    text = plot.read_text()
    assert text.startswith("<?xml")
    assert "DOCTYPE" not in text
    assert not [
        part for part in text.split('"') if part.startswith("http") and "xmlns" not in text.split(part)[0][-20:]
    ]
    again = tmp_path / "again.svg"
    assert cli("encode", model, "--out", file, "--force", "--data", examples_path, "--plot", again).exit_code == 0
    assert again.read_bytes() == plot.read_bytes()


@pytest.fixture
def refused(cli, tmp_path: Path):
    """Run a command that must be refused: check status, sentence and that no file appeared or changed."""

    def run(status: int, sentence: str, *words: object) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        done = cli(*words)
        assert done.exit_code == status, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("onnxprune: ")
        assert sentence in line
        assert done.stdout == ""
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    return run


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--sparsity", "2"], 2, "--sparsity"),
        (["--sparsity", "nan"], 2, "sparsity=nan is not accepted"),
        (["--bits", "-1"], 2, "--bits"),
        (["--alpha", "0"], 2, "--alpha"),
        (["--alpha", "1e-5"], 2, "too small to be coded"),
        (["--alpha", "inf"], 2, "alpha=inf is not accepted"),
        (["--decay", "1"], 2, "--decay"),
        (["--patience", "0"], 2, "--patience"),
        (["--values", "best"], 2, "--values"),
        (["--values", "fitted", "--hits", "3"], 2, "give no stop beside it"),
        (["--only", "re:("], 2, "is not a regular expression"),
        (["--only", "nothing"], 3, "has no weight that can be coded"),
        (["--plot", "p.png"], 2, "ends in .svg"),
        (["--plot", "p.svg"], 2, "give --data"),
        (["--report", "r.txt"], 2, "accepted are .json, .md"),
        (["--report", "r.html"], 2, "'.html'; accepted are .json, .md"),
        (["--providers", "gpu", "--table", "--data", "random"], 2, "use cpu, cuda, tensorrt"),
        (["--data", "missing.npz"], 3, "missing.npz"),
        (["--data", "a.npz", "--eval", "b.npz"], 2, "excludes"),
    ],
)
def test_wrong_words_for_encode(
    refused, conv_net_path: Path, tmp_path: Path, words, status: int, sentence: str
) -> None:
    refused(status, sentence, "encode", conv_net_path, "--out", tmp_path / "new.surp", *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--fraction", "1.5"], "--fraction"),
        (["--fraction", "nan"], "fraction=nan is not accepted"),
        (["--bytes", "-1"], "--bytes"),
        (["--hits", "few"], "--hits"),
        (["--sparsity", "-0.1"], "--sparsity"),
        (["--stricht"], "Did you mean"),
    ],
)
def test_wrong_words_for_decode(refused, pair, tmp_path: Path, words, sentence: str) -> None:
    refused(2, sentence, "decode", pair[1], "--out", tmp_path / "new.onnx", *words)


def test_outputs_and_sources_that_are_none(refused, pair, tmp_path: Path) -> None:
    model, file = pair
    refused(2, "is the source model itself", "encode", model, "--out", model, "--force")
    refused(2, "exists already; give --force", "encode", model, "--out", file)
    refused(2, "is a folder", "encode", model, "--out", tmp_path)
    refused(2, "does not exist; make it first", "encode", model, "--out", tmp_path / "no" / "m.surp")
    refused(3, "does not exist", "encode", tmp_path / "no.onnx", "--out", tmp_path / "new.surp")
    refused(3, "not an ONNX file", "encode", file, "--out", tmp_path / "new.surp")
    refused(2, "would overwrite the .surp file", "decode", file, "--out", file, "--force")
    refused(2, "exists already; give --force", "decode", file, "--out", model)
    refused(3, "does not exist", "decode", tmp_path / "no.surp", "--out", tmp_path / "new.onnx")
    refused(3, "is no file", "decode", tmp_path, "--out", tmp_path / "new.onnx")
    refused(3, "not a .surp file", "decode", model, "--out", tmp_path / "new.onnx")
    (tmp_path / "empty.surp").touch()
    refused(3, "not a .surp file", "decode", tmp_path / "empty.surp", "--out", tmp_path / "new.onnx")


def test_files_that_are_broken(refused, cli, pair, tmp_path: Path) -> None:
    data, bad, out = bytearray(pair[1].read_bytes()), tmp_path / "bad.surp", tmp_path / "new.onnx"
    with pair[1].open("rb") as stream:
        header = read_header(stream)
    for place, sentence in (
        (8, "is of version 3; this program reads versions up to 1"),
        (30, "header is corrupt"),
        (header.begin + 9, "the skeleton does not match its checksum"),
        (header.body_begin + 99, f"block 0 at byte {header.body_begin:,} is corrupt"),
    ):
        data[place] ^= 2
        bad.write_bytes(data)
        refused(3, sentence, "decode", bad, "--out", out)
        data[place] ^= 2
    for size, sentence in ((11, "cut off in its header"), (header.body_begin - 2, "cut off before its body")):
        bad.write_bytes(data[:size])
        refused(3, sentence, "decode", bad, "--out", out)
    bad.write_bytes(data[:-200])
    refused(3, "cannot be verified", "decode", bad, "--out", out, "--strict")
    assert cli("decode", bad, "--out", out).exit_code == 0


def test_a_skeleton_that_names_a_file(refused, pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(bytes(4096))
    tensors, graph = skeleton.split(io.load(pair[0]))
    proto = onnx.ModelProto.FromString(graph)
    tensor = next(t for t in proto.graph.initializer if t.name == "c1.b")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    bad = tmp_path / "bad.surp"
    with bad.open("wb") as file:
        container.write(file, container.code(tensors, Law(), Stop(sparsity=0.5)), proto.SerializeToString())
    refused(3, "the skeleton refers to the file 'secret.bin'", "decode", bad, "--out", tmp_path / "new.onnx")


def test_apply_with_sparse_storage(cli, pair, examples_path: Path, tmp_path: Path, run_model) -> None:
    model, _ = pair
    words = ("apply", "surp(sparsity=0.95)", "--in", model, "--data", examples_path)
    dense, sparse = tmp_path / "dense.onnx", tmp_path / "sparse.onnx"
    assert cli(*words, "--out", dense).exit_code == 0
    done = cli(*words, "--out", sparse, "--sparse-storage")
    assert done.exit_code == 0, done.stderr
    assert "stored sparse: a smaller file, not a faster model" in " ".join(done.stdout.split())
    assert sparse.stat().st_size < dense.stat().st_size
    feeds = {"input": np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32)}
    assert np.array_equal(run_model(dense, feeds)["logits"], run_model(sparse, feeds)["logits"])
    assert cli("compare", dense, sparse, "--data", examples_path, "--min-agreement", 0.9).exit_code == 0
    done = cli("apply", "surp(sparsity=0.1)", "--in", model, "--data", examples_path, "--out", sparse,
               "--sparse-storage", "--force")  # fmt: skip
    assert "none would take fewer bytes" in " ".join(done.stdout.split())
