"""How a model was made stands in its metadata, and what stands there makes it again, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.api import Options, provenance, replay
from onnxprune.errors import DataError, ModelError

ONE = Options(threads=1)
Net = Callable[..., onnx.ModelProto]


def metadata(path: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def changed(path: Path, **values: str | None) -> Path:
    """Write a copy whose metadata has other values; None takes a key away."""
    proto = onnx.load(path)
    found = {**{each.key: each.value for each in proto.metadata_props}}
    found |= {f"onnxprune.{name}": value for name, value in values.items() if value is not None}
    for name in [name for name, value in values.items() if value is None]:
        found.pop(f"onnxprune.{name}", None)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, found)
    other = path.with_name("changed.onnx")
    onnx.save(proto, other)
    return other


@pytest.fixture
def made(conv_net_path: Path, examples_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a model from the small network and return its path."""

    def make(recipe: str, name: str = "made.onnx", **given: Any) -> Path:
        options = given.pop("options", ONE)
        sources = given or {"data": examples_path}
        source = sources.pop("source", conv_net_path)
        sources = sources or {"data": examples_path}
        onnxprune.compress(source, recipe, options=options, **sources).save(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    "recipe",
    ["surp(sparsity=0.5,values=reconstruction)", "id(flops=0.7)", "surp,id", "filters", "magnitude(sparsity=0.4)"],
)
def test_a_replay_gives_the_same_bytes(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, tmp_path: Path, recipe: str
) -> None:
    first = made(recipe)
    result = replay(first, conv_net_path, data=examples_path, options=ONE).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first.read_bytes()
    assert result.same_as_made
    assert not any("byte for byte" in warning for warning in result.report.warnings)
    assert result.report.recipe == metadata(first)["onnxprune.recipe"]


