"""Normalisations over several channels, and rearrangements between depth and space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import prepare


def conv(n: Any, value: str = "x", ins: int = 3, outs: int = 8, name: str = "a") -> str:
    return str(n.op("Conv", value, n.weight(outs, ins, 3, 3), n.weight(outs), pads=[1] * 4, name=name))


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": ["N", 3, 8, 8]}, *outputs)
    return model


def to_end(n: Any, value: str, ins: int = 8) -> Any:
    """End in a convolution; its shape is declared, for inference knows nothing of GroupNormalization."""
    out = n.op("GlobalMaxPool", conv(n, n.op("Relu", value), ins, 5, "end"))
    return n.model({"x": ["N", 3, 8, 8]}, out, sizes=["N", 5, 1, 1])


def reasons_of(model: onnx.ModelProto) -> dict[str, str]:
    return spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused


def instance(n: Any) -> Any:
    value = n.op("InstanceNormalization", conv(n), n.positive(8), n.weight(8), epsilon=1e-3)
    return to_end(n, value), {"a": 8}


def local_response_of_rows(n: Any) -> Any:
    """LRN looks along axis 1; channels that lie elsewhere are free."""
    value = n.op("Transpose", conv(n), perm=[0, 2, 1, 3])
    value = n.op("Transpose", n.op("LRN", value, size=3, alpha=0.1), perm=[0, 2, 1, 3])
    return to_end(n, value), {"a": 8}


def layer_over_positions(n: Any) -> Any:
    value = n.op("LayerNormalization", conv(n), n.positive(8, 8), n.weight(8, 8), axis=-2)
    return to_end(n, value), {"a": 8}


def layer_over_a_width_beside_channels(n: Any) -> Any:
    """Statistics are read too; channels lie in front of the axis."""
    value, mean, scale = n.op("LayerNormalization", conv(n), n.positive(8), axis=3, outputs=3)
    return to_end(n, n.op("Mul", n.op("Add", value, mean), scale)), {"a": 8}


def unit_length_of_positions(n: Any) -> Any:
    return to_end(n, n.op("LpNormalization", conv(n), axis=2, p=1)), {"a": 8}


def mean_variance(n: Any) -> Any:
    return to_end(n, n.op("MeanVarianceNormalization", conv(n), axes=[2, 3])), {"a": 8}


def softmax_of_positions(n: Any) -> Any:
    return to_end(n, n.op("Softmax", conv(n), axis=-1)), {"a": 8}


def depth_to_space(n: Any, mode: str) -> Any:
    value = n.op("DepthToSpace", conv(n, outs=24), blocksize=2, mode=mode)
    return to_end(n, value, 6), {"a": 6}


def depth_to_space_dcr(n: Any) -> Any:
    return depth_to_space(n, "DCR")


def depth_to_space_crd(n: Any) -> Any:
    return depth_to_space(n, "CRD")


def space_to_depth(n: Any) -> Any:
    return to_end(n, n.op("SpaceToDepth", conv(n), blocksize=2), 32), {"a": 8}


def there_and_back(n: Any) -> Any:
    value = n.op("DepthToSpace", n.op("SpaceToDepth", conv(n), blocksize=2), blocksize=2)
    return to_end(n, value), {"a": 8}


CASES: list[Callable[[Any], Any]] = [
    instance, local_response_of_rows, layer_over_positions, layer_over_a_width_beside_channels,
    unit_length_of_positions, softmax_of_positions, depth_to_space_dcr, depth_to_space_crd, space_to_depth,
    there_and_back, mean_variance,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_cut_equals_the_masked_model(net: Any, cut_equals_masked: Any, build: Callable[[Any], Any], seed: int) -> None:
    model, widths = build(net())
    assert cut_equals_masked(model, seed=seed) == widths


@pytest.mark.parametrize(("opset", "groups"), [(18, 4), (18, 2), (18, 8), (21, 4), (21, 8), (21, 1)])
def test_whole_groups_go(
    net: Any, cut_equals_masked: Any, monkeypatch: pytest.MonkeyPatch, opset: int, groups: int
) -> None:
    if opset == 18:  # the checker calls this form deprecated, though models have it and ONNX Runtime runs it
        monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    for seed in range(3):
        n = net(seed, opset=opset, ir_version=10)
        size = groups if opset == 18 else 8
        value = n.op("GroupNormalization", conv(n), n.positive(size), n.weight(size), num_groups=groups, name="g")
        widths = cut_equals_masked(to_end(n, value), seed=seed)
        # One group is one channel of its space: it is there as a whole or not at all.
        assert widths == ({"a": groups} if groups > 1 else {})


def test_parameters_per_channel_are_cut_per_channel(net: Any) -> None:
    n = net(opset=21, ir_version=10)
    value = n.op("GroupNormalization", conv(n), n.positive(8), n.weight(8), num_groups=4, name="g")
    work = prepare(ir.serde.deserialize_model(to_end(n, value)))
    scale = next(node for node in work.graph if node.name == "g").inputs[1]
    assert scale is not None and scale.const_value is not None
    wanted = scale.const_value.numpy()[[2, 3, 6, 7]]
    surgery.cut(spaces.analyse(work), {"a": [1, 3]})
    np.testing.assert_array_equal(scale.const_value.numpy(), wanted)


def rms_over_the_width(n: Any) -> Any:
    value = n.op("RMSNormalization", conv(n), n.positive(8), axis=-1)
    return to_end(n, value)


def test_rms_over_another_axis(net: Any, cut_equals_masked: Any) -> None:
    assert cut_equals_masked(rms_over_the_width(net(opset=23, ir_version=11))) == {"a": 8}


def last(n: Any) -> str:
    return str(n.op("Transpose", conv(n), perm=[0, 2, 3, 1]))


MIXING: dict[str, tuple[Callable[[Any], str], str]] = {
    "layer": (
        lambda n: n.op("LayerNormalization", last(n), n.positive(8), n.weight(8), name="g"),
        "LayerNormalization over the channel axis mixes channels",
    ),
    "layer from axis 1": (
        lambda n: n.op("LayerNormalization", conv(n), n.positive(8, 8, 8), axis=1, name="g"),
        "LayerNormalization over the channel axis mixes channels",
    ),
    "local response": (lambda n: n.op("LRN", conv(n), size=3, name="g"), "LRN over the channel axis mixes channels"),
    "unit length": (
        lambda n: n.op("LpNormalization", conv(n), axis=1, name="g"),
        "LpNormalization over the channel axis mixes channels",
    ),
    "instance over channels": (
        lambda n: n.op("InstanceNormalization", last(n), n.positive(8), n.weight(8), name="g"),
        "InstanceNormalization over the channel axis mixes channels",
    ),
    "group over channels": (
        lambda n: n.op("GroupNormalization", last(n), n.positive(8), n.weight(8), num_groups=2, name="g"),
        "GroupNormalization over an axis that carries channels mixes channels",
    ),
    "mean and variance": (
        lambda n: n.op("MeanVarianceNormalization", conv(n), axes=[1], name="g"),
        "MeanVarianceNormalization over the channel axis mixes channels",
    ),
    "depth to space": (
        lambda n: n.op("DepthToSpace", last(n), blocksize=2, name="g"),
        "DepthToSpace moves an axis that carries channels",
    ),
    "space to depth": (
        lambda n: n.op("SpaceToDepth", last(n), blocksize=2, name="g"),
        "SpaceToDepth moves an axis that carries channels",
    ),
    "parameters of leading axes": (
        lambda n: n.op("LayerNormalization", conv(n), n.positive(8, 1, 8), axis=-1, name="g"),
        "its parameters differ along axes in front of those it normalises",
    ),
    "computed parameters": (
        lambda n: n.op("InstanceNormalization", conv(n), n.op("Squeeze", "k", n.ints(0)), n.weight(8), name="g"),
        "its parameters are computed, shared with a body, or may be fed",
    ),
    "parameters that carry channels": (
        lambda n: n.op(
            "LayerNormalization",
            conv(n),
            n.op("Squeeze", n.op("MatMul", "k", n.weight(8, 8)), n.ints(0)),
            axis=3,
            name="g",
        ),
        "its parameters carry channels",
    ),
}


@pytest.mark.parametrize("case", MIXING)
def test_what_mixes_channels_freezes_them(net: Any, cut_equals_masked: Any, case: str) -> None:
    build, reason = MIXING[case]
    n = net(opset=21, ir_version=10)
    out = n.op("Relu", build(n))
    inputs = {"x": ["N", 3, 8, 8]} | ({"k": [1, 8]} if "'k'" in repr(n.nodes) or '"k"' in str(n.nodes) else {})
    model = n.model(inputs, out, sizes=["N", 8, 8, 8] if "group" in case else None)
    reasons = reasons_of(model)
    assert reasons["g"] == reason
    assert reasons["a"] == f"'g': {reason}"
    assert "a" not in cut_equals_masked(model)


def test_rms_over_channels_freezes_them(net: Any, cut_equals_masked: Any) -> None:
    n = net(opset=23, ir_version=11)
    model = image(n, n.op("RMSNormalization", last(n), n.positive(8), name="g"))
    assert reasons_of(model)["a"] == "'g': RMSNormalization over the channel axis mixes channels"
    assert cut_equals_masked(model) == {}


def test_parameters_that_may_be_fed_freeze(net: Any) -> None:
    n = net(opset=21, ir_version=10)
    scale = n.const(np.ones(8, np.float32), name="fed")
    model = to_end(n, n.op("GroupNormalization", conv(n), scale, n.weight(8), num_groups=8, name="g"))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [8]))
    assert reasons_of(model)["g"] == "its parameters are computed, shared with a body, or may be fed"


def test_norm_of_something_without_channels_is_no_obstacle(net: Any, cut_equals_masked: Any) -> None:
    n = net(opset=21, ir_version=10)
    value = n.op("LayerNormalization", "x", n.positive(8), axis=-1)
    value = n.op("InstanceNormalization", value, n.positive(3), n.weight(3))
    value = n.op("GroupNormalization", value, n.positive(3), n.weight(3), num_groups=3)
    model = to_end(n, conv(n, n.op("SpaceToDepth", value, blocksize=2), 12))
    assert cut_equals_masked(model) == {"a": 8}
