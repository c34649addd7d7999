"""Null channels and branches leave the graph without a trace: golden case, every kind of joint, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune import recipe
from onnxprune.errors import OptionError
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept


def zeroed(model: onnx.ModelProto, name: str, axis: int, places: Sequence[int]) -> onnx.ModelProto:
    """Zero slices of a stored tensor, in place."""
    tensor = next(item for item in model.graph.initializer if item.name == name)
    data = numpy_helper.to_array(tensor).copy()
    np.moveaxis(data, axis, 0)[list(places)] = 0
    tensor.CopyFrom(numpy_helper.from_array(data, name))
    return model


def normed(build: Any, value: str, width: int) -> str:
    stored = [build.store(f"norm.{n}", build.rng.uniform(0.5, 1.5, width)) for n in "sbmv"]
    return str(build.node("BatchNormalization", value, *stored, name="norm"))


def chain(net: Any, pad: int, *, dtype: Any = np.float32) -> onnx.ModelProto:
    """Conv 3 -> 12, BatchNormalization, Relu, Conv: filters 2 and 5 of the first are null."""
    build = net(3, 10, 10, dtype=dtype)
    first = build.relu(normed(build, build.conv("x", 3, 12, name="one"), 12))
    proto = build.model(build.conv(first, 12, 5, name="two", pads=[pad] * 4))
    return zeroed(proto, "one.w", 0, [2, 5])


@pytest.fixture
def same(apply: Any, run_model: Any, images: Any) -> Callable[..., Any]:
    """Apply the pass, compare outputs with the given model's and a second application with the first."""

    def check(proto: onnx.ModelProto, text: str = "zero_groups", tolerance: float = 1e-5) -> Any:
        shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim[1:]]
        data = images(
            4, *shape, dtype=onnx.helper.tensor_dtype_to_np_dtype(proto.graph.input[0].type.tensor_type.elem_type)
        )
        result, step = apply(proto, text)
        want = run_model(proto, data)
        for optimise in (False, True):
            for name, got in run_model(result, data, optimise=optimise).items():
                scale = max(1.0, float(np.abs(want[name]).max()))
                np.testing.assert_allclose(got, want[name], rtol=0, atol=tolerance * scale)
        again, twice = apply(result, text)
        assert twice.result.numbers["channels_removed"] == twice.result.numbers["branches_dropped"] == 0
        assert ir.serde.serialize_model(again) == ir.serde.serialize_model(result)
        return result, step.result

    return check


def test_a_constant_goes_into_the_bias_behind_it(net: Any, same: Any) -> None:
    result, step = same(chain(net, 0))
    wanted = {"channels_removed": 2, "null_filters": 2, "null_columns": 0, "constants_moved": 2, "branches_dropped": 0}
    assert {name: step.numbers[name] for name in wanted} == wanted
    assert read_kept(result)["one"] == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert step.warnings == ()


def test_half_precision(net: Any, same: Any) -> None:
    result, step = same(chain(net, 0, dtype=np.float16), tolerance=1e-2)
    assert step.numbers["null_filters"] == 2
    assert result.graph.initializers["two.w"].const_value.numpy().dtype == np.float16


def test_a_padded_reader_keeps_the_channel_and_says_so(net: Any, same: Any) -> None:
    result, step = same(chain(net, 1))
    assert step.numbers["channels_removed"] == 0
    assert step.skipped["one"] == (
        "2 channels held a constant that the zero padding of 'two' cuts off at the border; border=accept removes them"
    )
    assert read_kept(result) == {}


