"""The PQ index against its golden vectors and laws, and masks that only ever get narrower."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxprune.errors import OptionError
from onnxprune.models.iterative.choosing import Layer, fraction, narrower
from onnxprune.models.iterative.pqindex import Sap, pq_index

ORDERS = st.sampled_from([(0.5, 1.0), (1.0, 2.0), (0.1, 1.0), (0.3, 2.0), (1.0, 1.5)])
VECTORS = arrays(
    np.float64, st.integers(1, 60), elements=st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)
)


def test_golden_vectors() -> None:
    three_four = np.array([3.0, 4.0])
    assert pq_index(three_four, 1, 2) == pytest.approx(0.0100505, abs=1e-7)
    assert Sap(1, 2).survivors(three_four) == pytest.approx(1.96)
    assert pq_index(three_four, 0.5, 1) == pytest.approx(0.00512834, abs=1e-8)
    assert Sap(0.5, 1).survivors(three_four) == pytest.approx(1.9897433)
    assert pq_index(np.array([5.0, 0, 0, 0]), 1, 2) == pytest.approx(0.5)
    assert pq_index(np.ones(4), 1, 2) == 0


def test_the_golden_step() -> None:
    # 100 weights of which the norms say that 36.2 must stay.
    class Fixed(Sap):
        def survivors(self, values: np.ndarray) -> float:
            return 36.2

    assert Fixed(1, 2).count(np.ones(100)) == 63
    assert Fixed(1, 2, beta=0.5).count(np.ones(100)) == 50
    assert Fixed(1, 2, gamma=0.5).count(np.ones(100)) == 31


@given(VECTORS, ORDERS)
def test_the_index_is_bounded_and_blind_to_scale_order_and_clones(
    values: np.ndarray, orders: tuple[float, float]
) -> None:
    p, q = orders
    found = pq_index(values, p, q)
    assert 0 <= found <= 1 - values.size ** (1 / q - 1 / p) + 1e-9
    for other in (values * 7, -values, values[::-1], np.concatenate([values, values])):
        assert pq_index(other, p, q) == pytest.approx(found, abs=1e-9)
    wider = np.concatenate([values, np.zeros(3)])
    assert pq_index(wider, p, q) >= found - 1e-9
    assert Sap(p, q).survivors(wider) == pytest.approx(Sap(p, q).survivors(values))


@given(VECTORS, ORDERS, st.floats(0, 1))
def test_the_bound_holds(values: np.ndarray, orders: tuple[float, float], eta: float) -> None:
    """Any cut that loses at most eta of the p-norm's sum keeps at least r weights."""
    p, q = orders
    ranked = np.sort(np.abs(values))[::-1] ** p
    kept = np.cumsum(ranked)
    enough = int(np.argmax(ranked.sum() - kept <= eta * kept + 1e-12)) + 1
    if values.any():
        assert enough >= Sap(p, q, eta).survivors(values) - 1e-6


@given(VECTORS, ORDERS, st.floats(0, 1), st.floats(0.5, 9), st.floats(0.1, 1))
def test_never_more_goes_than_beta(
    values: np.ndarray, orders: tuple[float, float], eta: float, gamma: float, beta: float
) -> None:
    assert 0 <= Sap(*orders, eta, gamma, beta).count(values) <= beta * values.size + 1e-9


@pytest.mark.parametrize(
    "options", [{"p": 0}, {"p": 1, "q": 1}, {"p": 2, "q": 3}, {"q": 0.7}, {"eta": -1}, {"gamma": 0}, {"beta": 1.1}]
)
def test_orders_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="accepted"):
        Sap(**options)


def layers(seed: int = 0, *, ties: bool = False) -> dict[str, Layer]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (6, 10), "b": (4, 3, 3, 3), "c": (5, 8)}
    found = {}
    for name, shape in shapes.items():
        values = np.abs(rng.standard_normal(shape))
        values = np.round(values, 1) if ties else values
        found[name] = Layer(values, np.ones(shape, dtype=bool), 1 if name == "c" else 0)
    return found


@pytest.mark.parametrize("scope", ["global", "layer", "neuron"])
@pytest.mark.parametrize("ties", [False, True])
def test_masks_are_nested_and_follow_the_law(scope: str, ties: bool) -> None:
    now, total = layers(ties=ties), 60 + 108 + 40
    for _ in range(1, 6):
        masks = narrower(now, fraction(0.2), scope)
        for name, layer in now.items():
            assert not (masks[name] & ~layer.mask).any()
            assert masks[name].any()
        left = sum(int(layer.mask.sum()) for layer in now.values())
        if scope == "global":
            assert sum(int(mask.sum()) for mask in masks.values()) == left - math.floor(0.2 * left + 1e-9)
        now = {name: Layer(layer.values, masks[name], layer.axis) for name, layer in now.items()}
    left = sum(int(layer.mask.sum()) for layer in now.values())
    slack = {"global": 5, "layer": 15, "neuron": 90}[scope]  # one weight a round of every group, by rounding down
    assert 0.8**5 * total <= left <= 0.8**5 * total + slack


def test_the_smallest_go_first_and_equals_in_order() -> None:
    values = np.array([[3.0, 1.0, 1.0], [1.0, 2.0, 5.0]])
    (mask,) = narrower({"w": Layer(values, np.ones((2, 3), bool))}, lambda _: 2).values()
    np.testing.assert_array_equal(mask, [[True, False, False], [True, True, True]])
    (mask,) = narrower({"w": Layer(values, np.ones((2, 3), bool))}, lambda _: 1, "neuron").values()
    np.testing.assert_array_equal(mask, [[True, False, True], [False, True, True]])
    (mask,) = narrower({"w": Layer(values, np.ones((2, 3), bool), 1)}, lambda _: 1, "neuron").values()
    np.testing.assert_array_equal(mask, [[True, False, False], [False, True, True]])


@pytest.mark.parametrize("scope", ["global", "layer", "neuron"])
def test_no_layer_is_emptied(scope: str) -> None:
    given = {
        "small": Layer(np.full((2, 2), 1e-6), np.ones((2, 2), bool)),
        "large": Layer(np.ones((9, 9)), np.ones((9, 9), bool)),
    }
    masks = narrower(given, lambda values: values.size, scope)
    expected = {"global": (1, 1), "layer": (1, 1), "neuron": (2, 9)}[scope]
    assert (int(masks["small"].sum()), int(masks["large"].sum())) == expected
    empty = {"w": Layer(np.ones(3), np.zeros(3, bool))}
    assert not narrower(empty, fraction(0.5), scope if scope != "neuron" else "layer")["w"].any()


def test_wrong_scopes_and_shares() -> None:
    with pytest.raises(OptionError, match="accepted are global, layer, neuron"):
        narrower(layers(), fraction(0.2), "row")
    with pytest.raises(OptionError, match="prune=1"):
        fraction(1.0)