def test_a_search_is_not_run_again(digits_net: Net, digits: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(digits_net(), tmp_path / "model.onnx")
    found = onnxprune.compress(tmp_path / "model.onnx", "surp,id", **digits, options=ONE).save(tmp_path / "p.onnx")
    assert all(step.trials for step in found.report.steps)
    again = replay(tmp_path / "p.onnx", tmp_path / "model.onnx", **digits, options=ONE).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()
    assert again.report.recipe == found.report.recipe
    assert not any(step.trials for step in again.report.steps)
    assert again.report.gates == ()  # sizes were judged, or found, when the file was made
    # The calibration source alone judges too, and the report says what that is worth.
    alone = replay(tmp_path / "p.onnx", tmp_path / "model.onnx", calib=digits["calib"], options=ONE)
    assert any("calibration examples are evaluation examples too" in text for text in alone.report.warnings)
    alone.save(tmp_path / "alone.onnx")
    assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def test_the_metadata_of_a_result(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, tmp_path: Path
) -> None:
    options = Options(threads=1, seed=3, batch_size=16)
    result = onnxprune.compress(conv_net_path, "id(flops=0.7)", data=examples_path, options=options)
    result.save(tmp_path / "made.onnx")
    found = metadata(tmp_path / "made.onnx")
    assert result.report.data.calib is not None
    assert {
        key: value
        for key, value in found.items()
        if key.removeprefix("onnxprune.") not in ("classes", "kept", "widths")
    } == {
        "onnxprune.recipe": "id(flops=0.7)",
        "onnxprune.source_sha256": hashlib.sha256(conv_net_path.read_bytes()).hexdigest(),
        "onnxprune.calib_sha256": result.report.data.calib.sha256,
        "onnxprune.calib_examples": "50",
        "onnxprune.calib_draw": '{"sources":1,"examples":50,"drop_classes":[],"batch_size":16}',
        "onnxprune.seed": "3",
        "onnxprune.version": onnxprune.__version__,
    }
    text = json.dumps(found)
    assert str(tmp_path) not in text
    assert examples_path.name not in text


def test_a_run_without_calibration_names_none(made: Callable[..., Path]) -> None:
    found = metadata(made("filters(keep=0.5)"))
    assert not any(key.startswith("onnxprune.calib") for key in found)
    assert found["onnxprune.recipe"] == "filters(keep=0.5)"


def test_chained_runs_keep_their_history(made: Callable[..., Path], examples_path: Path, tmp_path: Path) -> None:
    first = made("id(flops=0.8)", "first.onnx")
    second = made("filters(keep=0.8)", "second.onnx", source=first)
    third = made("magnitude(sparsity=0.6)", "third.onnx", source=second)
    one, two, three = metadata(first), metadata(second), metadata(third)
    assert "onnxprune.history" not in one
    assert json.loads(two["onnxprune.history"]) == [
        {
            key: one[f"onnxprune.{key}"]
            for key in ("recipe", "source_sha256", "calib_sha256", "calib_examples", "calib_draw", "seed", "version")
        }
    ]
    assert [run["recipe"] for run in json.loads(three["onnxprune.history"])] == ["id(flops=0.8)", "filters(keep=0.8)"]
    assert two["onnxprune.source_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    # The examples of the run before are none of this one's.
    assert "onnxprune.calib_sha256" not in two
    replay(third, second, data=examples_path, options=ONE).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == third.read_bytes()


@pytest.mark.parametrize("sides", ["one", "two"])
def test_left_out_classes_and_numbers_are_taken_from_the_metadata(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, tmp_path: Path, sides: str
) -> None:
    options = Options(threads=1, seed=5, calib_examples=60, drop_classes=("class1", "3"), batch_size=7)
    sources = {"data": examples_path} if sides == "one" else {"calib": examples_path, "eval": examples_path}
    first = made("id(flops=0.7)", options=options, **sources)
    assert json.loads(metadata(first)["onnxprune.calib_draw"])["sources"] == (1 if sides == "one" else 2)
    replay(first, conv_net_path, data=examples_path, options=ONE).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first.read_bytes()


def test_data_named_by_the_model_and_random_numbers(
    made: Callable[..., Path], conv_net_path: Path, tmp_path: Path
) -> None:
    first = made("id(flops=0.7)", data="random")
    replay(first, conv_net_path, options=ONE).save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == first.read_bytes()


def test_another_source_is_refused(made: Callable[..., Path], conv_net: Net, examples_path: Path) -> None:
    first = made("surp(sparsity=0.5)")
    other = first.with_name("other.onnx")
    onnx.save(conv_net(1), other)
    with pytest.raises(ModelError) as caught:
        replay(first, other, data=examples_path, options=ONE)
    found = hashlib.sha256(other.read_bytes()).hexdigest()[:12]
    wanted = metadata(first)["onnxprune.source_sha256"][:12]
    assert str(caught.value) == (
        f"source model '{other}' has sha256 {found}, '{first}' was made from the one with {wanted}: "
        "give that model with --in"
    )


def test_other_calibration_data_is_refused(made: Callable[..., Path], conv_net_path: Path, tmp_path: Path) -> None:
    first = made("id(flops=0.7)")
    other = tmp_path / "other.npz"
    np.savez(other, input=np.random.default_rng(9).standard_normal((200, 1, 12, 12)).astype(np.float32))
    with pytest.raises(DataError) as caught:
        replay(first, conv_net_path, data=other, options=ONE)
    message = str(caught.value)
    assert message.startswith(f"calibration data of {other} (50 examples) has sha256 ")
    assert f"'{first}' was made with 50 that have {metadata(first)['onnxprune.calib_sha256'][:12]}" in message


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"recipe": None}, "does not say how it was made: its metadata has no 'onnxprune.recipe'"),
        ({"recipe": " "}, "metadata 'onnxprune.recipe' is ' ', which cannot be replayed"),
        ({"recipe": "r.yaml"}, "metadata 'onnxprune.recipe' is 'r.yaml', which cannot be replayed"),
        ({"recipe": "idd"}, "the recipe in its metadata is not usable here: unknown pass 'idd': did you mean 'id'?"),
        ({"source_sha256": "abc"}, "metadata 'onnxprune.source_sha256' is 'abc', which cannot be replayed"),
        ({"source_sha256": None}, "metadata 'onnxprune.source_sha256' is '', which cannot be replayed"),
        ({"seed": "-1"}, "metadata 'onnxprune.seed' is '-1', which cannot be replayed"),
        ({"seed": "9" * 90}, f"metadata 'onnxprune.seed' is '{'9' * 57}...', which cannot be replayed"),
        ({"calib_examples": "x"}, "metadata 'onnxprune.calib_examples' is 'x', which cannot be replayed"),
        ({"calib_draw": None}, "metadata 'onnxprune.calib_draw' is '', which cannot be replayed"),
        ({"calib_draw": "[1]"}, "metadata 'onnxprune.calib_draw' is '[1]', which cannot be replayed"),
        (
            {"calib_draw": '{"sources":3,"examples":1,"drop_classes":[],"batch_size":1}'},
            "metadata 'onnxprune.calib_draw' is '{\"sources\":3,",
        ),
    ],
)
def test_metadata_that_cannot_be_replayed(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, values: dict[str, str], sentence: str
) -> None:
    other = changed(made("id(flops=0.7)"), **values)
    with pytest.raises(ModelError) as caught:
        replay(other, conv_net_path, data=examples_path, options=ONE)
    assert str(caught.value).startswith(f"'{other}'")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_version_and_a_changed_file_are_warned_of(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, tmp_path: Path
) -> None:
    other = changed(made("surp(sparsity=0.5)"), version="0.0.1")
    result = replay(other, conv_net_path, data=examples_path, options=ONE)
    assert (
        f"'{other}' was made by onnxprune 0.0.1, this is {onnxprune.__version__}: the bytes may differ"
    ) in result.report.warnings
    saved = result.save(tmp_path / "again.onnx")
    assert not saved.same_as_made
    assert f"'{tmp_path / 'again.onnx'}' is not '{other}' byte for byte" in saved.report.warnings[-1]


@pytest.mark.parametrize("recipe", ["filters(keep=0.5),cleanup", "extract(recipe=(cleanup,filters(keep=0.5)))"])
def test_a_script_is_never_run_from_metadata(
    made: Callable[..., Path], conv_net_path: Path, examples_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    first = made(recipe)
    monkeypatch.setattr("onnxprune.api.replaying._SCRIPTED", "cleanup")
    with pytest.raises(ModelError) as caught:
        replay(first, conv_net_path, data=examples_path, options=ONE)
    assert str(caught.value) == (
        f"'{first}' was made with a script of the user, which is never run from metadata; "
        f"run the recipe itself: {recipe}"
    )


def test_a_history_that_cannot_be_read_is_kept() -> None:
    kept = {"onnxprune.recipe": "id", "onnxprune.history": "broken"}
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    import onnx_ir as ir

    model = ir.serde.deserialize_model(proto)
    provenance.write(model, kept, provenance.Record("surp", "0" * 64, 0))
    assert json.loads(model.metadata_props["onnxprune.history"]) == ["broken", {"recipe": "id"}]
