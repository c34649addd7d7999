"""Rounds: what is pruned stays pruned, survivors go back to where they were, a killed run goes on as it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxprune.data import Examples
from onnxprune.errors import OptionError
from onnxprune.exporters.to_torch import to_torch
from onnxprune.exporters.write_back import write_back
from onnxprune.graph import constants, io
from onnxprune.models.iterative import rounds
from onnxprune.models.iterative.folder import RunFolder
from onnxprune.models.iterative.options import IterateOptions, method_named
from onnxprune.models.iterative.pqindex import Sap
from onnxprune.models.iterative.rounds import Iteration, iterate
from onnxprune.models.iterative.stages import Stager
from onnxprune.models.iterative.telling import aggregate, tell
from onnxprune.models.iterative.weights import output_axes, present_masks, restore, snapshot
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData
from onnxprune.models.teaching import Lesson
from onnxprune.models.train import Hooks, Step
from onnxprune.models.tuning_data import divided

TRAINING = TrainOptions(epochs=2, batch_size=32, lr=0.05, device="cpu", augment="none", weight_decay=1e-3)


@pytest.fixture
def model(conv_net: Callable[..., Any]) -> ir.Model:
    return ir.serde.deserialize_model(conv_net(0))


@pytest.fixture
def data(model: ir.Model) -> TrainingData:
    """Noise whose label is the row block with the largest mean: learnt in an epoch or two."""
    name = str(model.graph.inputs[0].name)
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 5, 300)
    images = rng.standard_normal((300, 1, 12, 12)).astype(np.float32)
    for row, label in enumerate(labels):
        images[row, 0, 2 * label : 2 * label + 3] += 1.5
    examples = Examples("bars", 300, labels, lambda rows: {name: images[rows]})
    return divided([examples.take(np.arange(*part)) for part in ((0, 200), (200, 250), (250, 300))])


def run(model: ir.Model, data: TrainingData, place: Path, options: IterateOptions, **more: Any) -> Iteration:
    return iterate(model, data, options, TRAINING, RunFolder(place), **more)


def masks(place: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(place / f"round-{number:02d}" / "masks.npz") as stored:
        return {name: stored[name] for name in stored.files}


def zeros_hold(place: Path, number: int) -> None:
    """Assert that what a round's masks hide is exactly zero in its model."""
    written = io.load(place / f"round-{number:02d}" / "model.onnx")
    for name, mask in masks(place, number).items():
        data = constants.array(written.graph.initializers[name])
        assert data is not None
        assert not data[~mask].any()


def test_lottery_tickets(model: ir.Model, data: TrainingData, tmp_path: Path) -> None:
    found = run(model, data, tmp_path / "run", IterateOptions("lth", rounds=3, prune=0.3, warmup=2, rewind=1))
    total = found.rounds[0]["weights"]
    assert [row["round"] for row in found.rounds] == [0, 1, 2, 3]
    assert found.epochs == 8
    left = total
    for number, row in enumerate(found.rounds[1:], 1):
        left -= int(0.3 * left + 1e-9)
        assert row["left"] == left
        assert row["ended"] == "epochs"
        zeros_hold(tmp_path / "run", number)
        before, after = masks(tmp_path / "run", number - 1), masks(tmp_path / "run", number)
        assert all(not (after[name] & ~before[name]).any() for name in before)
    assert sum(layer["left"] for layer in found.rounds[-1]["layers"]) == left
    assert found.rounds[-1]["test_accuracy"] > 0.4
    with (tmp_path / "run" / "rounds.csv").open() as stream:
        assert [row["left"] for row in csv.DictReader(stream)] == [str(row["left"]) for row in found.rounds]
    tell(found, IterateOptions("lth"), "bars")
    page = (tmp_path / "run" / "README.md").read_text()
    assert "8 epochs in all" in page
    assert all((tmp_path / "run" / f"{name}.svg").is_file() for name in ("accuracy", "epochs", "similarity"))


def test_going_back_is_exact(model: ir.Model) -> None:
    module = to_torch(model, batchnorm="train", keep_zeros=False)
    axes = output_axes(model, module)
    early, full = snapshot(module), present_masks(module, axes)
    narrow = {name: np.random.default_rng(0).random(mask.shape) < 0.5 for name, mask in full.items()}
    with torch.no_grad():
        for tensor in (*module.trained().values(), *module.statistics().values()):
            tensor.add_(1.0)
    restore(module, early, narrow)
    for name, tensor in {**module.trained(), **module.statistics()}.items():
        mask = torch.from_numpy(narrow[name]) if name in narrow else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(tensor[mask], early[name][mask])
        assert not tensor[~mask].any()
    assert any("running" in name or "mean" in name for name in module.statistics()) or module.statistics()


