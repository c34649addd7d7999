"""Release gates on the command line, in both directions: exit status, model, report, JUnit file, summary."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.evaluate import streaming
from onnxprune.runtime.timing import Latency, Ratio


@pytest.fixture
def folder(digits_net: Any, digits: Any, tmp_path: Path) -> Path:
    """A classifier of digits and its data as files."""
    onnx.save(digits_net(), tmp_path / "m.onnx")
    for name, arrays in digits.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    return tmp_path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every result take 0.8 times as long as its original, in an interval of 0.7 to 0.9."""

    def measure(sessions: list[Any], feeds: Any, **options: Any) -> list[Latency]:
        ratio = Ratio(0.8, 0.7, 0.9, 0.95)
        return [Latency(1.0, 1.0, 10, 1, 1.0, 1.0, 6, each) for each in (None, ratio)]

    monkeypatch.setattr(streaming, "measure", measure)


@pytest.fixture
def apply(cli: Any, folder: Path) -> Any:
    """Run ``apply`` with a size that keeps every decision of the digits; return the outcome and the report."""

    def run(*words: object, recipe: str = "filters(flops=0.6)") -> tuple[Any, dict[str, Any]]:
        done = cli(
            "apply", recipe, "--in", folder / "m.onnx", "--out", folder / "o.onnx", "--force", "--threads", 1,
            "--calib", folder / "calib.npz", "--eval", folder / "eval.npz", "--report", folder / "r.json", *words,
        )  # fmt: skip
        return done, json.loads((folder / "r.json").read_text(encoding="utf-8"))

    return run


@pytest.fixture
def compare(cli: Any, folder: Path, digits_net: Any) -> Any:
    """Run ``compare`` on the classifier and one whose fourth class is shifted; return the outcome and the report."""
    proto = digits_net()
    bias = next(each for each in proto.graph.initializer if each.name == "b2")
    shifted = onnx.numpy_helper.to_array(bias).copy()
    shifted[3] -= 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(shifted, "b2"))
    onnx.save(proto, folder / "b.onnx")

    def run(*words: object, other: str = "b.onnx") -> tuple[Any, dict[str, Any]]:
        done = cli(
            "compare", folder / "m.onnx", folder / other, "--data", folder / "eval.npz", "--threads", 1,
            "--report", folder / "r.json", *words,
        )  # fmt: skip
        return done, json.loads((folder / "r.json").read_text(encoding="utf-8"))

    return run


@pytest.mark.parametrize(
    ("option", "met", "missed"),
    [
        ("--max-latency-ratio", "0.9", "0.89"),  # the ratio itself is 0.8
        ("--max-bytes", "18kB", "17kB"),
        ("--min-class-agreement", "0.88", "0.89"),  # every class agrees; the smallest has 25 examples
        ("--max-class-accuracy-drop", "0", None),
    ],
)
@pytest.mark.usefixtures("timed")
def test_apply_in_both_directions(apply: Any, folder: Path, option: str, met: str, missed: str | None) -> None:
    name = option.removeprefix("--").replace("-", "_")
    done, report = apply(option, met)
    assert done.exit_code == 0, done.stdout + done.stderr
    gate = report["gates"][-1]
    assert (gate["name"], gate["met"]) == (name, True)
    assert gate["message"] in " ".join(done.stdout.split())
    assert report["result"]["bytes"] == (folder / "o.onnx").stat().st_size
    if missed is None:
        return
    (folder / "o.onnx").unlink()
    before = {each.name for each in folder.iterdir()}
    done, report = apply(option, missed)
    assert done.exit_code == 1
    assert {each.name for each in folder.iterdir()} == before
    assert (report["gates"][-1]["met"], report["met"], report["result"]) == (False, False, None)
    assert "nothing was written to" in done.stderr
    done, report = apply(option, missed, "--keep-failed")
    assert done.exit_code == 1
    assert report["result"]["bytes"] == (folder / "o.onnx").stat().st_size
    assert report["met"] is False


@pytest.mark.parametrize(
    ("option", "met", "missed"),
    [
        ("--max-latency-ratio", "0.9", "0.89"),
        ("--max-bytes", "29058", "29057"),
        ("--min-class-agreement", "0.4", "0.8"),
        ("--max-class-accuracy-drop", "0.4", "0.02"),
    ],
)
@pytest.mark.usefixtures("timed")
def test_compare_in_both_directions(compare: Any, folder: Path, option: str, met: str, missed: str) -> None:
    assert (folder / "b.onnx").stat().st_size == 29058
    for asked, status in ((met, 0), (missed, 1)):
        done, report = compare(option, asked)
        assert done.exit_code == status, done.stdout
        (gate,) = report["gates"]
        assert gate["met"] is (status == 0)
        assert gate["wanted"] == float(asked)
        assert gate["message"] in " ".join(done.stdout.split())
    if option.startswith("--m") and "class" in option:
        assert "'3': " in gate["message"]


