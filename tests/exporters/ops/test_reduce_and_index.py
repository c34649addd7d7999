from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Check = Callable[..., Any]
DRAWN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
X = np.random.default_rng(1).uniform(0.5, 2, (2, 3, 4)).astype(np.float32)
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


def whole(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


@DRAWN
@given(
    st.sampled_from(REDUCTIONS),
    st.one_of(st.none(), st.lists(st.sampled_from([0, 1, -1]), max_size=3, unique=True)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_reductions(
    same_as_runtime: Check, op: str, axes: list[int] | None, keep: bool, noop: bool, newest: bool
) -> None:
    if newest:
        inputs = [X] if axes is None else [X, whole(*axes)]
        same_as_runtime(f"Reduce{op}", inputs, 18, keepdims=int(keep), noop_with_empty_axes=int(noop and axes != []))
    else:
        found = {"axes": axes} if axes else {}
        same_as_runtime(f"Reduce{op}", [X], 11, keepdims=int(keep), **found)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMean", "ReduceProd", "ReduceSum"])
def test_reductions_of_whole_numbers(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [np.array([[3, -2, 6], [5, 4, 1]], np.int32), whole(1)], 18)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_places_of_extremes(same_as_runtime: Check, op: str, last: int) -> None:
    ties = np.array([[1, 3, 3, 1], [2, 2, 2, 2]], np.float32)
    same_as_runtime(op, [ties], axis=-1, keepdims=0, select_last_index=last)
    same_as_runtime(op, [X], axis=1)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(same_as_runtime: Check, exclusive: int, reverse: int) -> None:
    same_as_runtime("CumSum", [X, np.array(-1)], exclusive=exclusive, reverse=reverse)


def test_top_k(same_as_runtime: Check) -> None:
    ties = np.array([[1, 3, 3, 1, 2]], np.float32)
    same_as_runtime("TopK", [ties, whole(3)], outputs=2)
    same_as_runtime("TopK", [X, whole(2)], outputs=2, axis=1, largest=0)


def test_gathers(same_as_runtime: Check) -> None:
    same_as_runtime("Gather", [X, whole(1, -1, 0)], axis=2)
    same_as_runtime("Gather", [X, np.array(-2)], axis=1)
    same_as_runtime("Gather", [X[:, 0, 0], np.array(1)])
    same_as_runtime("Gather", [X, np.array([[0, 1], [2, -3]])], axis=1, stored=[0])
    same_as_runtime("GatherElements", [X, np.zeros((2, 1, 4), np.int64) - 1], axis=1)
    same_as_runtime("GatherND", [X, np.array([[0, 1], [1, -1]])])
    same_as_runtime("GatherND", [X, np.array([[[1]], [[2]]])], batch_dims=1)


@pytest.mark.parametrize("how", ["none", "add", "mul", "max", "min"])
def test_scatters(same_as_runtime: Check, how: str) -> None:
    places = np.array([[[1, 0, 2, -1]], [[0, 0, 1, 1]]])
    same_as_runtime("ScatterElements", [X, places, X[:, :1] * 3], 18, axis=1, reduction=how)
    same_as_runtime("ScatterND", [X, np.array([[0, 1], [1, -1]]), X[:, 0] * 3], 18, reduction=how)


def test_old_scatter(same_as_runtime: Check) -> None:
    same_as_runtime("Scatter", [X, np.zeros((2, 1, 4), np.int64), X[:, 1:2]], 10, axis=1)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(same_as_runtime: Check, axis: int) -> None:
    given = np.array([[0, 2, -1]])
    same_as_runtime("OneHot", [given, np.array(4), np.array([0.5, 2], np.float32)], axis=axis)


def test_choosing_by_content(same_as_runtime: Check) -> None:
    same_as_runtime("NonZero", [np.array([[1, 0], [0, 2]], np.float32)])
    same_as_runtime("Compress", [X, np.array([True, False, True])], axis=1)
    same_as_runtime("Compress", [X, np.array([True, False, True])])


@pytest.mark.parametrize("flags", [{}, {"transA": 1}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("bias", [None, (5,), (1,), (4, 5), (4, 1)])
def test_gemm(same_as_runtime: Check, flags: dict[str, Any], bias: tuple[int, ...] | None) -> None:
    a, b = X.reshape(4, 6), X.reshape(24)[:15].reshape(3, 5)
    a = a[:, :3]
    a = np.ascontiguousarray(a.T) if flags.get("transA") else np.ascontiguousarray(a)
    b = np.ascontiguousarray(b.T) if flags.get("transB") else b
    inputs = [a, b] if bias is None else [a, b, np.full(bias, 0.3, np.float32)]
    same_as_runtime("Gemm", inputs, stored=[1], **flags)


def test_matrix_products(same_as_runtime: Check) -> None:
    same_as_runtime("MatMul", [X, X[0].T.copy()])
    same_as_runtime("MatMul", [X[0, 0], X[:, 0].T.copy()])
    same_as_runtime("Einsum", [X, X], equation="bij, bkj -> bik")
