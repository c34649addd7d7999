from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Check = Callable[..., Any]
X = np.random.default_rng(2).standard_normal((2, 6, 4, 3)).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


@pytest.mark.parametrize("opset", [9, 14, 15])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_batch_normalization(same_as_runtime: Check, opset: int, rank: int) -> None:
    given = X.reshape(*X.shape[: rank - 1], -1) if rank > 2 else X[:, :, 0, 0].copy()
    four = [positive(6), positive(6) - 1, positive(6) - 1, positive(6)]
    same_as_runtime("BatchNormalization", [given, *four], opset, stored=[1, 2, 3, 4], epsilon=1e-3)


def test_instance_normalization(same_as_runtime: Check) -> None:
    same_as_runtime("InstanceNormalization", [X, positive(6), positive(6) - 1], epsilon=1e-3)


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_layer_normalization(same_as_runtime: Check, axis: int) -> None:
    shape = X.shape[axis:]
    same_as_runtime("LayerNormalization", [X, positive(*shape), positive(*shape)], axis=axis)
    same_as_runtime("LayerNormalization", [X, positive(*shape)], axis=axis, outputs=3, tolerance=1e-4)


def test_group_normalization(same_as_runtime: Check) -> None:
    same_as_runtime("GroupNormalization", [X, positive(6), positive(6) - 1], 21, num_groups=3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(same_as_runtime: Check, size: int) -> None:
    same_as_runtime("LRN", [X], size=size, alpha=0.5, beta=0.7, bias=2.0)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(same_as_runtime: Check, p: int) -> None:
    same_as_runtime("LpNormalization", [X], p=p, axis=1)


def test_mean_variance_normalization(same_as_runtime: Check) -> None:
    same_as_runtime("MeanVarianceNormalization", [X], tolerance=1e-4)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(("opset", "axis"), [(11, 1), (11, 2), (13, -1), (13, 1)])
def test_softmax(same_as_runtime: Check, op: str, opset: int, axis: int) -> None:
    same_as_runtime(op, [X], opset, axis=axis)


def test_softmax_without_an_axis(same_as_runtime: Check) -> None:
    same_as_runtime("Softmax", [X], 11)
    same_as_runtime("Softmax", [X], 13)


def test_dropout_in_evaluation(same_as_runtime: Check) -> None:
    same_as_runtime("Dropout", [X], 10, ratio=0.3)
    same_as_runtime("Dropout", [X, np.array(0.3, np.float32)], outputs=2)
