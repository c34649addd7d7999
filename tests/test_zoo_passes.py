"""Every pass on small graphs of the zoo, as ``benchmarks.zoo.passes`` runs them on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.contract import StepResult
from onnxprune.graph import constants
from onnxprune.passes.cleanup import Cleanup
from onnxprune.recipe import PASSES

GRAPHS = ("lstm-script", "transformer_encoder-folded", "autoencoder-script")
# A survey of all layers takes seconds.
LONG = ("pca(flops=0.6)", "lrank(flops=0.6)", "cp(flops=0.6)", "auto(flops=0.6)")


@pytest.fixture(scope="module")
def subject(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a graph of the zoo with its noise, made once."""
    cache, made = tmp_path_factory.mktemp("zoo"), dict[str, Any]()

    def find(name: str) -> Any:
        if name not in made:
            pytest.importorskip("torchvision")
            made[name] = zoo("trial").Subject(name, zoo("build").build(name, cache))
        return made[name]

    return find


def setting(zoo: Any, recipe: str) -> Any:
    return next(each for each in zoo("trial").SETTINGS if each.recipe == recipe)


def test_every_pass_has_settings_and_every_row_its_label(zoo: Any) -> None:
    settings = zoo("trial").SETTINGS
    assert {each.name for each in settings} == set(PASSES)
    assert len({zoo("passes").label(each) for each in settings}) == len(settings)
    assert {each.name for each in zoo("passes").chosen(["id", "surp"])} == {"id", "surp"}


@pytest.mark.parametrize("name", GRAPHS)
def test_no_pass_fails(zoo: Any, subject: Any, name: str) -> None:
    trial = zoo("trial")
    found = [trial.attempt(subject(name), each) for each in trial.SETTINGS if each.recipe not in LONG]
    assert [(outcome.recipe, outcome.detail) for outcome in found if outcome.status in ("failed", "refused")] == []
    for each, outcome in zip([e for e in trial.SETTINGS if e.recipe not in LONG], found, strict=True):
        assert not each.neutral or outcome.status == "equal"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LONG)
@pytest.mark.parametrize("name", GRAPHS)
def test_no_pass_that_surveys_fails(zoo: Any, subject: Any, name: str, recipe: str) -> None:
    outcome = zoo("trial").attempt(subject(name), setting(zoo, recipe))
    assert outcome.status in ("equal", "changed"), outcome.detail


def test_nodes_near_the_end_by_a_word(zoo: Any, subject: Any) -> None:
    assert subject("lstm-script").last("two") == ("/head/Gemm", pytest.approx(1, abs=1e-3))
    for word, nodes in (("two", "encode.6/Gemm decode.0/Gemm"), ("three", "encode.0/Conv encode.2/Conv decode.0/Gemm")):
        names, share = subject("autoencoder-script").last(word)
        assert [name.split("/", 2)[2] for name in names.split(";")] == nodes.split()
        assert 0.66 < share < 1
    label = zoo("passes").label
    assert label(setting(zoo, "auto(flops={less},only='{three}')")) == "auto(three nodes)"


def test_what_a_wrong_pass_does_shows(zoo: Any, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, graph = zoo("trial"), subject("autoencoder-script")

    def told(change: Any, **options: Any) -> str:
        """Return what is said of a pass that makes ``change`` to a copy of the model, or to the given one."""

        def apply(self: Any, model: ir.Model, context: Any) -> StepResult:
            work = model.clone()
            return StepResult(change(work) or work)

        monkeypatch.setattr(Cleanup, "apply", apply)
        outcome = trial.attempt(graph, trial.Setting("cleanup", "cleanup", **options))
        assert outcome.status == "failed"
        return str(outcome.detail)

    def scaled(factor: float) -> Any:
        def change(model: ir.Model) -> None:
            value = next(v for v in model.graph.initializers.values() if v.const_value.numpy().dtype == np.float32)
            constants.set_array(value, np.asarray(constants.array(value)) * np.float32(factor))

        return change

    def renamed(model: ir.Model) -> None:
        model.graph.outputs[0].name = "other"

    def broken(model: ir.Model) -> None:
        raise KeyError("conv")

    assert told(scaled(2.0), neutral=True).startswith("relative error")
    small = told(scaled(1.002), neutral=True)  # near enough to be run in double precision, where it stays
    assert small.startswith("relative error") and 1e-4 < float(small.split()[2].rstrip(",")) < 1e-3
    assert "not finite" in told(scaled(float("nan")))
    assert told(lambda model: None, falls="macs") == "macs did not fall, and nothing says why"
    assert "names, types or shapes" in told(renamed)
    assert told(broken).startswith("KeyError: 'conv' (test_zoo_passes.py:")


def test_a_given_model_that_is_changed_shows(zoo: Any, subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(self: Any, model: ir.Model, context: Any) -> StepResult:
        work = model.clone()
        model.metadata_props["seen"] = "yes"
        return StepResult(work)

    monkeypatch.setattr(Cleanup, "apply", apply)
    graph = subject("autoencoder-script")
    outcome = zoo("trial").attempt(graph, setting(zoo, "cleanup"))
    graph.model.metadata_props.pop("seen")
    assert (outcome.status, outcome.detail) == ("failed", "the given model was changed")


def test_what_takes_too_long_or_dies_does_not_hold_up_the_rest(zoo: Any, tmp_path: Path) -> None:
    passes = zoo("passes")
    path, each = zoo("build").build("light_squeezenet", tmp_path), setting(zoo, "cleanup")
    worker = passes.Worker(0.0)
    assert worker.attempt("light_squeezenet", path, each).status == "slow"
    worker.limit = 120.0
    assert worker.attempt("nothing", tmp_path / "nothing.onnx", each).status == "failed"
    assert worker.attempt("light_squeezenet", path, each).status == "equal"
    worker.close()


def test_the_table_counts_and_names(zoo: Any) -> None:
    passes, outcome = zoo("passes"), zoo("trial").Outcome
    found = [
        outcome("a", "cleanup", "equal", 1.0),
        outcome("b", "cleanup", "refused", 2.0, "no", ("too small",)),
        outcome("c", "cleanup", "failed", 0.1, "wrong"),
        outcome("d", "cleanup", "slow", 60.0),
        outcome("e", "cleanup", "large", 0.0),
    ]
    text = "\n".join(passes.table(passes.chosen(["cleanup"]), found))
    assert "| `cleanup` | 5 | 1 | 0 | 1 | 1 | 1 | 1 | b 2.0 s |" in text
    assert "- 1: too small" in text and "- 1: refused: no" in text
    assert "- FAILED c cleanup: wrong" in text and "d cleanup" in text
