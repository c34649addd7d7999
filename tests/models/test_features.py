"""Inner values of a cut graph are compared with the channels of the original that it still has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxprune.errors import OptionError
from onnxprune.exporters.to_torch import to_torch
from onnxprune.graph.correspondence import staying_channels
from onnxprune.models.features import matched
from onnxprune.models.teaching import Student
from onnxprune.passes.filters import Filters
from onnxprune.pipeline import Run, run
from onnxprune.runtime.session import Settings

SHAPE = {"input": (1, 1, 12, 12)}


@pytest.fixture
def original(conv_net: Callable[..., Any]) -> ir.Model:
    return ir.serde.deserialize_model(conv_net(0))


def cut(model: ir.Model, *passes: Any) -> ir.Model:
    return run(model, list(passes), Run(None, Settings(), inputs=SHAPE))[0]


def inner(model: ir.Model) -> list[str]:
    return [str(out.name) for node in model.graph for out in node.outputs]


def test_cut_twice_the_channels_are_still_found(original: ir.Model) -> None:
    """A student whose weights were only cut, not changed, computes what the teacher does in the first layer."""
    result = cut(original, Filters(keep=0.75), Filters(keep=0.75))
    features = matched(result, original, ["*"])
    first = next(name for name in features.names if name in features.staying)
    assert 0 < len(features.staying[first][1]) < 8
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32))
    teacher = Student(to_torch(original, keep_zeros=False), features.names, features.staying)
    student = Student(to_torch(result, keep_zeros=False), features.names)
    with torch.no_grad():
        theirs, ours = teacher.eval()(images), student.eval()(images)
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    torch.testing.assert_close(ours[first], theirs[first])


def test_what_layers_read_is_matched_unless_told(original: ir.Model) -> None:
    result = cut(original, Filters(keep=0.5))
    features = matched(result, original, ["auto"])
    read = {
        str(node.inputs[0].name)
        for node in result.graph
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.inputs[0] is not None
    }
    assert set(features.names) == read & set(inner(original))
    assert features.staying.keys() <= set(features.names)


def test_names_globs_and_patterns(original: ir.Model) -> None:
    names = inner(original)
    assert matched(original, original, [names[2], names[0]]).names == (names[2], names[0])
    assert matched(original, original, [f"re:{names[0]}|{names[1]}", names[1]]).names == (names[0], names[1])
    assert matched(original, original, []).names == ()
    for asked in ("nothing*", "auto "):
        with pytest.raises(OptionError, match="is of no value that both graphs compute"):
            matched(original, original, [asked])


def test_nothing_was_cut(original: ir.Model) -> None:
    assert staying_channels(original, original, inner(original)) == {}


def test_values_that_the_source_does_not_know_are_left_out(original: ir.Model) -> None:
    result = cut(original, Filters(keep=0.5))
    assert staying_channels(original, result, ["nowhere"]) == {}
