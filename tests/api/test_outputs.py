"""Outputs compared without models: the same figures as of the models that gave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from onnxprune.api import Gates, Options, compare, compare_outputs
from onnxprune.data import Examples
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.report.markdown import markdown
from onnxprune.report.page import page
from onnxprune.report.report import Report

Net = Callable[..., onnx.ModelProto]


@pytest.fixture
def given(conv_net: Net, run_model: Callable[..., dict[str, np.ndarray]]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    images = rng.standard_normal((600, 1, 12, 12)).astype(np.float32)
    labels = rng.integers(0, 5, 600)
    first, second = conv_net(0), conv_net(0)
    noisy = next(t for t in second.graph.initializer if t.name == "g2.w")
    weight = onnx.numpy_helper.to_array(noisy)
    moved = (weight + 0.1 * rng.standard_normal(weight.shape)).astype(np.float32)
    noisy.CopyFrom(onnx.numpy_helper.from_array(moved, "g2.w"))
    del first.metadata_props[:]
    outputs = [run_model(model, {"input": images})["logits"] for model in (first, second)]
    return {"models": (first, second), "data": {"input": images, "y": labels}, "outputs": outputs, "labels": labels}


def valid(report: Report) -> dict[str, Any]:
    schema = json.loads(resources.files("onnxprune.report").joinpath("schema.json").read_text(encoding="utf-8"))
    plain = json.loads(report.to_json())
    jsonschema.Draft202012Validator(schema).validate(plain)
    assert Report.from_dict(plain).to_json() == report.to_json()
    return plain


def test_outputs_are_judged_as_their_models_are(given: dict[str, Any], tmp_path: Path) -> None:
    before, after = given["outputs"]
    np.savez_compressed(tmp_path / "a.npz", logits=before, y=given["labels"])
    np.savez(tmp_path / "b.npz", other=after)
    report = compare_outputs(tmp_path / "a.npz", tmp_path / "b.npz", gates=Gates(min_agreement=0.5))
    models = compare(*given["models"], given["data"], gates=Gates(min_agreement=0.5))
    ours, theirs = valid(report), valid(models)
    assert (
        ours["agreement"]["flips"].pop("examples")[0]["index"]
        == theirs["agreement"]["flips"].pop("examples")[0]["index"]
    )
    for key in ("certified", "examples", "top1"):
        assert ours["agreement"][key] == theirs["agreement"][key]
    for key in ("original", "compressed", "drop", "drop_low", "drop_high", "mcnemar_p"):
        assert ours["accuracy"][key] == theirs["accuracy"][key]
    assert 0 < report.agreement.flips.count < 600  # type: ignore[union-attr]
    assert ours["gates"] == theirs["gates"]
    assert (report.cost, report.latency, report.recipe, report.source.opset) == (None, None, None, None)
    assert report.result is not None and report.result.bytes == (tmp_path / "b.npz").stat().st_size
    assert ours["data"]["eval"] == {"source": f"{tmp_path / 'a.npz'} (outputs alone)", "examples": 600, "sha256": None}
    assert "## Cost" not in markdown(report) and "opset" not in markdown(report)
    assert "<h2>Cost</h2>" not in page(report) and "opset" not in page(report)


def test_labels_come_from_one_place(given: dict[str, Any], tmp_path: Path) -> None:
    before, after = ({"logits": array} for array in given["outputs"])
    labels = given["labels"]
    np.savez(tmp_path / "labels.npz", y=labels)
    wanted = compare_outputs(before, after, labels).accuracy
    assert wanted is not None
    source = Examples("mine", 600, labels, lambda rows: {})
    for found in (
        compare_outputs(before, after, tmp_path / "labels.npz"),
        compare_outputs({**before, "y": labels}, {**after, "y": labels}),
        compare_outputs(before, {**after, "y": labels[:, None]}),
        compare_outputs(before, after, data=tmp_path / "labels.npz"),
        compare_outputs(before, after, data=given["data"]),
        compare_outputs(before, after, data=source),
    ):
        assert found.accuracy == wanted
        valid(found)
    assert compare_outputs(before, after).accuracy is None
    with pytest.raises(OptionError, match="exclude one another"):
        compare_outputs(before, after, labels, data="digits:test")
    with pytest.raises(DataError, match="labels 'y' differ between"):
        compare_outputs({**before, "y": labels}, {**after, "y": labels[::-1]})
    with pytest.raises(DataError, match="599 labels in 'y' for 600 examples"):
        compare_outputs(before, after, labels[1:])
    with pytest.raises(DataError, match="none can be read from this data without a model"):
        compare_outputs(before, after, data="random")
    with pytest.raises(DataError, match="360 labels"):
        compare_outputs(before, after, data="digits:test")


def test_labels_of_known_data_need_no_model() -> None:
    scores = {"out": np.eye(10)[np.arange(360) % 10]}
    report = compare_outputs(scores, scores, data="digits:test")
    assert report.accuracy is not None and report.data.eval is not None
    assert report.data.eval.source == "digits:test"


def test_what_does_not_fit_is_refused() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(DataError, match="holds 20 examples and arrays in memory 19"):
        compare_outputs({"a": scores}, {"a": scores[1:]})
    with pytest.raises(ModelError, match=r"class scores of shape \(20, 3\) are wanted"):
        compare_outputs({"a": scores}, {"a": scores[:, :2]})
    with pytest.raises(ModelError, match="output 'a' of the original is missing"):
        compare_outputs({"a": scores, "b": scores}, {"b": scores})
    broken = scores.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ModelError, match="NaN for example 4"):
        compare_outputs({"a": broken}, {"a": scores})
    for gates in (Gates(max_bytes=10), Gates(max_latency_ratio=0.5)):
        with pytest.raises(OptionError, match="is a gate on models"):
            compare_outputs({"a": scores}, {"a": scores}, gates=gates)
    with pytest.raises(OptionError, match="eval-examples is for models"):
        compare_outputs({"a": scores}, {"a": scores}, options=Options(eval_examples=3))
