from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters.to_onnx import export
from onnxprune.models.checkpoint import load_weights, module_from_script, trial_output
from onnxprune.models.zoo import build


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_in_all_usual_forms(tmp_path: Path, nest: str | None, prefix: str) -> None:
    source, target = build("lenet300"), build("lenet300")
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert all(torch.equal(source.state_dict()[key], value) for key, value in target.state_dict().items())


def test_mismatch_names_the_first_keys(tmp_path: Path) -> None:
    torch.save(build("lenet5").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ModelError,
        match=r"w.pth does not fit LeNet300: missing fc3.weight, fc3.bias and unexpected conv1.weight, "
        r"conv1.bias, conv2.weight and 1 more",
    ):
        load_weights(build("lenet300"), tmp_path / "w.pth")


def test_shape_mismatch(tmp_path: Path) -> None:
    torch.save(build("lenet5", 7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"fc2.weight has shape \(7, 500\), the network wants \(10, 500\)"):
        load_weights(build("lenet5"), tmp_path / "w.pth")


def test_nan_weights(tmp_path: Path) -> None:
    state = build("lenet300").state_dict()
    state["fc2.bias"][3] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"fc2.bias holds NaN or infinite values"):
        load_weights(build("lenet300"), tmp_path / "w.pth")


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the weights file .*w.pth does not exist"):
        load_weights(build("lenet300"), tmp_path / "w.pth")
    torch.save(build("lenet300").state_dict(), tmp_path / "whole.pth")
    for name, data in (
        ("empty", b""),
        ("text", b"no tensors"),
        ("cut", (tmp_path / "whole.pth").read_bytes()[:9000]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=name):
            load_weights(build("lenet300"), tmp_path / name)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save(build("lenet300"), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds more than tensors or is damaged: save the network's state_dict\(\)"):
        load_weights(build("lenet300"), tmp_path / "w.pth")


@pytest.mark.parametrize("nest", [None, "model"])
def test_trusted_pickles_are_read(tmp_path: Path, nest: str | None) -> None:
    source, target = build("lenet300"), build("lenet300")
    torch.save(source if nest is None else {nest: source, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="or give --trust-pickle if you trust"):
        load_weights(target, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", trust_pickle=True)
    assert torch.equal(source.get_parameter("fc1.weight"), target.get_parameter("fc1.weight"))


@pytest.mark.parametrize(
    ("content", "words"),
    [([1, 2], "holds no state dict"), ({}, "holds no state dict"), ({"a": 1}, "entry 'a' is int")],
)
def test_other_contents(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=words):
        load_weights(build("lenet300"), tmp_path / "w.pth")


def test_module_from_script(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 3)\nword = 'x'\n")
    assert trial_output(module_from_script(f"{file}:make"), (4,), "net") == (2, 3)
    for target in (f"{file}:other", f"{file}:word"):
        with pytest.raises(OptionError, match="has no function"):
            module_from_script(target)
    for target in (f"{tmp_path / 'absent.py'}:make", str(file), "net:make"):
        with pytest.raises(OptionError, match=r"give an existing file and a function in it, as net.py:make"):
            module_from_script(target)


def test_scripts_may_use_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("SIZE = 6\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom neighbour_of_net import SIZE\n\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc = nn.Linear(4, SIZE)\n"
        "    def forward(self, x):\n        return self.fc(x).relu()\n\n"
        "make = Net\n"
    )
    before = list(sys.path)
    module = module_from_script(f"{tmp_path / 'net.py'}:make")
    assert sys.path == before
    assert export(module, (4,), tmp_path / "m.onnx").bytes
    assert b"net.py" not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def make():\n    return 3\n", "returned int: return a torch.nn.Module"),
        ("def make():\n    raise KeyError('k')\n", "failed: KeyError: 'k'"),
        ("def make(:\n", "failed: SyntaxError"),
        ("raise SystemExit(3)\n", "failed: SystemExit: 3"),
    ],
)
def test_failing_scripts(tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(ModelError, match=words):
        module_from_script(f"{tmp_path / 'net.py'}:make")


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_trial_output_refuses_what_cannot_be_exported() -> None:
    with pytest.raises(ModelError, match=r"net on input \(2, 5\) failed: RuntimeError"):
        trial_output(nn.Linear(4, 3), (5,), "net")
    with pytest.raises(ModelError, match="net returns tuple: export writes modules that return one tensor"):
        trial_output(_Pair(), (4,), "net")
    with pytest.raises(ModelError, match=r"net returns shape \(8,\) for two examples"):
        trial_output(nn.Flatten(0), (4,), "net")
