"""The pass ``distill`` in recipes: what it gains, what it leaves alone, and that it can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import models
from onnxprune.api import Options, compress, replay
from onnxprune.errors import DataError, OptionError
from onnxprune.models.distill import Distill

RECIPE = "magnitude(sparsity=0.7,values=original),distill(epochs=4,batch_size=16,lr=0.003)"


@pytest.fixture
def files(conv_net: Callable[..., Any], tmp_path: Path) -> tuple[Path, Path]:
    onnx.save(conv_net(0), tmp_path / "model.onnx")
    images = np.random.default_rng(5).standard_normal((600, 1, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    return tmp_path / "model.onnx", tmp_path / "x.npz"


def test_distilling_gains_agreement_and_keeps_zeros(files: tuple[Path, Path]) -> None:
    model, data = files
    options = Options(calib_examples=400)
    plain = compress(model, RECIPE.partition(",distill")[0], data=data, options=options).report
    found = compress(model, RECIPE, data=data, options=options).report
    assert plain.agreement is not None and found.agreement is not None
    assert found.agreement.top1.rate > plain.agreement.top1.rate
    assert found.cost.nonzero.after <= plain.cost.nonzero.after
    numbers = found.steps[-1].numbers
    assert numbers["epochs"] == 4
    assert numbers["agreement_after"] > numbers["agreement_before"]
    assert numbers["masked"] > 0


def test_a_recipe_with_it_can_be_replayed(files: tuple[Path, Path]) -> None:
    model, data = files
    out, again = model.with_name("out.onnx"), model.with_name("again.onnx")
    compress(model, RECIPE, data=data, options=Options(seed=3)).save(out)
    replay(out, model, data=data).save(again)
    assert out.read_bytes() == again.read_bytes()


def test_no_epochs_change_nothing(files: tuple[Path, Path]) -> None:
    found = compress(files[0], "distill(epochs=0)", data=files[1])
    assert found.report.agreement is not None
    assert found.report.agreement.top1.rate == 1
    found.save(files[0].with_name("out.onnx"))
    before, after = (
        {each.name: numpy_helper.to_array(each) for each in onnx.load(files[0].with_name(name)).graph.initializer}
        for name in ("model.onnx", "out.onnx")
    )
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_too_few_examples_and_no_torch(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="distill has 5 calibration examples; at least 8"):
        compress(files[0], "distill", data=files[1], options=Options(calib_examples=5))
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="the pass distill needs PyTorch"):
        compress(files[0], "distill", data=files[1])


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="epochs=-1"):
        Distill(epochs=-1)
    with pytest.raises(OptionError, match="augment=flip"):
        Distill(augment="flip")
