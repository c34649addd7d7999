"""Concat, Split, Slice, Gather, Pad and Expand along the channel axis, and along others beside channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare

INT_MAX = 2**63 - 1
Build = Callable[[Any], tuple[onnx.ModelProto, dict[str, int]]]


def conv(n: Any, value: str, ins: int, outs: int, name: str, side: int = 3, **attributes: Any) -> str:
    pads = {"pads": [side // 2] * 4}
    return str(n.op("Conv", value, n.weight(outs, ins, side, side), n.weight(outs), name=name, **pads, **attributes))


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": ["N", 3, 8, 8]}, *outputs)
    return model


def head(n: Any, value: str, ins: int, name: str = "head") -> str:
    return str(
        n.op("Gemm", n.op("Flatten", n.op("GlobalAveragePool", value)), n.weight(ins, 5), n.weight(5), name=name)
    )


def analysed(model: onnx.ModelProto) -> spaces.Analysis:
    return spaces.analyse(prepare(ir.serde.deserialize_model(model)))


# Every case: a model, and the width of each prunable space by name.


def concat_of_two(n: Any) -> Any:
    a, b = conv(n, "x", 3, 6, "a"), conv(n, "x", 3, 5, "b", 1)
    joined = n.op("Concat", a, b, axis=1)
    return image(n, head(n, joined, 11)), {"a": 6, "b": 5}


def concat_by_a_negative_axis_and_normalised(n: Any) -> Any:
    a, b = conv(n, "x", 3, 6, "a"), conv(n, "x", 3, 5, "b", 1)
    joined = n.op("Relu", n.norm(n.op("Concat", a, b, axis=-3), 11))
    return image(n, head(n, conv(n, joined, 11, 7, "c"), 7)), {"a": 6, "b": 5, "c": 7}


def concat_with_the_input(n: Any) -> Any:
    """The input's channels stay; those beside them go."""
    joined = n.op("Concat", "x", conv(n, "x", 3, 6, "a"), axis=1)
    return image(n, head(n, joined, 9)), {"a": 6}


def concat_with_a_stored_part(n: Any) -> Any:
    pooled = n.op("GlobalMaxPool", conv(n, "x", 3, 6, "a"))
    joined = n.op("Concat", n.weight(1, 2, 1, 1), pooled, axis=1)
    return n.model({"x": [1, 3, 8, 8]}, n.op("Conv", joined, n.weight(4, 8, 1, 1), name="b")), {"a": 6}


def concat_of_the_same_twice(n: Any) -> Any:
    a = conv(n, "x", 3, 6, "a")
    joined = n.op("Concat", a, n.op("Neg", a), a, axis=1)
    return image(n, head(n, joined, 18)), {"a": 6}


def concat_read_by_several(n: Any) -> Any:
    """A dense block: every layer reads what all before it made, which others read on its own too."""
    a = conv(n, "x", 3, 6, "a")
    b = conv(n, a, 6, 4, "b")
    first = n.op("Concat", a, b, axis=1)
    c = conv(n, n.op("Relu", n.norm(first, 10)), 10, 4, "c")
    second = n.op("Concat", first, c, axis=1)
    last = n.op("Relu", n.norm(second, 14))
    return image(n, head(n, last, 14), head(n, b, 4, "other")), {"a": 6, "b": 4, "c": 4}


def concat_flattened(n: Any) -> Any:
    joined = n.op("Concat", conv(n, "x", 3, 4, "a"), conv(n, "x", 3, 3, "b"), axis=1)
    flat = n.op("Reshape", joined, n.ints(-1, 7 * 64))
    return image(n, n.op("Gemm", flat, n.weight(7 * 64, 5), name="c")), {"a": 4, "b": 3}


def concat_of_flattened(n: Any) -> Any:
    parts = [n.op("Flatten", conv(n, "x", 3, width, name)) for name, width in (("a", 4), ("b", 3))]
    return image(n, n.op("Gemm", n.op("Concat", *parts, axis=1), n.weight(7 * 64, 5), name="c")), {"a": 4, "b": 3}


