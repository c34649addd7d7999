"""JUnit XML: one case per gate, well-formed whatever a model is called, the same bytes for the same run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from onnxprune.budget import Gate
from onnxprune.errors import OptionError
from onnxprune.report.bench import BenchModel, BenchResult
from onnxprune.report.junit import Run, bench_junit, check_junit_path, error_junit, report_junit, write_junit
from onnxprune.report.report import Report

RUN = Run("apply", 1.25)
HOSTILE = "<![CDATA[\"'&]]>\x00\x1b\ud800\ufffe日本"


def suite_of(text: str) -> ElementTree.Element:
    """Check what holds of every file, and return its one suite."""
    root = ElementTree.fromstring(text.encode("utf-8"))
    (suite,) = root
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "onnxprune")
    cases = suite.findall("testcase")
    assert cases
    for element in (root, suite):
        assert element.get("tests") == str(len(cases))
        assert element.get("failures") == str(len(suite.findall("testcase/failure")))
        assert element.get("errors") == str(len(suite.findall("testcase/error")))
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    assert all(float(each.get("time", "x")) >= 0 for each in (root, suite, *cases))
    assert "timestamp" not in text
    assert "hostname" not in text
    return suite


def test_one_case_per_gate(full_report: Report) -> None:
    text = report_junit(full_report, RUN)
    assert text == report_junit(full_report, RUN)
    suite = suite_of(text)
    missed, met = suite.findall("testcase")
    assert [case.attrib for case in (missed, met)] == [
        {"classname": "onnxprune.apply", "name": name, "time": "0.000"}
        for name in ("min_agreement", "max_accuracy_drop")
    ]
    assert not list(met)
    assert missed[0].get("message") == missed[0].text == full_report.gates[0].message
    assert full_report.result is not None
    assert full_report.agreement is not None
    assert {each.get("name"): each.get("value") for each in suite.findall("properties/property")} == {
        "recipe": full_report.recipe,
        "source.sha256": full_report.source.sha256,
        "result.sha256": full_report.result.sha256,
        "agreement": str(357 / 360),
        "examples": "360",
    }
    assert suite.get("time") == "1.250"


@pytest.mark.parametrize(("verb", "name"), [("apply", "written"), ("compare", "compared")])
def test_no_gate_is_one_case_that_passes(bare_report: Report, verb: str, name: str) -> None:
    suite = suite_of(report_junit(bare_report, Run(verb, 0.5)))
    (case,) = suite.findall("testcase")
    assert case.attrib == {"classname": f"onnxprune.{verb}", "name": name, "time": "0.500"}
    assert not list(case)
    assert [each.get("name") for each in suite.findall("properties/property")] == ["source.sha256"]


def test_gates_of_one_name_stay_apart(bare_report: Report) -> None:
    gates = tuple(Gate("flops", 0.5, 0.4, True, "flops") for _ in range(3))
    suite = suite_of(report_junit(replace(bare_report, gates=gates), RUN))
    assert [case.get("name") for case in suite.findall("testcase")] == ["flops", "flops (2)", "flops (3)"]


def test_what_xml_has_no_form_for_is_replaced(full_report: Report) -> None:
    gates = (Gate("min_agreement", 0.9, None, False, HOSTILE),)
    suite = suite_of(report_junit(replace(full_report, recipe=HOSTILE, gates=gates), RUN))
    shown = "<![CDATA[\"'&]]>\ufffd\ufffd\ufffd\ufffd日本"
    assert suite[0][0].get("value") == shown
    assert suite[1][0].get("message") == suite[1][0].text == shown


def test_a_run_that_broke_off_is_an_error() -> None:
    suite = suite_of(error_junit("'m.onnx' is empty (0 bytes)", RUN))
    (case,) = suite.findall("testcase")
    assert case.get("name") == "written"
    assert case[0].tag == "error"
    assert case[0].get("message") == case[0].text == "'m.onnx' is empty (0 bytes)"
    assert suite.find("properties") is None


def test_a_benchmark_has_its_own_cases() -> None:
    models = tuple(
        BenchModel(name, f"{name}.onnx", 1, name.lower() * 64, 1, 1, 1, 1, 1, None, None, None) for name in "AB"
    )
    found = BenchResult(models, (), "random", ("CPUExecutionProvider",), 1.0, 0)
    assert suite_of(bench_junit(found, Run("bench", 1.0))).findall("testcase")[0].get("name") == "timed"
    gate = Gate("max_latency_ratio", 0.5, 0.6, False, "too slow")
    suite = suite_of(bench_junit(replace(found, gates=(gate,)), Run("bench", 1.0)))
    assert [each.get("value") for each in suite.findall("properties/property")] == ["a" * 64, "b" * 64]
    assert suite.findall("testcase/failure")[0].text == "too slow"


def test_the_file_is_whole_and_ends_in_xml(tmp_path: Path) -> None:
    path = tmp_path / "j.xml"
    path.write_text("old", encoding="utf-8")
    write_junit(error_junit("日本", RUN), path)
    assert path.read_bytes() == error_junit("日本", RUN).encode("utf-8")
    assert list(tmp_path.iterdir()) == [path]
    for name in ("model.onnx", "junit", "gone/j.xml"):
        with pytest.raises(OptionError):
            check_junit_path(tmp_path / name)
