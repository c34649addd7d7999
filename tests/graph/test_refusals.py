"""What cannot be cut stays as it is and is named with its reason; nothing near it is cut wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare

Case = tuple[onnx.ModelProto, dict[str, str]]


def conv(n: Any, value: str = "x", ins: int = 3, outs: int = 6, name: str = "a") -> str:
    return str(n.op("Conv", value, n.weight(outs, ins, 3, 3), pads=[1, 1, 1, 1], name=name))


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    return n.model({"x": ["N", 3, 8, 8]}, *outputs)


def head(n: Any, value: str, ins: int = 6) -> str:
    return str(n.op("Gemm", n.op("Flatten", n.op("GlobalMaxPool", value)), n.weight(ins, 5), n.weight(5), name="head"))


def refused(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, int]]:
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(model)))
    return analysis.refused, {space.name: space.width for space in analysis.prunable}


def grouped(n: Any) -> Case:
    """Groups need weights of the node's own, as any convolution does."""
    value = n.op("Conv", "x", n.weight(3, 1, 3, 3), group=3, name="d")
    value = n.op("Conv", conv(n, value), n.op("Tanh", n.weight(6, 3, 3, 3, name="fed")), group=2, name="g")
    model = image(n, head(n, value))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [6, 3, 3, 3]))
    return model, {"g": "its weight or bias is computed, shared with a body, or may be fed by the caller"}


def computed_weight(n: Any) -> Case:
    weight = n.op("Tanh", "k", name="t")
    reason = "its weight or bias is computed, shared with a body, or may be fed by the caller"
    out = head(n, n.op("Conv", conv(n), weight, name="g"), 4)
    return n.model({"x": ["N", 3, 8, 8], "k": [4, 6, 3, 3]}, out), {"g": reason}


def fed_weight(n: Any) -> Case:
    value = n.op("Conv", conv(n), n.weight(4, 6, 3, 3, name="fed"), name="g")
    model = image(n, head(n, value, 4))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [4, 6, 3, 3]))
    return model, {"g": "its weight or bias is computed, shared with a body, or may be fed by the caller"}


def weight_is_an_output(n: Any) -> Case:
    weight = n.weight(4, 6, 3, 3)
    model = image(n, head(n, n.op("Conv", conv(n), weight, name="g"), 4))
    model.graph.output.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, [4, 6, 3, 3]))
    return model, {"g": "its weight or bias is computed, shared with a body, or may be fed by the caller"}


def channels_in_space(n: Any) -> Case:
    """Channels on an axis that a convolution slides over: a cut would change what the kernel sees."""
    value = n.op("Transpose", conv(n), perm=[0, 2, 3, 1])
    value = n.op("Conv", value, n.weight(4, 8, 1, 3), pads=[0, 1, 0, 1], name="g")
    return image(n, head(n, value, 4)), {"g": "it slides over an axis that carries channels"}


def transposed_over_channels(n: Any) -> Case:
    value = n.op("ConvTranspose", n.op("Transpose", conv(n), perm=[0, 2, 3, 1]), n.weight(8, 4, 1, 1), name="g")
    return image(n, head(n, value, 4)), {"g": "it slides over an axis that carries channels"}


def pool_over_channels(n: Any) -> Case:
    value = n.op("Transpose", conv(n), perm=[0, 2, 3, 1])
    value = n.op("MaxPool", value, kernel_shape=[1, 3], pads=[0, 1, 0, 1], name="g")
    return image(n, head(n, n.op("Transpose", value, perm=[0, 3, 1, 2]))), {
        "g": "it slides over an axis that carries channels"
    }


def both_computed(n: Any) -> Case:
    value = n.op("Reshape", conv(n), n.ints(0, 6, 64))
    out = n.op("MatMul", n.op("Transpose", value, perm=[0, 2, 1]), n.op("Reshape", "x", n.ints(0, 6, 32)), name="g")
    return image(n, out), {"g": "it sums over channels of which one operand's cannot be cut"}


