"""Decisions of one model, and how many of them another keeps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune.data import Examples, Fingerprint, open_data
from onnxprune.errors import ModelError
from onnxprune.evaluate.streaming import count_kept, decide_all, fingerprint_of
from onnxprune.runtime.session import Settings, input_specs

Net = Callable[..., onnx.ModelProto]


def loaded(proto: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(proto)


def scaled(proto: onnx.ModelProto, name: str, factor: float) -> ir.Model:
    stored = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    stored.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(stored) * factor).astype(np.float32), name))
    return loaded(proto)


@pytest.fixture
def examples(conv_net: Net) -> Examples:
    images = np.random.default_rng(1).standard_normal((50, 1, 12, 12)).astype(np.float32)
    return open_data({"input": images}, input_specs(loaded(conv_net(0))))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_decisions_are_the_argmax_whatever_the_batch(
    conv_net: Net, examples: Examples, run_model: Callable[..., dict[str, np.ndarray]], batch: int
) -> None:
    model, told = loaded(conv_net(0)), list[int]()
    found = decide_all(model, examples, Settings(batch_size=batch), advance=told.append)
    assert found is not None
    logits = run_model(conv_net(0), examples.fetch(np.arange(50)))["logits"]
    assert np.array_equal(found.rows, logits.argmax(axis=1))
    assert (found.output, found.classes, sum(told)) == ("logits", 5, 50)
    assert found.fingerprint.hexdigest() == fingerprint_of(examples).hexdigest()
    assert isinstance(found.fingerprint, Fingerprint)
    assert count_kept(found, model, Settings(batch_size=batch)) == 50
    other = run_model(conv_net(3), examples.fetch(np.arange(50)))["logits"].argmax(axis=1)
    assert count_kept(found, loaded(conv_net(3)), Settings(batch_size=batch)) == int((other == found.rows).sum())


def test_nan_keeps_no_decision_and_is_refused_of_the_original(conv_net: Net, examples: Examples) -> None:
    found = decide_all(loaded(conv_net(0)), examples, Settings())
    assert found is not None
    broken = scaled(conv_net(0), "g2.b", np.nan)
    assert count_kept(found, broken, Settings()) == 0
    with pytest.raises(ModelError, match="original model: output 'logits' is NaN for example 0"):
        decide_all(broken, examples, Settings())


def test_values_decide_nothing_and_other_shapes_are_refused(conv_net: Net, examples: Examples) -> None:
    assert decide_all(loaded(conv_net(0, classes=1)), examples, Settings()) is None
    found = decide_all(loaded(conv_net(0)), examples, Settings())
    assert found is not None
    with pytest.raises(ModelError, match=r"class scores of shape \(32, 5\) are wanted"):
        count_kept(found, loaded(conv_net(0, classes=6)), Settings())