def test_external_data_counts(cli: Any, folder: Path, digits_net: Any) -> None:
    onnx.save(digits_net(), folder / "x.onnx", save_as_external_data=True, location="x.onnx.data", size_threshold=0)
    files = [folder / "x.onnx", folder / "x.onnx.data"]
    size = sum(each.stat().st_size for each in files)
    for limit, status in ((size, 0), (size - 1, 1)):
        words = ["compare", folder / "m.onnx", folder / "x.onnx", "--data", folder / "eval.npz", "--max-bytes", limit]
        assert cli(*words).exit_code == status
    # What apply makes of it has external data too.
    words = ["apply", "cleanup", "--in", files[0], "--out", folder / "y.onnx", "--data", folder / "eval.npz"]
    assert cli(*words, "--max-bytes", 1000).exit_code == 1
    assert not list(folder.glob("y.onnx*"))
    assert cli(*words, "--report", folder / "r.json").exit_code == 0
    written = json.loads((folder / "r.json").read_text(encoding="utf-8"))["result"]["bytes"]
    assert (folder / "y.onnx.data").stat().st_size > 1000
    assert cli(*words, "--force", "--max-bytes", written).exit_code == 0
    assert cli(*words, "--force", "--max-bytes", written - 1).exit_code == 1
    assert (folder / "y.onnx").exists()  # an older result stays as it was


def test_the_report_holds_to_its_schema(apply: Any) -> None:
    import importlib.resources

    import jsonschema

    _, report = apply(
        "--min-agreement", 0.9, "--max-accuracy-drop", 0.1, "--min-class-agreement", 0.9, "--max-class-accuracy-drop",
        0.1, "--max-latency-ratio", 1e6, "--max-bytes", "1GiB",
    )  # fmt: skip
    assert [gate["name"] for gate in report["gates"]] == [
        "flops", "min_agreement", "max_accuracy_drop", "min_class_agreement", "max_class_accuracy_drop",
        "max_latency_ratio", "max_bytes",
    ]  # fmt: skip
    schema = json.loads(importlib.resources.files("onnxprune.report").joinpath("schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)


def test_gates_without_labels_and_without_classes(cli: Any, folder: Path, digits_net: Any) -> None:
    with np.load(folder / "eval.npz") as data:
        np.savez(folder / "bare.npz", input=data["input"])
    words = ["compare", folder / "m.onnx", folder / "m.onnx", "--data", folder / "bare.npz"]
    done = cli(*words, "--max-class-accuracy-drop", 1)
    assert done.exit_code == 1
    assert "no labels to judge it by: not met" in " ".join(done.stdout.split())
    onnx.save(digits_net(outputs=1), folder / "one.onnx")
    words = ["compare", folder / "one.onnx", folder / "one.onnx", "--data", folder / "bare.npz"]
    done = cli(*words, "--min-class-agreement", 0)
    assert done.exit_code == 1
    assert "no output holds class scores to judge it by: not met" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-latency-ratio", "0"], "--max-latency-ratio"),
        (["--max-latency-ratio", "-1"], "--max-latency-ratio"),
        (["--max-latency-ratio", "nan"], "max-latency-ratio is nan; it must be a positive number"),
        (["--max-bytes", "5TB"], "size '5TB' is no number of bytes"),
        (["--max-bytes", "0"], "is less than one byte"),
        (["--min-class-agreement", "1.5"], "--min-class-agreement"),
        (["--min-class-agreement", "nan"], "min-class-agreement is nan"),
        (["--max-class-accuracy-drop", "-0.1"], "--max-class-accuracy-drop"),
        (["--junit", "gates.json"], "ends in '.json'; accepted are .xml"),
        (["--junit", "gone/gates.xml"], "does not exist; create it first"),
        (["--summary", ""], "summary '' names no file"),
        (["--summary", "gone/page.md"], "does not exist; create it first"),
    ],
)
@pytest.mark.parametrize("verb", ["apply", "compare"])
def test_what_cannot_be_asked_is_refused_before_any_work(
    cli: Any, folder: Path, verb: str, words: list[str], sentence: str
) -> None:
    # Neither the model nor the data is there: what is wrong with the options is said first.
    start = {
        "apply": ["apply", "id", "--in", folder / "gone.onnx", "--out", folder / "o.onnx"],
        "compare": ["compare", folder / "gone.onnx", folder / "gone.onnx"],
    }[verb]
    before = {each.name for each in folder.iterdir()}
    done = cli(*start, *words)
    assert done.exit_code == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert sentence in line
    assert {each.name for each in folder.iterdir()} == before