def test_a_round_ends_when_its_flow_has_settled(
    model: ir.Model, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = rounds._Reference
    monkeypatch.setattr(rounds, "_Reference", lambda dense, epsilon, best: known(dense, epsilon, 2.0))
    ends = {}
    for settled in (False, True):
        flows = iter(np.array([[0.0], [3.0], [2.0], [1.95], [1.94]]))
        monkeypatch.setattr(rounds.flow, "information_flow", lambda *_, flows=flows, **__: next(flows))
        options = IterateOptions("incop-if", rounds=2, warmup=0, chunk=1, epsilon=0.1, settled=settled, probe=100)
        place = RunFolder(tmp_path / str(settled))
        found = iterate(model, data, options, replace(TRAINING, epochs=4), place)
        ends[settled] = [(row["epochs"], row["ended"]) for row in found.rounds[1:]]
        assert found.rounds[1]["distances"] == [3.0, 2.0, 1.95, 1.94][: found.rounds[1]["epochs"]]
    assert ends == {False: [(4, "epochs"), (4, "epochs")], True: [(3, "settled"), (4, "epochs")]}


def test_a_round_ends_by_flow_by_accuracy_or_by_its_epochs(model: ir.Model, data: TrainingData, tmp_path: Path) -> None:
    options = IterateOptions("incop-if", rounds=2, warmup=2, chunk=1, sap=Sap(1, 2), probe=100)
    near = run(model, data, tmp_path / "near", replace(options, epsilon=1e9))
    assert [row.get("ended") for row in near.rounds] == [None, "flow", "epochs"]
    assert [row["epochs"] for row in near.rounds] == [2, 1, 2]  # the last round trains its whole budget
    far = run(model, data, tmp_path / "far", replace(options, epsilon=1e-12))
    assert far.rounds[1]["ended"] in ("accuracy", "epochs")
    assert len(far.rounds[1]["distances"]) == far.rounds[1]["epochs"]
    options = replace(options, method="incop-gf", warmup=3)
    own = run(model, data, tmp_path / "own", options)
    assert own.rounds[0]["epsilon"] > 0
    tell(own, options, "bars")
    assert (tmp_path / "own" / "flow.svg").is_file()
    with pytest.raises(OptionError, match="epsilon auto needs at least 6 epochs"):
        run(model, data, tmp_path / "short", replace(options, chunk=2))


@pytest.mark.parametrize("method", ["sap", "incop-if"])
def test_a_killed_run_goes_on_with_the_same_bytes(
    model: ir.Model, data: TrainingData, tmp_path: Path, method: str
) -> None:
    class KilledError(Exception):
        pass

    options = IterateOptions(method, rounds=2, warmup=3, chunk=1, sap=Sap(1, 2), probe=100)
    whole = run(model, data, tmp_path / "whole", options)
    steps: list[Step] = []

    def stop(step: Step) -> None:
        steps.append(step)
        if len(steps) == 28:  # in the first round that prunes
            raise KilledError

    with pytest.raises(KilledError):
        run(model, data, tmp_path / "again", options, hooks=Hooks(step=stop))
    assert not (tmp_path / "again" / "round-02").exists()
    with pytest.raises(OptionError, match="holds a run already"):
        run(model, data, tmp_path / "again", options)
    with pytest.raises(OptionError, match="holds a run with chunk 1, not 2"):
        run(model, data, tmp_path / "again", replace(options, chunk=2), resume=True)
    found = run(model, data, tmp_path / "again", options, resume=True)
    for number in range(3):
        files = [tmp_path / name / f"round-{number:02d}" / "model.onnx" for name in ("whole", "again")]
        assert files[0].read_bytes() == files[1].read_bytes()
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in each.rounds] for each in (whole, found)]
    assert timeless[0] == timeless[1]
    # A finished run has nothing left to do, and more rounds may be asked for.
    more = run(model, data, tmp_path / "again", replace(options, rounds=3), resume=True)
    assert len(more.rounds) == 4


@pytest.mark.parametrize("method", ["surp", "magnitude"])
def test_stages_go_on_from_the_weights_they_have(
    model: ir.Model, data: TrainingData, tmp_path: Path, method: str
) -> None:
    options = IterateOptions(method, sparsities=(0.5, 0.8), warmup=2)
    found = run(model, data, tmp_path / "run", options)
    for number, wanted in ((1, 0.5), (2, 0.8)):
        assert 1 - found.rounds[number]["remaining"] == pytest.approx(wanted, abs=0.01)
        zeros_hold(tmp_path / "run", number)
    before, after = masks(tmp_path / "run", 1), masks(tmp_path / "run", 2)
    assert all(not (after[name] & ~before[name]).any() for name in before)
    # What is sparse already starts where the schedule has got to.
    sparse = io.load(tmp_path / "run" / "round-01" / "model.onnx")
    later = run(sparse, data, tmp_path / "later", replace(options, sparsities=(0.4, 0.5, 0.7), warmup=0))
    assert len(later.rounds) == 2
    again = run(sparse, data, tmp_path / "again", IterateOptions("lth", rounds=1, prune=0.5, warmup=0))
    assert [row["remaining"] for row in again.rounds] == pytest.approx([0.5, 0.25], abs=0.01)
    with pytest.raises(OptionError, match="zeros already: give sparsities above"):
        run(sparse, data, tmp_path / "none", replace(options, sparsities=(0.3, 0.4), warmup=0))