def concat_along_positions(n: Any) -> Any:
    """Along another axis the channels of all parts are one."""
    joined = n.op("Concat", conv(n, "x", 3, 6, "a"), conv(n, "x", 3, 6, "b"), axis=2)
    return image(n, head(n, joined, 6)), {"a": 6}


def concat_of_a_stored_token(n: Any) -> Any:
    tokens = n.op("MatMul", "t", n.weight(4, 6), name="a")
    joined = n.op("Concat", n.weight(1, 1, 6), tokens, axis=1)
    return n.model({"t": [1, 5, 4]}, n.op("MatMul", joined, n.weight(6, 3), name="b")), {"a": 6}


def split_by(n: Any, how: str, sizes: tuple[int, ...] = (4, 4)) -> Any:
    value = conv(n, "x", 3, sum(sizes), "a")
    if how == "input":
        parts = n.op("Split", value, n.ints(*sizes), axis=1, outputs=len(sizes), name="s")
    elif how == "attribute":
        parts = n.op("Split", value, axis=1, split=list(sizes), outputs=len(sizes), name="s")
    elif how == "num_outputs":
        parts = n.op("Split", value, axis=1, num_outputs=len(sizes), outputs=len(sizes), name="s")
    else:
        parts = n.op("Split", value, axis=1, outputs=len(sizes), name="s")
    ends = [conv(n, part, size, 5, f"end{i}") for i, (part, size) in enumerate(zip(parts, sizes, strict=True))]
    widths = {"a" + (f"#{i + 1}" if i else ""): size for i, size in enumerate(sizes)}
    return image(n, head(n, n.op("Sum", *ends), 5)), {**widths, "end0": 5}


def split_and_gated(n: Any) -> Any:
    """A gated linear unit: the two halves are multiplied, so their channels are one."""
    left, right = n.op("Split", conv(n, "x", 3, 12, "a"), n.ints(6, 6), axis=1, outputs=2)
    gated = n.op("Mul", left, n.op("Sigmoid", right))
    return image(n, head(n, gated, 6)), {"a": 6}


def split_and_joined_in_reverse(n: Any) -> Any:
    left, right = n.op("Split", conv(n, "x", 3, 7, "a"), n.ints(3, 4), axis=-3, outputs=2)
    return image(n, conv(n, n.op("Concat", right, left, axis=1), 7, 2, "b")), {"a": 3, "a#2": 4}


def split_of_positions(n: Any) -> Any:
    upper, lower = n.op("Split", conv(n, "x", 3, 6, "a"), n.ints(3, 5), axis=2, outputs=2)
    return image(n, head(n, upper, 6), head(n, lower, 6, "other")), {"a": 6}


def slice_by_input(n: Any, *bounds: tuple[int, ...]) -> Any:
    value = conv(n, "x", 3, 8, "a")
    taken = n.op("Slice", value, *(n.ints(*b) for b in bounds), name="s")
    size = len(range(8)[slice(bounds[0][0], bounds[1][0])])
    return image(n, head(n, taken, size), head(n, value, 8, "all")), {"a": size, "a#2": 8 - size}


def slice_of_channels_and_positions(n: Any) -> Any:
    value = conv(n, "x", 3, 8, "a")
    taken = n.op("Slice", value, n.ints(1, 2), n.ints(INT_MAX, 6), n.ints(2, 1), n.ints(2, 1))
    rest = n.op("Slice", value, n.ints(0, 6), n.ints(8, 8), n.ints(0, 1))
    ends = head(n, taken, 4), head(n, rest, 2, "rest"), head(n, value, 8, "all")
    return n.model({"x": [2, 3, 8, 8]}, *ends), {"a": 2, "a#2": 4, "a#3": 2}


def slice_of_positions_that_names_channels(n: Any) -> Any:
    """Bounds that span the channel axis are clamped after a cut as they were before."""
    value = conv(n, "x", 3, 6, "a")
    lowest = -(2**63)
    taken = n.op("Slice", value, n.ints(0, lowest, 1), n.ints(INT_MAX, 6, 7), n.ints(0, 1, 3), n.ints(1, 1, 2))
    return image(n, head(n, taken, 6)), {"a": 6}


