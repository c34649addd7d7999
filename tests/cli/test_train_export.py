from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from onnxprune.cli import export as export_verb
from onnxprune.cli import train as train_verb
from onnxprune.errors import BackendError, DataError, ModelError, OnnxPruneError, OptionError
from onnxprune.models.zoo import NETWORKS, build


def _train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train_verb.command, [str(argument) for argument in arguments])


def _export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export_verb.command, [str(argument) for argument in arguments])


def _json(result: Result) -> dict[str, Any]:
    assert result.exception is None, result.exception
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def _refused(result: Result, kind: type[OnnxPruneError], words: str) -> None:
    assert isinstance(result.exception, kind), result.exception
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(build("lenet300").state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def test_train_writes_a_model_that_describes_itself(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    result = _json(_train("lenet300", "--data", "digits", "--out", out, "--epochs", 3, "--json"))
    assert result["accuracy"]["test"] > 0.85
    assert result["examples"] == {"train": 1293, "validation": 144, "test": 360}
    assert result["notes"] == []
    assert result["bytes"] == out.stat().st_size
    stored = _metadata(out)
    assert stored == result["metadata"]
    assert stored["onnxprune.data"] == "digits"
    assert json.loads(stored["onnxprune.classes"]) == list("0123456789")
    preprocess = json.loads(stored["onnxprune.preprocess"])
    assert list(preprocess) == ["scale", "mean", "std", "channels", "layout", "resize", "crop"]
    assert (preprocess["channels"], preprocess["resize"], preprocess["crop"]) == ("L", 28, 28)


def test_the_file_alone_reproduces_the_test_accuracy(tmp_path: Path) -> None:
    import onnxruntime

    from onnxprune.data import InputSpec, Preprocess, split_data

    out = tmp_path / "m.onnx"
    result = _json(_train("lenet300", "--data", "digits", "--out", out, "--epochs", 2, "--json"))
    stored = _metadata(out)
    want = InputSpec("input", np.dtype(np.float32), ("batch", 1, 28, 28))
    split = split_data(
        [want],
        model_data=stored["onnxprune.data"],
        preprocess=Preprocess.from_json(stored["onnxprune.preprocess"]),
        classes=json.loads(stored["onnxprune.classes"]),
    )
    assert split.evaluation is not None
    assert split.evaluation.labels is not None
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, split.evaluation.fetch(np.arange(split.evaluation.count)))
    hits = np.asarray(logits).argmax(1) == split.evaluation.labels
    assert float(hits.mean()) == result["accuracy"]["test"]


def test_same_seed_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ("--data", "digits", "--epochs", 1, "--seed", seed)
        assert _train("lenet300", *arguments, "--out", tmp_path / name).exception is None
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again != other


def test_table_for_people(tmp_path: Path) -> None:
    result = _train("lenet300", "--data", "digits", "--out", tmp_path / "m.onnx", "--epochs", 1)
    assert "lenet300, best of 1 epochs" in result.stdout
    assert "validation" in result.stdout
    assert "wrote" in result.stdout
    assert "note:" not in result.stdout
    assert result.stderr == ""


def test_data_without_splits_is_not_named_in_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "d" / name / f"{number}.png")
    out = tmp_path / "m.onnx"
    result = _train("lenet300", "--data", tmp_path / "d", "--out", out, "--epochs", 1)
    assert result.exception is None
    assert "note: the file names no data: give --calib and --eval (or --data)" in result.stdout
    stored = _metadata(out)
    assert set(stored) == {"onnxprune.preprocess", "onnxprune.classes"}
    assert json.loads(stored["onnxprune.classes"]) == ["ant", "bee"]
    assert tmp_path.name.encode() not in out.read_bytes()


