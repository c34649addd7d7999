"""Surp's stops, its sequential law, and the refit of what survives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.codec.law import Law, Stop
from onnxprune.codec.stream import encode
from onnxprune.errors import OptionError
from onnxprune.fit.zeroing import SCHEDULE, stages
from onnxprune.passes.surp import Surp

Net = Callable[..., onnx.ModelProto]
IMAGES = np.random.default_rng(3).standard_normal((120, 1, 12, 12)).astype(np.float32)
TREATED = ("c1.w", "c2.w", "g1.w", "g2.w")


def nonzeros(arrays: dict[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(arrays[name])) for name in TREATED)


def error(run_model: Any, result: Any, proto: onnx.ModelProto) -> float:
    feeds = {"input": IMAGES}
    wanted = run_model(proto, feeds)["logits"]
    return float(np.square(run_model(result, feeds)["logits"] - wanted).mean())


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_a_refit_comes_closer_and_keeps_every_zero(
    conv_net: Net, apply: Any, weights: Any, run_model: Any, sparsity: float
) -> None:
    proto = conv_net(0)
    plain, _ = apply(proto, [Surp(sparsity=sparsity, values="original")], IMAGES)
    once, step = apply(proto, [Surp(sparsity=sparsity, values="refit", stages="1")], IMAGES)
    kept, fitted = weights(plain), weights(once)
    for name in TREATED:
        np.testing.assert_array_equal(kept[name] != 0, fitted[name] != 0)
    assert error(run_model, once, proto) < 0.5 * error(run_model, plain, proto)
    assert step.result.numbers["refits"]
    assert all(row["error_fitted"] <= row["error_folded"] + 1e-12 for row in step.result.numbers["refits"])
    assert step.result.reached["sparsity"][1] == pytest.approx(sparsity, abs=1e-3)


def test_stages_nest_and_reach_the_sparsity(conv_net: Net, apply: Any, weights: Any) -> None:
    proto = conv_net(0)
    result, step = apply(proto, [Surp(sparsity=0.75, values="refit", stages="3")], IMAGES)
    total = sum(weights(proto)[name].size for name in TREATED)
    assert nonzeros(weights(result)) == total - np.ceil(0.75 * total)
    assert step.result.warnings == ()
    first, _ = apply(proto, [Surp(sparsity=1 - 0.25 ** (1 / 3), values="original")], IMAGES)
    for name in TREATED:
        assert not (weights(result)[name][weights(first)[name] == 0]).any()


def test_the_way_to_a_sparsity() -> None:
    def way(goal: float | None, count: str) -> list[float]:
        return [round(stage.sparsity or 0.0, 4) for stage in stages("surp", goal, count)]

    assert way(0.5, "auto") == [0.2, 0.36, 0.5]
    assert way(0.48, "auto") == [0.2, 0.36, 0.48]
    assert way(0.1, "auto") == [0.1]
    assert way(0.0, "auto") == [0.0]
    assert way(0.75, "2") == [0.5, 0.75]
    assert way(None, "7") == [0.0]
    assert [stage.last for stage in stages("surp", 0.5, "auto")] == [False, False, True]
    assert round(SCHEDULE[9], 3) == 0.893
    for wrong in ("0", "101", "-1", "many", "1.5"):
        with pytest.raises(OptionError, match=r"surp: stages=.* is not accepted; give a number from 1 to 100, or auto"):
            stages("surp", 0.5, wrong)


def test_a_model_that_was_pruned_before_is_past_some_of_the_way(
    conv_net: Net, apply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxprune.fit import zeroing

    refitted, refit = [], zeroing.refit_support
    monkeypatch.setattr(zeroing, "refit_support", lambda *given: refitted.append(1) or refit(*given))
    apply(conv_net(0), "surp(sparsity=0.8,values=refit)", IMAGES)
    all_of_it = len(refitted)
    apply(conv_net(0), "magnitude(sparsity=0.7,values=original),surp(sparsity=0.8,values=refit)", IMAGES)
    assert all_of_it == len([share for share in SCHEDULE if share < 0.78]) + 1
    assert len(refitted) - all_of_it == len([share for share in SCHEDULE if 0.7 < share < 0.78]) + 1


def test_trials_share_their_stages(conv_net: Net, weights: Any) -> None:
    import onnx_ir as ir

    from onnxprune.contract import Context
    from onnxprune.data import open_data
    from onnxprune.graph.cost import measure
    from onnxprune.runtime.session import input_specs

    model = ir.serde.deserialize_model(conv_net(0))
    shapes = {"input": (1, 1, 12, 12)}
    examples = open_data({"input": IMAGES}, input_specs(model))
    context = Context(model, measure(model, shapes), shapes, 0, examples=examples)
    attempt = Surp(values="refit").prepared(model, context)
    for sparsity in (0.8, 0.5, 0.7):
        sized = Surp(sparsity=sparsity, values="refit")
        one, other = attempt(sized), sized.apply(model, context)
        assert all(np.array_equal(weights(one.model)[n], weights(other.model)[n]) for n in weights(other.model))
        assert one.numbers == other.numbers


def test_without_data_the_codes_own_values_stay(conv_net: Net, apply: Any, weights: Any) -> None:
    bare, step = apply(conv_net(0), "surp(sparsity=0.6,values=refit)")
    own, _ = apply(conv_net(0), "surp(sparsity=0.6,values=reconstruction)")
    assert all(np.array_equal(weights(bare)[name], weights(own)[name]) for name in weights(own))
    assert step.result.warnings == ()


def test_the_same_bytes_again(conv_net: Net, apply: Any, weights: Any) -> None:
    one, two = (weights(apply(conv_net(0), "surp(sparsity=0.7,values=refit)", IMAGES)[0]) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_other_stops(conv_net: Net, apply: Any, weights: Any) -> None:
    proto = conv_net(0)
    arrays = weights(proto)
    pooled = np.concatenate([(arrays[n] / np.linalg.norm(arrays[n].astype(np.float64))).ravel() for n in TREATED])
    _, step = apply(proto, "surp(hits=500,values=reconstruction)")
    assert step.result.numbers["hits"] == 500
    assert step.result.reached == {}
    _, step = apply(proto, "surp(relative_l1=0.4,values=reconstruction)")
    assert 0.35 < step.result.numbers["relative_l1"] <= 0.4
    coded = encode(pooled, Law(), Stop(bytes=300))
    result, step = apply(proto, "surp(bytes=300,values=reconstruction)")
    assert step.result.numbers["hits"] == coded.shape.hits
    assert nonzeros(weights(result)) == len(coded.support)
    same, _ = apply(proto, "surp(bits=2400,values=reconstruction)")
    assert all(np.array_equal(weights(result)[name], weights(same)[name]) for name in TREATED)
    both, step = apply(proto, "surp(sparsity=0.9,hits=100000,values=reconstruction)")
    assert step.result.numbers["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert nonzeros(weights(both)) < nonzeros(weights(proto))


def test_the_sequential_law(conv_net: Net, apply: Any, weights: Any) -> None:
    proto = conv_net(0)
    level, _ = apply(proto, "surp(sparsity=0.7,values=reconstruction)")
    result, step = apply(proto, "surp(sparsity=0.7,mode=sequential,values=reconstruction)")
    assert nonzeros(weights(result)) == nonzeros(weights(level))
    for name in TREATED:
        before, after = weights(proto)[name], weights(result)[name]
        assert (np.abs(after) <= np.abs(before) * (1 + 1e-6)).all()
        assert (np.sign(after) == np.sign(before))[after != 0].all()
    assert step.result.numbers["hits"] >= nonzeros(weights(result))
    with pytest.raises(OptionError, match="mode=sequential is not coded, bytes= cannot stop it"):
        Surp(mode="sequential", bytes=10)


def test_the_seed_is_the_runs_unless_given(conv_net: Net, apply: Any, weights: Any) -> None:
    def support(recipe: str) -> bytes:
        found = weights(apply(conv_net(0), recipe)[0])
        return b"".join((found[name] != 0).tobytes() for name in TREATED)

    assert support("surp(sparsity=0.7,seed=0)") == support("surp(sparsity=0.7)")
    assert support("surp(sparsity=0.7,seed=5)") != support("surp(sparsity=0.7)")


def test_surp_behind_a_cut_is_refitted_too(conv_net: Net, apply: Any, run_model: Any) -> None:
    proto = conv_net(0)
    cut, _ = apply(proto, "filters(keep=0.75),surp(sparsity=0.6,values=original)", IMAGES)
    fitted, _ = apply(proto, "filters(keep=0.75),surp(sparsity=0.6,values=refit)", IMAGES)
    assert error(run_model, fitted, proto) < error(run_model, cut, proto)
