"""The pass ``surp``: exact sparsity, untouched rest, refusals, element types, determinism."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.contract import Context
from onnxprune.errors import ModelError, OptionError
from onnxprune.graph.cost import measure
from onnxprune.passes.surp import Surp

TREATED = {"c1.w", "c2.w", "g1.w", "g2.w"}


def zeros(arrays: dict[str, np.ndarray], names: set[str] = TREATED) -> int:
    return sum(int((arrays[name] == 0).sum()) for name in names)


def set_weight(proto: onnx.ModelProto, name: str, data: np.ndarray) -> None:
    stored = next(item for item in proto.graph.initializer if item.name == name)
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(data), name))


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("sparsity", [0.001, 0.1, 0.5, 1 / 3, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("normalize", [True, False])
def test_sparsity_is_exact(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, sparsity: float, normalize: bool
) -> None:
    proto = conv_net(0)
    result, step = apply(proto, [Surp(sparsity=sparsity, normalize=normalize)])
    after, before = weights(result), weights(proto)
    total = sum(before[name].size for name in TREATED)
    assert zeros(after) == math.ceil(sparsity * total)
    numbers = step.result.numbers
    assert numbers["weights"] == total
    assert numbers["sparsity"] == zeros(after) / total
    assert step.result.reached == {"sparsity": (sparsity, zeros(after) / total)}
    assert {row["tensor"]: row["nonzero_after"] for row in numbers["layers"]} == {
        name: np.count_nonzero(after[name]) for name in TREATED
    }


def test_values_are_the_codes_own_or_the_original_ones(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    before = weights(conv_net(0))
    coded = weights(apply(conv_net(0), "surp(sparsity=0.7)")[0])
    plain = weights(apply(conv_net(0), "surp(sparsity=0.7,values=original)")[0])
    for name in TREATED:
        assert np.array_equal(coded[name] != 0, plain[name] != 0)
        live = plain[name] != 0
        assert np.array_equal(plain[name][live], before[name][live])
        assert (np.sign(coded[name][live]) == np.sign(before[name][live])).all()
        assert (np.abs(coded[name]) <= np.abs(before[name])).all()
        assert not np.signbit(coded[name][~live]).any()  # a zero is all zero bits, so that it compresses


def test_biases_norms_and_the_graph_stay(conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any) -> None:
    proto = conv_net(0)
    result, _ = apply(proto, "surp(sparsity=0.9)")
    before, after = weights(proto), weights(result)
    for name in set(before) - TREATED:
        assert np.array_equal(before[name], after[name])
    back = ir.serde.serialize_model(result)
    assert [node.SerializeToString() for node in back.graph.node] == [n.SerializeToString() for n in proto.graph.node]
    assert list(back.graph.input) == list(proto.graph.input)
    assert list(back.graph.output) == list(proto.graph.output)
    assert back.opset_import == proto.opset_import
    assert back.ir_version == proto.ir_version
    assert {p.key: p.value for p in back.metadata_props} == {p.key: p.value for p in proto.metadata_props}


def test_sparsity_zero_gives_an_equal_model(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, run_model: Any
) -> None:
    result, step = apply(conv_net(0), "surp(sparsity=0)")
    before, after = weights(conv_net(0)), weights(result)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert step.result.numbers["sparsity"] == 0.0
    assert step.result.reached == {}
    feeds = {"input": np.ones((2, 1, 12, 12), dtype=np.float32)}
    assert np.array_equal(run_model(result, feeds)["logits"], run_model(conv_net(0), feeds)["logits"])


def test_a_bare_pass_halves_and_asks_for_nothing(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    _, step = apply(conv_net(0), "surp")
    assert step.result.numbers["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert step.result.reached == {}


@pytest.mark.parametrize("options", [{}, {"values": "original", "normalize": False}, {"only": "conv2;fc1"}])
def test_what_is_prepared_gives_what_explicit_sizes_give(
    conv_net: Callable[..., onnx.ModelProto], options: dict[str, Any]
) -> None:
    model = ir.serde.deserialize_model(conv_net(0))
    before = written(model)
    context = Context(model, measure(model), {}, seed=5)
    attempt = Surp(**options).prepared(model, context)
    for sparsity in (0.5, 0.9, 0.0, 0.25, 0.9):
        sized = Surp(sparsity=sparsity, **options)
        found, wanted = attempt(sized), sized.apply(model, context)
        assert written(found.model) == written(wanted.model)
        assert replace(found, model=model) == replace(wanted, model=model)
    assert written(model) == before


def test_same_seed_same_bytes_and_another_seed_another_support(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    models = [apply(conv_net(0), "surp(sparsity=0.6)", seed=seed)[0] for seed in (3, 3, 4)]
    assert written(models[0]) == written(models[1])
    assert zeros(weights(models[0])) == zeros(weights(models[2]))
    assert any(not np.array_equal(weights(models[0])[n], weights(models[2])[n]) for n in TREATED)


def test_supports_nest(conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any) -> None:
    supports = [
        {name: weights(apply(conv_net(0), [Surp(sparsity=s)])[0])[name] != 0 for name in TREATED}
        for s in (0.95, 0.8, 0.5, 0.2)
    ]
    for sparse, dense in itertools.pairwise(supports):
        assert all((sparse[name] <= dense[name]).all() for name in TREATED)


def test_scaling_a_layer_by_a_power_of_two_scales_its_values(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    scaled = conv_net(0)
    set_weight(scaled, "g1.w", 8 * weights(scaled)["g1.w"])
    plain = weights(apply(conv_net(0), "surp(sparsity=0.7)")[0])
    after = weights(apply(scaled, "surp(sparsity=0.7)")[0])
    assert np.array_equal(after["g1.w"], 8 * plain["g1.w"])
    assert all(np.array_equal(after[name], plain[name]) for name in TREATED - {"g1.w"})


def test_zeros_that_are_there_count(conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any) -> None:
    proto = conv_net(0)
    data = weights(proto)["g1.w"].copy()
    data[:, ::2] = 0.0
    set_weight(proto, "g1.w", data)
    result, step = apply(proto, "surp(sparsity=0.6)")
    after = weights(result)
    total = step.result.numbers["weights"]
    assert zeros(after) == math.ceil(0.6 * total)
    assert not after["g1.w"][:, ::2].any()
    row = next(row for row in step.result.numbers["layers"] if row["tensor"] == "g1.w")
    assert row["nonzero_before"] == data.size // 2
    again, second = apply(result, "surp(sparsity=0.8,values=original)")
    assert zeros(weights(again)) == math.ceil(0.8 * total)
    assert second.result.reached["sparsity"][1] >= 0.8


def test_a_sparser_model_than_asked_for_is_told(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    sparse, _ = apply(conv_net(0), "surp(sparsity=0.9)")
    result, step = apply(sparse, "surp(sparsity=0.5,values=original)")
    wanted, got = step.result.reached["sparsity"]
    assert wanted == 0.5
    assert got >= 0.9
    assert step.result.warnings == (
        f"surp was asked for a sparsity of 0.5 and came to {got:.6g}: "
        "the other weights were zero before or are too small to be coded",
    )
    for name in TREATED:
        assert np.array_equal(weights(result)[name], weights(sparse)[name])


def test_a_shared_weight_is_coded_once(apply: Any, weights: Any, net: Any) -> None:
    build = net(6)
    shared = build.store("w", build.rng.standard_normal((6, 6)))
    first = build.node("Gemm", "x", shared, name="a", transB=1)
    second = build.node("MatMul", build.relu(first), shared, name="b")
    result, step = apply(build.model(second), "surp(sparsity=0.5)")
    assert step.result.numbers["weights"] == 36
    assert int((weights(result)["w"] == 0).sum()) == 18
    assert [value.name for value in result.graph.initializers.values()] == ["w"]


def test_an_all_zero_weight_is_skipped_with_its_reason(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    proto = conv_net(0)
    set_weight(proto, "c2.w", np.zeros_like(weights(proto)["c2.w"]))
    _, step = apply(proto, "surp(sparsity=0.5)")
    assert step.result.skipped == {"conv2": "its weight 'c2.w' is all zeros"}
    assert {row["tensor"] for row in step.result.numbers["layers"]} == TREATED - {"c2.w"}


def test_computed_and_fed_weights_are_skipped_with_a_reason(apply: Any, net: Any) -> None:
    build = net(4, 6, 6)
    conv = build.conv("x", 4, 4, name="kept")
    build.store("half", np.array(0.5))
    build.store("base", build.rng.standard_normal((4, 4, 1, 1)))
    computed = build.node("Mul", "base", "half")
    out = build.node("Conv", conv, computed, name="computed")
    build.store("fed.w", build.rng.standard_normal((4, 4, 1, 1)))
    model = build.model(build.node("Conv", out, "fed.w", name="fed"))
    model.graph.input.append(helper.make_tensor_value_info("fed.w", TensorProto.FLOAT, [4, 4, 1, 1]))
    _, step = apply(model, "surp(sparsity=0.5)")
    reason = "its weight is computed or may be fed by the caller, not stored"
    assert step.result.skipped == {"computed": reason, "fed": reason}
    assert step.result.numbers["weights"] == 4 * 4 * 9


def test_a_model_without_weights_is_left_alone(apply: Any, net: Any) -> None:
    build = net(4)
    result, step = apply(build.model(build.relu("x")), "surp(sparsity=0.5)")
    assert step.result.numbers == {"weights": 0, "sparsity": 0.0, "layers": []}
    assert len(result.graph) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_a_model_error(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, bad: float
) -> None:
    proto = conv_net(0)
    data = weights(proto)["c2.w"].copy()
    data[1, 2, 0, 0] = bad
    set_weight(proto, "c2.w", data)
    with pytest.raises(ModelError) as caught:
        apply(proto, "surp")
    assert str(caught.value) == "weight 'c2.w' of node 'conv2' holds NaN or infinity; mend the model first"


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_handful_of_weights(apply: Any, net: Any, weights: Any, width: int) -> None:
    build = net(4)
    model = build.model(build.node("MatMul", "x", build.store("w", build.rng.standard_normal((4, width)))))
    for sparsity in (0.0, 0.25, 0.5, 0.9):
        result, _ = apply(model, [Surp(sparsity=sparsity)])
        assert int((weights(result)["w"] == 0).sum()) == math.ceil(sparsity * 4 * width)


def test_equal_weights_are_told_apart_by_the_seeded_scan(apply: Any, net: Any, weights: Any) -> None:
    build = net(8)
    model = build.model(build.node("MatMul", "x", build.store("w", np.full((8, 8), 0.25))))
    result, _ = apply(model, "surp(sparsity=0.75)")
    assert int((weights(result)["w"] == 0).sum()) == 48


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_precisions_keep_their_type(apply: Any, net: Any, weights: Any, kind: type) -> None:
    build = net(8, dtype=kind)
    model = build.model(build.gemm(build.relu(build.gemm("x", 8, 32)), 32, 4, last=True))
    result, step = apply(model, "surp(sparsity=0.7)")
    before, after = weights(model), weights(result)
    names = {name for name in before if name.endswith(".w")}
    assert all(after[name].dtype == kind for name in after)
    assert zeros(after, names) == math.ceil(0.7 * step.result.numbers["weights"])
    assert all((np.abs(after[name]) <= np.abs(before[name])).all() for name in names)


def test_bfloat16_keeps_its_type_and_its_sparsity(apply: Any) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((16, 16)).astype(ml_dtypes.bfloat16)
    stored = ir.serde.serialize_tensor(ir.Tensor(data, dtype=ir.DataType.BFLOAT16, name="w"))
    kind = TensorProto.BFLOAT16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        "bf",
        [helper.make_tensor_value_info("x", kind, ["n", 16])],
        [helper.make_tensor_value_info("y", kind, ["n", 16])],
        [stored],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    result, step = apply(model, "surp(sparsity=0.75)")
    after = result.graph.initializers["w"].const_value
    assert after.dtype == ir.DataType.BFLOAT16
    array = after.numpy().astype(np.float32)
    assert int((array == 0).sum()) == 192
    assert (np.abs(array) <= np.abs(data.astype(np.float32))).all()
    assert step.result.numbers["sparsity"] == 0.75


def test_values_too_small_for_half_precision_do_not_become_zeros(apply: Any, net: Any, weights: Any) -> None:
    build = net(16, dtype=np.float16)
    data = build.rng.standard_normal((16, 16)) * 2e-7  # a few steps above the smallest float16
    model = build.model(build.node("MatMul", "x", build.store("w", data)))
    before = weights(model)["w"]
    alive = int(np.count_nonzero(before))
    result, step = apply(model, "surp(sparsity=0.4)")
    after = weights(result)["w"]
    assert alive > 154
    assert int((after == 0).sum()) == math.ceil(0.4 * 256)
    assert (np.abs(after) <= np.abs(before)).all()
    assert step.result.numbers["sparsity"] == (after == 0).mean()


def test_doubles_whose_squares_leave_the_range(apply: Any, net: Any, weights: Any) -> None:
    for scale in (1e-200, 1e200):
        build = net(8, dtype=np.float64)
        model = build.model(build.node("MatMul", "x", build.store("w", scale * build.rng.standard_normal((8, 8)))))
        result, _ = apply(model, "surp(sparsity=0.5)")
        assert int((weights(result)["w"] == 0).sum()) == 32


def test_integer_weights_and_vectors_are_left_alone(apply: Any, net: Any, weights: Any) -> None:
    build = net(6)
    vector = build.node("MatMul", "x", build.store("v", build.rng.standard_normal(6)))
    result, step = apply(build.model(vector), "surp(sparsity=0.5)")
    assert step.result.numbers["weights"] == 0
    assert np.count_nonzero(weights(result)["v"]) == 6


def test_constant_nodes_are_weights_too(apply: Any, net: Any) -> None:
    build = net(6)
    build.nodes.append(
        helper.make_node(
            "Constant", [], ["w"], value=numpy_helper.from_array(build.rng.standard_normal((6, 4)).astype(np.float32))
        )
    )
    result, step = apply(build.model(build.node("MatMul", "x", "w")), "surp(sparsity=0.5)")
    assert step.result.numbers["weights"] == 24
    assert step.result.numbers["sparsity"] == 0.5
    assert [node.op_type for node in result.graph] == ["MatMul"]


def test_numbers_are_ready_for_json(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    _, step = apply(conv_net(0), "surp(sparsity=0.5)")
    assert json.loads(json.dumps(dict(step.result.numbers))) == step.result.numbers
    assert set(step.result.numbers) == {"weights", "sparsity", "hits", "levels", "relative_l1", "layers"}


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        ({"sparsity": 1.0}, "a number in [0, 1)"),
        ({"sparsity": -0.1}, "a number in [0, 1)"),
        ({"alpha": 0.0}, "a number in (0, 1000000]"),
        ({"decay": 1.0}, "a number in (0, 1)"),
        ({"decay": 0.0}, "a number in (0, 1)"),
        ({"patience": 0}, "a whole number in [1, 1000000]"),
        ({"values": "exact"}, "reconstruction or original or refit"),
        ({"normalize": 1}, "true or false"),
    ],
)
def test_options_out_of_range(given: dict[str, Any], accepted: str) -> None:
    ((name, value),) = given.items()
    with pytest.raises(OptionError) as caught:
        Surp(**given)
    assert str(caught.value) == f"surp: {name}={value} is not accepted; give {accepted}"


@pytest.mark.parametrize("alpha", [1e-9, 1e-3, 1e3, 1e6])
def test_the_first_threshold_does_not_decide_how_many_are_kept(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, alpha: float
) -> None:
    result, step = apply(conv_net(0), [Surp(sparsity=0.1, alpha=alpha)])
    assert zeros(weights(result)) == math.ceil(0.1 * step.result.numbers["weights"])
    assert step.result.warnings == ()
