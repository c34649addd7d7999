"""The release examples do what they say: the script in both directions, the commands as the program reads them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHELL = shutil.which("dash") or shutil.which("sh")


@pytest.fixture
def release(digits_net: Any, digits: Any, tmp_path: Path) -> Any:
    """Run the script on a small classifier of the embedded digits, with gates of one's own."""
    if SHELL is None:
        pytest.skip("there is no POSIX shell here")
    onnx.save(digits_net(), tmp_path / "m.onnx")
    for name, arrays in digits.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    program = tmp_path / "bin" / "onnxprune"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxprune "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    base = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
    base |= {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "RECIPE": "filters(flops=0.6)",
        "MIN_CLASS_AGREEMENT": "0.85", "MAX_LATENCY_RATIO": "1000", "SECONDS_PER_SETTING": "0.05",
    }  # fmt: skip

    def run(*, model: str = "m.onnx", **gates: str) -> subprocess.CompletedProcess[str]:
        words = [EXAMPLES / "release.sh", *(tmp_path / each for each in (model, "calib.npz", "eval.npz", "dist"))]
        return subprocess.run(
            [str(SHELL), *map(str, words)], env=base | gates, capture_output=True, text=True, check=False
        )

    return run


def test_a_model_that_meets_every_gate_is_released(release: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("an earlier step\n", encoding="utf-8")
    done = release(GITHUB_STEP_SUMMARY=str(page))
    assert done.returncode == 0, done.stderr
    dist = tmp_path / "dist"
    assert done.stdout.endswith(f"released: {dist / 'model.onnx'}\n")
    onnx.checker.check_model(str(dist / "model.onnx"), full_check=True)
    names = {each.name for each in dist.iterdir()}
    assert names == {"model.onnx", "report.json", "report.html", "gates.xml", "latency.xml", "latency.txt"}
    for name, cases in (("gates.xml", 4), ("latency.xml", 1)):
        suite = ElementTree.parse(dist / name).getroot()[0]
        assert (suite.attrib["tests"], suite.attrib["failures"]) == (str(cases), "0")
    text = page.read_text(encoding="utf-8")
    assert text.startswith("an earlier step\n\n# onnxprune: all 4 gates are met\n")


@pytest.mark.parametrize(
    "gate",
    [{"MIN_AGREEMENT": "0.9999"}, {"MIN_CLASS_AGREEMENT": "0.99"}, {"MAX_BYTES": "2kB"}],
    ids=lambda gate: next(iter(gate)),
)
def test_a_model_that_misses_a_gate_is_not(release: Any, tmp_path: Path, gate: dict[str, str]) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "model.onnx").write_bytes(b"the last release")
    done = release(**gate)
    assert done.returncode == 1, done.stderr
    assert f"not released: a gate was not met, see {dist / 'report.html'}" in done.stderr
    assert not list(dist.rglob("*.onnx"))
    assert {each.name for each in dist.iterdir()} == {"candidate", "report.json", "report.html", "gates.xml"}
    assert ElementTree.parse(dist / "gates.xml").getroot().attrib["failures"] == "1"


def test_a_model_that_is_too_slow_stays_a_candidate(release: Any, tmp_path: Path) -> None:
    done = release(MAX_LATENCY_RATIO="0.000001")
    assert done.returncode == 1, done.stderr
    assert "not released: too slow" in done.stderr
    assert [each.relative_to(tmp_path / "dist") for each in (tmp_path / "dist").rglob("*.onnx")] == [
        Path("candidate") / "model.onnx"
    ]


def test_a_run_that_breaks_off_is_not_a_missed_gate(release: Any, tmp_path: Path) -> None:
    done = release(model="gone.onnx")
    assert done.returncode == 3
    assert "not released: apply ended with status 3" in done.stderr
    case = ElementTree.parse(tmp_path / "dist" / "gates.xml").getroot()[0][0]
    assert "does not exist" in case[0].attrib["message"]
    assert subprocess.run([str(SHELL), str(EXAMPLES / "release.sh")], capture_output=True, check=False).returncode == 2


def test_the_commands_of_the_job_are_understood() -> None:
    from onnxprune.cli import main

    job = yaml.safe_load((EXAMPLES / "release.yml").read_text(encoding="utf-8"))["jobs"]["compress"]
    steps = job["steps"]
    used = [step["uses"].partition("@")[0] for step in steps if "uses" in step]
    assert used == ["actions/checkout", "actions/setup-python", *["actions/upload-artifact"] * 2]
    scripts = [step["run"] for step in steps if "run" in step]
    lines = [line for text in scripts for line in re.sub(r"\\\n\s*", "", text).splitlines()]
    verbs = []
    for line in lines:
        program, *words = shlex.split(line)
        if program != "onnxprune":
            continue
        verb = main.get_command(click.Context(main), words[0])
        assert verb is not None
        context = verb.make_context(words[0], words[1:])
        verbs.append(words[0])
        assert context.params["junit"].endswith(".xml")
        if words[0] == "apply":
            assert context.params["max_bytes"] == 2_000_000
            assert context.params["summary"] == "$GITHUB_STEP_SUMMARY"
    assert verbs == ["apply", "bench"]
