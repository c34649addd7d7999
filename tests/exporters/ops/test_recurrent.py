from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Check = Callable[..., Any]
STEPS, BATCH, INPUTS, SIZE = 5, 3, 4, 6
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
WAYS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def noise(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) / 2).astype(np.float32)


def layer(op: str, ways: int, *, bias: bool = True, lengths: bool = False, states: bool = False) -> list[Any]:
    rows = GATES[op] * SIZE
    found: list[Any] = [noise(STEPS, BATCH, INPUTS), noise(ways, rows, INPUTS), noise(ways, rows, SIZE)]
    found.append(noise(ways, 2 * rows) if bias else None)
    found.append(np.array([5, 2, 3], np.int32) if lengths else None)
    found.append(noise(ways, BATCH, SIZE) if states else None)
    if op == "LSTM" and states:
        found.append(noise(ways, BATCH, SIZE) * 0.7)
    return found


def run(check: Check, op: str, inputs: list[Any], **attributes: Any) -> None:
    outputs = 3 if op == "LSTM" else 2
    check(op, inputs, 14, outputs=outputs, stored=[1, 2, 3], hidden_size=SIZE, **attributes)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("states", [False, True])
def test_directions(same_as_runtime: Check, op: str, direction: str, lengths: bool, states: bool) -> None:
    inputs = layer(op, WAYS[direction], lengths=lengths, states=states)
    run(same_as_runtime, op, inputs, direction=direction)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gru_with_the_reset_behind_the_product(
    same_as_runtime: Check, direction: str, lengths: bool, bias: bool
) -> None:
    inputs = layer("GRU", WAYS[direction], lengths=lengths, bias=bias, states=True)
    run(same_as_runtime, "GRU", inputs, direction=direction, linear_before_reset=1)


def test_peepholes(same_as_runtime: Check) -> None:
    inputs = [*layer("LSTM", 2, states=True), noise(2, 3 * SIZE)]
    run(same_as_runtime, "LSTM", inputs, direction="bidirectional")


def test_other_activations(same_as_runtime: Check) -> None:
    run(same_as_runtime, "LSTM", layer("LSTM", 1), activations=["Sigmoid", "Relu", "Softsign"])
    run(same_as_runtime, "RNN", layer("RNN", 2), activations=["Relu", "Tanh"], direction="bidirectional")


def test_input_forget(same_as_runtime: Check) -> None:
    run(same_as_runtime, "LSTM", layer("LSTM", 1), input_forget=1)


def test_without_bias_and_with_one_output(same_as_runtime: Check) -> None:
    same_as_runtime("LSTM", layer("LSTM", 1, bias=False)[:3], 14, stored=[1, 2], hidden_size=SIZE)
