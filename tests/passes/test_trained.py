"""Trained networks on real images: what the passes cost in decisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import recipe
from onnxprune.data import Examples, Preprocess, open_data
from onnxprune.graph import io, spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.kept import read_kept
from onnxprune.pipeline import Run, Step, run
from onnxprune.runtime.session import Settings, input_specs, open_session

SETTINGS = Settings(threads=1, batch_size=250)


class Trained:
    """A trained model with 1,000 calibration images and the whole test set."""

    def __init__(self, folder: Path, name: str) -> None:
        self.model = io.load(folder / "onnx" / f"{name}.onnx")
        metadata = self.model.metadata_props
        pre = Preprocess.from_json(metadata["onnxprune.preprocess"])
        classes = json.loads(metadata["onnxprune.classes"])
        specs = input_specs(self.model)
        train, test = str(folder / "mnist-train.zip"), str(folder / "mnist-test.zip")
        self.calibration = open_data(train, specs, preprocess=pre, classes=classes, examples=1000, seed=0)
        self.test = open_data(test, specs, preprocess=pre, classes=classes)
        self.decided = self.decisions(self.model)

    def decisions(self, model: ir.Model, examples: Examples | None = None) -> np.ndarray:
        with open_session(model, SETTINGS) as session:
            batches = [session.run(batch.arrays) for batch in (examples or self.test).batches(250)]
        return np.concatenate([next(iter(found.values())).argmax(1) for found in batches])

    def agreement(self, model: ir.Model) -> float:
        return float((self.decisions(model) == self.decided).mean())

    def accuracy(self, decided: np.ndarray) -> float:
        return float((decided == self.test.labels).mean())

    def apply(self, text: str) -> tuple[ir.Model, list[Step]]:
        return run(self.model, recipe.parse(text), Run(self.calibration, SETTINGS))


@pytest.fixture(scope="module")
def lenet5(shared_data: Path) -> Trained:
    return Trained(shared_data, "lenet5")


@pytest.fixture(scope="module")
def lenet300(shared_data: Path) -> Trained:
    return Trained(shared_data, "lenet300")


def test_half_the_flops_of_lenet5_keep_its_decisions(lenet5: Trained) -> None:
    result, (step,) = lenet5.apply("id(flops=0.5)")
    assert 0.98 * 0.5 <= step.result.reached["flops"][1] <= 0.5
    assert lenet5.agreement(result) >= 0.985
    assert lenet5.accuracy(lenet5.decisions(result)) >= lenet5.accuracy(lenet5.decided) - 0.01


def test_half_the_flops_of_lenet300_keep_its_decisions(lenet300: Trained) -> None:
    result, (step,) = lenet300.apply("id(flops=0.5)")
    assert 0.98 * 0.5 <= step.result.reached["flops"][1] <= 0.5
    assert lenet300.agreement(result) >= 0.985


def test_the_fold_beats_the_same_channels_without_it(lenet5: Trained) -> None:
    result, _ = lenet5.apply("id(keep=0.5)")
    plain = prepare(lenet5.model)
    surgery.cut(spaces.analyse(plain), read_kept(result))
    selected = finish(plain)
    assert lenet5.agreement(result) > lenet5.agreement(selected) + 0.02


def test_surp_zeroes_four_weights_of_five(lenet5: Trained, lenet300: Trained) -> None:
    for trained, least in ((lenet5, 0.99), (lenet300, 0.94)):
        result, (step,) = trained.apply("surp(sparsity=0.8)")
        assert step.result.reached["sparsity"][1] == pytest.approx(0.8, abs=1e-5)
        assert trained.agreement(result) >= least


def test_both_in_either_order(lenet5: Trained) -> None:
    for text in ("surp(sparsity=0.8),id(flops=0.5)", "id(flops=0.5),surp(sparsity=0.8)"):
        result, steps = lenet5.apply(text)
        assert lenet5.agreement(result) >= 0.98
        assert steps[-1].cost.macs <= 0.5 * 2_293_000
        assert steps[-1].cost.nonzero <= 0.25 * 431_080
