"""Pairs in the place of linear nodes: equal at full rank, of the size that was predicted, whatever the operator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.fit.polyadic import decompose
from onnxprune.graph import factorise, polyadic
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.factorise import (
    INPUT,
    KINDS,
    OUTPUT,
    POLYADIC,
    SPATIAL,
    TURNED,
    Pair,
    Parting,
    factors,
    kernel_of,
    partings,
    spectrum,
    split,
)
from onnxprune.graph.linear import Unit, linear_units
from onnxprune.graph.shapes import concrete_shapes

Shape = Sequence[int]
ALL = {*KINDS, POLYADIC}


def sliding(
    net: Any,
    op: str = "Conv",
    *,
    given: int = 5,
    width: int = 7,
    kernel: Shape = (3, 3),
    grid: Shape = (7, 8),
    bias: bool = True,
    norm: bool = False,
    dtype: Any = np.float32,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a graph of one convolution; with ``norm`` a BatchNormalization whose second channel is dead follows."""
    n = net(dtype=dtype)
    weight = n.weight(*((width, given) if op == "Conv" else (given, width)), *kernel)
    out = n.op(op, "x", weight, *([n.weight(width)] if bias else []), name="node", **attributes)
    if norm:
        gain = n.rng.uniform(0.5, 2.0, width)
        gain[1] = 0.0
        stored = [n.const(gain, dtype=dtype), n.weight(width), n.weight(width), n.positive(width)]
        out = n.op("BatchNormalization", out, *stored)
    proto: onnx.ModelProto = n.model({"x": ["N", given, *grid]}, out)
    return proto


def multiplied(net: Any, op: str, *, rank: int = 2, bias: bool = True, dtype: Any = np.float32, **more: Any) -> Any:
    """Return a graph of one Gemm or of one MatMul, 6 to 5 features."""
    n = net(dtype=dtype)
    weight = n.weight(*((5, 6) if more.get("transB") else (6, 5)))
    if op == "Gemm":
        out = n.op("Gemm", "x", weight, *([n.weight(5)] if bias else []), name="node", **more)
    else:
        out = n.op("MatMul", "x", weight, name="node")
        out = n.op("Add", out, n.weight(5)) if bias else out
    return n.model({"x": ["N", *[3] * (rank - 2), 6]}, out)


def opened(proto: onnx.ModelProto) -> tuple[ir.Model, Unit, dict[str, Parting]]:
    work = prepare(ir.serde.deserialize_model(proto))
    shapes = concrete_shapes(work, example_shapes(work))
    (unit,) = linear_units(work, shapes)
    return work, unit, partings(unit, shapes)


def check(
    proto: onnx.ModelProto, run_model: Callable[..., Any], feeds: Callable[..., Any], *, close: float = 1e-5
) -> set[str]:
    """Part the one node in every way at full rank, and at rank 1; return the kinds that there are."""
    given = feeds(proto, batch=2)
    want = run_model(proto, given)
    before = measure(ir.serde.deserialize_model(proto))
    kinds = set(opened(proto)[2])
    for kind, rank in itertools.product(kinds, (None, 1)):
        work, unit, ways = opened(proto)
        way = ways[kind]
        if kind == POLYADIC:
            taps = int(np.prod(kernel_of(unit)))
            found = decompose(unit.matrix()[0], None, taps, rank or way.full, effort=0.02)
            made = polyadic.split(work, unit, found)
            assert [node.name for node in made] == ["node/enc", "node/mid", "node/dec"]
        else:
            enc, dec = split(work, unit, Pair(kind, rank or way.full))
            assert (enc.name, dec.name) == ("node/enc", "node/dec")
        result = ir.serde.serialize_model(finish(work))
        onnx.checker.check_model(result, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
        assert [str(v) for v in inferred.graph.output] == [str(v) for v in proto.graph.output]
        assert [str(v) for v in result.graph.input] == [str(v) for v in proto.graph.input]
        assert {t.data_type for t in result.graph.initializer} == {t.data_type for t in proto.graph.initializer}
        after = measure(ir.serde.deserialize_model(result))
        dense = way.height * way.width
        assert before.macs == way.whole
        assert after.macs == (rank or way.full) * way.macs
        assert after.params - before.params == (rank or way.full) * way.params - dense
        got = run_model(result, given)
        for name, array in want.items():
            assert got[name].dtype == array.dtype and got[name].shape == array.shape
            if rank is None:
                np.testing.assert_allclose(got[name], array, rtol=close, atol=close * np.abs(array).max())
    return kinds


STRIDES = [(1, 1), (2, 1), (2, 2)]
PADS = [[0] * 4, [1, 1, 1, 1], [1, 2, 0, 1]]
DILATIONS = [(1, 1), (2, 1)]


@pytest.mark.parametrize("dilations", DILATIONS)
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions(net: Any, run_model: Any, feeds: Any, op: str, strides: Any, pads: Any, dilations: Any) -> None:
    proto = sliding(net, op, strides=strides, pads=pads, dilations=dilations)
    assert check(proto, run_model, feeds) == (ALL if op == "Conv" else {OUTPUT, INPUT})


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions_that_pad_by_rule(
    net: Any, run_model: Any, feeds: Any, op: str, auto: str, strides: tuple[int, int]
) -> None:
    check(sliding(net, op, strides=strides, auto_pad=auto), run_model, feeds)


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"kernel": (1, 1)}, {OUTPUT}),
        ({"kernel": (1, 3)}, {OUTPUT, INPUT, POLYADIC}),
        ({"kernel": (2, 3)}, ALL),
        ({"kernel": (3,), "grid": (9,)}, {OUTPUT, INPUT, POLYADIC}),
        ({"kernel": (2, 3, 3), "grid": (4, 5, 6), "bias": False}, {OUTPUT, INPUT, POLYADIC}),
        ({"given": 1, "width": 2}, ALL),
        ({"given": 12, "width": 2}, ALL),
        ({"norm": True}, ALL),
        ({"norm": True, "bias": False, "strides": (2, 2)}, ALL),
        ({"op": "ConvTranspose", "kernel": (1, 1)}, {OUTPUT}),
        ({"op": "ConvTranspose", "kernel": (1, 1), "strides": (2, 2)}, {OUTPUT}),
        ({"op": "ConvTranspose", "strides": (2, 2), "output_padding": [1, 1], "pads": [1] * 4}, {OUTPUT, INPUT}),
        ({"op": "ConvTranspose", "strides": (2, 2), "output_shape": [14, 16]}, {OUTPUT, INPUT}),
        ({"op": "ConvTranspose", "kernel": (3,), "grid": (6,), "bias": False}, {OUTPUT, INPUT}),
        ({"op": "ConvTranspose", "norm": True}, {OUTPUT, INPUT}),
    ],
)
def test_kernels_of_every_size(net: Any, run_model: Any, feeds: Any, options: dict[str, Any], kinds: set[str]) -> None:
    assert check(sliding(net, **options), run_model, feeds) == kinds