def slice_of_positions_backwards(n: Any) -> Any:
    taken = n.op("Slice", conv(n, "x", 3, 6, "a"), n.ints(-1), n.ints(-INT_MAX), n.ints(3), n.ints(-1))
    return image(n, head(n, conv(n, taken, 6, 4, "b"), 4)), {"a": 6, "b": 4}


def slices_that_overlap(n: Any) -> Any:
    value = conv(n, "x", 3, 9, "a")
    first = n.op("Slice", value, n.ints(0), n.ints(6), n.ints(1))
    second = n.op("Slice", value, n.ints(3), n.ints(9), n.ints(1))
    return image(n, head(n, n.op("Add", first, second), 6)), {"a": 3}


def every_other_channel(n: Any) -> Any:
    value = conv(n, "x", 3, 9, "a")
    taken = n.op("Slice", value, n.ints(0), n.ints(INT_MAX), n.ints(1), n.ints(2))
    return image(n, head(n, taken, 5), head(n, value, 9, "all")), {"a": 5, "a#2": 4}


def every_third_backwards(n: Any) -> Any:
    value = conv(n, "x", 3, 9, "a")
    taken = n.op("Slice", value, n.ints(-2), n.ints(-INT_MAX), n.ints(-3), n.ints(-3))
    return image(n, conv(n, taken, 3, 4, "b"), head(n, value, 9, "all")), {"a": 6, "a#2": 3}


def every_other_channel_and_position(n: Any) -> Any:
    value = conv(n, "x", 3, 12, "a")
    taken = n.op("Slice", value, n.ints(-1, 7, 1), n.ints(-99, -99, 11), n.ints(2, 3, 1), n.ints(-1, -2, 2))
    return image(n, head(n, taken, 5), head(n, value, 12, "all")), {"a": 7, "a#2": 5}


def channels_in_reverse(n: Any) -> Any:
    taken = n.op("Slice", conv(n, "x", 3, 6, "a"), n.ints(-1), n.ints(-99), n.ints(1), n.ints(-1))
    return image(n, conv(n, n.op("Relu", taken), 6, 4, "b")), {"a": 6}


def channels_and_their_reverse(n: Any) -> Any:
    value = conv(n, "x", 3, 7, "a")
    turned = n.op("Slice", value, n.ints(6), n.ints(-8), n.ints(1), n.ints(-1))
    return image(n, head(n, n.op("Add", value, turned), 7)), {"a": 3}


def even_and_odd_joined(n: Any) -> Any:
    """The pairs that rotary positions and old shuffles take apart."""
    value = conv(n, "x", 3, 8, "a")
    even = n.op("Slice", value, n.ints(0), n.ints(8), n.ints(1), n.ints(2))
    odd = n.op("Slice", value, n.ints(1), n.ints(8), n.ints(1), n.ints(2))
    return image(n, conv(n, n.op("Concat", odd, n.op("Neg", even), axis=1), 8, 4, "b")), {"a": 4, "a#2": 4}


def every_other_returned(n: Any) -> Any:
    """What the graph returns stays, and is picked from fewer channels."""
    value = conv(n, "x", 3, 9, "a")
    return image(n, n.op("Slice", value, n.ints(0), n.ints(9), n.ints(1), n.ints(2)), head(n, value, 9)), {"a#2": 4}


def gather_of_channels(n: Any) -> Any:
    value = conv(n, "x", 3, 8, "a")
    picked = n.op("Gather", value, n.ints(6, 0, -1, 3), axis=1)
    return image(n, head(n, picked, 4), head(n, value, 8, "all")), {"a": 4, "a#2": 4}


def gather_with_repeats(n: Any) -> Any:
    picked = n.op("Gather", conv(n, "x", 3, 6, "a"), n.ints(5, 4, 3, 2, 1, 0, 0, 1), axis=-3)
    return image(n, conv(n, picked, 8, 4, "b")), {"a": 2, "a#2": 4}


