"""Malformed and hostile model files: one sentence or an honest answer, never a traceback, a hang or a written file."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result
from onnx import TensorProto, helper


def answered(done: Result) -> None:
    """The command ended by itself: done, or refused in one sentence."""
    assert done.exit_code in (0, 3, 4), (done.exit_code, done.stderr, done.exception)
    if done.exit_code:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception


@pytest.fixture
def asked(cli: Callable[..., Result], tmp_path: Path) -> Callable[[bytes], None]:
    """Inspect and plan a file with the given content; nothing else may appear in its folder."""

    def ask(content: bytes) -> None:
        path = tmp_path / "hostile.onnx"
        path.write_bytes(content)
        answered(cli("inspect", path, "--json"))
        answered(cli("plan", "surp,id(flops=0.5),filters(keep=0.5)", "--in", path, "--json"))
        assert [entry.name for entry in tmp_path.iterdir()] == ["hostile.onnx"]

    return ask


@pytest.mark.parametrize("seed", range(8))
def test_bytes_changed_at_random(
    conv_net: Callable[..., onnx.ModelProto], asked: Callable[[bytes], None], seed: int
) -> None:
    rng = random.Random(seed)
    # A small network, so that structure is hit as often as weights.
    whole = conv_net(0, channels=(2, 3), hidden=4, classes=2).SerializeToString()
    for _ in range(25):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        asked(bytes(content))


def cyclic(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def doubled_output(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = model.graph.node[0].output[0]


def doubled_node_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "same"


def missing_initializer(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]


def absurd_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**20, 3, 3]


def negative_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def absurd_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**60


def wrong_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[6].data_type = TensorProto.INT8


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[6].data_type = 99


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Frobnicate"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[2].domain = "org.example.nothing"


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9999


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def no_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def impossible_reshape(model: onnx.ModelProto) -> None:
    model.graph.initializer[8].CopyFrom(helper.make_tensor("flat", TensorProto.INT64, [2], [-7, 0]))


def group_of_zero(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))


def endless_shape(model: onnx.ModelProto) -> None:
    huge = helper.make_tensor("huge", TensorProto.INT64, [2], [2**40, 2**40])
    node = helper.make_node("ConstantOfShape", ["huge"], ["filled"], "filled")
    model.graph.initializer.append(huge)
    model.graph.node.insert(0, node)


def bad_metadata(model: onnx.ModelProto) -> None:
    helper.set_model_props(model, {"onnxprune.classes": "{", "onnxprune.preprocess": "[]", "onnxprune.kept": "7"})


HOSTILE = [
    cyclic, doubled_output, doubled_node_names, missing_initializer, absurd_dims, negative_dims, absurd_input,
    wrong_type, unknown_type, unknown_operator, unknown_domain, no_opset, future_opset, no_outputs, no_nodes,
    impossible_reshape, group_of_zero, endless_shape, bad_metadata,
]  # fmt: skip


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_hostile_graphs(
    conv_net: Callable[..., onnx.ModelProto], asked: Callable[[bytes], None], spoil: Callable[[onnx.ModelProto], None]
) -> None:
    model = conv_net(0)
    spoil(model)
    asked(model.SerializeToString())
