"""Magnitude pruning: exact counts, ties, thresholds, n of m, and the refit behind it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import ModelError, OptionError
from onnxprune.passes.magnitude import Magnitude

Net = Callable[..., onnx.ModelProto]
TREATED = ("c1.w", "c2.w", "g1.w", "g2.w")
IMAGES = np.random.default_rng(3).standard_normal((120, 1, 12, 12)).astype(np.float32)


def zeros(arrays: dict[str, np.ndarray]) -> int:
    return sum(int((arrays[name] == 0).sum()) for name in TREATED)


@pytest.mark.parametrize("scope", ["global", "normalized"])
@pytest.mark.parametrize("sparsity", [0.001, 0.1, 1 / 3, 0.5, 0.999])
def test_the_share_of_all_is_exact(conv_net: Net, apply: Any, weights: Any, sparsity: float, scope: str) -> None:
    proto = conv_net(0)
    result, step = apply(proto, [Magnitude(sparsity=sparsity, scope=scope)])
    total = sum(weights(proto)[name].size for name in TREATED)
    assert zeros(weights(result)) == math.ceil(sparsity * total)
    assert step.result.reached == {"sparsity": (sparsity, zeros(weights(result)) / total)}
    kept = weights(result)
    assert all(np.array_equal(kept[n][kept[n] != 0], weights(proto)[n][kept[n] != 0]) for n in TREATED)


def test_the_share_of_each_layer_is_exact(conv_net: Net, apply: Any, weights: Any) -> None:
    result, _ = apply(conv_net(0), "magnitude(sparsity=0.37,scope=layer)")
    for name in TREATED:
        array = weights(result)[name]
        assert (array == 0).sum() == math.ceil(0.37 * array.size)


def test_the_largest_stay(conv_net: Net, apply: Any, weights: Any) -> None:
    before = weights(conv_net(0))
    after = weights(apply(conv_net(0), "magnitude(sparsity=0.6,scope=global)")[0])
    lost = max(np.abs(before[n][after[n] == 0]).max(initial=0) for n in TREATED)
    kept = min(np.abs(after[n][after[n] != 0]).min() for n in TREATED)
    assert lost <= kept
    normed = weights(apply(conv_net(0), "magnitude(sparsity=0.6)")[0])
    scale = {n: np.linalg.norm(before[n].astype(np.float64)) for n in TREATED}
    lost = max((np.abs(before[n][normed[n] == 0]) / scale[n]).max(initial=0) for n in TREATED)
    kept = min((np.abs(normed[n][normed[n] != 0]) / scale[n]).min() for n in TREATED)
    assert lost <= kept * (1 + 1e-9)


def test_ties_go_to_the_first(apply: Any, net: Any, weights: Any) -> None:
    graph = net(4)
    graph.store("w", np.full((4, 6), 0.5))
    model = graph.model(graph.node("MatMul", "x", "w"))
    after = weights(apply(model, "magnitude(sparsity=0.25)")[0])["w"]
    np.testing.assert_array_equal(np.flatnonzero(after.ravel() == 0), np.arange(6))


def test_supports_nest(conv_net: Net, apply: Any, weights: Any) -> None:
    found = [weights(apply(conv_net(0), [Magnitude(sparsity=s)])[0]) for s in (0.2, 0.5, 0.8)]
    for wide, narrow in itertools.pairwise(found):
        assert all(not (narrow[n] != 0)[wide[n] == 0].any() for n in TREATED)


def test_thresholds(conv_net: Net, apply: Any, weights: Any) -> None:
    before = weights(conv_net(0))
    fixed, step = apply(conv_net(0), "magnitude(threshold=0.1)")
    spread, _ = apply(conv_net(0), "magnitude(std=0.8)")
    for name in TREATED:
        np.testing.assert_array_equal(weights(fixed)[name] == 0, np.abs(before[name]) < 0.1)
        bound = 0.8 * before[name].astype(np.float64).std()
        np.testing.assert_array_equal(weights(spread)[name] == 0, np.abs(before[name]) < bound)
    assert step.result.reached == {}
    same, _ = apply(conv_net(0), "magnitude(threshold=0)")
    assert all(np.array_equal(weights(same)[name], before[name]) for name in before)


@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:5", 3, 5)])
def test_n_of_m_along_the_inputs(conv_net: Net, apply: Any, weights: Any, pattern: str, n: int, m: int) -> None:
    model = conv_net(0)
    before, after = weights(model), weights(apply(model, f"magnitude(nm={pattern})")[0])
    axes = {name: input_axis_of(model, name) for name in TREATED}
    for name, axis in axes.items():
        old, new = np.moveaxis(before[name], axis, -1), np.moveaxis(after[name], axis, -1)
        for start in range(0, old.shape[-1], m):
            kept = new[..., start : start + m] != 0
            assert (kept.sum(axis=-1) == min(n, kept.shape[-1])).all()
            lost = np.where(kept, 0, np.abs(old[..., start : start + m])).max(axis=-1)
            least = np.where(kept, np.abs(old[..., start : start + m]), np.inf).min(axis=-1)
            assert (lost <= least).all()


def input_axis_of(model: onnx.ModelProto, weight: str) -> int:
    (node,) = [node for node in model.graph.node if weight in node.input]
    if node.op_type == "Conv":
        return 1
    turned = any(item.name == "transB" and item.i for item in node.attribute)
    return 1 if turned else 0


@given(text=st.text(alphabet="0123456789:-x", max_size=6))
def test_patterns_are_read_or_refused(text: str) -> None:
    parts = text.split(":")
    good = len(parts) == 2 and all(p.isdecimal() for p in parts) and 0 < int(parts[0]) < int(parts[1]) <= 64
    if good:
        Magnitude(nm=text)
    else:
        with pytest.raises(OptionError, match="give n:m with 0 < n < m <= 64"):
            Magnitude(nm=text)


@pytest.mark.parametrize("recipe", ["magnitude(sparsity=0.7)", "magnitude(nm=2:4)", "magnitude(std=0.7)"])
def test_a_refit_comes_closer_and_keeps_the_zeros(
    conv_net: Net, apply: Any, weights: Any, run_model: Any, recipe: str
) -> None:
    proto = conv_net(0)
    plain, _ = apply(proto, recipe.replace(")", ",values=original)"), IMAGES)
    fitted, step = apply(proto, recipe.replace(")", ",stages=1)"), IMAGES)
    feeds = {"input": IMAGES}
    wanted = run_model(proto, feeds)["logits"]
    errors = [float(np.square(run_model(model, feeds)["logits"] - wanted).mean()) for model in (plain, fitted)]
    assert errors[1] < 0.6 * errors[0]
    for name in TREATED:
        np.testing.assert_array_equal(weights(plain)[name] == 0, weights(fitted)[name] == 0)
    numbers = step.result.numbers
    assert json.loads(json.dumps(dict(numbers))) == numbers
    onnx.checker.check_model(onnx.load_from_string(serialized(fitted)), full_check=True)


def serialized(model: Any) -> bytes:
    import onnx_ir as ir

    return ir.serde.serialize_model(model).SerializeToString()


def test_sparsity_zero_gives_an_equal_model(conv_net: Net, apply: Any, weights: Any) -> None:
    result, step = apply(conv_net(0), "magnitude(sparsity=0)", IMAGES)
    before, after = weights(conv_net(0)), weights(result)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert step.result.reached == {}


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_keep_their_type(apply: Any, net: Any, weights: Any, kind: type) -> None:
    graph = net(6, dtype=kind)
    graph.store("w", np.arange(1, 31, dtype=np.float64).reshape(6, 5))
    after = weights(apply(graph.model(graph.node("MatMul", "x", "w")), "magnitude(sparsity=0.5)")[0])["w"]
    assert after.dtype == kind
    assert (after == 0).sum() == 15


def test_rules_exclude_one_another() -> None:
    with pytest.raises(OptionError, match="magnitude: sparsity and nm exclude one another; give one of them"):
        Magnitude(sparsity=0.5, nm="2:4")


def test_weights_that_are_not_finite_are_a_model_error(conv_net: Net, apply: Any) -> None:
    proto = conv_net(0)
    for tensor in proto.graph.initializer:
        if tensor.name == "c2.w":
            data = onnx.numpy_helper.to_array(tensor).copy()
            data.flat[3] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(data, "c2.w"))
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        apply(proto, "magnitude")
