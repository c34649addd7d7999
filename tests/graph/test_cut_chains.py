"""A cut graph equals the dense one whose consumers multiply the dropped channels by zero, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

Image = ["N", 3, 8, 8]


def conv(n: Any, value: str, ins: int, outs: int, *, kernel: tuple[int, ...] = (3, 3), **attributes: Any) -> str:
    pads = [k // 2 for k in kernel] * 2
    name = attributes.pop("name", None)
    bias = [n.weight(outs)] if attributes.pop("bias", True) else []
    return str(n.op("Conv", value, n.weight(outs, ins, *kernel), *bias, name=name, pads=pads, **attributes))


def classify(n: Any, value: str, ins: int) -> str:
    """End in a global pool and a matrix product, whose classes are the graph's output."""
    pooled = n.op("Flatten", n.op("GlobalAveragePool", value))
    return str(n.op("Gemm", pooled, n.weight(5, ins), n.weight(5), transB=1, name="head"))


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    return n.model({"x": Image}, *outputs)


def two_convs(n: Any) -> Any:
    return image(n, classify(n, n.op("Relu", conv(n, conv(n, "x", 3, 6, name="a"), 6, 8, name="b")), 8)), {
        "a": 6,
        "b": 8,
    }


def conv_without_bias(n: Any) -> Any:
    return image(n, classify(n, conv(n, conv(n, "x", 3, 6, name="a", bias=False), 6, 8, name="b"), 8)), {"a": 6, "b": 8}


def conv_1d(n: Any) -> Any:
    out = conv(n, conv(n, "x", 3, 6, kernel=(3,), name="a"), 6, 4, kernel=(5,), name="b")
    return n.model({"x": ["N", 3, 16]}, classify(n, out, 4)), {"a": 6, "b": 4}


def conv_3d(n: Any) -> Any:
    out = conv(n, conv(n, "x", 3, 6, kernel=(3, 3, 3), name="a"), 6, 4, kernel=(1, 1, 1), name="b")
    return n.model({"x": ["N", 3, 4, 4, 4]}, classify(n, out, 4)), {"a": 6, "b": 4}


def transposed(n: Any) -> Any:
    a = conv(n, "x", 3, 6, name="a")
    up = n.op("ConvTranspose", a, n.weight(6, 5, 2, 2), n.weight(5), strides=[2, 2], name="up")
    return image(n, classify(n, up, 5)), {"a": 6, "up": 5}


def depthwise(n: Any, multiplier: int = 1) -> Any:
    a = conv(n, "x", 3, 6, name="a")
    d = n.op("Conv", a, n.weight(6 * multiplier, 1, 3, 3), n.weight(6 * multiplier), group=6, name="d")
    return image(n, classify(n, n.op("Relu", d), 6 * multiplier)), {"a": 6}


def depthwise_twice(n: Any) -> Any:
    return depthwise(n, 2)


def depthwise_flatten(n: Any) -> Any:
    a = conv(n, "x", 3, 4, name="a")
    d = n.op("Conv", a, n.weight(8, 1, 3, 3), group=4, name="d")
    return image(n, n.op("Gemm", n.op("Flatten", d), n.weight(8 * 36, 5), n.weight(5))), {"a": 4}


