"""The report's data: its schema, its way to JSON and back, and what it refuses to read."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.report.markdown import markdown
from onnxprune.report.page import page
from onnxprune.report.report import SCHEMA, Change, Cost, Figures, Report, Step

KEYS = [
    "schema",
    "source",
    "result",
    "recipe",
    "steps",
    "cost",
    "data",
    "agreement",
    "accuracy",
    "output_error",
    "outputs",
    "latency",
    "gates",
    "met",
    "warnings",
    "providers",
    "seed",
    "versions",
]


@pytest.fixture
def validator() -> jsonschema.Draft202012Validator:
    text = resources.files("onnxprune.report").joinpath("schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def errors(validator: jsonschema.Draft202012Validator, plain: dict[str, Any]) -> list[str]:
    return [error.message for error in validator.iter_errors(plain)]


def test_reports_hold_to_the_schema(
    validator: jsonschema.Draft202012Validator, full_report: Report, bare_report: Report
) -> None:
    for report in (full_report, bare_report):
        assert errors(validator, json.loads(report.to_json())) == []


def test_the_schema_knows_the_same_keys_everywhere(validator: jsonschema.Draft202012Validator) -> None:
    assert list(validator.schema["properties"]) == KEYS
    assert validator.schema["required"] == KEYS
    assert validator.schema["properties"]["schema"] == {"const": SCHEMA}
    objects = [validator.schema, *validator.schema["$defs"].values()]
    fixed = [each for each in objects if "properties" in each]
    assert len(fixed) == 19
    assert all(each["additionalProperties"] is False for each in fixed)


def test_the_page_in_docs_names_every_key(validator: jsonschema.Draft202012Validator) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", text))))
    keys = {key for each in validator.schema["$defs"].values() for key in each.get("properties", ())}
    plain = {
        "params", "nonzero", "macs", "bytes", "label", "count", "node", "reason", "pass", "options", "seconds",
        "kept", "lost", "gained", "changed_wrong", "original", "compressed",
    }  # fmt: skip
    assert sorted((keys | set(KEYS)) - named - plain) == []


@pytest.mark.parametrize("key", KEYS)
def test_a_report_without_a_key_fails_the_schema(
    validator: jsonschema.Draft202012Validator, full_report: Report, key: str
) -> None:
    plain = full_report.to_dict()
    del plain[key]
    assert errors(validator, plain) == [f"{key!r} is a required property"]


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("source",),
        ("steps", 0),
        ("cost", "macs"),
        ("data", "calib"),
        ("agreement", "flips"),
        ("gates", 1),
    ],
)
def test_a_key_too_many_fails_the_schema_and_the_reader(
    validator: jsonschema.Draft202012Validator, full_report: Report, path: tuple[str | int, ...]
) -> None:
    plain = full_report.to_dict()
    place: Any = plain
    for part in path:
        place = place[part]
    place["surprise"] = 1
    assert errors(validator, plain)
    with pytest.raises(DataError, match="key 'surprise' is unknown; accepted are "):
        Report.from_dict(plain)


def test_keys_come_in_the_schemas_order(full_report: Report) -> None:
    plain = json.loads(full_report.to_json())
    assert list(plain) == KEYS
    assert list(plain["steps"][0]) == [
        "pass", "options", "seconds", "skipped", "numbers", "cost", "recipe", "agreement",
    ]  # fmt: skip
    assert list(plain["agreement"]["flips"]) == [
        "kept",
        "lost",
        "gained",
        "changed_wrong",
        "count",
        "confusion",
        "examples",
        "margins",
    ]
    assert plain["agreement"]["flips"]["confusion"] == [["digit 8", "digit 3", 2], ["digit 8", "digit 1", 1]]


def test_a_report_survives_the_way_to_json_and_back(full_report: Report, bare_report: Report) -> None:
    assert Report.from_json(bare_report.to_json()) == bare_report
    text = full_report.to_json()
    again = Report.from_json(text)
    assert again.to_json() == text
    assert again.agreement == full_report.agreement
    assert again.gates == full_report.gates


def test_a_report_from_before_flips_were_named_can_be_read(
    validator: jsonschema.Draft202012Validator, full_report: Report
) -> None:
    plain = full_report.to_dict()
    assert [each["index"] for each in plain["agreement"]["flips"].pop("examples")] == [8, 18, 28]
    del plain["agreement"]["flips"]["margins"], plain["agreement"]["certified"]
    for key in ("drop_low", "drop_high", "calibration_error"):
        del plain["accuracy"][key]
    assert errors(validator, plain) == []
    report = Report.from_dict(plain)
    assert report.agreement is not None and report.accuracy is not None
    assert (report.agreement.flips.examples, report.agreement.flips.margins) == ((), ())
    assert (report.agreement.certified, report.accuracy.drop_low, report.accuracy.calibration_error) == (None,) * 3
    assert "| change | -0.83 points |  |" in markdown(report)
    assert "<td>change</td>" in page(report)


def test_the_same_report_gives_the_same_bytes_whatever_held_the_numbers(bare_report: Report) -> None:
    plain = replace(bare_report, steps=(Step("id", {"kept": [1, 2], "only": ["a", "b"]}, 1.0),))
    arrays = replace(
        bare_report,
        steps=(Step("id", {"kept": np.array([1, 2]), "only": {"b", "a"}}, np.float64(1.0)),),
    )
    assert plain.to_json() == arrays.to_json()


def test_figures_that_are_not_finite_become_null(bare_report: Report) -> None:
    numbers = {"a": float("nan"), "b": np.float32("inf"), "c": np.array([1.0, np.nan]), 3: Path("x") / "y"}
    step = replace(bare_report, steps=(Step("id", {}, 1.0, numbers=numbers),))
    assert step.to_dict()["steps"][0]["numbers"] == {
        "a": None,
        "b": None,
        "c": [1.0, None],
        "3": str(Path("x") / "y"),
    }


def test_what_has_no_json_form_is_named(bare_report: Report) -> None:
    step = replace(bare_report, steps=(Step("id", {}, 1.0, numbers={"law": [object()]}),))
    with pytest.raises(TypeError, match=r"^steps\[0\]\.numbers\.law\[0\] is a object; a report holds only JSON"):
        step.to_dict()


def test_ratios_are_after_over_before_and_unknown_where_they_must_be() -> None:
    assert Change.of(200, 50) == Change(200, 50, 0.25)
    assert Change.of(0, 0) == Change(0, 0, None)
    assert Change.of(None, 5) == Change(None, 5, None)
    cost = Cost.between(Figures(8, 8, None, 32), Figures(4, 2, 7, 16))
    assert [cost.params.ratio, cost.nonzero.ratio, cost.macs.ratio, cost.bytes.ratio] == [
        0.5,
        0.25,
        None,
        0.5,
    ]


def test_a_report_is_met_when_every_gate_is(full_report: Report, bare_report: Report) -> None:
    assert not full_report.met
    assert full_report.to_dict()["met"] is False
    assert replace(full_report, gates=full_report.gates[1:]).met
    assert bare_report.met


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("seed",), "7", "report.seed: found '7'; a whole number is wanted"),
        (("seed",), True, "report.seed: found True; a whole number is wanted"),
        (("steps",), {}, "report.steps: found {}; a list is wanted"),
        (("steps", 0, "seconds"), "x", "report.steps[0].seconds: found 'x'; a number is wanted"),
        (("steps", 0, "options"), [], "report.steps[0].options: found []; an object is wanted"),
        (("source",), None, "report.source: found None; an object is wanted"),
        (("source", "path"), 3, "report.source.path: found 3; a string is wanted"),
        (("gates", 0, "met"), 1, "report.gates[0].met: found 1; true or false is wanted"),
        (("met",), True, "report.met: found True; its gates say False"),
        (
            ("outputs", 0, "kind"),
            "box",
            "report.outputs[0].kind: found 'box'; accepted are 'class scores', 'class maps', 'values', 'embedding', "
            "'discrete'",
        ),
        (
            ("agreement", "flips", "confusion", 0),
            ["a", "b"],
            "report.agreement.flips.confusion[0]: found 2 items; 3 are wanted",
        ),
        (("schema",), "other/9", f"report: its schema is 'other/9'; this version reads {SCHEMA!r}"),
        (
            ("source",),
            "x" * 80,
            "report.source: found '" + "x" * 56 + "...; an object is wanted",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    full_report: Report, path: tuple[str | int, ...], value: object, sentence: str
) -> None:
    plain = full_report.to_dict()
    place: Any = plain
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(DataError) as error:
        Report.from_dict(plain)
    assert str(error.value) == sentence


def test_a_missing_key_is_named(full_report: Report) -> None:
    plain = full_report.to_dict()
    del plain["source"]["opset"]
    with pytest.raises(DataError, match=r"^report\.source: key 'opset' is missing; a complete report has it$"):
        Report.from_dict(plain)


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(DataError, match=r"^report: not JSON \(.*\); a file written by --report is wanted$"):
        Report.from_json("{")
    for text in ("{}", "[]", "3"):
        with pytest.raises(DataError, match=r"^report: there is no key 'schema'; a report says "):
            Report.from_json(text)
