"""Writing reports: whole files or none, and paths refused before any work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onnxprune.errors import BackendError, OptionError
from onnxprune.report.markdown import markdown
from onnxprune.report.report import Report
from onnxprune.report.write import check_report_path, write_report


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