def dilated(n: Any) -> Any:
    a = n.op("Conv", "x", n.weight(6, 3, 3, 3), dilations=[2, 2], strides=[2, 1], name="a")
    b = n.op("Conv", a, n.weight(4, 6, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER", name="b")
    return image(n, classify(n, b, 4)), {"a": 6, "b": 4}


def activations(n: Any) -> Any:
    value = conv(n, "x", 3, 6, name="a")
    for kind in ("LeakyRelu", "Elu", "Sigmoid", "HardSwish", "Softplus", "Selu", "Erf", "Abs", "Identity"):
        value = n.op(kind, value)
    value = n.op("Clip", value, n.const(np.float32(-1)), n.const(np.float32(6)))
    value = n.op("PRelu", value, n.weight(6, 1, 1))
    return image(n, classify(n, n.op("Dropout", n.op("PRelu", value, n.weight(1, 1, 1))), 6)), {"a": 6}


def pools(n: Any) -> Any:
    value = n.op("MaxPool", conv(n, "x", 3, 6, name="a"), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    value = n.op("AveragePool", value, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    value = n.op("LpPool", value, kernel_shape=[2, 2], p=2)
    return image(n, classify(n, n.op("GlobalMaxPool", value), 6)), {"a": 6}


def norms(n: Any) -> Any:
    value = n.norm(conv(n, "x", 3, 6, name="a"), 6, epsilon=1e-3)
    return image(n, classify(n, n.norm(n.op("Relu", value), 6), 6)), {"a": 6}


def norm_of_matrix(n: Any) -> Any:
    value = n.norm(n.op("Gemm", "x", n.weight(4, 6), n.weight(6), name="a"), 6)
    return n.model({"x": ["N", 4]}, n.op("Gemm", value, n.weight(6, 5), n.weight(5))), {"a": 6}


def channel_constants(n: Any) -> Any:
    value = n.op("Mul", conv(n, "x", 3, 6, name="a"), n.positive(1, 6, 1, 1))
    value = n.op("Add", n.weight(6, 1, 1), value)
    value = n.op("Sub", value, n.weight(6, 8, 8))
    value = n.op("Div", value, n.positive(1))
    value = n.op("Where", n.op("Greater", value, n.const(np.float32(0))), value, n.weight(1, 6, 1, 8))
    return image(n, classify(n, n.op("Max", value, n.weight(6, 1, 1), n.weight(1)), 6)), {"a": 6}


def width_one_everywhere(n: Any) -> Any:
    value = n.op("Mul", conv(n, "x", 3, 2, name="a"), n.positive(2, 1, 1))
    value = conv(n, n.op("Relu", value), 2, 2, name="b")
    return image(n, n.op("Gemm", n.op("Flatten", value), n.weight(5, 128), n.weight(5), transB=1)), {"a": 2, "b": 2}


def residual(n: Any) -> Any:
    stem = conv(n, "x", 3, 6, name="stem")
    inner = conv(n, n.op("Relu", stem), 6, 4, name="inner")
    value = n.op("Add", stem, conv(n, inner, 4, 6, name="outer"))
    value = n.op("Add", conv(n, value, 6, 6, name="again"), n.op("Relu", value))
    return image(n, classify(n, value, 6)), {"stem": 6, "inner": 4}


def squeeze_and_excite(n: Any) -> Any:
    a = conv(n, "x", 3, 6, name="a")
    gate = conv(n, n.op("GlobalAveragePool", a), 6, 3, kernel=(1, 1), name="down")
    gate = n.op("Sigmoid", conv(n, gate, 3, 6, kernel=(1, 1), name="up"))
    return image(n, classify(n, n.op("Mul", a, gate), 6)), {"a": 6, "down": 3}


def several_consumers(n: Any) -> Any:
    a = conv(n, "x", 3, 6, name="a")
    first, second = conv(n, a, 6, 4, name="b"), conv(n, n.op("Relu", a), 6, 5, name="c")
    return image(n, classify(n, first, 4), n.op("Flatten", n.op("GlobalMaxPool", second))), {"a": 6, "b": 4}


def shared_weights(n: Any) -> Any:
    weight, bias = n.weight(6, 6, 3, 3), n.weight(6)
    value = conv(n, "x", 3, 6, name="a")
    for name in ("b", "c"):
        value = n.op("Relu", n.op("Conv", value, weight, bias, pads=[1, 1, 1, 1], name=name))
    return image(n, classify(n, value, 6)), {"a": 6, "b": 6, "c": 6}


def nhwc(n: Any) -> Any:
    x = n.op("Transpose", "x", perm=[0, 3, 1, 2])
    value = n.op("Transpose", conv(n, x, 3, 6, name="a"), perm=[0, 2, 3, 1])
    value = n.op("Mul", n.op("Add", value, n.weight(6)), n.positive(1, 1, 1, 6))
    flat = n.op("Reshape", value, n.ints(-1, 6 * 64))
    return n.model({"x": ["N", 8, 8, 3]}, n.op("MatMul", flat, n.weight(384, 5))), {"a": 6}


def transpose_default(n: Any) -> Any:
    value = n.op("Transpose", n.op("Transpose", conv(n, "x", 3, 6, name="a")))
    return image(n, classify(n, value, 6)), {"a": 6}


def nhwc_matmul(n: Any) -> Any:
    value = n.op("Transpose", conv(n, "x", 3, 6, name="a"), perm=[0, 2, 3, 1])
    value = n.op("Relu", n.op("Add", n.op("MatMul", value, n.weight(6, 4), name="m"), n.weight(4)))
    return image(n, n.op("MatMul", value, n.weight(4, 5))), {"a": 6, "m": 4}


def padded(n: Any) -> Any:
    value = n.op("Pad", conv(n, "x", 3, 6, name="a"), n.ints(0, 0, 1, 1, 0, 0, 1, 1))
    value = n.op("Pad", value, n.ints(-1, 2), "", n.ints(3), mode="constant")
    return image(n, classify(n, n.op("Pad", value, n.ints(0, 0, 2, 0, 0, 0, 0, 2), mode="reflect"), 6)), {"a": 6}


def resized_by_scales(n: Any) -> Any:
    scales = n.const(np.array([1, 1, 2, 2], np.float32))
    value = n.op("Resize", conv(n, "x", 3, 6, name="a"), "", scales, mode="linear")
    return image(n, classify(n, value, 6)), {"a": 6}


def resized_by_sizes(n: Any) -> Any:
    value = n.op("Resize", conv(n, "x", 3, 6, name="a"), "", "", n.ints(2, 6, 16, 4), mode="nearest")
    out = n.op("Reshape", n.op("GlobalAveragePool", value), n.ints(2, 6))
    return n.model({"x": [2, 3, 8, 8]}, n.op("Gemm", out, n.weight(6, 5), n.weight(5))), {"a": 6}


def resized_along_axes(n: Any) -> Any:
    value = n.op("Resize", conv(n, "x", 3, 6, name="a"), "", "", n.ints(4, 6), axes=[2, 1], mode="nearest")
    return image(n, classify(n, value, 6)), {"a": 6}


def reduced(n: Any, keepdims: int, *, listed: bool) -> Any:
    value = conv(n, "x", 3, 6, name="a")
    axes = [n.ints(2, -1)] if listed else []
    chosen = {} if listed else {"axes": [2, -1]}
    value = n.op("ReduceMean", value, *axes, keepdims=keepdims, **chosen)
    flat = n.op("Flatten", value) if keepdims else value
    return image(n, n.op("Gemm", flat, n.weight(5, 6), n.weight(5), transB=1)), {"a": 6}


def reduce_keep(n: Any) -> Any:
    return reduced(n, 1, listed=True)


def reduce_drop(n: Any) -> Any:
    return reduced(n, 0, listed=True)


def reduce_nothing(n: Any) -> Any:
    value = n.op("ReduceSum", conv(n, "x", 3, 6, name="a"), n.const(np.zeros(0, np.int64)), noop_with_empty_axes=1)
    return image(n, classify(n, value, 6)), {"a": 6}


def sizes_of_any_number(n: Any) -> Any:
    """Height, width and batch are symbols."""
    value = n.norm(conv(n, "x", 3, 6, name="a"), 6)
    return n.model({"x": ["N", 3, "H", "W"]}, classify(n, conv(n, n.op("Relu", value), 6, 4, name="b"), 4)), {
        "a": 6,
        "b": 4,
    }


def one_symbol_twice(n: Any) -> Any:
    value = n.op("Transpose", conv(n, "x", 3, 6, name="a"), perm=[0, 1, 3, 2])
    return n.model({"x": ["S", 3, "S", "S"]}, classify(n, value, 6)), {"a": 6}


def flattened(n: Any, how: Callable[[Any, str], str]) -> Any:
    value = n.op("MaxPool", conv(n, "x", 3, 6, name="a"), kernel_shape=[4, 4], strides=[4, 4])
    value = n.op("Relu", n.op("Gemm", how(n, value), n.weight(7, 24), n.weight(7), transB=1, name="fc"))
    return image(n, n.op("Gemm", value, n.weight(5, 7), n.weight(5), transB=1)), {"a": 6, "fc": 7}


def flatten_plain(n: Any) -> Any:
    return flattened(n, lambda n, v: n.op("Flatten", v))


def flatten_negative(n: Any) -> Any:
    return flattened(n, lambda n, v: n.op("Flatten", v, axis=-3))


def reshape_literal(n: Any) -> Any:
    return flattened(n, lambda n, v: n.op("Reshape", v, n.ints(-1, 24)))


def reshape_copy_and_rest(n: Any) -> Any:
    return flattened(n, lambda n, v: n.op("Reshape", v, n.ints(0, -1)))


def reshape_in_steps(n: Any) -> Any:
    def how(n: Any, v: str) -> str:
        v = n.op("Reshape", v, n.ints(0, 6, -1))
        v = n.op("Reshape", v, n.ints(0, 0, 2, 2))
        return str(n.op("Reshape", n.op("Transpose", v, perm=[0, 2, 3, 1]), n.ints(-1, 24)))

    return flattened(n, how)


def squeezed(n: Any) -> Any:
    value = n.op("GlobalAveragePool", conv(n, "x", 3, 6, name="a"))
    value = n.op("Unsqueeze", n.op("Squeeze", value, n.ints(2, -1)), n.ints(1, -1))
    value = n.op("Squeeze", n.op("Reshape", value, n.ints(0, 6, 1)), n.ints(2))
    return image(n, n.op("Gemm", value, n.weight(6, 5), n.weight(5))), {"a": 6}


def gemm_with(bias: tuple[int, ...] | None, **attributes: Any) -> Callable[[Any], Any]:
    def build(n: Any) -> Any:
        shape = (6, 4) if attributes.get("transB") else (4, 6)
        stored = [] if bias is None else [n.weight(*bias)]
        value = n.op("Gemm", "x", n.weight(*shape), *stored, name="a", **attributes)
        return n.model({"x": [3, 4]}, n.op("Gemm", n.op("Relu", value), n.weight(6, 5), n.weight(5))), {"a": 6}

    return build


def gemm_scaled(n: Any) -> Any:
    value = n.op("Gemm", "x", n.weight(3, 6), n.weight(6), name="a")
    return n.model({"x": ["N", 3]}, n.op("Gemm", value, n.weight(5, 6), n.weight(5), alpha=2.0, transB=1)), {"a": 6}


def matmul_right(n: Any) -> Any:
    value = n.op("Add", n.weight(6), n.op("MatMul", "x", n.weight(4, 6), name="a"))
    return n.model({"x": ["N", 7, 4]}, n.op("MatMul", n.op("Relu", value), n.weight(6, 5))), {"a": 6}


def matmul_left(n: Any) -> Any:
    value = n.op("Add", n.op("MatMul", n.weight(6, 4), "x", name="a"), n.weight(6, 1))
    return n.model({"x": ["N", 4, 7]}, n.op("MatMul", n.weight(5, 6), n.op("Relu", value))), {"a": 6}


def matmul_both_sides(n: Any) -> Any:
    value = n.op("MatMul", "x", n.weight(4, 6), name="columns")
    value = n.op("MatMul", n.weight(8, 7), value, name="rows")
    value = n.op("MatMul", n.op("Relu", value), n.weight(6, 3))
    return n.model({"x": ["N", 7, 4]}, n.op("MatMul", n.weight(2, 8), value)), {"columns": 6, "rows": 8}


def softmax_elsewhere(n: Any) -> Any:
    value = n.op("Softmax", conv(n, "x", 3, 6, name="a"), axis=-1)
    return image(n, classify(n, n.op("LogSoftmax", value, axis=2), 6)), {"a": 6}


def cast_and_back(n: Any) -> Any:
    value = n.op("Cast", conv(n, "x", 3, 6, name="a"), to=onnx.TensorProto.DOUBLE)
    return image(n, classify(n, n.op("Cast", value, to=onnx.TensorProto.FLOAT), 6)), {"a": 6}


def constant_nodes(n: Any) -> Any:
    weight = onnx.numpy_helper.from_array(n.rng.standard_normal((6, 3, 3, 3)).astype(np.float32))
    a = n.op("Conv", "x", n.op("Constant", value=weight), n.op("Constant", value_floats=[0.1] * 6), name="a")
    flat = n.op("Reshape", n.op("GlobalMaxPool", a), n.op("Constant", value_ints=[-1, 6]))
    return image(n, n.op("Gemm", flat, n.weight(6, 5), n.weight(5))), {"a": 6}


BUILDERS = [
    two_convs, conv_without_bias, conv_1d, conv_3d, transposed, depthwise, depthwise_twice, depthwise_flatten,
    dilated, activations, pools, norms, norm_of_matrix, channel_constants, width_one_everywhere, residual,
    squeeze_and_excite, several_consumers, shared_weights, nhwc, transpose_default, nhwc_matmul, padded,
    resized_by_scales, resized_by_sizes, resized_along_axes, reduce_keep, reduce_drop, reduce_nothing,
    sizes_of_any_number, one_symbol_twice,
    flatten_plain,
    flatten_negative, reshape_literal, reshape_copy_and_rest, reshape_in_steps, squeezed, gemm_scaled,
    matmul_right, matmul_left, matmul_both_sides, softmax_elsewhere, cast_and_back, constant_nodes,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_cut_graph_equals_the_masked_dense_one(
    net: Any, cut_equals_masked: Any, build: Callable[[Any], Any], seed: int
) -> None:
    model, widths = build(net(seed))
    assert cut_equals_masked(model, seed=seed) == widths


@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (3, 6), (3, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}], ids=str)
def test_gemm_in_every_form(
    net: Any, cut_equals_masked: Any, bias: tuple[int, ...] | None, attributes: dict[str, Any]
) -> None:
    model, widths = gemm_with(bias, **attributes)(net())
    assert cut_equals_masked(model) == widths


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_reductions_whose_axes_are_an_attribute(net: Any, cut_equals_masked: Any, keepdims: int, opset: int) -> None:
    model, widths = reduced(net(opset=opset, ir_version=8), keepdims, listed=False)
    assert cut_equals_masked(model) == widths


def test_upsampling_before_resize_could(net: Any, cut_equals_masked: Any) -> None:
    n = net(opset=9, ir_version=4)
    value = n.op("Upsample", conv(n, "x", 3, 6, name="a"), n.const(np.array([1, 1, 2, 2], np.float32)))
    assert cut_equals_masked(image(n, classify(n, value, 6))) == {"a": 6}


# Everything in this list can be written before opset 9 and in IR version 3.
OLD = [
    two_convs,
    depthwise_twice,
    norms,
    residual,
    shared_weights,
    nhwc,
    matmul_both_sides,
    reshape_literal,
    transposed,
]


@pytest.mark.parametrize("build", OLD, ids=lambda build: build.__name__)
def test_ir_version_3_lists_initialisers_as_inputs(net: Any, cut_equals_masked: Any, build: Any) -> None:
    model, widths = build(net(opset=8, ir_version=3))
    assert {t.name for t in model.graph.initializer} <= {i.name for i in model.graph.input}
    assert cut_equals_masked(model) == widths


@pytest.mark.parametrize(
    "build", [two_convs, depthwise_twice, norms, residual, reshape_literal], ids=lambda b: b.__name__
)
def test_half_precision_stays_what_it_is(net: Any, cut_equals_masked: Any, build: Any) -> None:
    model, widths = build(net(dtype=np.float16))
    assert cut_equals_masked(model, tolerance=2e-2) == widths


def test_double_precision_stays_what_it_is(net: Any, cut_equals_masked: Any) -> None:
    model, widths = matmul_both_sides(net(dtype=np.float64))
    assert cut_equals_masked(model, tolerance=1e-12) == widths


def by_version(n: Any) -> Any:
    """A chain whose operators take axes, bounds and pads as attributes or as inputs, as the opset wants."""
    value = n.norm(conv(n, "x", 3, 6, name="a"), 6)
    if n.opset >= 11:
        value = n.op("Clip", value, n.const(np.float32(-1)), n.const(np.float32(3)))
        value = n.op("Pad", value, n.ints(0, 0, 1, 1, 0, 0, 1, 1))
    else:
        value = n.op("Clip", value, min=-1.0, max=3.0)
        value = n.op("Pad", value, pads=[0, 0, 1, 1, 0, 0, 1, 1])
    value = n.op("Dropout", conv(n, value, 6, 8, name="b"))
    value = n.op("ReduceMean", value, n.ints(2), keepdims=1) if n.opset >= 18 else n.op("ReduceMean", value, axes=[2])
    listed = n.opset >= 13
    value = n.op("ReduceSum", value, n.ints(3)) if listed else n.op("ReduceSum", value, axes=[3])
    value = n.op("Squeeze", value, n.ints(2, 3)) if listed else n.op("Squeeze", value, axes=[2, 3])
    value = n.op("Unsqueeze", value, n.ints(2)) if listed else n.op("Unsqueeze", value, axes=[2])
    value = n.op("Flatten", value)
    return image(n, n.op("Gemm", value, n.weight(5, 8), n.weight(5), transB=1)), {"a": 6, "b": 8}


@pytest.mark.parametrize("opset", range(9, 24))
def test_every_opset(net: Any, cut_equals_masked: Any, opset: int) -> None:
    model, widths = by_version(net(opset=opset, ir_version=8 if opset < 21 else 10))
    assert cut_equals_masked(model) == widths
