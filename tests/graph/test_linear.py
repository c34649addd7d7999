"""Linear nodes as one form, against what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.fit.design import Design
from onnxprune.graph import constants
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.linear import Unit, add_constants, drop_zero_constants, linear_units
from onnxprune.graph.shapes import concrete_shapes

# Name -> spatial size of the input, channels in, weight shape, whether a constant, attributes.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], bool, dict[str, Any]]] = {
    "pointwise": ((5, 6), 4, (6, 4, 1, 1), True, {}),
    "line": ((9,), 4, (6, 4, 3), True, {"pads": [1, 1]}),
    "line_strided": ((11,), 4, (6, 4, 4), False, {"strides": [3], "pads": [2, 1]}),
    "padded": ((6, 7), 3, (5, 3, 3, 3), True, {"pads": [1, 1, 1, 1]}),
    "uneven_pads": ((6, 7), 3, (5, 3, 3, 2), True, {"pads": [0, 1, 2, 1]}),
    "strided": ((9, 8), 3, (5, 3, 3, 3), False, {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "dilated": ((9, 10), 3, (5, 3, 3, 2), True, {"dilations": [2, 3], "pads": [2, 1, 2, 2]}),
    "volume": ((4, 5, 6), 2, (4, 2, 3, 1, 2), True, {"pads": [1, 0, 0, 1, 0, 1], "strides": [1, 2, 1]}),
    "same_upper": ((8, 7), 3, (5, 3, 4, 3), True, {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "same_lower": ((8, 7), 3, (5, 3, 4, 2), True, {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    "valid": ((8, 7), 3, (5, 3, 2, 3), False, {"auto_pad": "VALID", "strides": [2, 2]}),
    "grouped": ((6, 6), 6, (9, 2, 3, 3), True, {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ((6, 6), 4, (8, 1, 3, 3), True, {"group": 4, "pads": [1, 1, 1, 1], "strides": [2, 2]}),
}
TRANSPOSED: dict[str, tuple[tuple[int, ...], int, tuple[int, ...], bool, dict[str, Any]]] = {
    "up": ((4, 5), 3, (3, 4, 2, 2), True, {"strides": [2, 2]}),
    "up_line": ((6,), 3, (3, 4, 3), False, {"strides": [2], "pads": [1, 1]}),
    "up_padded": ((4, 5), 3, (3, 4, 3, 3), True, {"strides": [2, 2], "pads": [1, 1, 0, 1]}),
    "up_output_padding": ((4, 5), 3, (3, 4, 3, 3), True, {"strides": [2, 2], "output_padding": [1, 1]}),
    "up_output_shape": ((4, 5), 3, (3, 4, 4, 3), True, {"strides": [2, 2], "output_shape": [9, 10]}),
    "up_dilated": ((4, 5), 3, (3, 4, 3, 2), False, {"dilations": [2, 1], "strides": [1, 2]}),
    "up_same_upper": ((4, 5), 3, (3, 4, 3, 3), True, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "up_same_lower": ((4, 5), 3, (3, 4, 3, 4), True, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "up_grouped": ((4, 4), 6, (6, 2, 2, 2), True, {"group": 3, "strides": [2, 2]}),
    "up_depthwise": ((4, 4), 4, (4, 2, 3, 3), True, {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16])
NORMED = pytest.mark.parametrize("normed", [False, True])


def opened(proto: onnx.ModelProto) -> tuple[ir.Model, list[Unit]]:
    work = prepare(ir.serde.deserialize_model(proto))
    return work, linear_units(work, concrete_shapes(work, example_shapes(work)))


def tapped(work: ir.Model, *values: ir.Value) -> onnx.ModelProto:
    """Return the model with more outputs, and without declared shapes that are in the way."""
    names = {out.name for out in work.graph.outputs}
    proto = ir.serde.serialize_model(work)
    for value in values:
        if value.name not in names and not value.is_graph_input():
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(str(value.name)))
    return proto


def check(run_model: Any, feeds: Any, proto: onnx.ModelProto, *, close: float, count: int = 1) -> Unit:
    """Rows times matrix plus shift is what ONNX Runtime computes, before and after a change of both."""
    work, units = opened(proto)
    assert len(units) == count
    unit = units[-1]
    given = feeds(proto, batch=3)
    before = ir.serde.serialize_model(work).SerializeToString(deterministic=True)
    unit.set_matrix(unit.matrix())
    assert ir.serde.serialize_model(work).SerializeToString(deterministic=True) == before

    def compare(current: Unit) -> np.ndarray:
        found = {**given, **run_model(tapped(work, current.value, current.out), given)}
        out = found[str(current.out.name)]
        design = Design(current, 0, 0)
        rows = design.rows(found[str(current.value.name)], out.shape, np.arange(3))
        product = rows.astype(np.float64) @ current.matrix()
        flat = product.transpose(1, 0, 2).reshape(rows.shape[1], -1) + current.shift
        wanted = design.outputs(out, np.arange(3))
        np.testing.assert_allclose(flat, wanted, rtol=close, atol=close * max(1.0, float(np.abs(wanted).max())))
        return wanted.astype(np.float64)

    first = compare(unit)
    rng = np.random.default_rng(0)
    if unit.shiftable:
        change = rng.integers(-3, 4, len(unit.shift)) / 4
        unit.add_shift(change)
        unit = linear_units(work, concrete_shapes(work, example_shapes(work)))[-1]
        np.testing.assert_allclose(compare(unit) - first, np.broadcast_to(change, first.shape), atol=20 * close)
    matrix = unit.matrix()
    unit.set_matrix(matrix + 0.1 * rng.standard_normal(matrix.shape) * (unit.scale != 0).reshape(len(matrix), 1, -1))
    compare(unit)
    return unit


def tolerance(dtype: Any) -> float:
    return 2e-2 if dtype == np.float16 else 2e-5


@DTYPES
@NORMED
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_convolutions(net: Any, run_model: Any, feeds: Any, name: str, normed: bool, dtype: Any) -> None:
    sizes, channels, shape, constant, attributes = CONVOLUTIONS[name]
    n = net(1, dtype=dtype)
    value = n.op("Conv", "x", n.weight(*shape), *([n.weight(shape[0])] if constant else []), **attributes)
    value = n.norm(value, shape[0], epsilon=1e-2) if normed else value
    unit = check(run_model, feeds, n.model({"x": ["N", channels, *sizes]}, value), close=tolerance(dtype))
    assert unit.shiftable == (constant or normed)
    assert unit.groups == attributes.get("group", 1)
    assert unit.slides


@DTYPES
@NORMED
@pytest.mark.parametrize("name", list(TRANSPOSED))
def test_transposed_convolutions(net: Any, run_model: Any, feeds: Any, name: str, normed: bool, dtype: Any) -> None:
    sizes, channels, shape, constant, attributes = TRANSPOSED[name]
    n = net(2, dtype=dtype)
    outs = shape[1] * attributes.get("group", 1)
    value = n.op("ConvTranspose", "x", n.weight(*shape), *([n.weight(outs)] if constant else []), **attributes)
    value = n.norm(value, outs) if normed else value
    unit = check(run_model, feeds, n.model({"x": ["N", channels, *sizes]}, value), close=tolerance(dtype))
    assert unit.shiftable == (constant or normed)


@DTYPES
@NORMED
@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("added", [None, (5,), (1, 5), (1,), (1, 1), ()])
def test_products_with_a_constant(
    net: Any, run_model: Any, feeds: Any, turned: int, added: tuple[int, ...] | None, normed: bool, dtype: Any
) -> None:
    n = net(3, dtype=dtype)
    extra = [] if added is None else [n.const(n.rng.standard_normal(added), dtype=dtype)]
    weight = n.weight(*((5, 4) if turned else (4, 5)))
    value = n.op("Gemm", "x", weight, *extra, transB=turned, alpha=0.5, beta=2.0)
    value = n.norm(value, 5) if normed else value
    unit = check(run_model, feeds, n.model({"x": ["N", 4]}, value), close=tolerance(dtype))
    assert unit.shiftable == (normed or (added is not None and 5 in added))
    assert not unit.slides


@DTYPES
@pytest.mark.parametrize("sizes", [(4,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("added", [None, (5,), (1, 5)])
@pytest.mark.parametrize("left", [False, True])
def test_products(
    net: Any, run_model: Any, feeds: Any, sizes: tuple[int, ...], added: Any, left: bool, dtype: Any
) -> None:
    n = net(4, dtype=dtype)
    value = n.op("MatMul", "x", n.weight(4, 5))
    if added is not None:
        vector = n.const(n.rng.standard_normal(added), dtype=dtype)
        value = n.op("Add", *((vector, value) if left else (value, vector)))
    unit = check(run_model, feeds, n.model({"x": ["N", *sizes]}, value), close=tolerance(dtype))
    assert unit.shiftable == (added is not None)
    assert unit.out.name == value


def test_a_product_of_rows_takes_a_following_normalisation(net: Any, run_model: Any, feeds: Any) -> None:
    n = net(4)
    value = n.op("Add", n.op("MatMul", "x", n.weight(4, 5)), n.weight(5))
    unit = check(run_model, feeds, n.model({"x": ["N", 4]}, n.norm(value, 5)), close=2e-5)
    assert unit.shiftable and not np.allclose(unit.scale, 1.0)


def test_a_constant_that_others_read_is_not_written(net: Any, run_model: Any, feeds: Any) -> None:
    n = net(5)
    shared = n.weight(1, 5, name="shared")
    value = n.op("Gemm", "x", n.weight(4, 5), shared)
    model = n.model({"x": ["N", 4]}, value, shared, sizes=["N", 5])
    unit = check(run_model, feeds, model, close=2e-5)
    assert not unit.shiftable
    with pytest.raises(ValueError, match="no constant"):
        unit.add_shift(np.ones(5))


def test_a_constant_per_row_makes_no_unit(net: Any) -> None:
    n = net(5)
    value = n.op("Gemm", "x", n.weight(4, 5), n.weight(5, 1))
    assert opened(n.model({"x": [5, 4]}, value))[1] == []


def test_a_computed_constant_makes_no_unit(net: Any) -> None:
    n = net(5)
    value = n.op("Gemm", "x", n.weight(4, 5), n.op("ReduceMean", "z", keepdims=0))
    assert opened(n.model({"x": ["N", 4], "z": ["N", 5]}, value))[1] == []


def test_computed_and_shared_weights_make_no_units(net: Any) -> None:
    n = net(6)
    computed = n.op("MatMul", "x", "z")
    shown = n.weight(5, 5, name="shown")
    value = n.op("MatMul", n.op("MatMul", computed, shown), n.op("Softmax", "z"))
    left = n.op("MatMul", n.weight(5, 5), "z")
    model = n.model({"x": ["N", 5], "z": [5, 5]}, value, shown, left, sizes=["N", 5])
    assert opened(model)[1] == []


def test_a_weight_of_three_axes_and_a_turned_input_make_no_units(net: Any) -> None:
    n = net(6)
    value = n.op("MatMul", "x", n.weight(3, 4, 5))
    turned = n.op("Gemm", "z", n.weight(4, 5), transA=1)
    assert opened(n.model({"x": ["N", 3, 2, 4], "z": [4, 6]}, value, turned))[1] == []


def test_a_weight_read_twice_by_one_model_becomes_two_units(net: Any) -> None:
    n = net(6)
    weight = n.weight(4, 4)
    value = n.op("Relu", n.op("MatMul", "x", weight))
    assert len(opened(n.model({"x": ["N", 4]}, n.op("MatMul", value, weight)))[1]) == 2


def residual(net: Any, *, swapped: bool = False, skip: str = "plain") -> onnx.ModelProto:
    n = net(7)
    start = n.op("Relu", n.op("Conv", "x", n.weight(4, 4, 1, 1), n.weight(4), name="start"), name="other")
    value = n.norm(n.op("Conv", start, n.weight(4, 4, 3, 3), name="branch", pads=[1] * 4), 4)
    other = {
        "plain": lambda: start,
        "constant": lambda: n.weight(1, 4, 1, 1),
        "narrow": lambda: n.op("GlobalAveragePool", start),
        "itself": lambda: value,
    }[skip]()
    total = n.op("Add", *((other, value) if swapped else (value, other)), name="sum")
    return n.model({"x": ["N", 4, 5, 5]}, n.op("Relu", total))


@pytest.mark.parametrize("swapped", [False, True])
def test_residual_sums_are_seen(net: Any, swapped: bool) -> None:
    _, (start, branch) = opened(residual(net, swapped=swapped))
    assert (start.other, start.total) == (None, None)
    assert branch.other is not None and branch.other.producer().name == "other"  # type: ignore[union-attr]
    assert branch.total is not None and branch.total.producer().name == "sum"  # type: ignore[union-attr]


@pytest.mark.parametrize("skip", ["constant", "narrow", "itself"])
def test_sums_that_are_no_residual_ones(net: Any, skip: str) -> None:
    branch = opened(residual(net, skip=skip))[1][-1]
    assert (branch.other, branch.total) == (None, None)


def test_a_normalisation_in_training_stays_outside(net: Any) -> None:
    n = net(8)
    value = n.op("Conv", "x", n.weight(4, 4, 1, 1))
    parameters = [n.positive(4), n.weight(4), n.weight(4), n.positive(4)]
    outs = n.op("BatchNormalization", value, *parameters, outputs=3, training_mode=1)
    unit = opened(n.model({"x": ["N", 4, 5, 5]}, outs[0]))[1][0]
    assert unit.out.name == value and not unit.shiftable


def test_outputs_of_scale_zero_keep_their_weights(net: Any) -> None:
    for transposed in (False, True):
        n = net(9)
        shape = (4, 3, 3, 3) if not transposed else (3, 4, 3, 3)
        value = n.op("ConvTranspose" if transposed else "Conv", "x", n.weight(*shape))
        gamma = n.const(np.array([1.0, 0.0, -2.0, 0.5]), dtype=np.float32)
        value = n.op("BatchNormalization", value, gamma, n.weight(4), n.weight(4), n.positive(4))
        unit = opened(n.model({"x": ["N", 3, 5, 5]}, value))[1][0]
        before = np.array(constants.array(unit.weight))
        unit.set_matrix(np.zeros_like(unit.matrix()))
        after = np.moveaxis(np.array(constants.array(unit.weight)), 1 if transposed else 0, 0)
        np.testing.assert_array_equal(after[1], np.moveaxis(before, 1 if transposed else 0, 0)[1])
        assert not after[[0, 2, 3]].any()


def test_half_precision_is_never_left(net: Any) -> None:
    n = net(9, dtype=np.float16)
    gamma = n.const(np.full(4, 1e-4), dtype=np.float16)
    value = n.op("Conv", "x", n.weight(4, 3, 1, 1))
    value = n.op("BatchNormalization", value, gamma, n.weight(4), n.weight(4), n.positive(4))
    unit = opened(n.model({"x": ["N", 3, 5, 5]}, value))[1][0]
    unit.set_matrix(np.full_like(unit.matrix(), 1e3))
    data = constants.array(unit.weight)
    assert data is not None and data.dtype == np.float16 and np.isfinite(data).all()


def plain(net: Any, **kinds: Any) -> onnx.ModelProto:
    n = net(10, **kinds)
    value = n.op("Conv", "x", n.weight(4, 3, 3, 3), pads=[1] * 4)
    value = n.norm(n.op("Conv", value, n.weight(4, 4, 1, 1)), 4)
    value = n.op("ConvTranspose", n.op("Relu", value), n.weight(4, 3, 2, 2), group=2, strides=[2, 2])
    flat = n.op("Flatten", n.op("GlobalAveragePool", value))
    return n.model({"x": ["N", 3, 6, 6]}, n.op("Gemm", n.op("Gemm", flat, n.weight(6, 5)), n.weight(2, 5), transB=1))


@pytest.mark.parametrize("kinds", [{}, {"dtype": np.float16}, {"opset": 11, "ir_version": 3}])
def test_added_constants_change_nothing_and_go_again(
    net: Any, run_model: Any, feeds: Any, kinds: dict[str, Any]
) -> None:
    proto = plain(net, **kinds)
    given = feeds(proto)
    want = run_model(proto, given)
    work = prepare(ir.serde.deserialize_model(proto))
    bare = ir.serde.serialize_model(finish(prepare(work))).SerializeToString(deterministic=True)
    names = add_constants(work)
    assert len(names) == 4  # one convolution has its normalisation's
    assert all(unit.shiftable for unit in linear_units(work, concrete_shapes(work, example_shapes(work))))
    copy = finish(prepare(work))
    result = ir.serde.serialize_model(copy)
    onnx.checker.check_model(result, full_check=True)
    for name, got in run_model(result, given).items():
        np.testing.assert_array_equal(got, want[name])
    drop_zero_constants(copy, names)
    assert ir.serde.serialize_model(copy).SerializeToString(deterministic=True) == bare


def test_constants_that_were_written_stay(net: Any) -> None:
    work = prepare(ir.serde.deserialize_model(plain(net)))
    names = add_constants(work)
    unit = linear_units(work, concrete_shapes(work, example_shapes(work)))[0]
    unit.add_shift(np.ones(4))
    drop_zero_constants(work, names)
    assert [name for name in names if name in work.graph.initializers] == [str(unit.constant.name)]  # type: ignore[union-attr]


def test_a_reader_inside_a_body_does_not_belong_to_the_unit(net: Any) -> None:
    body = onnx.parser.parse_graph("then () => (float[N, 5] z) { z = Add(h, vector) }")
    other = onnx.parser.parse_graph("otherwise () => (float[N, 5] u) { u = Identity(vector2) }")
    n = net(11)
    h = n.op("MatMul", "x", n.weight(4, 5))
    n.nodes[-1].output[0] = "h"
    assert h
    n.const(np.ones(5), name="vector", dtype=np.float32)
    n.const(np.ones((3, 5)), name="vector2", dtype=np.float32)
    value = n.op("If", n.const(True), then_branch=body, else_branch=other)
    del n.nodes[-1].output[:]
    n.nodes[-1].output.append(value)
    model = n.model({"x": ["N", 4]}, value, sizes=["N", 5])
    (unit,) = opened(model)[1]
    assert unit.out.name == "h" and not unit.shiftable
