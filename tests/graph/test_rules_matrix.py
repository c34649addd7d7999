"""Gemm and MatMul in every form: transposed, weights on either side, stacks, vectors, computed biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare

Case = tuple[onnx.ModelProto, dict[str, int]]
M, K, WIDE, N = 3, 4, 6, 5


def gemm(n: Any, value: str, weight: tuple[int, ...], *bias: str, name: str, left: bool = False, **turned: int) -> str:
    operands = [n.weight(*weight), value] if left else [value, n.weight(*weight)]
    return str(n.op("Gemm", *operands, *bias, name=name, **turned))


def chain(n: Any, *bias: int, left: bool, turned_a: int, turned_b: int) -> Case:
    """One Gemm makes channels along rows or columns, the next one in the given form sums over them."""
    first = gemm(n, "x", (K, WIDE), name="a")  # [M, WIDE]
    if turned_b if left else turned_a:
        first = n.op("Relu", first if left else n.op("Transpose", first))
    elif left:
        first = n.op("Transpose", first)
    inner, outer = (WIDE, N) if (turned_a if left else not turned_b) else (N, WIDE)
    added = [n.weight(*bias)] if bias else []
    value = gemm(n, first, (inner, outer), *added, name="g", left=left, transA=turned_a, transB=turned_b)
    # The channels of the second one lie along rows where its weight is on the left.
    last = gemm(n, value, (2, N) if left else (N, 2), name="b", left=left)
    return n.model({"x": [M, K]}, last), {"a": WIDE, "g": N}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("turned_a", [0, 1])
@pytest.mark.parametrize("turned_b", [0, 1])
def test_gemm_in_every_form(net: Any, cut_equals_masked: Any, left: bool, turned_a: int, turned_b: int) -> None:
    rows, columns = (N, M) if left else (M, N)
    for bias in ((), (1,), (columns,), (1, columns), (rows, 1), (rows, columns), (1, 1)):
        model, widths = chain(net(), *bias, left=left, turned_a=turned_a, turned_b=turned_b)
        assert cut_equals_masked(model) == widths


def rows_are_channels(n: Any) -> Case:
    """Rows that carry channels go through, with the rows of the bias."""
    value = n.op("Transpose", gemm(n, "x", (K, WIDE), name="a"))
    value = gemm(n, value, (M, N), n.weight(WIDE, 1), name="g")
    return n.model({"x": [M, K]}, gemm(n, n.op("Transpose", value), (WIDE, 2), name="b")), {"a": WIDE}


def rows_and_columns(n: Any) -> Case:
    value = n.op("Transpose", gemm(n, "x", (K, WIDE), name="a"))
    value = gemm(n, value, (M, N), n.weight(WIDE, N), name="g")
    value = gemm(n, value, (N, 2), name="b")
    return n.model({"x": [M, K]}, gemm(n, value, (WIDE, 2), name="c", transA=1)), {"a": WIDE, "g": N}


def computed_bias(n: Any) -> Case:
    """A bias that another node makes is cut with what it is added to."""
    bias = gemm(n, "x", (K, N), name="bias")
    value = gemm(n, gemm(n, "x", (K, WIDE), name="a"), (WIDE, N), bias, name="g")
    return n.model({"x": [M, K]}, gemm(n, value, (N, 2), name="b")), {"bias": N, "a": WIDE}


def bias_from_the_caller(n: Any) -> Case:
    value = gemm(n, gemm(n, "x", (K, WIDE), name="a"), (WIDE, N), "y", name="g")
    return n.model({"x": [M, K], "y": [N]}, gemm(n, value, (N, 2), name="b")), {"a": WIDE}


def bias_of_channels_on_a_fixed_axis(n: Any) -> Case:
    bias = gemm(n, "y", (K, M), name="bias")
    value = n.op("Gemm", "x", n.op("Transpose", "x"), bias, name="g")
    return n.model({"x": [M, K], "y": [M, K]}, n.op("Relu", value)), {}


def both_computed(n: Any) -> Case:
    left, right = gemm(n, "x", (K, WIDE), name="a"), gemm(n, "y", (K, WIDE), name="b")
    return n.model({"x": [M, K], "y": [N, K]}, n.op("Gemm", left, right, transB=1, name="g")), {"a": WIDE}


def stack_of_matrices(n: Any) -> Case:
    value = n.op("MatMul", "x", n.weight(K, WIDE), name="a")
    value = n.op("MatMul", n.op("Relu", value), n.weight(2, WIDE, N), name="g")
    return n.model({"x": [2, M, K]}, n.op("MatMul", value, n.weight(N, 2), name="b")), {"a": WIDE, "g": N}


def stack_on_the_left(n: Any) -> Case:
    value = n.op("MatMul", n.weight(WIDE, M), "x", name="a")
    value = n.op("MatMul", n.weight(2, 1, N, WIDE), n.op("Relu", value), name="g")
    return n.model({"x": [2, M, K]}, n.op("MatMul", n.weight(2, N), value, name="b")), {"a": WIDE, "g": N}


def experts(n: Any) -> Case:
    """A matrix for every channel of a batch axis: both go together."""
    value = n.op("Transpose", n.op("MatMul", "x", n.weight(K, WIDE), name="a"), perm=[0, 2, 1])
    value = n.op("MatMul", n.op("Unsqueeze", value, n.ints(2)), n.weight(WIDE, M, N), name="g")
    value = n.op("Transpose", value, perm=[0, 2, 3, 1])
    return n.model({"x": [2, M, K]}, n.op("MatMul", value, n.weight(WIDE, 2), name="b")), {"a": WIDE}


def vectors(n: Any) -> Case:
    value = n.op("MatMul", "x", n.weight(K, WIDE), name="a")
    first = n.op("MatMul", value, n.weight(WIDE), name="g")
    second = n.op("MatMul", n.weight(M), value, name="h")
    return n.model({"x": [2, M, K]}, first, n.op("MatMul", second, n.weight(WIDE, 3), name="b")), {"a": WIDE}


def vector_of_channels(n: Any) -> Case:
    value = n.op("MatMul", "x", n.weight(K, WIDE), name="a")
    value = n.op("MatMul", value, n.weight(3, WIDE, N), name="g")
    return n.model({"x": [K]}, n.op("MatMul", value, n.weight(N, 2), name="b")), {"a": WIDE, "g": N}


def two_vectors(n: Any) -> Case:
    a, b = (n.op("MatMul", "x", n.weight(K, WIDE), name=name) for name in ("a", "b"))
    return n.model({"x": [K]}, n.op("MatMul", a, b, name="g")), {"a": WIDE}


CASES: list[Callable[[Any], Case]] = [
    rows_are_channels, rows_and_columns, computed_bias, bias_from_the_caller, bias_of_channels_on_a_fixed_axis,
    both_computed, stack_of_matrices, stack_on_the_left, experts, vectors, vector_of_channels, two_vectors,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_cut_equals_the_masked_model(net: Any, cut_equals_masked: Any, build: Callable[[Any], Case], seed: int) -> None:
    model, widths = build(net())
    assert cut_equals_masked(model, seed=seed) == widths


def test_reasons(net: Any) -> None:
    refused = {}
    for build in (bias_from_the_caller, bias_of_channels_on_a_fixed_axis):
        model, _ = build(net())
        refused[build] = spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused["g"]
    assert refused[bias_from_the_caller] == "it adds 'y', whose channels cannot be cut"
    assert refused[bias_of_channels_on_a_fixed_axis] == "it adds them to rows or columns that carry none"


def test_products_of_computed_tensors_are_opaque(net: Any) -> None:
    model, _ = both_computed(net())
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(model)))
    assert [analysis.opaque(space) for space in analysis.prunable] == [
        "'g' multiplies them with other computed channels"
    ]
