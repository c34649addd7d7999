"""Low rank by singular values: exact truncation without data, fitted pairs with it, every way to part a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Context
from onnxprune.errors import OptionError
from onnxprune.fit.ranking import Spectrum, ranks_within
from onnxprune.graph.cost import measure
from onnxprune.graph.factorise import KINDS, unfold
from onnxprune.passes.lrank import LRank

Runner = Callable[..., dict[str, np.ndarray]]


def small(net: Any, **options: Any) -> onnx.ModelProto:
    """Return three convolutions, one of them strided and one in a residual branch, and a classifier."""
    build = net(3, 8, 8, **options)
    x = build.relu(build.conv("x", 3, 10, name="stem", strides=[2, 2]))
    inner = build.relu(build.conv(x, 10, 12, name="one"))
    x = build.relu(build.node("Add", build.conv(inner, 12, 10, name="two"), x))
    proto: onnx.ModelProto = build.model(build.head(x, 10, classes=6))
    return proto


def chain(net: Any) -> onnx.ModelProto:
    """Return one convolution with a BatchNormalization behind it."""
    build = net(4, 6, 6)
    x = build.conv("x", 4, 8, name="layer")
    stored = [build.store(part, build.rng.uniform(0.2, 2.0, 8)) for part in "sbmv"]
    proto: onnx.ModelProto = build.model(build.node("BatchNormalization", x, *stored))
    return proto


def transformer(net: Any) -> onnx.ModelProto:
    """Return an exported-like block: projections as MatMul and Add, attention, and a feed-forward part."""
    build = net(6, 12)
    query, key, value = (build.matmul("x", 12, 12, name=name) for name in "qkv")
    scores = build.node("MatMul", query, build.node("Transpose", key, perm=[0, 2, 1]), name="scores")
    mixed = build.node("MatMul", build.node("Softmax", scores, axis=-1), value, name="mixed")
    x = build.node("Add", "x", build.matmul(mixed, 12, 12, name="out"))
    x = build.node("Add", x, build.matmul(build.relu(build.matmul(x, 12, 24, name="up")), 24, 12, name="down"))
    mean = build.node("ReduceMean", x, build.store("axes", np.array([1])), keepdims=0)
    proto: onnx.ModelProto = build.model(build.gemm(mean, 12, 5, name="head", last=True))
    return proto


def cost(model: ir.Model | onnx.ModelProto) -> Any:
    return measure(ir.serde.deserialize_model(model) if isinstance(model, onnx.ModelProto) else model)


def kernels(model: ir.Model, name: str) -> tuple[list[int], list[int]]:
    found = {str(node.name): node for node in model.graph}
    sizes = [found[f"{name}/{end}"].attributes["kernel_shape"].as_ints() for end in ("enc", "dec")]
    return list(sizes[0]), list(sizes[1])


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(
    ("scheme", "sizes"), [(0, ([3, 3], [1, 1])), (1, ([1, 3], [3, 1])), (2, ([3, 1], [1, 3])), (3, ([1, 1], [3, 3]))]
)
def test_schemes(
    scheme: int, sizes: tuple[list[int], list[int]], data: bool, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto = small(net)
    text = f"lrank(keep=0.3,scheme={scheme},rectify=0)"
    result, step = apply(proto, text, images(30, 3, 8, 8) if data else None)
    rows = {row["node"]: row for row in step.result.numbers["pairs"]}
    assert {"one", "two"} <= rows.keys()
    for name in ("one", "two"):
        assert kernels(result, name) == sizes and rows[name]["kind"] == KINDS[scheme]
        assert rows[name]["rank"] == max(1, int(0.3 * rows[name]["full"] + 1e-9))
    assert rows["head"]["kind"] == "output"
    assert cost(result).macs == cost(proto).macs - sum(row["MACs"] - row["MACs as a pair"] for row in rows.values())
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    assert np.isfinite(run_model(result, images(4, 3, 8, 8))["head_out"]).all()


@pytest.mark.parametrize("scheme", range(4))
def test_without_data_what_is_lost_is_the_tail_of_the_singular_values(scheme: int, net: Any, apply: Any) -> None:
    proto = chain(net)
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    gain = stored["s"] / np.sqrt(stored["v"] + 1e-5)
    weight = stored["layer.w"] * gain[:, None, None, None]
    matrix = weight.transpose(2, 3, 1, 0).reshape(-1, 8)
    values = np.linalg.svd(unfold(matrix, KINDS[scheme], (3, 3)), compute_uv=False)
    result, step = apply(proto, f"lrank(keep=0.5,scheme={scheme})")
    (row,) = step.result.numbers["pairs"]
    assert row["full"] == len(values)
    nodes = {str(node.name): node for node in result.graph}
    enc, dec = (nodes[f"layer/{end}"].inputs[1].const_value.numpy().astype(np.float64) for end in ("enc", "dec"))
    product = np.einsum("riab,orcd->oiacbd", enc, dec).reshape(weight.shape) * gain[:, None, None, None]
    assert np.linalg.norm(product - weight) == pytest.approx(np.linalg.norm(values[row["rank"] :]), rel=1e-5)
    again = {str(v.name): v for v in result.graph.initializers.values()}
    np.testing.assert_array_equal(again["b"].const_value.numpy(), stored["b"].astype(np.float32))


def test_ranks_come_from_one_price(net: Any, apply: Any) -> None:
    proto = small(net)
    _, step = apply(proto, "lrank(flops=0.5,scheme=0)")
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    places = {"stem": 16, "one": 16, "two": 16, "head": 1}
    spectra = {}
    for name, positions in places.items():
        matrix = stored[f"{name}.w"].reshape(len(stored[f"{name}.w"]), -1)
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        tails = np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])
        spectra[name] = Spectrum(squares, tails, sum(matrix.shape) * positions, matrix.size * positions)
    whole = sum(one.whole for one in spectra.values())
    wanted = {n: r for n, r in ranks_within(spectra, int(0.5 * whole)).items() if r is not None}
    assert {row["node"]: row["rank"] for row in step.result.numbers["pairs"]} == wanted
    _, normed = apply(proto, "lrank(flops=0.5,scheme=0,scale=norm)")
    assert normed.result.reached["flops"][1] <= 0.5


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("size", ["flops", "params", "keep_ratio", "bytes"])
def test_budgets(size: str, data: bool, net: Any, apply: Any, images: Any) -> None:
    proto = small(net)
    for allocate in ("measured", "spectrum"):
        text = f"lrank({size}=0.6,allocate={allocate},rectify=0)"
        result, step = apply(proto, text, images(24, 3, 8, 8) if data else None)
        figure = {"flops": "macs", "bytes": "bytes"}.get(size, "params")
        got = getattr(cost(result), figure) / getattr(cost(proto), figure)
        assert 0.53 <= got <= 0.6
        assert step.result.reached == {"params" if size == "keep_ratio" else size: (0.6, pytest.approx(got, rel=1e-3))}
        pairs = {row["node"] for row in step.result.numbers["pairs"]}
        assert pairs | step.result.skipped.keys() == {"stem", "one", "two", "head"}


def test_large_layers_meet_the_budget_closely(net: Any, apply: Any) -> None:
    build = net(40)
    x = build.relu(build.gemm(build.relu(build.gemm("x", 40, 64, name="one")), 64, 64, name="two"))
    proto = build.model(build.gemm(x, 64, 30, name="three", last=True))
    for value in (0.8, 0.5, 0.2):
        for size in ("flops", "params"):
            _, step = apply(proto, f"lrank({size}={value})")
            got = step.result.reached[size][1]
            # A rank of the largest layer is what may be left.
            assert value - 128 / (40 * 64 + 64 * 64 + 64 * 30) <= got <= value


@pytest.mark.parametrize("size", ["keep=1", "flops=1", "params=1", "keep_ratio=1", "bytes=1"])
@pytest.mark.parametrize("data", [True, False])
def test_neutral_sizes_change_nothing(
    size: str, data: bool, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto = small(net)
    result, step = apply(proto, f"lrank({size})", images(20, 3, 8, 8) if data else None)
    assert step.result.numbers["pairs"] == []
    fresh = images(8, 3, 8, 8, seed=9)
    np.testing.assert_array_equal(run_model(result, fresh)["head_out"], run_model(proto, fresh)["head_out"])


@pytest.mark.parametrize("text", ["lrank", "pca", "auto", "lrank/none", "pca/none"])
@pytest.mark.parametrize("size", ["params", "bytes"])
def test_constants_that_a_refit_adds_are_no_reason_to_part_a_layer(
    text: str, size: str, net: Any, apply: Any, images: Any
) -> None:
    build = net(3, 6, 6)
    build.store("w", build.weight((8, 3, 3, 3), 0, 27))
    x = build.relu(build.node("Conv", "x", "w", name="bare", pads=[1] * 4))
    proto = build.model(build.head(build.relu(build.conv(x, 8, 8, name="next")), 8))
    name, _, reconstruct = text.partition("/")
    more = ",reconstruct=none" if reconstruct else ""
    result, step = apply(proto, f"{name}({size}=1{more})", images(20, 3, 6, 6))
    assert step.result.numbers["pairs"] == []
    assert cost(result) == cost(proto)


@pytest.mark.parametrize("scheme", range(4))
def test_a_refit_leaves_less_than_truncation_at_the_same_ranks(
    scheme: int, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    for seed in range(2):
        proto, data = small(net, seed=seed), images(150, 3, 8, 8, seed=seed)
        want = run_model(proto, data)["head_out"]
        left = []
        for reconstruct in ("none", "symmetric", "asymmetric"):
            result, step = apply(proto, f"lrank(keep=0.4,scheme={scheme},reconstruct={reconstruct})", data)
            left.append(float(np.square(run_model(result, data)["head_out"] - want).sum()))
            assert ("refits" in step.result.numbers) == (reconstruct != "none")
        assert left[2] < left[0] and left[1] < left[0] and left[2] <= 1.02 * left[1]


def test_transformers(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto = transformer(net)
    data = images(60, 6, 12)
    want = run_model(proto, data)["head_out"]
    left = []
    for text in ("lrank(flops=0.7,reconstruct=none)", "lrank(flops=0.7)", "pca(flops=0.7)", "auto(flops=0.7)"):
        result, step = apply(proto, text, data)
        names = {str(node.name) for node in result.graph}
        pairs = [row["node"] for row in step.result.numbers["pairs"]]
        assert all({f"{name}/enc", f"{name}/dec"} <= names and name not in names for name in pairs)
        assert {str(n.op_type) for n in result.graph if str(n.name).startswith("q/")} <= {"MatMul"}
        assert step.result.reached["flops"][1] <= 0.7
        left.append(float(np.square(run_model(result, data)["head_out"] - want).sum()))
        assert pairs or text.startswith("auto")
    assert max(left[1:]) < left[0]


def test_several_outputs(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    build = net(3, 6, 6)
    first = build.conv("x", 3, 9, name="first")
    second = build.conv(build.relu(first), 9, 8, name="second")
    proto = build.model(build.head(second, 8), first, second)
    data = images(30, 3, 6, 6)
    for text in ("lrank(flops=0.6)", "lrank(flops=0.6,reconstruct=none)", "pca(flops=0.6)", "auto(flops=0.6)"):
        result, step = apply(proto, text, data)
        assert [str(v.name) for v in result.graph.outputs] == ["head_out", "first_out", "second_out"]
        assert step.result.reached["flops"][1] <= 0.6
        want, got = run_model(proto, data), run_model(result, data)
        assert all(got[name].shape == want[name].shape for name in want)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flops": 0.5, "keep_ratio": 0.5}, "lrank: flops and keep_ratio are both given"),
        ({"scheme": 4}, "scheme"),
        ({"scale": "max"}, "scale"),
        ({"reconstruct": "both"}, "reconstruct"),
        ({"allocate": "even"}, "allocate"),
        ({"keep": 0.0}, "keep"),
        ({"latency": 0.5, "reconstruct": "none"}, "lrank: latency= needs reconstruct=symmetric or asymmetric"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        LRank(**options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_latency_needs_data(net: Any, apply: Any) -> None:
    with pytest.raises(OptionError, match=r"^lrank: latency= needs"):
        apply(small(net), "lrank(latency=0.5)")


def test_what_is_left_alone_and_why(net: Any, apply: Any) -> None:
    build = net(4, 6, 6)
    x = build.relu(build.conv("x", 4, 8, name="first"))
    x = build.relu(build.depthwise(x, 8))
    x = build.relu(build.conv(x, 8, 8, name="second"))
    x = build.relu(build.conv(x, 8, 1, 1, name="thin"))
    _, step = apply(build.model(build.head(x, 1)), "lrank(keep=0.3,only=second;thin;depth)")
    assert [row["node"] for row in step.result.numbers["pairs"]] == ["second"]
    assert step.result.skipped["depth"] == "its channels do not mix (8 groups)"
    assert step.result.skipped["thin"] == "even a pair of rank 1 costs more"
    assert {"first", "head"} <= step.result.skipped.keys()


def test_same_input_and_seed_give_the_same_bytes(net: Any, apply: Any, images: Any) -> None:
    proto, data = small(net), images(24, 3, 8, 8)
    before = proto.SerializeToString(deterministic=True)
    for given in (data, None):
        results = [ir.serde.serialize_model(apply(proto, "lrank(flops=0.6)", given)[0]) for _ in range(2)]
        assert results[0].SerializeToString(deterministic=True) == results[1].SerializeToString(deterministic=True)
    assert proto.SerializeToString(deterministic=True) == before


def test_half_precision(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto = small(net, dtype=np.float16)
    data = images(30, 3, 8, 8, dtype=np.float16)
    for text in ("lrank(flops=0.7)", "pca(flops=0.7)", "pca(flops=0.7,reconstruct=none)", "auto(flops=0.7)"):
        result, _ = apply(proto, text, data)
        kinds = {v.const_value.numpy().dtype for v in result.graph.initializers.values()}
        assert {kind for kind in kinds if kind.kind == "f"} == {np.dtype(np.float16)}
        got = run_model(result, data)["head_out"]
        assert got.dtype == np.float16 and np.isfinite(got).all()


def test_prepared_sizes_are_those_that_are_asked_for(net: Any, apply: Any, images: Any) -> None:
    found: list[Any] = []

    class Tried(LRank):
        def apply(self, model: ir.Model, context: Context) -> Any:
            found.append(replace(self, flops=None).prepared(model, context)(self))
            return super().apply(model, context)

    for data in (images(24, 3, 8, 8), None):
        result, step = apply(small(net), [Tried(flops=0.6)], data)
        assert found[-1].numbers["pairs"] == step.result.numbers["pairs"]
        assert cost(found[-1].model) == cost(result)


def test_a_plan_needs_no_data(net: Any) -> None:
    model = ir.serde.deserialize_model(small(net))
    plan = LRank(flops=0.6).plan(model, Context(model, measure(model), {"x": (1, 3, 8, 8)}, 0))
    assert plan.rows and all(row["rank"] < row["full"] for row in plan.rows)
    assert plan.notes == ("ranks by singular values",)