def both_stored(n: Any) -> Case:
    product = n.op("MatMul", n.weight(5, 6), n.weight(6, 4), name="g")
    return image(n, product, n.op("ReduceMean", "x")), {"g": "both operands are stored"}


def no_rule(op_type: str, **attributes: Any) -> Callable[[Any], Case]:
    def build(n: Any) -> Case:
        value = conv(n)
        result = n.op(op_type, value, name="g", **attributes)
        return image(n, n.op("Cast", result, to=1)), {"g": f"operator {op_type} has no rule for cutting channels"}

    build.__name__ = f"no_rule_{op_type}"
    return build


def other_domain(n: Any) -> Case:
    n.nodes.append(helper.make_node("Relu", [conv(n)], ["own"], "g", domain="my.ops"))
    model = helper.make_model(
        helper.make_graph(
            n.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("own", TensorProto.FLOAT, ["N", 6, 8, 8])],
            n.stored,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my.ops", 1)],
        ir_version=9,
    )
    return model, {"g": "operator my.ops.Relu has no rule for cutting channels"}


def body(n: Any) -> Case:
    value = conv(n)
    kind = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branches = {
        f"{word}_branch": helper.make_graph([helper.make_node(op, [value], ["out"])], word, [], [kind])
        for word, op in (("then", "Relu"), ("else", "Neg"))
    }
    out = n.op("If", n.const(np.array(True)), name="g", **branches)
    return image(n, n.op("Reshape", out, n.ints(-1)), head(n, value)), {
        "g": "If has a body of its own, which is left as it is",
        "a": f"'{value}' is read inside a body",
    }


def norm_with_shared_parameters(n: Any) -> Case:
    parameters = n.weight(6, name="fed"), n.weight(6), n.weight(6), n.positive(6)
    model = image(n, head(n, n.op("BatchNormalization", conv(n), *parameters, name="g")))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [6]))
    return model, {"g": "its parameters are computed, shared with a body, or may be fed by the caller"}


def training_norm(n: Any) -> Case:
    parameters = n.positive(6), n.weight(6), n.weight(6), n.positive(6)
    value, mean, _ = n.op("BatchNormalization", conv(n), *parameters, name="g", outputs=3, training_mode=1)
    return image(n, head(n, value), mean), {"g": "it is in training form (its statistics are read)"}


def training_norm_alone(n: Any) -> Case:
    parameters = n.positive(6), n.weight(6), n.weight(6), n.positive(6)
    value, _, _ = n.op("BatchNormalization", conv(n), *parameters, name="g", outputs=3, training_mode=1)
    return image(n, head(n, value)), {"g": "it is in training form (training_mode = 1)"}


def add_of_the_input(n: Any) -> Case:
    value = n.op("Add", conv(n, outs=3), "x", name="g")
    return image(n, head(n, value, 3)), {"g": "it combines channels with 'x', whose channels cannot be cut"}


def add_of_a_fed_constant(n: Any) -> Case:
    model = image(n, head(n, n.op("Add", conv(n), n.weight(6, 1, 1, name="fed"), name="g")))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.FLOAT, [6, 1, 1]))
    return model, {"g": "it combines channels with 'fed', whose channels cannot be cut"}


def reduce_channels(n: Any) -> Case:
    value = n.op("ReduceMean", conv(n), n.ints(1), name="g")
    return image(n, value), {"g": "ReduceMean over the channel axis mixes channels"}


def reduce_everything(n: Any) -> Case:
    return image(n, n.op("ReduceMax", conv(n), name="g")), {"g": "ReduceMax over the channel axis mixes channels"}


def reduce_by_an_empty_list(n: Any) -> Case:
    """No axes in the list means all axes, unless noop_with_empty_axes says otherwise."""
    value = n.op("ReduceSum", conv(n), n.const(np.zeros(0, np.int64)), name="g")
    return image(n, value), {"g": "ReduceSum over the channel axis mixes channels"}


