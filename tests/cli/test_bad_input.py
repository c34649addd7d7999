"""Every kind of bad input: one sentence on stderr, the documented status, nothing written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def refused(cli, tmp_path: Path):
    """Run a command that must be refused: check status, sentence and that no file appeared or changed."""

    def run(status: int, sentence: str, *words: object) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        done = cli(*words)
        assert done.exit_code == status, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("onnxprune: ")
        assert sentence in lines[0]
        assert done.stdout == ""
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    return run


@pytest.fixture
def paths(conv_net_path: Path, examples_path: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A good model, good data, and where the result would go."""
    return conv_net_path, examples_path, tmp_path / "out.onnx"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        (b"", "is empty (0 bytes)"),
        (b"PK\x03\x04 not a model at all", "not an ONNX file"),
        (b"hello, this is text\n" * 20, "not an ONNX file"),
    ],
)
def test_unusable_model_files(refused, paths, tmp_path: Path, content: bytes | None, sentence: str) -> None:
    _, data, out = paths
    bad = tmp_path / "bad.onnx"
    if content is not None:
        bad.write_bytes(content)
    refused(3, sentence, "apply", "surp,id", "--in", bad, "--out", out, "--data", data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_model(cli, paths, tmp_path: Path, share: float) -> None:
    model, data, out = paths
    whole = model.read_bytes()
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole[: int(share * len(whole))])
    done = cli("apply", "surp,id", "--in", cut, "--out", out, "--data", data)
    assert done.exit_code == 3
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def _with_external(model: Path, folder: Path, location: str) -> Path:
    proto = onnx.load(model)
    onnx.external_data_helper.convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    path = folder / "external.onnx"
    onnx.save(proto, path)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("gone.bin", "does not exist; copy it beside the model"),
        ("../weights.bin", "leaves the model's folder"),
        ("/etc/passwd", "not a path relative to the model's folder"),
    ],
)
def test_external_data_that_cannot_be_trusted(refused, paths, tmp_path: Path, location: str, sentence: str) -> None:
    model, data, out = paths
    folder = tmp_path / "inner"
    folder.mkdir()
    bad = _with_external(model, folder, location)
    refused(3, sentence, "apply", "surp,id", "--in", bad, "--out", out, "--data", data)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("surpp", "unknown pass 'surpp': did you mean 'surp'?"),
        ("surp,,id", "nothing between two commas"),
        ("", "the recipe is empty"),
        ("id(flops=0.5", "'(' is never closed"),
        ("id(flop=0.5)", "unknown option 'flop': did you mean 'flops'?"),
        ("id(flops=1.5)", "give a number in (0, 1]"),
        ("id(flops=nan)", "give a number in (0, 1]"),
        ("surp(sparsity=1)", "give a number in [0, 1)"),
        ("surp(sparsity=lots)", "give a number in [0, 1)"),
        ("surp(values=best)", "give reconstruction or original or refit"),
        ("id(keep=0.5,flops=0.5)", "one size decides"),
        ("missing.yaml", "does not exist"),
    ],
)
def test_recipes_that_are_none(refused, paths, recipe: str, sentence: str) -> None:
    model, data, out = paths
    refused(2, sentence, "apply", recipe, "--in", model, "--out", out, "--data", data)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--target", "flops=2"], "out of range"),
        (["--target", "flips=0.5"], "did you mean 'flops'"),
        (["--min-agreement", "2"], "--min-agreement"),
        (["--confidence", "1"], "--confidence"),
        (["--batch-size", "0"], "--batch-size"),
        (["--calib-examples", "0"], "--calib-examples"),
        (["--providers", "gpu"], "use cpu, cuda, tensorrt"),
        (["--report", "report.docx"], "accepted are .json, .md"),
        (["--forec"], "Did you mean"),
    ],
)
def test_wrong_flags(refused, paths, words: list[str], sentence: str) -> None:
    model, data, out = paths
    refused(2, sentence, "apply", "surp,id", "--in", model, "--out", out, "--data", data, *words)


def test_a_target_that_no_pass_takes(refused, paths) -> None:
    model, data, out = paths
    words = ("apply", "surp", "--in", model, "--out", out, "--data", data, "--target", "bytes=0.5")
    refused(2, "no pass of the recipe takes it", *words)


