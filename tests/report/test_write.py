"""Writing reports: whole files or none, and paths refused before any work."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from onnxprune.budget import bytes_gate
from onnxprune.errors import BackendError, OptionError
from onnxprune.report.markdown import markdown, summary
from onnxprune.report.report import Report
from onnxprune.report.write import append_summary, check_report_path, check_summary_path, write_report


def test_the_suffix_chooses_the_form(tmp_path: Path, full_report: Report) -> None:
    write_report(full_report, tmp_path / "r.json")
    write_report(full_report, str(tmp_path / "r.MD"))
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["seed"] == 7
    assert (tmp_path / "r.MD").read_text(encoding="utf-8") == markdown(full_report)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["r.MD", "r.json"]


def test_an_older_report_is_replaced(tmp_path: Path, full_report: Report) -> None:
    path = tmp_path / "r.json"
    path.write_text("old", encoding="utf-8")
    write_report(full_report, path)
    assert path.read_text(encoding="utf-8") == full_report.to_json()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("r.txt", "report '{}' ends in '.txt'; accepted are .json, .md, .html"),
        ("report", "report '{}' has no suffix; accepted are .json, .md, .html"),
        ("none/r.json", "report '{}': folder '{}' does not exist; create it first"),
        ("folder.md", "report '{}' is a folder; give the path of a file"),
    ],
)
def test_paths_that_cannot_take_a_report(tmp_path: Path, full_report: Report, name: str, sentence: str) -> None:
    (tmp_path / "folder.md").mkdir()
    path = tmp_path / name
    with pytest.raises(OptionError) as error:
        write_report(full_report, path)
    assert str(error.value) == sentence.format(path, path.parent)
    with pytest.raises(OptionError):
        check_report_path(path)


def test_a_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Faked, for a superuser may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match=r"folder '.*' is not writable; choose another$"):
        check_report_path(tmp_path / "r.json")


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, full_report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    path.write_text("old", encoding="utf-8")

    def full_disk(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(BackendError, match=r"r\.json' could not be written: No space left on device$"):
        write_report(full_report, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_summary_says_what_matters(full_report: Report, bare_report: Report) -> None:
    text = summary(full_report)
    assert text == summary(full_report)
    places = [
        text.index(said)
        for said in (
            "# onnxprune: 1 of 2 gates NOT met\n", "**357 of 360 decisions kept", "- source: `models/lenet5.onnx`",
            "## Gates", "| min_agreement | 0.99 | 0.9786 | NO |", "- accuracy drop at most 0.01", "## Cost",
            "| FLOPs (2 x MACs) |", "357 of 360 decisions kept, 3 changed", "Worst class: digit 8", "Latency: 1.5 ms",
            "## Warnings", "- 12 examples are in both",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert len(text) < len(markdown(full_report))
    met = replace(full_report, gates=full_report.gates[1:])
    assert summary(met).startswith("# onnxprune: the gate is met\n")
    two = replace(met, gates=(*met.gates, bytes_gate(1_999_999, 2_000_000)))
    assert summary(two).startswith("# onnxprune: all 2 gates are met\n")
    assert "| max_bytes | 2,000,000 | 1,999,999 | yes |" in summary(two)
    assert summary(bare_report).startswith("# onnxprune: no gate was asked for\n")


def test_a_summary_is_appended(tmp_path: Path, full_report: Report, bare_report: Report) -> None:
    path = tmp_path / "page"
    append_summary(full_report, path)
    assert path.read_text(encoding="utf-8") == summary(full_report)
    path.write_text("a line without an end", encoding="utf-8")
    append_summary(full_report, path)
    append_summary(bare_report, path)
    said = "\n".join(["a line without an end", summary(full_report), summary(bare_report)])
    assert path.read_text(encoding="utf-8") == said


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none/page", "summary '{}': folder '{}' does not exist; create it first"),
        ("folder", "summary '{}' is a folder; give the path of a file"),
    ],
)
def test_paths_that_cannot_take_a_summary(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError) as error:
        check_summary_path(tmp_path / name)
    assert str(error.value) == sentence.format(tmp_path / name, (tmp_path / name).parent)


def test_a_variable_that_is_not_set_is_no_path(full_report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"^summary '' names no file; is the variable that holds its name set\?$"):
        append_summary(full_report, "")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match=r"is not writable; choose another$"):
        check_summary_path("page.md")


def test_a_summary_that_cannot_be_written(tmp_path: Path, full_report: Report) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no device here that is always full")
    with pytest.raises(BackendError, match=r"could not be written: No space left on device$"):
        append_summary(full_report, full)
