from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Check = Callable[..., Any]
DRAWN = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def whole(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


@pytest.mark.parametrize("shape", [(0, -1), (4, 6), (-1,), (1, 2, 0, 4)])
def test_reshape(same_as_runtime: Check, shape: tuple[int, ...]) -> None:
    given = X if shape != (1, 2, 0, 4) else X.reshape(2, 1, 3, 4)
    shape = shape if shape != (1, 2, 0, 4) else (2, 1, 0, -1)
    same_as_runtime("Reshape", [given, whole(*shape)])
    same_as_runtime("Reshape", [given, whole(*shape)], 13, stored=[1])


def test_reshape_to_nothing(same_as_runtime: Check) -> None:
    same_as_runtime("Reshape", [np.zeros((0, 3), np.float32), whole(3, 0)], allowzero=1)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(same_as_runtime: Check, axis: int) -> None:
    same_as_runtime("Flatten", [X], axis=axis)


def test_transpose(same_as_runtime: Check) -> None:
    same_as_runtime("Transpose", [X])
    same_as_runtime("Transpose", [X], perm=[1, 2, 0])


def test_axes_of_size_1(same_as_runtime: Check) -> None:
    thin = X.reshape(1, 2, 1, 12)
    same_as_runtime("Squeeze", [thin, whole(-2)])
    same_as_runtime("Squeeze", [thin])
    same_as_runtime("Squeeze", [thin], 11, axes=[0, 2])
    same_as_runtime("Unsqueeze", [X, whole(-1, 0)])
    same_as_runtime("Unsqueeze", [X], 11, axes=[1, 3])


def test_joining_and_splitting(same_as_runtime: Check) -> None:
    same_as_runtime("Concat", [X, X[:, :1]], axis=1)
    same_as_runtime("Concat", [X, X], axis=-1)
    same_as_runtime("Split", [X], 13, outputs=2, axis=2)
    same_as_runtime("Split", [X, whole(1, 3)], outputs=2, axis=-1)
    same_as_runtime("Split", [X], 11, outputs=2, axis=1, split=[2, 1])
    same_as_runtime("Split", [X.reshape(12, 2)[:7]], 18, outputs=3, num_outputs=3)


@DRAWN
@given(st.data())
def test_slice(same_as_runtime: Check, data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.sampled_from([0, 1, -1]), min_size=1, max_size=3, unique=True))
    bound = st.one_of(st.integers(-6, 6), st.sampled_from([-(2**63), 2**63 - 1, -(2**31), 2**31 - 1]))
    each = {name: [data.draw(bound) for _ in axes] for name in ("starts", "ends")}
    steps = [data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    same_as_runtime("Slice", [X, whole(*each["starts"]), whole(*each["ends"]), whole(*axes), whole(*steps)])


def test_older_slices(same_as_runtime: Check) -> None:
    same_as_runtime("Slice", [X], 9, starts=[1, -3], ends=[3, 100], axes=[1, 2])
    same_as_runtime("Slice", [X], 9, starts=[1], ends=[2])
    same_as_runtime("Slice", [X, whole(0, 1), whole(2, 3)])


@DRAWN
@given(st.data(), st.sampled_from(["constant", "reflect", "edge", "wrap"]))
def test_pad(same_as_runtime: Check, data: st.DataObject, mode: str) -> None:
    low = -1 if mode == "constant" else 0
    pads = [data.draw(st.integers(low, 1 if axis % 3 == 0 else 2)) for axis in range(6)]
    same_as_runtime("Pad", [X, whole(*pads)], mode=mode)


def test_pad_with_a_value_and_of_some_axes(same_as_runtime: Check) -> None:
    same_as_runtime("Pad", [X, whole(1, 2, 0, 3), np.array(7, np.float32), whole(-1, 1)], 18)
    same_as_runtime("Pad", [X], 10, pads=[0, 1, 0, 0, 0, 2], value=3.0)


def test_repeating(same_as_runtime: Check) -> None:
    same_as_runtime("Expand", [X[:, :1], whole(3, 1)])
    same_as_runtime("Expand", [X[:1], whole(5, 1, 3, 4)])
    same_as_runtime("Tile", [X, whole(2, 1, 3)])


def test_sizes(same_as_runtime: Check) -> None:
    same_as_runtime("Shape", [X])
    same_as_runtime("Shape", [X], start=-2, end=-1)
    same_as_runtime("Size", [X])
    same_as_runtime("ConstantOfShape", [whole(2, 3)])
    same_as_runtime("Range", [np.array(2), np.array(11), np.array(3)])
    same_as_runtime("Range", [np.array(5, np.float32), np.array(1, np.float32), np.array(-1.5, np.float32)])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks(same_as_runtime: Check, mode: str) -> None:
    same_as_runtime("DepthToSpace", [np.arange(48, dtype=np.float32).reshape(1, 8, 2, 3)], mode=mode, blocksize=2)
    same_as_runtime("SpaceToDepth", [np.arange(48, dtype=np.float32).reshape(1, 2, 4, 6)], blocksize=2)


@pytest.mark.parametrize("upper", [0, 1])
def test_triangles(same_as_runtime: Check, upper: int) -> None:
    same_as_runtime("Trilu", [X, np.array(1)], upper=upper)
    same_as_runtime("Trilu", [X], upper=upper)


def test_reversed_sequences(same_as_runtime: Check) -> None:
    same_as_runtime("ReverseSequence", [X, whole(1, 3, 2)[:2]], time_axis=1, batch_axis=0)
    same_as_runtime("ReverseSequence", [X, whole(2, 1, 2)], time_axis=0, batch_axis=1)
