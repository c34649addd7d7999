"""Reports to files: the suffix chooses the form, and a file is whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from onnxprune.errors import BackendError, OptionError
from onnxprune.report.markdown import markdown, summary
from onnxprune.report.page import page
from onnxprune.report.report import Report

FORMS: Final[dict[str, Callable[[Report, Mapping[int, str]], str]]] = {
    ".json": lambda report, _: report.to_json(),
    ".md": lambda report, _: markdown(report),
    ".html": lambda report, pictures: page(report, pictures),
}


def check_report_path(path: str | os.PathLike[str], forms: Collection[str] = tuple(FORMS)) -> Path:
    """Refuse a path no report can be written to, so that a run can say so before it starts.

    Raises:
        OptionError: if the suffix is none of ``forms``, or the folder is missing or not writable.
    """
    target = Path(path)
    if target.suffix.lower() not in forms:
        found = f"ends in {target.suffix!r}" if target.suffix else "has no suffix"
        raise OptionError(f"report {str(target)!r} {found}; accepted are {', '.join(forms)}")
    if target.is_dir():
        raise OptionError(f"report {str(target)!r} is a folder; give the path of a file")
    folder = target.parent
    if not folder.is_dir():
        raise OptionError(f"report {str(target)!r}: folder {str(folder)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"report {str(target)!r}: folder {str(folder)!r} is not writable; choose another")
    return target


def write_report(report: Report, path: str | os.PathLike[str], pictures: Mapping[int, str] | None = None) -> None:
    """Write the report as JSON, Markdown or HTML, replacing the file at once when it is complete.

    ``pictures`` are for the HTML page's flips (see ``report.pictures``).

    Raises:
        OptionError: if the path cannot take a report.
        BackendError: if the file system fails while writing; nothing new is left behind then.
    """
    target = check_report_path(path)
    write_whole(FORMS[target.suffix.lower()](report, pictures or {}), target)


def write_whole(text: str, target: Path) -> None:
    """Write a file of text, replacing an older one at once when it is complete.

    Raises:
        BackendError: if the file system fails while writing; nothing new is left behind then.
    """
    # Beside the target, for a rename moves files within one file system only.
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(target)
    except OSError as error:
        raise BackendError(f"report {str(target)!r} could not be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check_summary_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no summary can be appended to, so that a run can say so before it starts.

    Raises:
        OptionError: if there is no such folder, or no permission to write.
    """
    target, shown = Path(path), os.fspath(path)
    if not shown:
        raise OptionError("summary '' names no file; is the variable that holds its name set?")
    if target.is_dir():
        raise OptionError(f"summary {shown!r} is a folder; give the path of a file")
    if not target.parent.is_dir():
        raise OptionError(f"summary {shown!r}: folder {str(target.parent)!r} does not exist; create it first")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise OptionError(f"summary {shown!r} is not writable; choose another")
    return target


def append_summary(report: Report, path: str | os.PathLike[str]) -> None:
    """Append the report in short, as Markdown, to what the file holds already.

    Raises:
        OptionError: if the path cannot take a summary.
        BackendError: if the file system fails while writing.
    """
    target = check_summary_path(path)
    try:
        with target.open("ab") as file:
            # A line that stands there unended must not swallow the heading.
            file.write((b"\n" if file.tell() else b"") + summary(report).encode("utf-8"))
    except OSError as error:
        raise BackendError(f"summary {str(target)!r} could not be written: {error.strerror or error}") from error