@pytest.mark.parametrize("more", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": -3.0}])
@pytest.mark.parametrize("bias", [True, False])
def test_gemm(net: Any, run_model: Any, feeds: Any, more: dict[str, Any], bias: bool) -> None:
    assert check(multiplied(net, "Gemm", bias=bias, **more), run_model, feeds) == {OUTPUT}


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_that_must_have_a_constant(net: Any, run_model: Any, feeds: Any, turned: int) -> None:
    n = net(opset=9, ir_version=4)
    out = n.op(
        "Gemm", "x", n.weight(*((5, 6) if turned else (6, 5))), n.weight(5), name="node", transB=turned, alpha=0.5
    )
    proto = n.model({"x": ["N", 6]}, out)
    assert check(proto, run_model, feeds) == {OUTPUT}
    work, unit, ways = opened(proto)
    pair = split(work, unit, Pair(OUTPUT, ways[OUTPUT].full))
    assert [node.op_type for node in pair] == ["MatMul", "Gemm"]
    onnx.checker.check_model(ir.serde.serialize_model(finish(work)), full_check=True)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_matmul(net: Any, run_model: Any, feeds: Any, rank: int, bias: bool) -> None:
    assert check(multiplied(net, "MatMul", rank=rank, bias=bias), run_model, feeds) == {OUTPUT}


def test_half_and_double_precision(net: Any, run_model: Any, feeds: Any) -> None:
    check(sliding(net, dtype=np.float16), run_model, feeds, close=1e-2)
    for dtype, close in ((np.float16, 1e-2), (np.float64, 1e-12)):  # ONNX Runtime has no double Conv
        check(multiplied(net, "Gemm", transB=1, dtype=dtype), run_model, feeds, close=close)


def test_groups_and_unknown_shapes_are_not_parted(net: Any) -> None:
    n = net()
    out = n.op("Conv", "x", n.weight(6, 2, 3, 3), group=3)
    assert opened(n.model({"x": ["N", 6, 5, 5]}, out))[2] == {}
    n = net()
    out = n.op("Conv", "x", n.weight(6, 2, 3, 3))
    work = prepare(ir.serde.deserialize_model(n.model({"x": ["N", 2, "H", "W"]}, out)))
    shapes = concrete_shapes(work, {"x": [1, 2, 5, 5]})
    (unit,) = linear_units(work, shapes)
    assert set(partings(unit, shapes)) == ALL
    del shapes[str(unit.node.outputs[0].name)]
    assert partings(unit, shapes) == {}


def test_an_old_graph_whose_weights_are_inputs(net: Any, run_model: Any, feeds: Any) -> None:
    n = net(opset=11, ir_version=3)
    out = n.op("Conv", "x", n.weight(5, 4, 3, 3), n.weight(5), name="node")
    proto = n.model({"x": ["N", 4, 6, 6]}, out)
    work, unit, ways = opened(proto)
    split(work, unit, Pair(SPATIAL, ways[SPATIAL].full))
    result = ir.serde.serialize_model(finish(work))
    onnx.checker.check_model(result, full_check=True)
    given = feeds(proto)
    for name, array in run_model(proto, given).items():
        np.testing.assert_allclose(run_model(result, given)[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "kinds"), [("Conv", KINDS), ("ConvTranspose", (OUTPUT, INPUT)), ("Gemm", (OUTPUT,)), ("MatMul", (OUTPUT,))]
)
def test_a_matrix_unfolds_and_folds_back(net: Any, op: str, kinds: tuple[str, ...]) -> None:
    proto = sliding(net, op, kernel=(2, 3)) if op.startswith("Conv") else multiplied(net, op)
    _, unit, ways = opened(proto)
    assert set(ways) - {POLYADIC} == set(kinds)
    for kind in kinds:
        matrix = unit.matrix()[0]
        unfolded = factorise.unfold(matrix, kind, factorise.kernel_of(unit))
        assert unfolded.shape == (ways[kind].height, ways[kind].width)
        back = factorise.refolded(unfolded, kind, factorise.kernel_of(unit), matrix.shape[1])
        np.testing.assert_array_equal(back, matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_normalisation_multiplies_by_zero_takes_no_rank(net: Any, run_model: Any, feeds: Any, kind: str) -> None:
    proto = sliding(net, norm=True)
    work, unit, ways = opened(proto)
    rank = ways[kind].full // 2
    kernel = factorise.kernel_of(unit)
    first, second = factors(factorise.unfold(unit.matrix()[0], kind, kernel), rank)
    # The dead channel keeps weights of its own, which are not of this rank.
    unit.set_matrix(factorise.refolded(first @ second, kind, kernel, 7)[None])
    given = feeds(proto)
    want = run_model(finish(prepare(work)), given)
    split(work, unit, Pair(kind, rank))
    got = run_model(finish(work), given)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_leaves_the_tail_of_the_singular_values(net: Any, kind: str) -> None:
    proto = sliding(net, kernel=(3, 2), bias=False, dtype=np.float64)
    work, unit, ways = opened(proto)
    matrix, kernel = unit.matrix()[0], factorise.kernel_of(unit)
    values = np.linalg.svd(factorise.unfold(matrix, kind, kernel), compute_uv=False)
    rank = ways[kind].full // 2
    enc, dec = (constants_of(node) for node in split(work, unit, Pair(kind, rank)))
    product = composed(enc, dec, kind)
    wanted = proto_weight(proto)
    assert np.square(product - wanted).sum() == pytest.approx(np.square(values[rank:]).sum(), rel=1e-9)


def constants_of(node: ir.Node) -> np.ndarray:
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    return np.asarray(weight.const_value.numpy())


def proto_weight(proto: onnx.ModelProto) -> np.ndarray:
    return np.asarray(onnx.numpy_helper.to_array(proto.graph.initializer[0]))


def composed(enc: np.ndarray, dec: np.ndarray, kind: str) -> np.ndarray:
    """Return the kernel [O, I, a, b] that two in turn apply (one of the two is 1 wide along every axis)."""
    return np.einsum("riab,orcd->oiacbd", enc, dec).reshape(
        len(dec), enc.shape[1], enc.shape[2] * dec.shape[2], enc.shape[3] * dec.shape[3]
    )


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_factors_of_a_large_matrix_are_those_of_a_small_one(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).standard_normal(shape)
    for rank in (1, 3, 4):
        first, second = factors(data, rank)
        monkeypatch.setattr(factorise, "_LARGE", 0)
        other = factors(data, rank)
        monkeypatch.undo()
        np.testing.assert_allclose(other[0] @ other[1], first @ second, atol=1e-10)
        np.testing.assert_allclose(np.square(first).sum(0), np.square(second).sum(1), rtol=1e-9)
    values = np.linalg.svd(data, compute_uv=False)
    np.testing.assert_array_equal(spectrum(data), values**2)
    monkeypatch.setattr(factorise, "_LARGE", 0)
    np.testing.assert_allclose(spectrum(data), values**2, rtol=1e-10)
    assert not spectrum(np.zeros(shape)).any()
    monkeypatch.undo()
    first, second = factors(data, 2)
    assert np.square(data - first @ second).sum() == pytest.approx(np.square(values[2:]).sum())
    wide = factors(data, 8)
    assert wide[0].shape == (shape[0], 8) and wide[1].shape == (8, shape[1])
    np.testing.assert_allclose(wide[0] @ wide[1], data, atol=1e-12)
    zero = factors(np.zeros(shape), 2)
    assert np.isfinite(zero[0]).all() and not (zero[0] @ zero[1]).any()


def test_turned_is_spatial_with_its_axes_exchanged(net: Any) -> None:
    _, unit, ways = opened(sliding(net, kernel=(3, 2), grid=(8, 8)))
    assert (ways[SPATIAL].height, ways[SPATIAL].width) == (5 * 2, 7 * 3)
    assert (ways[TURNED].height, ways[TURNED].width) == (5 * 3, 7 * 2)
    assert (ways[OUTPUT].height, ways[OUTPUT].width) == (5 * 6, 7)
    assert (ways[INPUT].height, ways[INPUT].width) == (5, 7 * 6)
    assert unit.name == "node"