@pytest.mark.parametrize("method", ["surp", "magnitude"])
def test_a_stage_may_start_from_refitted_weights(
    model: ir.Model, data: TrainingData, tmp_path: Path, method: str, run_model: Callable[..., Any]
) -> None:
    dense = run(model, data, tmp_path / "dense", IterateOptions("lth", rounds=1, warmup=2, prune=0.01)).model
    images = next(data.validation.batches(50)).arrays
    lost = {}
    for values in ("original", "refit"):
        options = IterateOptions(method, sparsities=(0.8,), values=values, probe=100, warmup=0)
        module = to_torch(dense, batchnorm="train", keep_zeros=False)
        axes = output_axes(dense, module)
        restore(module, *Stager(options, data.train, dense, axes).stage(dense, module, axes, 0.8))
        outputs = [run_model(each, images).popitem()[1] for each in (dense, write_back(module, dense))]
        lost[values] = float(np.square(outputs[0] - outputs[1]).mean())
        found = run(dense, data, tmp_path / values, options)
        assert 1 - found.rounds[1]["remaining"] == pytest.approx(0.8, abs=0.01)
        zeros_hold(tmp_path / values, 1)
    assert lost["refit"] < 0.7 * lost["original"]


def test_no_refit_of_weights_that_nodes_share() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]> shared (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    model = ir.serde.deserialize_model(proto)
    examples = Examples("rows", 10, None, lambda rows: {"x": np.ones((len(rows), 8), np.float32)})
    with pytest.raises(OptionError, match="'w' is the weight of several nodes; give values original"):
        Stager(IterateOptions("magnitude", values="refit"), examples, model, ["w"])


def test_rounds_may_learn_from_the_dense_network(model: ir.Model, data: TrainingData, tmp_path: Path) -> None:
    options = IterateOptions("magnitude", sparsities=(0.5, 0.8), warmup=2)
    lesson = Lesson("both", temperature=2.0, features=("auto",))
    whole = run(model, data, tmp_path / "whole", options, lesson=lesson)
    assert "validation_agreement" not in whole.rounds[0]
    assert all(row["validation_agreement"] > 0.7 for row in whole.rounds[1:])
    zeros_hold(tmp_path / "whole", 2)
    # What was learnt from is in the folder: a run that goes on learns from the same.
    run(model, data, tmp_path / "again", replace(options, sparsities=(0.5,)), lesson=lesson)
    asked = json.loads((tmp_path / "again" / "run.json").read_text())
    asked["sparsities"] = [0.5, 0.8]
    (tmp_path / "again" / "run.json").write_text(json.dumps(asked))
    with pytest.raises(OptionError, match="holds a run with lesson loss both, not labels"):
        run(model, data, tmp_path / "again", options, resume=True)
    run(model, data, tmp_path / "again", options, resume=True, lesson=lesson)
    files = [tmp_path / name / "round-02" / "model.onnx" for name in ("whole", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # Another teacher gives another student.
    other = run(model, data, tmp_path / "other", options, lesson=lesson, teacher=model)
    assert other.rounds[2]["validation_agreement"] != whole.rounds[2]["validation_agreement"]


def test_several_runs_have_a_mean_and_a_deviation(model: ir.Model, data: TrainingData, tmp_path: Path) -> None:
    places = [tmp_path / f"run-{seed}" for seed in (0, 1)]
    for seed, place in enumerate(places):
        options = IterateOptions("lth", rounds=1, warmup=1)
        iterate(model, data, options, replace(TRAINING, epochs=1, seed=seed), RunFolder(place))
    rows = aggregate(places, tmp_path / "trials.json")
    assert rows == json.loads((tmp_path / "trials.json").read_text())
    each = [json.loads((place / "rounds.json").read_text()) for place in places]
    accuracies = [run[1]["test_accuracy"] for run in each]
    assert rows[1]["test_accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert rows[1]["test_accuracy"]["deviation"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "none"}, "accepted are lth, sap"),
        ({"rounds": 0}, "rounds 0: at least 1"),
        ({"prune": 1.0}, "prune=1"),
        ({"scope": "row"}, "accepted are global"),
        ({"warmup": 3, "rewind": 4}, "rewind 4"),
        ({"epsilon": 0.0}, "epsilon 0.0"),
        ({"values": "refit"}, "is for surp and magnitude"),
        ({"method": "surp", "values": "exact"}, "surp accepts reconstruction, original, refit"),
        ({"method": "magnitude", "values": "reconstruction"}, "magnitude accepts original, refit"),
        ({"sparsities": (0.5, 0.4)}, "rising shares"),
        ({"sparsities": ()}, "rising shares"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        IterateOptions(**options)


def test_names_of_methods() -> None:
    assert [method_named(text) for text in ("CIAP", "giap", "incop_if", "lth")] == [
        "incop-if", "incop-gf", "incop-if", "lth",
    ]  # fmt: skip
    with pytest.raises(OptionError, match="accepted are lth, sap"):
        method_named("snip")