def gather_of_positions(n: Any) -> Any:
    value = n.op("Gather", conv(n, "x", 3, 6, "a"), n.const(np.array(3)), axis=2)
    value = n.op("Gather", value, n.const(np.array([[0, 5], [2, -1]])), axis=2)
    return image(n, n.op("Gemm", n.op("Flatten", value), n.weight(24, 5), name="b")), {"a": 6}


def gather_of_one_channel(n: Any) -> Any:
    """A channel picked by a scalar stays, with all that is on its axis; other axes keep theirs."""
    value = conv(n, "x", 3, 6, "a")
    mask = n.op("Sigmoid", n.op("Gather", value, n.const(np.array(2)), axis=1, name="s"))
    return image(n, n.op("GlobalMaxPool", conv(n, value, 6, 4, "b")), n.op("ReduceMax", mask)), {}


def embedding(n: Any) -> Any:
    """A table of embeddings makes channels, here joined with those of a projection."""
    rows = n.op("Gather", n.weight(10, 6), n.op("Cast", "ids", to=TensorProto.INT64), name="table")
    total = n.op("Add", rows, n.op("MatMul", "t", n.weight(4, 6), name="a"))
    model = n.model({"ids": [2, 5], "t": [2, 5, 4]}, n.op("MatMul", total, n.weight(6, 3), name="b"))
    return model, {"table": 6}


def embedding_tied_to_the_head(n: Any) -> Any:
    table = n.weight(10, 6)
    rows = n.op("Gather", table, n.op("Cast", "ids", to=TensorProto.INT64), name="table")
    hidden = n.op("Tanh", n.op("MatMul", rows, n.weight(6, 8), name="up"))
    total = n.op("Add", rows, n.op("MatMul", hidden, n.weight(8, 6), name="down"))
    flat = n.op("Reshape", total, n.ints(-1, 6))
    return n.model({"ids": [2, 5]}, n.op("Gemm", flat, table, transB=1, name="head")), {"table": 6, "up": 8}


def shortcut(n: Any, how: str, value: float | None = None) -> Any:
    """The parameter-free shortcut of the first residual nets: every other position, channels padded."""
    stem = n.op("Relu", conv(n, "x", 3, 4, "a"))
    body = conv(n, n.op("Relu", conv(n, stem, 4, 5, "b", strides=[2, 2])), 5, 8, "c")
    if how == "attribute":
        thin = n.op("MaxPool", stem, kernel_shape=[1, 1], strides=[2, 2])
        padded = n.op("Pad", thin, pads=[0, 2, 0, 0, 0, 2, 0, 0])
    else:
        bounds = (0, 0), (INT_MAX, INT_MAX), (2, 3), (2, 2)
        thin = n.op("Slice", stem, *(n.ints(*b) for b in bounds))
        fill = [] if value is None else [n.const(np.array(value, n.dtype))]
        pads = n.ints(0, 2, 0, 0, 0, 2, 0, 0) if how == "input" else n.ints(2, 0, 2, 0)
        axes = [] if how == "input" else [n.ints(1, -1)]
        padded = n.op("Pad", thin, pads, *(fill or ([""] if axes else [])), *axes)
    out = n.op("Relu", n.op("Add", padded, body))
    # Channels of the stem go with the middle ones of the body, the padded ones with the outer ones.
    return image(n, head(n, out, 8)), {"a": 4, "b": 5, "c": 4}


def pad_in_front_of_a_convolution(n: Any) -> Any:
    padded = n.op("Pad", conv(n, "x", 3, 6, "a"), n.ints(0, 0, 0, 0, 0, 3, 0, 0), n.const(np.float32(0.5)))
    return image(n, head(n, conv(n, padded, 9, 4, "b"), 4)), {"a": 6, "b": 4, "b:in": 3}


def pad_of_positions(n: Any) -> Any:
    padded = n.op("Pad", conv(n, "x", 3, 6, "a"), n.ints(0, 0, 1, 2, 0, 0, 3, 0), mode="reflect")
    return image(n, head(n, padded, 6)), {"a": 6}