def test_an_accepted_border_is_bounded(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    proto = chain(net, 1)
    result, step = apply(proto, "zero_groups(border=accept)")
    data, name = images(4, 3, 10, 10), proto.graph.output[0].name
    error = np.abs(run_model(result, data)[name] - run_model(proto, data)[name])
    inside = error[:, :, 1:-1, 1:-1].max()
    (row,) = step.result.numbers["border_errors"]
    assert inside < 1e-5 < 0.1 < error.max() <= row["bound"]
    assert row["node"] == "two"
    assert "border=accept changes outputs next to the border of 1 convolution, by at most" in step.result.warnings[0]


def test_zero_behind_relu_needs_no_bias(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    proto = build.model(build.head(build.relu(build.conv(build.relu(build.conv("x", 3, 6, name="one")), 6, 5)), 5))
    zeroed(proto, "one.w", 0, [0, 4])
    bias = next(item for item in proto.graph.initializer if item.name == "one.b")
    bias.CopyFrom(numpy_helper.from_array(-np.abs(numpy_helper.to_array(bias)), "one.b"))
    _, step = same(proto)
    assert (step.numbers["null_filters"], step.numbers["constants_moved"]) == (2, 0)


def test_null_columns_go_and_what_feeds_them_after_them(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    one = build.relu(build.conv("x", 3, 6, name="one"))
    two = build.relu(build.conv(one, 6, 7, name="two"))
    proto = build.model(build.head(two, 7))
    zeroed(proto, "head.w", 1, [1, 2, 6])
    # Only these filters of the second read channel 3 of the first: it goes in the next round.
    for place in (0, 3, 4, 5):
        tensor = next(item for item in proto.graph.initializer if item.name == "two.w")
        data = numpy_helper.to_array(tensor).copy()
        data[place, 3] = 0
        tensor.CopyFrom(numpy_helper.from_array(data, "two.w"))
    result, step = same(proto)
    assert read_kept(result) == {"one": [0, 1, 2, 4, 5], "two": [0, 3, 4, 5]}
    assert (step.numbers["null_columns"], step.numbers["rounds"]) == (4, 2)


@pytest.mark.parametrize("members", [("one",), ("one", "two")])
def test_a_stream_loses_what_is_null_in_all_its_members(members: tuple[str, ...], net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    stream = build.conv("x", 3, 6, name="one", kernel=1)
    total = build.node("Add", stream, build.conv(build.relu(stream), 6, 6, name="two"))
    proto = build.model(build.head(build.relu(total), 6))
    for name in members:
        for tensor in (f"{name}.w", f"{name}.b"):
            zeroed(proto, tensor, 0, [1, 4])
    _, step = same(proto)
    assert step.numbers["channels_removed"] == (2 if len(members) == 2 else 0)


def test_constants_of_two_members_are_added_up(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    total = build.node("Add", build.conv("x", 3, 6, name="one"), build.conv("x", 3, 6, name="two"))
    proto = build.model(build.head(build.node("Sigmoid", total), 6))
    for name in ("one.w", "two.w"):
        zeroed(proto, name, 0, [1, 4])
    _, step = same(proto)
    assert step.numbers["constants_moved"] == 2


@pytest.mark.parametrize("biased", [False, True])
def test_a_dead_branch_goes(biased: bool, net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    stream = build.relu(build.conv("x", 3, 6, name="one"))
    inner = build.relu(build.conv(stream, 6, 9, name="two"))
    total = build.node("Add", build.conv(inner, 9, 6, name="three"), stream, name="sum")
    proto = build.model(build.head(build.relu(total), 6))
    zeroed(proto, "three.w", 0, range(6))
    if not biased:
        zeroed(proto, "three.b", 0, range(6))
    result, step = same(proto)
    assert step.numbers["branches_dropped"] == 1
    names = [node.name for node in result.graph]
    assert "two" not in names and "three" not in names and ("sum" in names) is biased
    kept, untouched = same(proto, "zero_groups(drop_branch=false)")
    assert untouched.numbers["branches_dropped"] == 0
    # The block stays, with one channel inside.
    assert "three" in [node.name for node in kept.graph]
    assert measure(result).macs < measure(kept).macs < measure(ir.serde.deserialize_model(proto)).macs


def test_a_branch_in_front_of_an_output(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    proto = build.model(build.node("Add", build.conv("x", 3, 4, name="one"), build.conv("x", 3, 4, name="two")))
    zeroed(zeroed(proto, "two.w", 0, range(4)), "two.b", 0, range(4))
    result, step = same(proto)
    assert step.numbers["branches_dropped"] == 1
    assert [node.name for node in result.graph] == ["one", "add2"]


def test_depthwise_and_concat(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    one = build.relu(build.conv("x", 3, 6, name="one"))
    deep = build.depthwise(one, 6)
    joined = build.node("Concat", deep, build.conv("x", 3, 4, name="two"), axis=1)
    proto = build.model(build.head(build.relu(joined), 10))
    zeroed(zeroed(proto, "one.w", 0, [2]), "one.b", 0, [2])
    zeroed(proto, "depth.w", 0, [4])
    zeroed(proto, "two.w", 0, [1, 3])
    result, step = same(proto)
    assert read_kept(result) == {"one": [0, 1, 3, 5], "two": [0, 2]}
    assert step.numbers["channels_removed"] == 4


def test_gates_and_norms_silence_channels(net: Any, same: Any) -> None:
    build = net(3, 8, 8)
    value = normed(build, build.conv("x", 3, 6, name="one"), 6)
    proto = build.model(build.head(build.relu(value), 6))
    # A scale of zero leaves the shift, as network slimming does.
    zeroed(proto, "norm.s", 0, [0, 5])
    _, step = same(proto)
    assert step.numbers["constants_moved"] == 2
    build = net(3, 8, 8)
    stream = build.conv("x", 3, 6, name="one")
    gate = build.node("Sigmoid", build.conv(build.node("GlobalAveragePool", stream), 6, 6, name="gate", kernel=1))
    proto = build.model(build.head(build.node("Mul", stream, gate), 6))
    zeroed(zeroed(proto, "one.w", 0, [3]), "one.b", 0, [3])
    _, step = same(proto)
    assert step.numbers["null_filters"] == 1


def attention(net: Any) -> Any:
    """One block of attention with 4 heads of 5 channels on [batch, 6, 8]."""
    build = net(6, 8)
    heads = {}
    for name in "qkv":
        made = build.matmul("x", 8, 20, name=name)
        build.store(f"{name}.shape", np.array([0, 6, 4, 5]))
        heads[name] = build.node("Reshape", made, f"{name}.shape")
    q, k, v = (
        build.node("Transpose", heads[name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]) for name in "qkv"
    )
    scores = build.node("Softmax", build.node("MatMul", q, k, name="scores"), axis=-1)
    mixed = build.node("Transpose", build.node("MatMul", scores, v, name="mix"), perm=[0, 2, 1, 3])
    build.store("flat", np.array([0, 6, 20]))
    return build, build.model(build.matmul(build.node("Reshape", mixed, "flat"), 20, 3, name="out", last=True))


def test_attention_loses_heads_and_places(net: Any, same: Any) -> None:
    _, proto = attention(net)
    before = measure(ir.serde.deserialize_model(proto)).macs
    zeroed(proto, "out.w", 0, range(5, 10))  # the second head
    result, step = same(proto)
    assert step.numbers["channels_removed"] == 1
    assert measure(result).macs < before
    for name in ("q.w", "q.b"):
        zeroed(proto, name, -1, [2, 7, 12, 17])  # the third place of every head
    _, step = same(proto)
    assert step.numbers["channels_removed"] == 2


@pytest.mark.parametrize("place", [-1, 1])
def test_a_product_without_a_bias_gets_one(place: int, net: Any, same: Any) -> None:
    build = net(4, 8)
    build.store("w", build.rng.standard_normal((6, 3)))
    hidden = build.node("Sigmoid", build.matmul("x", 8, 6, name="one"))
    last = build.node("MatMul", hidden, "w", name="two")
    proto = build.model(last if place == -1 else build.relu(last))
    zeroed(proto, "one.w", 1, [1, 2])
    result, step = same(proto)
    assert step.numbers["constants_moved"] == 2
    assert "two/shift" in [node.name for node in result.graph]
    assert [out.name for out in result.graph.outputs] == [out.name for out in proto.graph.output]


def test_a_layer_keeps_one_channel(net: Any, same: Any) -> None:
    build = net(8)
    proto = build.model(build.gemm(build.relu(build.gemm("x", 8, 6, name="one")), 6, 3, name="two"))
    zeroed(proto, "one.w", 0, range(6))
    result, step = same(proto)
    assert read_kept(result) == {"one": [0]}
    assert step.numbers["layers"] == [{"space": "one", "width": 6, "kept": 1}]


def test_small_weights_count_as_zero_where_the_user_says_so(net: Any, apply: Any) -> None:
    proto = chain(net, 0)
    tensor = next(item for item in proto.graph.initializer if item.name == "one.w")
    data = numpy_helper.to_array(tensor).copy()
    data[7] = 1e-4
    tensor.CopyFrom(numpy_helper.from_array(data, "one.w"))
    assert apply(proto, "zero_groups")[1].result.numbers["null_filters"] == 2
    assert apply(proto, "zero_groups(tolerance=0.001)")[1].result.numbers["null_filters"] == 3


def test_only_and_ignore(net: Any, apply: Any) -> None:
    _, step = apply(chain(net, 0), "zero_groups(ignore=one)")
    assert step.result.numbers["channels_removed"] == 0
    assert step.result.skipped["one"] == "ignore= names it"


def test_masked_filters_of_another_pass_are_removed(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(3, 8, 8, twins=True)
    proto = build.model(build.head(build.relu(build.conv("x", 3, 8, name="one")), 8))
    result, step = apply(proto, "zero_groups")
    assert read_kept(result) == {"one": [0, 1, 2, 4, 5, 6, 7]}
    assert step.cost.params < measure(ir.serde.deserialize_model(proto)).params


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("zero_groups(border=drop)", "border=drop is not accepted; give keep or accept"),
        ("zero_groups(tolerance=-1)", "tolerance=-1.0 is not accepted"),
        ("zero_groups(only=re:\\()", "is not a regular expression"),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        recipe.parse(text.replace("\\(", "[") if "re:" in text else text)


def test_the_plan_says_what_would_go(net: Any) -> None:
    from onnxprune.api.planning import plan

    found = plan(chain(net, 0), "zero_groups")[0]
    assert found.notes == ("2 channels would go, outputs as they are",)
    assert [(row["width"], row["kept"]) for row in found.rows] == [(12, 10)]
    padded = plan(chain(net, 1), "zero_groups")[0]
    assert padded.notes == ("0 channels would go, outputs as they are",)
    assert "border=accept removes them" in padded.skipped["one"]
