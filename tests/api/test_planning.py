"""Planning with examples: the predicted agreement, the widths behind it, and what is told without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.api.options import Options
from onnxprune.api.planning import plan
from onnxprune.errors import DataError, OptionError

ONE = Options(threads=1, calib_examples=200)
SIZES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


def test_the_curve_falls_and_its_widths_are_those_of_the_pass(
    digits_net: Callable[..., onnx.ModelProto], digits: dict[str, dict[str, np.ndarray]]
) -> None:
    model = digits_net()
    (found,) = plan(model, "id(flops=0.5)", calib=digits["calib"], options=ONE)
    assert [row["flops"] for row in found.curve] == SIZES
    predicted = [row["predicted agreement"] for row in found.curve]
    assert predicted == sorted(predicted, reverse=True)
    assert all(0 <= value <= 1 for value in predicted)
    assert all(row["reached"] <= row["flops"] for row in found.curve)
    assert predicted[SIZES.index(0.5)] > 0.9  # half of its units are spare
    middle = found.curve[SIZES.index(0.5)]
    assert middle["widths"] == {row["space"]: row["planned"] for row in found.rows}
    assert "the predicted agreement is a rough guide, from 200 examples" in found.notes
    done = onnxprune.compress(model, "id(flops=0.5)", calib=digits["calib"], eval=digits["eval"], options=ONE)
    assert done.report.steps[0].numbers["layers"][0]["kept"] == middle["widths"]["fc1"]
    assert done.report.steps[0].numbers["predicted_agreement"] == pytest.approx(middle["predicted agreement"])


def test_data_gives_the_share_that_apply_calibrates_on(
    digits_net: Callable[..., onnx.ModelProto], digits: dict[str, dict[str, np.ndarray]]
) -> None:
    (found,) = plan(digits_net(), "id", data=digits["eval"], options=Options(threads=1))
    assert "the predicted agreement is a rough guide, from 90 examples" in found.notes
    with pytest.raises(OptionError, match=r"^--data excludes --calib and --eval"):
        plan(digits_net(), "id", data=digits["eval"], calib=digits["calib"])


def test_every_pass_is_planned_on_the_model_as_it_is(
    digits_net: Callable[..., onnx.ModelProto], digits: dict[str, dict[str, np.ndarray]]
) -> None:
    surp, cut, plain = plan(
        digits_net(), "surp,id(params=0.5),filters(keep=0.5)", calib=digits["calib"], options=ONE
    )  # fmt: skip
    assert not surp.curve and not plain.curve
    assert [row["params"] for row in cut.curve] == SIZES
    assert not any("rough guide" in note for note in (*surp.notes, *plain.notes))


def test_without_data_nothing_is_predicted(digits_net: Callable[..., onnx.ModelProto]) -> None:
    (found,) = plan(digits_net(), "id(flops=0.5)")
    assert not found.curve
    assert found.rows[0]["planned"] == 48


@pytest.mark.parametrize("recipe", ["id(keep=0.5)", "id(flops=0.5,reconstruct=none)", "id(flops=0.5,mode=iditer)"])
def test_what_cannot_be_predicted_says_so(
    recipe: str, digits_net: Callable[..., onnx.ModelProto], digits: dict[str, dict[str, np.ndarray]]
) -> None:
    (found,) = plan(digits_net(), recipe, calib=digits["calib"], options=ONE)
    assert not found.curve
    assert (
        "agreement is predicted where flops=, params= or bytes= is shared out by measured sensitivity only"
        in found.notes
    )


def test_a_plan_on_random_inputs_is_loud(conv_net: Callable[..., onnx.ModelProto]) -> None:
    (found,) = plan(conv_net(0), "id", calib="random", options=Options(threads=1, calib_examples=40))
    assert found.curve
    assert any(note.startswith("inputs are random numbers: nothing measured on them says") for note in found.notes)
    assert any("images of random shapes for input 'input' match the statistics that 'norm1'" in n for n in found.notes)


def test_the_command_line_reads_data_where_it_is_given(
    conv_net_path: Path, examples_path: Path, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from onnxprune.cli import main

    def run(*words: object) -> str:
        done = CliRunner().invoke(main, ["plan", "id(flops=0.6)", "--in", str(conv_net_path), *map(str, words)])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    before = sorted(tmp_path.iterdir())
    data = ["--calib", examples_path, "--calib-examples", 60, "--threads", 1, "--seed", 3, "--providers", "cpu"]
    (shown,) = json.loads(run(*data, "--json"))
    assert [row["flops"] for row in shown["curve"]] == SIZES
    assert shown["curve"][3]["widths"] == {row["space"]: row["planned"] for row in shown["rows"]}
    table = run(*data)
    assert "predicted agreement" in table
    assert "from 60 examples" in table
    assert "predicted agreement" not in run()
    assert json.loads(run("--json"))[0]["curve"] == []
    assert sorted(tmp_path.iterdir()) == before


def test_missing_data_is_one_sentence(conv_net_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no such file or folder: 'gone\.npz'"):
        plan(conv_net_path, "id", calib="gone.npz")


@pytest.mark.parametrize("recipe", ["id(flops=0.5)", "auto(flops=0.5)"])
def test_no_agreement_is_predicted_of_a_model_that_decides_nothing(
    digits_net: Callable[..., onnx.ModelProto], digits: dict[str, dict[str, np.ndarray]], recipe: str
) -> None:
    model = digits_net()
    logits = model.graph.output[0].name
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "last"))
    model.graph.node.append(onnx.helper.make_node("ReduceMean", [logits, "last"], ["value"]))
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, ["batch", 1]))
    calib = {"input": digits["calib"]["input"]}
    (found,) = plan(model, recipe, calib=calib, options=ONE)
    assert not found.curve
    assert "no agreement is predicted: the model gives no class scores" in found.notes
    done = onnxprune.compress(model, recipe, calib=calib, eval=calib, options=ONE)
    assert "predicted_agreement" not in done.report.steps[0].numbers