@pytest.mark.parametrize(("asked", "status"), [(0.9, 0), (0.9999, 1)])
def test_junit_and_summary_of_apply(apply: Any, folder: Path, asked: float, status: int) -> None:
    junit, page = folder / "j.xml", folder / "page.md"
    page.write_text("before\n", encoding="utf-8")
    done, report = apply("--min-agreement", asked, "--junit", junit, "--summary", page)
    assert done.exit_code == status
    suite = ElementTree.parse(junit).getroot()[0]
    assert [case.get("name") for case in suite.findall("testcase")] == ["flops", "min_agreement"]
    assert [each.text for each in suite.findall("testcase/failure")] == [
        gate["message"] for gate in report["gates"] if not gate["met"]
    ]
    facts = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert facts["source.sha256"] == report["source"]["sha256"]
    assert facts.get("result.sha256") == (report["result"]["sha256"] if status == 0 else None)
    assert (facts["recipe"], facts["agreement"], facts["examples"]) == ("filters(flops=0.6)", "1.0", "360")
    heading = "all 2 gates are met" if status == 0 else "1 of 2 gates NOT met"
    assert page.read_text(encoding="utf-8").startswith(f"before\n\n# onnxprune: {heading}\n")
    assert f"wrote {junit}" in done.stderr
    assert f"appended to {page}" in done.stderr


def test_the_same_run_gives_the_same_junit_but_for_time(apply: Any, folder: Path) -> None:
    texts = []
    for name in ("a.xml", "b.xml"):
        apply("--min-agreement", 0.9, "--junit", folder / name)
        texts.append([part.partition('"')[2] for part in (folder / name).read_text(encoding="utf-8").split(' time="')])
    assert texts[0] == texts[1]


def test_junit_of_compare_and_bench(compare: Any, cli: Any, folder: Path) -> None:
    compare("--junit", folder / "c.xml", "--summary", folder / "s.md")
    (case,) = ElementTree.parse(folder / "c.xml").getroot()[0].findall("testcase")
    assert (case.get("classname"), case.get("name"), len(case)) == ("onnxprune.compare", "compared", 0)
    assert (folder / "s.md").read_text(encoding="utf-8").startswith("# onnxprune: no gate was asked for\n")
    words = [
        "bench",
        folder / "m.onnx",
        folder / "b.onnx",
        "--seconds",
        0.05,
        "--no-memory",
        "--junit",
        folder / "b.xml",
    ]
    for more, status, failures in (
        ([], 0, "0"),
        (["--max-latency-ratio", 1000], 0, "0"),
        (["--max-latency-ratio", 1e-6], 1, "1"),
    ):
        assert cli(*words, *more).exit_code == status
        suite = ElementTree.parse(folder / "b.xml").getroot()[0]
        assert suite.get("failures") == failures
        assert [case.get("name") for case in suite.findall("testcase")] == ["max_latency_ratio" if more else "timed"]
    assert cli(*words[:-1], folder / "b.json").exit_code == 2


def test_a_run_that_breaks_off_leaves_an_error(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junit = folder / "j.xml"
    start = ["apply", "id", "--out", folder / "o.onnx", "--junit", junit, "--in"]
    (folder / "bad.onnx").write_bytes(b"hello, this is text\n" * 20)

    def error() -> str:
        suite = ElementTree.parse(junit).getroot()[0]
        assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "0", "1")
        (case,) = suite.findall("testcase")
        assert (case.get("classname"), case.get("name")) == ("onnxprune.apply", "written")
        junit.unlink()
        return str(case[0].text)

    done = cli(*start, folder / "bad.onnx")
    assert done.exit_code == 3
    said = error()
    assert "not an ONNX file" in said
    assert done.stderr.splitlines()[0] == f"onnxprune: {said}"

    def full(*words: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    from onnxprune.graph import io

    monkeypatch.setattr(io, "_check_file", full)
    assert cli("apply", "cleanup", *start[2:], folder / "m.onnx", "--data", folder / "eval.npz").exit_code == 4
    assert "No space left on device" in error()
    # Wrong usage ends the run before anything was promised.
    assert cli(*start[:1], "surpp", *start[2:], folder / "m.onnx").exit_code == 2
    assert not junit.exists()


def test_a_junit_file_that_fails_does_not_hide_the_reason(
    cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxprune.errors import BackendError
    from onnxprune.report import junit

    def full(*words: object) -> None:
        raise BackendError("the disk is full")

    monkeypatch.setattr(junit, "write_whole", full)
    done = cli("compare", folder / "gone.onnx", folder / "m.onnx", "--junit", folder / "j.xml")
    assert done.exit_code == 3
    first, second = done.stderr.splitlines()
    assert "does not exist" in first
    assert second == "onnxprune: the disk is full"
