"""Segmentation, regression and embeddings from end to end: labels, metadata, options, gates and views."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from onnxprune.api import Gates, Options, compare, compare_outputs, compress, evaluate
from onnxprune.cli import main
from onnxprune.errors import ModelError, OptionError
from onnxprune.report.markdown import markdown
from onnxprune.report.page import page
from onnxprune.report.report import Report
from onnxprune.report.table import render


def cli(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def segmenter(noise: float = 0.0) -> onnx.ModelProto:
    """Conv-Relu-Conv on [batch, 1, 8, 8] to scores of 3 classes at every position."""
    rng, moved = np.random.default_rng(0), np.random.default_rng(1)
    first, second = rng.normal(0, 1, (6, 1, 3, 3)), rng.normal(0, 0.5, (3, 6, 1, 1))
    arrays = {"w1": first, "w2": second + noise * moved.standard_normal(second.shape)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["out"], "conv2", kernel_shape=[1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


IMAGES = np.random.default_rng(5).standard_normal((40, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def maps(run_model: Callable[..., dict[str, np.ndarray]]) -> np.ndarray:
    """The original's own decisions, a tenth of them replaced."""
    rng = np.random.default_rng(6)
    decided = run_model(segmenter(), {"x": IMAGES})["out"].argmax(axis=1)
    return np.where(rng.random(decided.shape) < 0.1, rng.integers(0, 3, decided.shape), decided)


def shown(report: Report) -> str:
    """Every view of a report, its JSON form held to the schema on the way."""
    schema = json.loads(resources.files("onnxprune.report").joinpath("schema.json").read_text(encoding="utf-8"))
    plain = json.loads(report.to_json())
    jsonschema.Draft202012Validator(schema).validate(plain)
    assert Report.from_dict(plain).to_json() == report.to_json()
    out = io.StringIO()
    render(report, Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    return "\n".join([markdown(report), page(report), out.getvalue()])


def test_a_segmentation_is_judged_by_positions_and_refuses_the_gate_on_decisions(maps: np.ndarray) -> None:
    report = compare(
        segmenter(), segmenter(0.1), {"x": IMAGES, "y": maps}, gates=Gates(min_agreement=0.1, min_class_agreement=0.1)
    )
    found = report.outputs[0].maps
    assert found is not None and found.accuracy is not None and found.label_miou is not None
    assert 0.5 < found.agreement < 1 and found.accuracy.original is not None and found.accuracy.original > 0.9
    assert report.agreement is None and report.accuracy is None
    for gate in report.gates:
        assert not gate.met and gate.got is None
        assert gate.message.endswith("not judged on class maps, whose positions are no independent examples: not met")
    text = shown(report)
    assert "positions keep their class" in text and "mIoU of the two" in text
    score = evaluate(segmenter(), {"x": IMAGES, "y": maps}).scored.performance
    assert score.maps is not None and score.maps.accuracy == found.accuracy.original
    assert score.maps.miou == found.label_miou.original


def test_the_metadata_says_what_an_output_is(maps: np.ndarray) -> None:
    data = {"x": IMAGES}
    kinds = [report.outputs[0].kind for report in [compare(segmenter(), segmenter(), data)]]
    for text in ("maps", '{"out": "maps"}', '{"out": "embedding"}'):
        model = segmenter()
        helper.set_model_props(model, {"onnxprune.output": text})
        kinds.append(compare(model, segmenter(), data).outputs[0].kind)
        asked = compare(model, segmenter(), data, options=Options(output_kinds={"out": "values"}))
        assert asked.outputs[0].kind == "values"
    assert kinds == ["values", "class maps", "class maps", "embedding"]
    for text in ("boxes", '{"gone": "maps"}', "[1]", '{"out": 3}', '"maps"'):
        helper.set_model_props(model, {"onnxprune.output": text})
        with pytest.raises(ModelError, match=r"metadata 'onnxprune\.output' is"):
            compare(model, segmenter(), data)
    with pytest.raises(OptionError, match="there is no such output; there are out"):
        compare(segmenter(), segmenter(), data, options=Options(output_kinds={"logits": "maps"}))


def test_a_recipe_on_a_segmentation_reports_its_maps(maps: np.ndarray) -> None:
    result = compress(segmenter(), "magnitude(sparsity=0.3)", eval={"x": IMAGES, "y": maps}, calib={"x": IMAGES[:9]})
    assert result.report.outputs[0].maps is not None
    assert result.report.outputs[0].maps.label_miou is not None


def test_a_regression_of_several_values_is_judged_when_asked_for(
    conv_net: Callable[..., onnx.ModelProto], run_model: Callable[..., dict[str, np.ndarray]]
) -> None:
    images = np.random.default_rng(0).standard_normal((50, 1, 12, 12)).astype(np.float32)
    labels = run_model(conv_net(0), {"input": images})["logits"] + np.float32(0.25)
    data = {"input": images, "y": labels}
    plain = compare(conv_net(0), conv_net(3), data)
    assert plain.agreement is not None
    assert any("--output-kind logits=values" in warning for warning in plain.warnings)
    options = Options(output_kinds={"logits": "values"}, calib_examples=20)
    report = compare(conv_net(0), conv_net(3), data, options=options, gates=Gates(min_agreement=0.5))
    found = report.outputs[0].values
    assert found is not None and found.rmse is not None and found.rmse.original == pytest.approx(0.25, rel=1e-5)
    assert report.agreement is None and not report.met
    assert "RMSE 0.25 before" in shown(report)
    # Nothing searches for decisions where values are asked for.
    result = compress(conv_net(0), "id", calib=data, eval=data, options=options)
    assert result.report.agreement is None
    assert any("no output of the model holds class scores" in warning for warning in result.report.warnings)


def test_outputs_and_labels_of_every_kind(maps: np.ndarray, run_model: Callable[..., Any]) -> None:
    before, after = (run_model(model, {"x": IMAGES}) for model in (segmenter(), segmenter(0.1)))
    models = compare(segmenter(), segmenter(0.1), {"x": IMAGES, "y": maps})
    assert compare_outputs(before, after, maps).outputs[0].maps == models.outputs[0].maps
    real = compare_outputs(before, after, before["out"] + 1).outputs[0].values
    assert real is not None and real.rmse is not None and real.rmse.original == pytest.approx(1)
    report = compare_outputs(before, after, options=Options(output_kinds={"out": "embedding"}))
    assert report.outputs[0].embedding is not None
    assert "mean cosine" in shown(report)


def test_kinds_on_the_command_line(tmp_path: Path, maps: np.ndarray) -> None:
    onnx.save(segmenter(), tmp_path / "a.onnx")
    onnx.save(segmenter(0.1), tmp_path / "b.onnx")
    np.savez(tmp_path / "d.npz", x=IMAGES, y=maps)
    words = ["compare", tmp_path / "a.onnx", tmp_path / "b.onnx", "--data", tmp_path / "d.npz"]
    done = cli(*words, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["outputs"][0]["kind"] == "class maps"
    asked = json.loads(cli(*words, "--json", "--output-kind", "out=values").stdout)
    assert asked["outputs"][0]["kind"] == "values" and asked["outputs"][0]["maps"] is None
    done = cli("evaluate", tmp_path / "a.onnx", "--data", tmp_path / "d.npz")
    assert "mIoU" in done.stdout, done.output
    for word, sentence in (
        ("out", "'out' is not NAME=KIND"),
        ("out=boxes", "there is no such kind"),
        ("gone=maps", "there is no such output"),
    ):
        done = cli(*words, "--output-kind", word)
        assert done.exit_code == 2 and sentence in done.stderr
