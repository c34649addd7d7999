from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4)).astype(np.float32)
ROW = RNG.standard_normal(4).astype(np.float32)
WHOLE = RNG.integers(-9, 10, (2, 3)).astype(np.int64)
DIVISOR = np.array([[-4, 3, 7], [2, -5, 1]])
BITS = np.array([True, False, True, True])
Check = Callable[..., Any]


@pytest.mark.parametrize(
    "op",
    [
        *("Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN"),
        *("Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
        *("Softsign", "Tan", "Tanh", "Gelu", "Elu", "Celu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu"),
        *("Shrink", "IsInf"),
    ],
)
def test_of_one_input(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [X])


@pytest.mark.parametrize("op", ["Acos", "Asin", "Atanh", "Log", "Sqrt"])
def test_of_small_positive_input(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [np.abs(X) / 4 + 0.01])


def test_acosh(same_as_runtime: Check) -> None:
    same_as_runtime("Acosh", [np.abs(X) + 1])


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Elu", {"alpha": 0.3}),
        ("Celu", {"alpha": 0.3}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Selu", {"alpha": 1.2, "gamma": 0.8}),
        ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}),
        ("ThresholdedRelu", {"alpha": 0.2}),
        ("Shrink", {"lambd": 0.4, "bias": 0.1}),
        ("Gelu", {"approximate": "tanh"}),
        ("Cast", {"to": 7}),
        ("Cast", {"to": 10}),
        ("Cast", {"to": 9}),
        ("Cast", {"to": 11}),
    ],
)
def test_attributes(same_as_runtime: Check, op: str, attributes: dict[str, Any]) -> None:
    same_as_runtime(op, [X * 3], **attributes)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("opset", [8, 14])
def test_arithmetic_broadcasts(same_as_runtime: Check, op: str, opset: int) -> None:
    same_as_runtime(op, [X, ROW], opset)


@pytest.mark.parametrize("op", ["Max", "Sum", "Mean"])
def test_any_number_of_inputs(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [X, ROW, X[:1]])


@pytest.mark.parametrize("op", ["Add", "Div", "Mod", "Max"])
def test_whole_numbers(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [WHOLE, DIVISOR])


def test_mod_of_floats(same_as_runtime: Check) -> None:
    same_as_runtime("Mod", [X, ROW], fmod=1)
    same_as_runtime("Mod", [WHOLE, DIVISOR], fmod=1)


def test_pow(same_as_runtime: Check) -> None:
    same_as_runtime("Pow", [np.abs(X), ROW])
    same_as_runtime("Pow", [X, np.array(2, np.int64)])
    same_as_runtime("Pow", [np.abs(WHOLE), np.array(2.0, np.float32)])


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [WHOLE, np.array([0, 3, -2])])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [BITS, np.array([[True], [False]])])


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [WHOLE.astype(np.int32), DIVISOR.astype(np.int32)])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(same_as_runtime: Check, direction: str) -> None:
    given = np.array([1, 7, 200], np.uint8), np.array([1, 2, 3], np.uint8)
    same_as_runtime("BitShift", list(given), direction=direction)


def test_not_where_and_cast_like(same_as_runtime: Check) -> None:
    same_as_runtime("Not", [BITS])
    same_as_runtime("BitwiseNot", [WHOLE.astype(np.int32)])
    same_as_runtime("Where", [BITS, X, ROW])
    same_as_runtime("CastLike", [X, WHOLE])


@pytest.mark.parametrize("slope", [(1,), (4,), (3, 1), (1, 3, 1)])
def test_prelu(same_as_runtime: Check, slope: tuple[int, ...]) -> None:
    same_as_runtime("PRelu", [X, RNG.standard_normal(slope).astype(np.float32)], stored=[1])


def test_clip(same_as_runtime: Check) -> None:
    low, high = np.array(-0.5, np.float32), np.array(0.7, np.float32)
    same_as_runtime("Clip", [X], 10, min=-0.5, max=0.7)
    same_as_runtime("Clip", [X, low, high])
    same_as_runtime("Clip", [X, None, high])
    same_as_runtime("Clip", [X, low], stored=[1])
    same_as_runtime("Clip", [WHOLE, np.array(-3), np.array(4)])


def test_infinities_by_sign(same_as_runtime: Check) -> None:
    given = np.array([np.inf, -np.inf, 1, np.nan], np.float32)
    same_as_runtime("IsInf", [given], detect_negative=0)
    same_as_runtime("IsInf", [given], detect_positive=0)
