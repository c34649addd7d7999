"""Axes that are parted into grids: attention heads, channel shuffles, groups, windows; and grouped convolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare

TOKENS, WIDTH, HEADS, SIZE = 5, 8, 3, 4
INNER = HEADS * SIZE


def linear(n: Any, value: str, ins: int, outs: int, name: str) -> str:
    return str(n.op("Add", n.op("MatMul", value, n.weight(ins, outs), name=name), n.weight(outs)))


def conv(n: Any, value: str, ins: int, outs: int, name: str, group: int = 1, side: int = 3) -> str:
    weight = n.weight(outs, ins // group, side, side)
    return str(n.op("Conv", value, weight, n.weight(outs), pads=[side // 2] * 4, group=group, name=name))


def scaled(n: Any, value: str) -> str:
    return str(n.op("Mul", value, n.const(np.array(1 / math.sqrt(SIZE)), dtype=n.dtype)))


def tokens(n: Any, out: str) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": ["N", TOKENS, WIDTH]}, out)
    return model


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": ["N", 3, 8, 8]}, *outputs)
    return model


def head(n: Any, value: str, ins: int) -> str:
    pooled = n.op("Flatten", n.op("GlobalAveragePool", value))
    return str(n.op("Gemm", pooled, n.weight(ins, 5), n.weight(5), name="head"))


def analysed(model: onnx.ModelProto) -> spaces.Analysis:
    return spaces.analyse(prepare(ir.serde.deserialize_model(model)))


def attend(n: Any, query: str, key: str, value: str, mask: str | None = None) -> str:
    """Softmax(Q K^T) V with Q and V [N, H, T, D] and K [N, H, D, T]; the context joined again."""
    scores = n.op("MatMul", scaled(n, query), key, name="scores")
    if mask is not None:
        scores = n.op("Add", scores, mask)
    context = n.op("MatMul", n.op("Softmax", scores, axis=-1), value, name="context")
    joined = n.op("Reshape", n.op("Transpose", context, perm=[0, 2, 1, 3]), n.ints(0, 0, INNER))
    return linear(n, joined, INNER, WIDTH, "out")


def parted(n: Any, name: str, *target: int, perm: tuple[int, ...]) -> str:
    value = linear(n, "x", WIDTH, INNER, name)
    return str(n.op("Transpose", n.op("Reshape", value, n.ints(*target)), perm=list(perm)))


def separate(n: Any, mask: Callable[[Any], str] | None = None) -> Any:
    """As the dynamo exporter writes it; head size of Q and K is one space, that of V another, heads are all's."""
    query = parted(n, "q", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    key = parted(n, "k", 0, TOKENS, HEADS, -1, perm=(0, 2, 3, 1))
    value = parted(n, "v", -1, TOKENS, HEADS, SIZE, perm=(0, 2, 1, 3))
    out = attend(n, query, key, value, None if mask is None else mask(n))
    return tokens(n, out), [HEADS, SIZE, SIZE]


def key_transposed_twice(n: Any) -> Any:
    """As the TorchScript exporter writes it."""
    query = parted(n, "q", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    key = n.op("Transpose", parted(n, "k", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3)), perm=[0, 1, 3, 2])
    value = parted(n, "v", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    return tokens(n, attend(n, query, key, value)), [HEADS, SIZE, SIZE]


def causal(n: Any) -> Any:
    return separate(n, lambda n: n.const(np.triu(np.full((TOKENS, TOKENS), -1e4), 1), dtype=n.dtype))


def mask_per_head(n: Any) -> Any:
    """A stored bias of every head (a table of relative positions) is cut with the heads."""
    return separate(n, lambda n: n.weight(1, HEADS, TOKENS, TOKENS))


def table_of_relative_positions(n: Any) -> Any:
    """Swin: rows of a table by stored indices, one column per head."""

    def bias(n: Any) -> str:
        places = np.arange(TOKENS)[:, None] - np.arange(TOKENS) + TOKENS - 1
        rows = n.op("Gather", n.weight(2 * TOKENS - 1, HEADS), n.const(places.ravel()), name="table")
        grid = n.op("Transpose", n.op("Reshape", rows, n.ints(TOKENS, TOKENS, -1)), perm=[2, 0, 1])
        return str(n.op("Unsqueeze", grid, n.ints(0)))

    return separate(n, bias)


def fused(n: Any, how: str) -> Any:
    """One projection for Q, K and V, which share heads and head size."""
    value = linear(n, "x", WIDTH, 3 * INNER, "qkv")
    if how == "split":
        parts = n.op("Split", value, n.ints(*[INNER] * 3), axis=-1, outputs=3)
        parts = [n.op("Reshape", part, n.ints(0, 0, HEADS, SIZE)) for part in parts]
        query, key, value = (n.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    else:
        if how == "nested":
            value = n.op("Reshape", value, n.ints(0, 0, 3, INNER))
            value = n.op("Reshape", value, n.ints(0, 0, 3, HEADS, SIZE))
        else:
            value = n.op("Reshape", value, n.ints(0, TOKENS, 3, HEADS, SIZE))
        value = n.op("Transpose", value, perm=[2, 0, 3, 1, 4])
        if how == "parts":
            parts = n.op("Split", value, n.ints(1, 1, 1), axis=0, outputs=3)
            query, key, value = (n.op("Squeeze", part, n.ints(0)) for part in parts)
        else:
            query, key, value = (n.op("Gather", value, n.const(np.array(i)), axis=0) for i in range(3))
    out = attend(n, query, n.op("Transpose", key, perm=[0, 1, 3, 2]), value)
    return tokens(n, out), [HEADS, SIZE, SIZE] if how == "split" else [HEADS, SIZE]


def fused_and_picked(n: Any) -> Any:
    return fused(n, "gather")


def fused_and_parted_twice(n: Any) -> Any:
    return fused(n, "nested")


def fused_and_split(n: Any) -> Any:
    return fused(n, "split")


def heads_in_the_batch(n: Any) -> Any:
    """The multi-head attention of PyTorch: tokens first, heads laid beside the batch."""

    def part(name: str) -> str:
        value = linear(n, "x", WIDTH, INNER, name)
        return str(n.op("Transpose", n.op("Reshape", value, n.ints(TOKENS, 2 * HEADS, SIZE)), perm=[1, 0, 2]))

    query, key, value = part("q"), part("k"), part("v")
    scores = n.op("MatMul", scaled(n, query), n.op("Transpose", key, perm=[0, 2, 1]))
    context = n.op("MatMul", n.op("Softmax", scores, axis=-1), value)
    joined = n.op("Reshape", n.op("Transpose", context, perm=[1, 0, 2]), n.ints(TOKENS * 2, INNER))
    out = n.op("Gemm", joined, n.weight(INNER, WIDTH), n.weight(WIDTH), name="out")
    return n.model({"x": [TOKENS, 2, WIDTH]}, out), [HEADS, SIZE, SIZE]


def rotary(n: Any) -> Any:
    """Rotary positions: place i and place i + D/2 of every head are one."""

    def rotated(value: str) -> str:
        angles = np.arange(TOKENS)[:, None] / 10.0 ** (np.arange(SIZE) % (SIZE // 2))
        left, right = n.op("Split", value, n.ints(SIZE // 2, SIZE // 2), axis=-1, outputs=2)
        turned = n.op("Concat", n.op("Neg", right), left, axis=-1)
        straight = n.op("Mul", value, n.const(np.cos(angles), dtype=n.dtype))
        return str(n.op("Add", straight, n.op("Mul", turned, n.const(np.sin(angles), dtype=n.dtype))))

    query = rotated(parted(n, "q", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3)))
    key = rotated(parted(n, "k", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3)))
    value = parted(n, "v", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    out = attend(n, query, n.op("Transpose", key, perm=[0, 1, 3, 2]), value)
    return tokens(n, out), [SIZE // 2, HEADS, SIZE]


def heads_that_share_keys(n: Any) -> Any:
    """Grouped queries: two query heads read one head of keys and values, so both go with it."""
    groups, size, inner = 3, 4, 24
    query = linear(n, "x", WIDTH, inner, "q")
    query = n.op("Transpose", n.op("Reshape", query, n.ints(0, 0, 2 * groups, size)), perm=[0, 2, 1, 3])
    shared = []
    for name in ("k", "v"):
        value = n.op("Reshape", linear(n, "x", WIDTH, groups * size, name), n.ints(0, 0, groups, size))
        value = n.op("Unsqueeze", n.op("Transpose", value, perm=[0, 2, 1, 3]), n.ints(2))
        value = n.op("Expand", value, n.ints(1, 1, 2, 1, 1))
        shared.append(n.op("Reshape", value, n.ints(-1, 2 * groups, TOKENS, size)))
    scores = n.op("MatMul", query, n.op("Transpose", shared[0], perm=[0, 1, 3, 2]))
    context = n.op("MatMul", n.op("Softmax", scores, axis=-1), shared[1])
    joined = n.op("Reshape", n.op("Transpose", context, perm=[0, 2, 1, 3]), n.ints(0, 0, inner))
    return tokens(n, linear(n, joined, inner, WIDTH, "out")), [groups, size, size]


def norm_of_queries(n: Any) -> Any:
    """A norm over the head size freezes it for Q and K; heads and the head size of V may go."""
    query = parted(n, "q", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    query = n.op("LayerNormalization", query, n.positive(SIZE), axis=-1, name="norm")
    key = parted(n, "k", 0, 0, HEADS, SIZE, perm=(0, 2, 3, 1))
    value = parted(n, "v", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    return tokens(n, attend(n, query, key, value)), [HEADS, SIZE]


def windows(n: Any) -> Any:
    """Swin: positions are parted into windows and joined again; channels lie last all the way."""
    value = n.op("Transpose", conv(n, "x", 3, 6, "a"), perm=[0, 2, 3, 1])
    value = n.op("Reshape", value, n.ints(-1, 2, 4, 2, 4, 6))
    value = n.op("Reshape", n.op("Transpose", value, perm=[0, 1, 3, 2, 4, 5]), n.ints(-1, 16, 6))
    value = linear(n, n.op("Relu", linear(n, value, 6, 7, "up")), 7, 6, "down")
    value = n.op("Reshape", value, n.ints(-1, 2, 2, 4, 4, 6))
    value = n.op("Reshape", n.op("Transpose", value, perm=[0, 1, 3, 2, 4, 5]), n.ints(-1, 8, 8, 6))
    return image(n, head(n, n.op("Transpose", value, perm=[0, 3, 1, 2]), 6)), [6, 6, 7]


def shuffled(n: Any, value: str, groups: int, each: int) -> str:
    value = n.op("Reshape", value, n.ints(0, groups, each, 8, 8))
    return str(n.op("Reshape", n.op("Transpose", value, perm=[0, 2, 1, 3, 4]), n.ints(0, groups * each, 8, 8)))


def channel_shuffle(n: Any) -> Any:
    value = shuffled(n, conv(n, "x", 3, 10, "a"), 2, 5)
    return image(n, head(n, conv(n, value, 10, 4, "b"), 4)), [4, 5]


def channel_shuffle_of_joined(n: Any) -> Any:
    """ShuffleNet v2: two branches are joined and shuffled, so that channel i of either goes with the other's."""
    joined = n.op("Concat", conv(n, "x", 3, 5, "a"), conv(n, "x", 3, 5, "b"), axis=1)
    left, right = n.op("Split", shuffled(n, n.op("Relu", joined), 2, 5), n.ints(4, 6), axis=1, outputs=2)
    inner = conv(n, conv(n, right, 6, 6, "c", side=1), 6, 6, "d", group=6)
    return image(n, head(n, n.op("Concat", left, inner, axis=1), 10)), [2, 3, 6]


def shuffle_between_groups(n: Any) -> Any:
    """ShuffleNet v1: a shuffle after a grouped convolution, whose groups stay."""
    value = conv(n, conv(n, "x", 3, 8, "a"), 8, 12, "g", group=2)
    return image(n, head(n, conv(n, shuffled(n, value, 2, 6), 12, 4, "b"), 4)), [4, 4, 6]


def group_norm_in_parts(n: Any) -> Any:
    """Group normalisation as older opsets write it: groups are instances, so whole groups may go."""
    value = conv(n, "x", 3, 12, "a")
    value = n.op("Reshape", value, n.ints(0, 4, -1))
    value = n.op(
        "InstanceNormalization", value, n.const(np.ones(4), dtype=n.dtype), n.const(np.zeros(4), dtype=n.dtype)
    )
    value = n.op("Reshape", value, n.ints(0, 12, 8, 8))
    value = n.op("Add", n.op("Mul", value, n.positive(12, 1, 1)), n.weight(12, 1, 1))
    return image(n, head(n, conv(n, value, 12, 4, "b"), 4)), [4, 4]


def parted_and_joined(n: Any) -> Any:
    """A reshape there and another back leaves every channel its own where nothing lies between."""
    value = n.op("Reshape", conv(n, "x", 3, 12, "a"), n.ints(0, 3, 4, 64))
    value = n.op("Reshape", n.op("Relu", value), n.ints(0, 3, 2, 2, 64))
    value = n.op("Reshape", n.op("Neg", value), n.ints(0, 12, 8, 8))
    return image(n, conv(n, value, 12, 4, "b")), [2, 2, 3]


def transposed(n: Any, value: str, ins: int, outs: int, name: str, group: int = 1) -> str:
    weight = n.weight(ins, outs // group, 2, 2)
    return str(n.op("ConvTranspose", value, weight, n.weight(outs), strides=[2, 2], group=group, name=name))


def grouped(n: Any, ins: int, outs: int, groups: int, layer: Any = conv) -> onnx.ModelProto:
    value = n.op("Relu", n.norm(conv(n, "x", 3, ins, "a", side=1), ins))
    value = n.op("Relu", n.norm(layer(n, value, ins, outs, "g", group=groups), outs))
    return image(n, head(n, conv(n, value, outs, 4, "b", side=1), 4))


def gate(n: Any, value: str, channels: int, inner: int) -> str:
    """Squeeze and excitation."""
    pooled = n.op("ReduceMean", value, n.ints(2, 3), keepdims=1)
    small = n.op("Relu", conv(n, pooled, channels, inner, "squeeze", side=1))
    return str(n.op("Mul", n.op("HardSigmoid", conv(n, small, inner, channels, "excite", side=1)), value))


def regnet(n: Any) -> Any:
    """A RegNet-Y block: grouped convolution, gate and residual sum."""
    stem = conv(n, "x", 3, 6, "stem")
    value = n.op("Relu", conv(n, stem, 6, 12, "a", side=1))
    value = gate(n, n.op("Relu", conv(n, value, 12, 12, "g", group=3)), 12, 3)
    total = n.op("Relu", n.op("Add", stem, conv(n, value, 12, 6, "b", side=1)))
    return image(n, head(n, total, 6)), [3, 3, 4, 4, 6]


def inverted_bottleneck(n: Any) -> Any:
    """MobileNet v3: expansion, depthwise, gate, projection, residual."""
    stem = conv(n, "x", 3, 5, "stem")
    value = n.op("HardSwish", conv(n, stem, 5, 10, "a", side=1))
    value = gate(n, n.op("HardSwish", conv(n, value, 10, 10, "dw", group=10)), 10, 4)
    return image(n, head(n, n.op("Add", stem, conv(n, value, 10, 5, "b", side=1)), 5)), [4, 5, 10]


def gate_of_features(n: Any) -> Any:
    """The gate by fully connected layers on flattened means."""
    value = conv(n, "x", 3, 6, "a")
    flat = n.op("Flatten", n.op("GlobalAveragePool", value))
    small = n.op("Relu", n.op("Gemm", flat, n.weight(6, 3), n.weight(3), name="squeeze"))
    full = n.op("Sigmoid", n.op("Gemm", small, n.weight(3, 6), n.weight(6), name="excite"))
    gated = n.op("Mul", value, n.op("Reshape", full, n.ints(-1, 6, 1, 1)))
    return image(n, head(n, gated, 6)), [3, 6]


def resnext(n: Any) -> Any:
    """Whole groups go on both sides of the grouped convolution, and the same places of every group."""
    return grouped(n, 12, 12, 4), [3, 3, 4, 4]


def grouped_and_wider(n: Any) -> Any:
    return grouped(n, 8, 20, 2), [2, 4, 4, 10]


def grouped_to_one_output_each(n: Any) -> Any:
    """Groups and places of the inputs may go; an output goes with its group."""
    return grouped(n, 12, 3, 3), [3, 4, 4]


def grouped_transposed(n: Any) -> Any:
    return grouped(n, 12, 8, 4, transposed), [2, 3, 4, 4]


def grouped_transposed_to_one_output_each(n: Any) -> Any:
    return grouped(n, 12, 3, 3, transposed), [3, 4, 4]


def depthwise_transposed(n: Any) -> Any:
    return grouped(n, 6, 6, 6, transposed), [4, 6]


def depthwise_transposed_and_wider(n: Any) -> Any:
    """Every input channel makes two outputs, which go with it."""
    return grouped(n, 6, 12, 6, transposed), [4, 6]


def groups_of_the_input(n: Any) -> Any:
    """The graph's input stays, and so do the groups that read it; places of the outputs may go."""
    value = n.op("Relu", conv(n, "x", 3, 12, "g", group=3))
    return image(n, head(n, conv(n, value, 12, 4, "b"), 4)), [4, 4]


def groups_of_a_repeated_channel(n: Any) -> Any:
    """Blocks that repeat one channel each: a group goes with it."""
    value = n.op("Expand", n.op("Unsqueeze", conv(n, "x", 3, 4, "a"), n.ints(2)), n.ints(1, 1, 3, 1, 1))
    value = n.op("Reshape", value, n.ints(0, 12, 8, 8))
    return image(n, head(n, conv(n, value, 12, 8, "g", group=4), 8)), [2, 4]


def grouped_twice(n: Any) -> Any:
    """What two grouped convolutions share goes by the same groups."""
    value = conv(n, conv(n, "x", 3, 12, "a"), 12, 18, "g", group=3)
    return image(n, head(n, conv(n, n.op("Relu", value), 18, 6, "h", group=3), 6)), [2, 3, 4, 6]


def grouped_residual(n: Any) -> Any:
    """Outputs are added to inputs, so that places on both sides are one."""
    value = conv(n, "x", 3, 12, "a")
    return image(n, head(n, n.op("Add", value, conv(n, value, 12, 12, "g", group=3)), 12)), [3, 4]


def grouped_in_two_ways(n: Any) -> Any:
    """Where two grids part the same channels, whole groups stay and the same places go."""
    value = conv(n, "x", 3, 12, "a")
    pair = conv(n, value, 12, 8, "g", group=2), conv(n, value, 12, 8, "h", group=4)
    return image(n, head(n, n.op("Concat", *pair, axis=1), 16)), [2, 3, 4]


CASES: list[Callable[[Any], Any]] = [
    resnext, grouped_and_wider, grouped_to_one_output_each, grouped_transposed, grouped_transposed_to_one_output_each,
    depthwise_transposed, depthwise_transposed_and_wider, groups_of_the_input, groups_of_a_repeated_channel,
    grouped_twice, grouped_residual, grouped_in_two_ways, separate, key_transposed_twice, causal, mask_per_head,
    table_of_relative_positions, fused_and_picked, fused_and_parted_twice, fused_and_split, heads_in_the_batch,
    rotary, heads_that_share_keys, norm_of_queries, channel_shuffle, channel_shuffle_of_joined,
    shuffle_between_groups, group_norm_in_parts, parted_and_joined, windows, regnet, inverted_bottleneck,
    gate_of_features,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_cut_equals_the_masked_model(net: Any, cut_equals_masked: Any, build: Callable[[Any], Any], seed: int) -> None:
    model, widths = build(net())
    assert sorted(cut_equals_masked(model, seed=seed).values()) == sorted(widths)


def test_mask_from_the_caller_leaves_heads_free(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    query = parted(n, "q", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    key = parted(n, "k", 0, 0, HEADS, SIZE, perm=(0, 2, 3, 1))
    value = parted(n, "v", 0, 0, HEADS, SIZE, perm=(0, 2, 1, 3))
    out = attend(n, query, key, value, "m")
    model = n.model({"x": ["N", TOKENS, WIDTH], "m": ["N", 1, TOKENS, TOKENS]}, out)
    assert sorted(cut_equals_masked(model).values()) == [HEADS, SIZE, SIZE]


def test_half_precision_stays(net: Any, cut_equals_masked: Any) -> None:
    model, widths = fused_and_picked(net(dtype=np.float16))
    assert sorted(cut_equals_masked(model, tolerance=2e-2).values()) == widths


def test_a_head_goes_with_all_its_rows(net: Any) -> None:
    """Keeping heads 0 and 2 and places 1 and 3 of the values keeps exactly those rows, by name and by number."""
    model, _ = separate(net())
    work = prepare(ir.serde.deserialize_model(model))
    analysis = spaces.analyse(work)
    by_producers = {tuple(str(p.node.name) for p in space.producers): space for space in analysis.prunable}
    heads, places = by_producers["q", "k", "v"], by_producers["v",]
    weight = next(node for node in work.graph if node.name == "v").inputs[1]
    assert weight is not None and weight.const_value is not None
    wanted = weight.const_value.numpy()[:, [1, 3, 9, 11]]
    surgery.cut(analysis, {heads.name: [0, 2], places.name: [1, 3]})
    np.testing.assert_array_equal(weight.const_value.numpy(), wanted)
    result = ir.serde.serialize_model(finish(work))
    onnx.checker.check_model(result, full_check=True)


def test_one_channel_parted_in_two_ways_is_frozen(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    value = conv(n, "x", 3, 12, "a")
    first = n.op("Reshape", value, n.ints(0, 3, 4, 8, 8))
    second = n.op("Reshape", value, n.ints(0, 4, 3, 8, 8))
    ends = [n.op("ReduceMax", first, n.ints(1), keepdims=0, name="m")]
    ends.append(n.op("ReduceMax", second, n.ints(1), keepdims=0, name="k"))
    outs = [conv(n, end, ins, 2, name) for end, ins, name in zip(ends, (4, 3), ("b", "c"), strict=True)]
    model = image(n, *outs)
    reasons = set(analysed(model).refused.values())
    assert "two reshapes part the same channels differently" in reasons
    assert cut_equals_masked(model) == {}


def test_reduction_over_heads_leaves_their_size_free(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    value = n.op("Reshape", conv(n, "x", 3, 12, "a"), n.ints(0, 3, 4, 8, 8))
    mean = n.op("ReduceMean", value, n.ints(1), keepdims=0, name="m")
    model = image(n, conv(n, mean, 4, 2, "b"))
    assert analysed(model).refused["m"] == "ReduceMean over the channel axis mixes channels"
    assert list(cut_equals_masked(model).values()) == [4]


def test_reshape_across_axes_is_refused(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    model = image(n, n.op("Reshape", conv(n, "x", 3, 6, "a"), n.ints(-1, 4, 96), name="g"))
    reasons = analysed(model).refused
    assert reasons["a"] == "'g': its sizes cannot be inferred, or cross the axes that it parts"
    assert cut_equals_masked(model) == {}


def test_spaces_come_out_the_same_every_time(net: Any) -> None:
    for build in (separate, fused_and_parted_twice, channel_shuffle_of_joined):
        model, _ = build(net())
        first, second = analysed(model), analysed(model)
        assert [(s.name, s.width, s.frozen) for s in first.spaces] == [
            (s.name, s.width, s.frozen) for s in second.spaces
        ]
        for a, b in zip(first.spaces, second.spaces, strict=True):
            np.testing.assert_array_equal(a.channels, b.channels)