def reduce_by_computed_axes(n: Any) -> Case:
    axes = n.op("Cast", n.op("Sign", "k"), to=TensorProto.INT64)
    value = n.op("Reshape", n.op("ReduceSum", conv(n), axes, keepdims=1, name="g"), n.ints(-1))
    model = n.model({"x": ["N", 3, 8, 8], "k": [1]}, value)
    return model, {"g": "the shape of its output cannot be inferred"}


def softmax_of_channels(n: Any) -> Case:
    return image(n, n.op("Softmax", conv(n), axis=1, name="g")), {"g": "Softmax over the channel axis mixes channels"}


def resize_channels(n: Any) -> Case:
    value = n.op("Resize", conv(n), "", n.const(np.array([1, 2, 1, 1], np.float32)), name="g")
    return image(n, value), {"g": "it changes the size of channel axis 1"}


def resize_to_computed_sizes(n: Any) -> Case:
    value = conv(n)
    value = n.op("Resize", value, "", "", n.const(np.array([1, 6, 16, 16]), name="fed"), mode="nearest", name="g")
    model = n.model({"x": [1, 3, 8, 8]}, head(n, value))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.INT64, [4]))
    return model, {"g": "its sizes are computed, read inside a body, or may be fed by the caller"}


def pad_channels(n: Any) -> Case:
    value = n.op("Pad", conv(n), n.ints(0, 1, 0, 0, 0, 0, 0, 0), mode="reflect", name="g")
    return image(n, value), {"g": "it pads the channel axis with other channels, or crops it"}


def split_channels(n: Any) -> Case:
    """A reshape that cuts across channels and positions parts no channel axis."""
    value = n.op("Reshape", conv(n), n.ints(0, 4, 96), name="g")
    return image(n, value), {"g": "its sizes cannot be inferred, or cross the axes that it parts"}


def size_is_read(n: Any) -> Case:
    value = conv(n)
    count = n.op("Cast", n.op("Shape", value, name="g"), to=TensorProto.FLOAT)
    return image(n, n.op("ReduceMax", count), head(n, value)), {"g": "the size of its channel axis is read"}


def joined_with_the_input(n: Any) -> Case:
    value = n.op("Concat", conv(n, outs=3), "x", axis=2, name="g")
    return image(n, head(n, value, 3)), {"g": "it joins them with 'x', whose channels cannot be cut"}


def depth_of_channels_elsewhere(n: Any) -> Case:
    value = n.op("DepthToSpace", n.op("Transpose", conv(n, outs=8), perm=[0, 2, 3, 1]), blocksize=2, name="g")
    return image(n, value), {"g": "DepthToSpace moves an axis that carries channels"}


def local_response(n: Any) -> Case:
    return image(n, n.op("LRN", conv(n), size=3, name="g")), {"g": "LRN over the channel axis mixes channels"}


def instance_of_positions(n: Any) -> Case:
    value = n.op("Transpose", conv(n), perm=[0, 2, 3, 1])
    value = n.op("InstanceNormalization", value, n.weight(8), n.weight(8), name="g")
    return image(n, value), {"g": "InstanceNormalization over the channel axis mixes channels"}


def computed_target(n: Any) -> Case:
    value = conv(n)
    target = n.const(np.array([-1, 384]), name="fed")
    out = n.op("Gemm", n.op("Reshape", value, target, name="g"), n.weight(384, 5), n.weight(5))
    model = image(n, out)
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.INT64, [2]))
    return model, {"g": "its target shape is computed, or may be fed by the caller"}


def copied_size(n: Any) -> Case:
    """Entry 1 copies the channel count for an axis of positions: right by coincidence, wrong after any cut."""
    value = n.op("MatMul", "x", n.weight(3, 4), name="a")
    value = n.op("Transpose", value, perm=[0, 2, 1])
    out = n.op("Reshape", value, n.ints(8, 0, 2), name="g")
    return n.model({"x": [2, 8, 3]}, out), {
        "g": "entry 1 of its target shape copies the size of a channel axis that goes elsewhere"
    }


