"""Gates as JUnit XML, which CI systems show as test cases: one suite, one case per gate."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnxprune.budget import Gate
from onnxprune.report.bench import BenchResult
from onnxprune.report.report import Report
from onnxprune.report.write import check_report_path, write_whole

FORMS: Final = (".xml",)
"""The suffixes that a JUnit file can be written with."""

# What a verb does; it is the one case where nothing else was asked for, or where the run ended early.
CASES: Final = {"apply": "written", "compare": "compared", "bench": "timed"}

# Characters that XML 1.0 has no form for, not even an escaped one.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Run:
    """The run that a file speaks of: the verb of the command line, and how long it took."""

    verb: str
    seconds: float


def check_junit_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that no JUnit file can be written to, so that a run can say so before it starts.

    Raises:
        OptionError: if it does not end in .xml, or the folder is missing or not writable.
    """
    return check_report_path(path, FORMS)


def report_junit(report: Report, run: Run) -> str:
    """Return the gates of a report as JUnit XML: the same text for the same report and time."""
    facts: dict[str, object] = {
        "recipe": report.recipe,
        "source.sha256": report.source.sha256,
        "result.sha256": None if report.result is None else report.result.sha256,
        "agreement": None if report.agreement is None else report.agreement.top1.rate,
        "examples": None if report.data.eval is None else report.data.eval.examples,
    }
    return _suite(run, report.gates, facts)


def bench_junit(found: BenchResult, run: Run) -> str:
    """Return the gates of a benchmark as JUnit XML."""
    return _suite(run, found.gates, {f"{model.name}.sha256": model.sha256 for model in found.models})


def error_junit(message: str, run: Run) -> str:
    """Return a run that ended without a report as JUnit XML: one case, with the sentence that it ended on."""
    return _suite(run, (), {}, error=message)


def write_junit(text: str, path: str | os.PathLike[str]) -> None:
    """Write JUnit XML, replacing the file at once when it is complete.

    Raises:
        OptionError: if the path cannot take it.
        BackendError: if the file system fails while writing; nothing new is left behind then.
    """
    write_whole(text, check_junit_path(path))


def _suite(run: Run, gates: Sequence[Gate], facts: Mapping[str, object], error: str | None = None) -> str:
    missed, seconds = sum(not gate.met for gate in gates), f"{run.seconds:.3f}"
    counts = {"tests": len(gates) or 1, "failures": missed, "errors": int(error is not None)}
    totals = {**{name: str(count) for name, count in counts.items()}, "time": seconds}
    root = ElementTree.Element("testsuites", totals)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "onnxprune", **totals})
    known = {name: value for name, value in facts.items() if value is not None}
    if known:
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in known.items():
            ElementTree.SubElement(properties, "property", {"name": name, "value": _text(str(value))})
    if gates:
        # The time is that of the whole run: no gate has one of its own.
        times = Counter[str]()
        for gate in gates:
            times[gate.name] += 1
            # Two passes may each have been asked for a size; readers merge cases of one name.
            again = f" ({times[gate.name]})" if times[gate.name] > 1 else ""
            case = _case(suite, run, gate.name + again, "0.000")
            if not gate.met:
                failure = ElementTree.SubElement(case, "failure", {"message": _text(gate.message), "type": "gate"})
                failure.text = _text(gate.message)
    else:
        case = _case(suite, run, CASES[run.verb], seconds)
        if error is not None:
            ended = ElementTree.SubElement(case, "error", {"message": _text(error), "type": "error"})
            ended.text = _text(error)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, run: Run, name: str, seconds: str) -> ElementTree.Element:
    facts = {"classname": f"onnxprune.{run.verb}", "name": name, "time": seconds}
    return ElementTree.SubElement(suite, "testcase", facts)


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
