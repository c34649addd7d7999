"""What the command line loads, and that the deploy side needs neither torch nor a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "torch", "rich", "yaml", "PIL", "matplotlib"]

BLOCKED = """
import socket, sys

for name in ("torch", "torchvision", "onnxscript"):
    sys.modules[name] = None  # an import of it now fails as if it were not installed

def refuse(*args, **kwargs):
    raise OSError("no network")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
from onnxprune.cli import main
main(sys.argv[1:])
"""


def _python(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["apply", "--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from onnxprune.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print("LOADED", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = _python("-c", code)
    assert done.stdout.rstrip().endswith("LOADED []"), done.stdout + done.stderr


def test_help_names_every_verb(cli) -> None:
    from onnxprune.cli import VERBS

    shown = cli("--help")
    assert shown.exit_code == 0
    assert all(verb in shown.stdout for verb in VERBS)
    for verb in VERBS:
        own = cli(verb, "--help")
        assert own.exit_code == 0
        assert own.stdout.startswith("Usage:")


def test_module_entry_point_prints_the_version() -> None:
    from onnxprune import __version__

    done = _python("-m", "onnxprune", "--version")
    assert done.returncode == 0
    assert __version__ in done.stdout


def test_deploy_side_works_without_torch_and_network(conv_net_path: Path, examples_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    words = ["apply", "surp,id", "--in", conv_net_path, "--out", out, "--data", examples_path]
    done = _python("-c", BLOCKED, *words)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0
    for verb in (
        ["inspect", out],
        ["evaluate", out, "--data", examples_path],
        ["compare", conv_net_path, out, "--data", examples_path],
        ["passes"],
    ):
        assert _python("-c", BLOCKED, *verb).returncode == 0


def test_missing_torch_is_answered_with_the_pip_line(tmp_path: Path) -> None:
    done = _python("-c", BLOCKED, "train", "lenet5", "--data", "digits", "--out", tmp_path / "m.onnx")
    assert done.returncode == 2
    assert 'pip install "onnxprune[train]"' in done.stderr
    assert "Traceback" not in done.stderr