def squeeze_everything(n: Any) -> Case:
    value = n.op("Squeeze", n.op("GlobalMaxPool", conv(n)), name="g")
    model = n.model({"x": [2, 3, 8, 8]}, n.op("Gemm", value, n.weight(6, 5), n.weight(5)))
    return model, {"g": "it names no axes, so it would drop a channel axis that is cut to one channel"}


CASES: list[Callable[[Any], Case]] = [
    grouped, computed_weight, fed_weight, weight_is_an_output, channels_in_space,
    transposed_over_channels, pool_over_channels, both_computed,
    both_stored, other_domain, body, norm_with_shared_parameters, training_norm,
    training_norm_alone, add_of_the_input, add_of_a_fed_constant, reduce_channels, reduce_everything,
    reduce_by_an_empty_list, reduce_by_computed_axes, softmax_of_channels, resize_channels,
    resize_to_computed_sizes, pad_channels, split_channels, computed_target, copied_size, squeeze_everything,
    size_is_read, no_rule("ArgMax", axis=1), no_rule("Size"), joined_with_the_input,
    depth_of_channels_elsewhere, local_response, instance_of_positions,
]  # fmt: skip


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_refusal_names_the_node_and_the_reason(net: Any, build: Callable[[Any], Case]) -> None:
    model, wanted = build(net())
    reasons, _ = refused(model)
    for name, sentence in wanted.items():
        assert sentence in reasons[name], reasons
    # The channels that meet the refused node are frozen for that reason, not silently dropped.
    if "a" in reasons and "a" not in wanted:
        assert reasons["a"].startswith(("'", "graph output"))


# ONNX Runtime does not run the others: an operator that nobody has, training, and a weight that must be fed.
RUNNABLE = [build for build in CASES if build not in (other_domain, training_norm, training_norm_alone, fed_weight)]


@pytest.mark.parametrize("build", RUNNABLE, ids=lambda build: build.__name__)
def test_what_is_left_to_cut_beside_a_refusal_stays_right(
    net: Any, cut_equals_masked: Any, build: Callable[[Any], Case]
) -> None:
    model, _ = build(net())
    cut_equals_masked(model)


def test_before_opset_7_operands_are_broadcast_by_an_attribute(net: Any) -> None:
    n = net(opset=6, ir_version=3)
    model = image(n, n.op("Add", conv(n), n.weight(6), axis=1, broadcast=1, name="g"))
    reasons, _ = refused(model)
    assert reasons["g"] == "it broadcasts by attribute, as before opset 7"


def test_statistics_for_every_position_are_refused(net: Any) -> None:
    n = net(opset=8, ir_version=3)
    parameters = [n.positive(6, 8, 8) for _ in range(4)]
    model = image(n, n.op("BatchNormalization", conv(n), *parameters, spatial=0, name="g"))
    reasons, _ = refused(model)
    assert reasons["g"] == "it normalises every position on its own (spatial = 0)"


def test_output_of_the_graph_is_frozen_and_says_so(net: Any) -> None:
    n = net()
    first = conv(n)
    model = image(n, conv(n, first, 6, 4, name="b"))
    reasons, widths = refused(model)
    assert widths == {"a": 6}
    assert reasons == {"b": f"graph output '{model.graph.output[0].name}'"}


def test_negative_flatten_axis_before_opset_11_is_refused(net: Any) -> None:
    n = net(opset=9)
    value = conv(n)
    n.nodes.append(helper.make_node("Flatten", [value], ["flat"], "g", axis=-3))
    graph = helper.make_graph(
        n.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, 384])],
        n.stored,
    )
    reasons, _ = refused(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8))
    assert "g" in reasons