@pytest.mark.parametrize("keep", [True, False])
def test_keep_bn(tmp_path: Path, keep: bool) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((20, 3, 32, 32)).astype("f"), y=np.arange(20) % 2)
    arguments = ("--data", tmp_path / "x.npz", "--epochs", 1, "--batch-size", 8, "--opset", 18)
    out = tmp_path / "m.onnx"
    assert _train("resnet20", *arguments, "--out", out, *(["--keep-bn"] * keep)).exception is None
    model = onnx.load(out)
    assert any(node.op_type == "BatchNormalization" for node in model.graph.node) is keep
    assert model.opset_import[0].version == 18


def test_refusals_come_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("onnxprune.models.produce.train_network", never)
    out = tmp_path / "m.onnx"
    _refused(_train("lenet4", "--data", "digits", "--out", out), OptionError, "did you mean 'lenet5'?")
    _refused(
        _train("lenet5", "--data", "digit", "--out", out),
        DataError,
        "did you mean 'digits'?",
    )
    _refused(_train("lenet5", "--data", "digits", "--out", out, "--opset", 12), OptionError, "opset 12")
    _refused(_train("lenet5", "--data", "digits", "--out", out, "--lr", -1), OptionError, "lr -1.0")
    _refused(_train("lenet5", "--data", "digits", "--out", tmp_path / "no" / "m"), OptionError, "does not exist")
    _refused(_train("lenet5", "--data", "digits", "--out", tmp_path), OptionError, "is a folder")
    _refused(_train("lenet5", "--data", "random", "--out", out), DataError, "no labels")
    _refused(_train("lenet5", "--data", f"mnist:{tmp_path}", "--out", out), DataError, "give --download")
    out.write_bytes(b"old")
    _refused(_train("lenet5", "--data", "digits", "--out", out), OptionError, "--force")
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_interruption_and_divergence_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--data", "digits", "--out", tmp_path / "m.onnx", "--epochs", 1)
    _refused(_train("lenet300", *arguments, "--lr", 1e30), BackendError, "training diverged")
    with monkeypatch.context() as patch:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("onnxprune.models.objectives.score", interrupted)
        assert _train("lenet300", *arguments).exit_code != 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_missing_packages_are_answered_with_the_pip_line(
    package: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr("onnxprune.models.find_spec", lambda name: None if name == package else find_spec(name))
    title = {"torch": "PyTorch"}.get(package, package)
    line = f'needs {title}: pip install "onnxprune[train]"'
    _refused(_train("lenet5", "--data", "digits", "--out", tmp_path / "m"), OptionError, f"training {line}")
    _refused(_export("lenet300", "--weights", weights, "--out", tmp_path / "m"), OptionError, f"export {line}")


def test_help_loads_nothing_heavy_and_names_the_zoo() -> None:
    code = (
        "import sys; from onnxprune.cli import train, export; from click.testing import CliRunner\n"
        "for verb in (train, export): print(CliRunner().invoke(verb.command, ['--help']).output)\n"
        "heavy = {'torch', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'scipy', 'rich', 'PIL'}\n"
        "print('LOADED', heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED set()" in done.stdout
    for verb in (train_verb, export_verb):
        assert all(name in (verb.command.help or "") for name in NETWORKS)


def test_export_with_everything_named(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps([f"c{number}" for number in range(10)]))
    (tmp_path / "p.yaml").write_text("mean: [0.1307]\nstd: [0.3081]\nchannels: L\n")
    out = tmp_path / "m.onnx"
    named = (
        "--class-names",
        tmp_path / "names.json",
        "--preprocess",
        tmp_path / "p.yaml",
        "--data",
        "digits",
    )
    result = _json(_export("lenet300", "--weights", weights, "--out", out, *named, "--json"))
    assert result["parity_error"] < 1e-4
    assert result["notes"] == []
    stored = _metadata(out)
    assert json.loads(stored["onnxprune.classes"])[3] == "c3"
    assert json.loads(stored["onnxprune.preprocess"])["mean"] == [0.1307]
    assert stored["onnxprune.data"] == "digits"


def test_export_takes_class_names_of_known_data(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "m.onnx"
    assert _export("lenet300", "--weights", weights, "--out", out, "--data", "mnist:data").exception is None
    assert json.loads(_metadata(out)["onnxprune.classes"]) == list("0123456789")


def test_plain_export_says_what_is_missing(tmp_path: Path, weights: Path) -> None:
    result = _export("lenet300", "--weights", weights, "--out", tmp_path / "m.onnx")
    assert "agrees with PyTorch within" in result.stdout
    for what in ("data", "preprocessing", "classes"):
        assert f"note: the file names no {what}" in result.stdout


def test_export_of_a_network_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    target, out = f"{tmp_path / 'net.py'}:make", tmp_path / "m.onnx"
    assert _export(target, "--input-shape", "3,2,2", "--out", out).exception is None
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[1].dim_value == 3
    names = tmp_path / "names.json"
    names.write_text('["a", "b"]')
    again = ("--out", out, "--force")
    _refused(_export(target, *again), OptionError, "give --input-shape, as 3,32,32")
    _refused(_export(target, *again, "--input-shape", "3,x"), OptionError, "whole numbers with commas")
    _refused(
        _export(target, *again, "--input-shape", "3,9,9"),
        ModelError,
        "net.py:make on input (2, 3, 9, 9) failed",
    )
    _refused(
        _export(target, *again, "--input-shape", "3,2,2", "--class-names", names),
        OptionError,
        "has 3 outputs, but 2 class names were given",
    )
    _refused(
        _export(target, *again, "--input-shape", "3,2,2", "--classes", 3),
        OptionError,
        "--classes is for the zoo",
    )


def test_export_refusals(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "m.onnx"
    given = ("--weights", weights, "--out", out)
    _refused(_export("lenet300", "--out", out), OptionError, "give --weights checkpoint.pth")
    _refused(_export("lenet5", *given), ModelError, "does not fit LeNet5: missing conv1.weight")
    _refused(_export("lenet300", *given, "--classes", 7), ModelError, "fc3.weight has shape (10, 100)")
    _refused(_export("lenet300", *given, "--input-shape", "1,2,3"), OptionError, "lenet300 takes 1,28,28")
    _refused(_export("lenet300", *given, "--data", "mnist:/data"), OptionError, "names a place on this machine")
    _refused(_export("lenet300", *given, "--data", "random"), OptionError, "has no training and test side")
    _refused(_export("lenet300", *given, "--preprocess", tmp_path / "no.yaml"), OptionError, "no.yaml")
    names = tmp_path / "names.json"
    _refused(_export("lenet300", *given, "--class-names", names), OptionError, "cannot read class names")
    for text in ("{}", "[]", "[1]", "["):
        names.write_text(text)
        _refused(_export("lenet300", *given, "--class-names", names), OptionError, "class names")
    names.write_text('["a", "b"]')
    _refused(_export("lenet300", *given, "--class-names", names, "--classes", 3), OptionError, "give one of them")
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("network", "least"), [("lenet5", 0.97), ("lenet300", 0.94)])
def test_the_defaults_reach_their_accuracy_on_digits(network: str, least: float, tmp_path: Path) -> None:
    result = _json(_train(network, "--data", "digits", "--out", tmp_path / "m.onnx", "--json"))
    assert result["accuracy"]["test"] >= least


def test_the_older_exporter_writes_older_operator_sets(weights: Path, tmp_path: Path) -> None:
    words = ("lenet300", "--weights", weights, "--out", tmp_path / "m.onnx", "--opset", 13)
    _refused(_export(*words), OptionError, "opset 13: export writes 18 to 23")
    result = _json(_export(*words, "--exporter", "torchscript", "--json"))
    assert result["opset"] == 13
    assert result["parity_error"] < 1e-5
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 13
    trained = _json(
        _train("lenet300", "--data", "digits", "--out", tmp_path / "t.onnx", "--epochs", 1,
               "--exporter", "torchscript", "--opset", 17, "--json")
    )  # fmt: skip
    assert trained["opset"] == 17
