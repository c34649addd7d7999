"""The passes that change no output: ``cleanup`` and ``fold_bn``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune import recipe
from onnxprune.errors import OptionError
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.fold_bn import FoldBn

FEEDS = {"input": np.random.default_rng(0).standard_normal((5, 1, 12, 12)).astype(np.float32)}


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@pytest.fixture
def cluttered(net: Any) -> onnx.ModelProto:
    """Identity, inference-time Dropout, a constant computation, a dead branch and an unused weight."""
    build = net(4)
    build.store("half", np.array([0.5], dtype=np.float32))
    scale = build.node("Add", build.store("quarter", np.array([0.25])), "half", name="fold")
    kept = build.node("Identity", build.gemm("x", 4, 8, name="first"), name="same")
    dropped = build.node("Dropout", kept, name="drop")
    scaled = build.node("Mul", dropped, scale, name="scale")
    build.node("Relu", scaled, name="dead")
    build.store("unused", np.ones(3))
    return build.model(build.gemm(scaled, 8, 3, name="last", last=True))


def test_cleanup_drops_what_does_nothing(
    cluttered: onnx.ModelProto, apply: Any, weights: Any, run_model: Any, images: Any
) -> None:
    result, step = apply(cluttered, [Cleanup()])
    assert [node.name for node in result.graph] == ["first", "scale", "last"]
    assert step.result.numbers == {"identities": 2, "folded": 1, "nodes_removed": 4}
    assert step.result.skipped == {}
    assert set(weights(result)) == {"first.w", "first.b", "last.w", "last.b", "fold_out_folded"}
    data = images(5, 4)
    assert np.array_equal(run_model(result, data)["last_out"], run_model(cluttered, data)["last_out"])


@pytest.mark.parametrize("item", [Cleanup(), FoldBn()])
def test_a_second_time_changes_nothing(conv_net: Callable[..., onnx.ModelProto], apply: Any, item: Any) -> None:
    once, _ = apply(conv_net(0), [item])
    twice, step = apply(once, [item])
    assert written(once) == written(twice)
    assert step.result.numbers[{"cleanup": "nodes_removed", "fold_bn": "folded"}[item.name]] == 0


@pytest.mark.parametrize("item", [Cleanup(), FoldBn()])
def test_the_callers_model_and_the_interface_stay(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, item: Any
) -> None:
    proto = conv_net(0)
    given = ir.serde.deserialize_model(proto)
    before = written(given)
    result, step = apply(given, [item])
    back = ir.serde.serialize_model(result)
    assert written(given) == before
    assert list(back.graph.input) == list(proto.graph.input)
    assert list(back.graph.output) == list(proto.graph.output)
    assert (back.opset_import, back.ir_version) == (proto.opset_import, proto.ir_version)
    assert step.result.reached == {}
    assert type(item).lossless
    assert item.wants(given) == {}


def test_fold_bn_folds_into_the_convolution(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, run_model: Any
) -> None:
    proto = conv_net(0)
    result, step = apply(proto, [FoldBn()])
    assert step.result.numbers == {"folded": 1}
    assert "BatchNormalization" not in [node.op_type for node in result.graph]
    given = weights(proto)
    scale = given["bn.s"].astype(np.float64) / np.sqrt(given["bn.v"] + 1e-5)
    after = weights(result)
    assert np.allclose(after["c1.w"], given["c1.w"] * scale[:, None, None, None], rtol=1e-6)
    assert np.allclose(after["c1.b"], (given["c1.b"] - given["bn.m"]) * scale + given["bn.b"], rtol=1e-5)
    found, wanted = (run_model(model, FEEDS)["logits"] for model in (result, proto))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["transposed", "gemm", "no_bias", "output"])
def test_fold_bn_into_other_nodes(kind: str, net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(*((4,) if kind == "gemm" else (4, 5, 5)))
    if kind == "transposed":
        made = build.transposed("x", 4, 6)
    elif kind == "gemm":
        made = build.gemm("x", 4, 6, trans=False)
    else:
        build.store("w", build.rng.standard_normal((6, 4, 3, 3)))
        made = build.node("Conv", "x", "w", name="plain")
    stored = [build.store(f"bn.{n}", build.rng.uniform(0.5, 1.5, 6)) for n in "sbmv"]
    out = build.node("BatchNormalization", made, *stored, name="norm")
    proto = build.model(out if kind == "output" else build.relu(out))
    result, step = apply(proto, [FoldBn()])
    assert step.result.numbers == {"folded": 1}
    shape = (4,) if kind == "gemm" else (4, 5, 5)
    name = proto.graph.output[0].name
    found, wanted = (run_model(model, images(6, *shape))[name] for model in (result, proto))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_fold_bn_lists_what_it_cannot_fold(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(4, 5, 5)
    made = build.conv("x", 4, 6, name="shared")
    first = [build.store(f"a.{n}", build.rng.uniform(0.5, 1.5, 6)) for n in "sbmv"]
    second = [build.store(f"b.{n}", build.rng.uniform(0.5, 1.5, 6)) for n in "sbmv"]
    left = build.node("BatchNormalization", made, *first, name="left")
    right = build.node("BatchNormalization", build.relu(made), *second, name="right")
    proto = build.model(build.node("Add", left, right))
    result, step = apply(proto, [FoldBn()])
    assert step.result.skipped == {
        "left": "the output of 'shared' is read elsewhere too",
        "right": "no Conv, ConvTranspose or Gemm is in front of it",
    }
    name = proto.graph.output[0].name
    data = images(3, 4, 5, 5)
    assert np.array_equal(run_model(result, data)[name], run_model(proto, data)[name])


def test_weights_shared_by_two_convolutions_are_folded_apart(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(4, 5, 5)
    build.store("w", build.rng.standard_normal((4, 4, 1, 1)))
    stored = [build.store(f"bn.{n}", build.rng.uniform(0.5, 1.5, 4)) for n in "sbmv"]
    normed = build.node("BatchNormalization", build.node("Conv", "x", "w", name="one"), *stored)
    proto = build.model(build.node("Conv", build.relu(normed), "w", name="two"))
    result, step = apply(proto, [FoldBn()])
    assert step.result.numbers == {"folded": 1}
    data = images(3, 4, 5, 5)
    found, wanted = (run_model(model, data)["two_out"] for model in (result, proto))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    stored_w = next(item for item in proto.graph.initializer if item.name == "w")
    original = numpy_helper.to_array(stored_w)
    assert any(np.array_equal(value.const_value.numpy(), original) for value in result.graph.initializers.values())


def batch_norms(net: Any) -> onnx.ModelProto:
    """Two convolutions, each with its BatchNormalization."""
    build = net(4, 5, 5)
    made = "x"
    for name, given in (("one", 4), ("two", 6)):
        made = build.conv(made, given, 6, name=name)
        stored = [build.store(f"{name}.{n}", build.rng.uniform(0.5, 1.5, 6)) for n in "sgmv"]
        made = build.relu(build.node("BatchNormalization", made, *stored, name=f"norm_{name}"))
    return build.model(made)


@pytest.mark.parametrize(
    ("options", "folded", "reason"),
    [
        ({"only": "norm_one"}, "norm_one", "only= does not name it"),
        ({"only": "one"}, "norm_one", "only= does not name it"),
        ({"only": "re:(norm_)?two"}, "norm_two", "only= does not name it"),
        ({"ignore": "two"}, "norm_one", "ignore= names it"),
        ({"only": "*", "ignore": "norm_o*"}, "norm_two", "ignore= names it"),
    ],
)
def test_fold_bn_folds_only_where_it_is_told(
    options: dict[str, str], folded: str, reason: str, net: Any, apply: Any, run_model: Any, images: Any
) -> None:
    proto = batch_norms(net)
    result, step = apply(proto, [FoldBn(**options)])
    left = ({"norm_one", "norm_two"} - {folded}).pop()
    assert [node.name for node in result.graph if node.op_type == "BatchNormalization"] == [left]
    assert step.result.numbers == {"folded": 1}
    assert step.result.skipped == {left: reason}
    data, name = images(3, 4, 5, 5), proto.graph.output[0].name
    found, wanted = (run_model(model, data)[name] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "nodes", "skipped"),
    [
        ({"only": "drop"}, ["fold", "first", "same", "scale", "dead", "last"], {"same", "fold", "dead"}),
        ({"ignore": "dead"}, ["first", "scale", "dead", "last"], {"dead"}),
        ({"ignore": "fold;same"}, ["fold", "first", "same", "scale", "last"], {"fold", "same"}),
        ({"only": "re:d.*", "ignore": "drop"}, ["fold", "first", "same", "drop", "scale", "last"], None),
        ({"ignore": "*"}, ["fold", "first", "same", "drop", "scale", "dead", "last"], {"fold", "same", "drop", "dead"}),
    ],
)
def test_cleanup_removes_only_what_it_is_told(
    options: dict[str, str],
    nodes: list[str],
    skipped: set[str] | None,
    cluttered: onnx.ModelProto,
    apply: Any,
    run_model: Any,
    images: Any,
) -> None:
    result, step = apply(cluttered, [Cleanup(**options)])
    assert [node.name for node in result.graph] == nodes
    assert step.result.numbers["nodes_removed"] == 7 - len(nodes)
    assert set(step.result.skipped) == (skipped if skipped is not None else {"fold", "same", "drop"})
    assert set(step.result.skipped.values()) <= {"only= does not name it", "ignore= names it"}
    data = images(5, 4)
    assert np.array_equal(run_model(result, data)["last_out"], run_model(cluttered, data)["last_out"])


@pytest.mark.parametrize("name", ["cleanup", "fold_bn"])
def test_bad_patterns_are_refused(name: str) -> None:
    for text, sentence in (("only=a;;b", "has an empty pattern"), ("ignore=re:(", "is not a regular expression")):
        with pytest.raises(OptionError, match=f"{name}: .*{sentence}"):
            recipe.parse(f'{name}({text.replace("=", "=" + chr(34))}")')