def _save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pixels": np.zeros((8, 1, 12, 12), np.float32)}, "input"),
        ({"input": np.zeros((8, 1, 13, 12), np.float32)}, "(batch,1,12,12)"),
        ({"input": np.full((8, 1, 12, 12), np.nan, np.float32)}, "NaN"),
        ({"input": np.zeros((8, 1, 12, 12), np.float32), "y": np.zeros(7, np.int64)}, "7"),
        ({"input": np.zeros((8, 1, 12, 12), np.float32), "y": np.full(8, 9)}, "9"),
        ({"input": np.zeros((0, 1, 12, 12), np.float32)}, "0"),
        ({"input": np.zeros((1, 1, 12, 12), np.float32)}, "leave none for evaluation"),
    ],
)
def test_unusable_data(refused, paths, tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    model, _, out = paths
    bad = _save(tmp_path / "bad.npz", **arrays)
    refused(3, sentence, "apply", "surp,id", "--in", model, "--out", out, "--data", bad)


def test_data_that_is_no_data(refused, paths, tmp_path: Path) -> None:
    model, _, out = paths
    refused(3, "digit", "apply", "surp,id", "--in", model, "--out", out, "--data", "digit")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 broken")
    refused(3, "broken.npz", "apply", "surp,id", "--in", model, "--out", out, "--data", broken)


def test_outputs_that_cannot_be_written(refused, paths, tmp_path: Path) -> None:
    model, data, out = paths
    refused(
        2,
        "is the source model itself",
        "apply",
        "surp",
        "--in",
        model,
        "--out",
        model,
        "--data",
        data,
        "--force",
    )
    out.write_bytes(b"older")
    refused(2, "exists already; give --force", "apply", "surp", "--in", model, "--out", out, "--data", data)
    refused(
        2,
        "does not exist; make it first",
        "apply",
        "surp",
        "--in",
        model,
        "--out",
        tmp_path / "no" / "x.onnx",
    )
    refused(2, "is a folder", "apply", "surp", "--in", model, "--out", tmp_path, "--data", data)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_unwritable_folder(refused, paths) -> None:
    model, data, _ = paths
    refused(2, "is not writable", "apply", "surp", "--in", model, "--out", "/proc/out.onnx", "--data", data)


def test_weights_with_nan(refused, paths, tmp_path: Path) -> None:
    model, data, out = paths
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "c2.w":
            weights = numpy_helper.to_array(tensor).copy()
            weights[0, 0, 0, 0] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(weights, "c2.w"))
    bad = tmp_path / "nan.onnx"
    onnx.save(proto, bad)
    refused(
        3,
        "weight 'c2.w' of node 'conv2' holds NaN",
        "apply",
        "surp(sparsity=0.5)",
        "--in",
        bad,
        "--out",
        out,
        "--data",
        data,
    )
    refused(3, "holds NaN", "apply", "id(flops=0.9)", "--in", bad, "--out", out, "--data", data)


def test_full_disk(cli, paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir as ir

    model, data, out = paths
    real = ir.save

    def save(graph, path, *args, **kwargs):
        if Path(path).parent.parent == tmp_path:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(graph, path, *args, **kwargs)

    monkeypatch.setattr(ir, "save", save)
    before = sorted(tmp_path.rglob("*"))
    done = cli("apply", "surp,id", "--in", model, "--out", out, "--data", data)
    assert done.exit_code == 4
    assert "No space left on device" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(paths, tmp_path: Path, sent: signal.Signals, status: int) -> None:
    model, _, out = paths
    marker, scratch = tmp_path / "started", tmp_path / "scratch"
    scratch.mkdir()
    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, time\nimport numpy as np\n\n"
        "def examples():\n"
        "    yield {'input': np.zeros((4, 1, 12, 12), np.float32)}\n"
        f"    pathlib.Path({str(marker)!r}).touch()\n"
        "    time.sleep(60)\n"
    )
    words = ["apply", "surp,id", "--in", model, "--out", out, "--data", f"{script}:examples"]
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxprune", *map(str, words)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
        # What runs the tests may ignore interrupts (a shell does for what it starts with &), and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for _ in range(2400):
        if marker.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert not out.exists()
    # Importing ONNX Runtime writes a file .ses of its own.
    assert [path.name for path in scratch.iterdir() if path.name != ".ses"] == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".onnxprune")]