def expand_of_positions(n: Any, *target: int) -> Any:
    pooled = n.op("GlobalMaxPool", conv(n, "x", 3, 6, "a"))
    grown = n.op("Expand", pooled, n.ints(*target))
    return n.model({"x": [2, 3, 8, 8]}, conv(n, grown, 6, 4, "b")), {"a": 6}


def expand_with_a_new_axis(n: Any) -> Any:
    pooled = n.op("Flatten", n.op("GlobalMaxPool", conv(n, "x", 3, 6, "a")))
    grown = n.op("Expand", n.op("Unsqueeze", pooled, n.ints(1)), n.ints(3, 2, 4, 6))
    return n.model({"x": [2, 3, 8, 8]}, n.op("MatMul", grown, n.weight(6, 3), name="b")), {"a": 6}


CASES: list[Build] = [
    concat_of_two, concat_by_a_negative_axis_and_normalised, concat_with_the_input, concat_with_a_stored_part,
    concat_of_the_same_twice, concat_read_by_several, concat_flattened, concat_of_flattened, concat_along_positions,
    concat_of_a_stored_token, split_and_gated, split_and_joined_in_reverse, split_of_positions,
    slice_of_channels_and_positions, slice_of_positions_that_names_channels, slice_of_positions_backwards,
    slices_that_overlap, every_other_channel, every_third_backwards, every_other_channel_and_position,
    channels_in_reverse, channels_and_their_reverse, even_and_odd_joined, every_other_returned, gather_of_channels,
    gather_with_repeats, gather_of_positions, gather_of_one_channel, embedding, embedding_tied_to_the_head,
    pad_in_front_of_a_convolution, pad_of_positions, expand_with_a_new_axis,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_cut_equals_the_masked_model(net: Any, cut_equals_masked: Any, build: Build, seed: int) -> None:
    model, widths = build(net())
    assert cut_equals_masked(model, seed=seed) == widths


@pytest.mark.parametrize(
    ("opset", "how", "sizes"),
    [
        (9, "attribute", (2, 5, 3)), (9, "none", (4, 4)), (12, "attribute", (4, 4)), (13, "input", (2, 5, 3)),
        (13, "none", (3, 3, 3)), (18, "input", (4, 4)), (18, "num_outputs", (4, 4, 2)), (23, "num_outputs", (3, 3)),
    ],
)  # fmt: skip
def test_split_in_every_form(net: Any, cut_equals_masked: Any, opset: int, how: str, sizes: tuple[int, ...]) -> None:
    for seed in range(3):
        model, widths = split_by(net(opset=opset, ir_version=11 if opset == 23 else 8), how, sizes)
        assert cut_equals_masked(model, seed=seed) == widths


def test_split_that_is_not_cut_stores_no_sizes(net: Any) -> None:
    for opset, how in ((9, "none"), (13, "none"), (18, "num_outputs")):
        model, _ = split_by(net(opset=opset), how)
        work = prepare(ir.serde.deserialize_model(model))
        surgery.cut(spaces.analyse(work), {})
        (node,) = [node for node in ir.serde.serialize_model(finish(work)).graph.node if node.op_type == "Split"]
        assert node == next(node for node in model.graph.node if node.op_type == "Split")


@pytest.mark.parametrize(
    "bounds",
    [
        [(2,), (6,), (1,)], [(0,), (3,), (1,)], [(5,), (INT_MAX,), (1,)], [(-3,), (INT_MAX,), (-3,), (1,)],
        [(-7,), (-2,), (1,), (1,)], [(2, 0), (6, 8), (1, 2)], [(3, -INT_MAX), (2**31 - 1, 100), (1, 3), (1, 1)],
    ],
)  # fmt: skip
def test_slice_by_stored_bounds(net: Any, cut_equals_masked: Any, bounds: list[tuple[int, ...]]) -> None:
    for seed in range(2):
        model, widths = slice_by_input(net(), *bounds)
        assert sorted(cut_equals_masked(model, seed=seed).values()) == sorted(widths.values())


def cut_slice(net: Any, build: Build, kept: Mapping[str, Sequence[int]]) -> list[onnx.NodeProto]:
    model, _ = build(net())
    work = prepare(ir.serde.deserialize_model(model))
    surgery.cut(spaces.analyse(work), kept)
    nodes = ir.serde.serialize_model(finish(work)).graph.node
    return [node for node in nodes if node.op_type in ("Slice", "Gather")]


def test_a_stepped_slice_stays_one_where_it_can(net: Any) -> None:
    (node,) = cut_slice(net, every_other_channel, {"a": [0, 1, 4]})  # 0 2 8 of the even ones stay: places 0 2 6
    assert node.op_type == "Gather"
    (node,) = cut_slice(net, every_other_channel, {"a": [1, 2, 4], "a#2": [1, 3]})  # 2 3 4 7 8: places 0 2 4
    assert node.op_type == "Slice"
    first, second = cut_slice(net, every_other_channel_and_position, {"a#2": [0, 1, 3]})
    assert (first.op_type, second.op_type) == ("Gather", "Slice")


@pytest.mark.parametrize(("start", "end"), [(0, 3), (-3, 2**31 - 1), (2, -1)])
def test_slice_by_attributes(net: Any, cut_equals_masked: Any, start: int, end: int) -> None:
    n = net(opset=9, ir_version=8)
    value = conv(n, "x", 3, 8, "a")
    taken = n.op("Slice", value, starts=[start, 1], ends=[end, 7], axes=[1, 3])
    size = len(range(8)[start:end])
    model = image(n, head(n, taken, size), head(n, value, 8, "all"))
    widths = sorted(cut_equals_masked(model).values())
    assert widths == sorted([size, 8 - size])


@pytest.mark.parametrize("how", ["input", "axes", "attribute"])
@pytest.mark.parametrize("fill", [None, 0.25])
def test_shortcut_of_padded_channels(net: Any, cut_equals_masked: Any, how: str, fill: float | None) -> None:
    n_opset = 9 if how == "attribute" else 18
    for seed in range(3):
        model, _ = shortcut(net(opset=n_opset, ir_version=8), how, fill)
        widths = cut_equals_masked(model, seed=seed)
        # Four channels of the stem go with the middle four of the body, the padded ones with its outer four.
        assert widths == {"a": 4, "b": 5, "c": 4}


@pytest.mark.parametrize("target", [(1, 1, 8, 8), (2, 6, 8, 8), (6, 8, 8), (1, 8, 1), (8,)])
def test_expand(net: Any, cut_equals_masked: Any, target: tuple[int, ...]) -> None:
    model, widths = expand_of_positions(net(), *target)
    assert cut_equals_masked(model) == widths


def test_tied_tables_are_one_again_after_the_cut(net: Any) -> None:
    model, _ = embedding_tied_to_the_head(net())
    work = prepare(ir.serde.deserialize_model(model))
    surgery.cut(spaces.analyse(work), {"table": [0, 2, 5]})
    result = ir.serde.serialize_model(finish(work))
    assert sorted(tuple(t.dims) for t in result.graph.initializer if len(t.dims) == 2) == [(3, 8), (8, 3), (10, 3)]


def computed_bounds(n: Any) -> str:
    end = n.op("Cast", n.op("Add", n.op("ReduceMax", "x", keepdims=0), n.const(9.0, dtype=np.float32)), to=7)
    end = n.op("Reshape", end, n.ints(1))
    taken = n.op("Slice", conv(n, "x", 3, 6, "a"), n.ints(0), end, n.ints(1))
    return str(n.op("Reshape", taken, n.ints(0, -1)))


def pad_by_reflection(n: Any) -> str:
    return str(n.op("Pad", conv(n, "x", 3, 6, "a"), n.ints(0, 1, 0, 0, 0, 1, 0, 0), mode="reflect", name="g"))


def pad_by_edges(n: Any) -> str:
    return str(n.op("Pad", conv(n, "x", 3, 6, "a"), n.ints(0, 1), "", n.ints(1), mode="edge", name="g"))


def cropped(n: Any) -> str:
    return str(n.op("Pad", conv(n, "x", 3, 6, "a"), n.ints(0, -1, 0, 0, 0, -1, 0, 0), name="g"))


def picked_by_a_scalar(n: Any) -> str:
    return str(n.op("Gather", conv(n, "x", 3, 6, "a"), n.const(np.array(1)), axis=1, name="g"))


def picked_by_a_grid(n: Any) -> str:
    return str(n.op("Gather", conv(n, "x", 3, 6, "a"), n.const(np.array([[0, 1], [2, 3]])), axis=1, name="g"))


def picked_by_computed(n: Any) -> str:
    index = n.op("Cast", n.op("ReduceMax", n.op("Sign", "x"), keepdims=0), to=TensorProto.INT64)
    return str(n.op("Gather", conv(n, "x", 3, 6, "a"), n.op("Reshape", index, n.ints(1)), axis=1, name="g"))


def joined_along_positions(n: Any) -> str:
    return str(n.op("Concat", conv(n, "x", 3, 3, "a"), "x", axis=2, name="g"))


def repeated(n: Any) -> str:
    return str(n.op("Expand", conv(n, "x", 3, 1, "a"), n.ints(1, 4, 1, 1), name="g"))


REFUSED = {
    pad_by_reflection: "it pads the channel axis with other channels, or crops it",
    pad_by_edges: "it pads the channel axis with other channels, or crops it",
    cropped: "it pads the channel axis with other channels, or crops it",
    picked_by_a_scalar: "it picks channels by indices that are not a stored list of its own",
    picked_by_a_grid: "it picks channels by indices that are not a stored list of its own",
    picked_by_computed: "it picks channels by indices that are not a stored list of its own",
    joined_along_positions: "it joins them with 'x', whose channels cannot be cut",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_refusals(net: Any, cut_equals_masked: Any, build: Callable[[Any], str]) -> None:
    n = net()
    model = image(n, n.op("Relu", build(n)))
    reasons = analysed(model).refused
    assert reasons["g"] == REFUSED[build]
    assert reasons["a"] == f"'g': {REFUSED[build]}"
    assert "a" not in cut_equals_masked(model)


def test_a_single_channel_that_is_repeated_stays(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    model = image(n, head(n, repeated(n), 4))
    assert analysed(model).refused["a"] == "'g' repeats a single channel"
    assert cut_equals_masked(model) == {}


def test_what_the_graph_returns_beside_a_joined_part_stays(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    joined = n.op("Concat", conv(n, "x", 3, 4, "a"), conv(n, "x", 3, 5, "b"), axis=1)
    model = image(n, joined, head(n, joined, 9))
    reasons = analysed(model).refused
    assert [reasons["a"], reasons["b"]] == [f"graph output '{joined}'"] * 2
    assert cut_equals_masked(model) == {}


def test_input_beside_a_joined_part_is_named(net: Any) -> None:
    model, _ = concat_with_the_input(net())
    assert any(r.endswith("joins 'x', whose channels cannot be cut") for r in analysed(model).refused.values())


def test_sizes_that_the_caller_may_feed_are_not_rewritten(net: Any) -> None:
    """A list of sizes with a default that the caller may replace is none of the model's own."""
    n = net()
    value = conv(n, "x", 3, 6, "a")
    parts = n.op("Split", value, n.const(np.array([2, 4]), name="fed"), axis=1, outputs=2, name="g")
    model = image(n, conv(n, parts[0], 2, 3, "b"), conv(n, parts[1], 4, 3, "c"))
    model.graph.input.append(helper.make_tensor_value_info("fed", TensorProto.INT64, [2]))
    reasons = analysed(model).refused
    assert "g" in reasons and reasons["a"] == f"'g': {reasons['g']}"


@pytest.mark.parametrize("build", [concat_of_two, split_and_gated, gather_of_channels], ids=lambda b: b.__name__)
def test_half_precision_stays(net: Any, cut_equals_masked: Any, build: Build) -> None:
    n = net(dtype=np.float16)
    model, widths = build(n)
    assert cut_equals_masked(model, tolerance=2e-2) == widths
