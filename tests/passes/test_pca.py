"""Principal components of outputs: exact where outputs have few, the best pair otherwise, and fitted to the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Context
from onnxprune.errors import DataError, OptionError
from onnxprune.graph.cost import measure
from onnxprune.passes.pca import Pca

Runner = Callable[..., dict[str, np.ndarray]]


def low(
    net: Any, op: str, *, rank: int = 2, batch_norm: bool = False, relu: bool = True, **more: Any
) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Return one layer of 8 outputs whose weight has a low rank and whose constants are large."""
    given = 6
    build = net(*((given, 5, 5) if "Conv" in op else (4, given) if op == "MatMul" else (given,)), seed=3)
    rng = build.rng
    shape = {"Conv": (8, given * 9), "ConvTranspose": (8, given * 9)}.get(op, (8, given))
    weight = rng.standard_normal((8, rank)) @ rng.standard_normal((rank, shape[1]))
    shift = build.store("b", 3 * rng.standard_normal(8))
    if op == "Conv":
        name = build.store("w", weight.reshape(8, given, 3, 3))
        out = build.node(op, "x", name, shift, name="layer", pads=[1] * 4, **more)
    elif op == "ConvTranspose":
        name = build.store("w", weight.reshape(8, given, 3, 3).transpose(1, 0, 2, 3))
        out = build.node(op, "x", name, shift, name="layer", strides=[2, 2])
    elif op == "Gemm":
        name = build.store("w", weight if more.get("transB") else weight.T)
        out = build.node(op, "x", name, shift, name="layer", **more)
    else:
        out = build.node("Add", build.node("MatMul", "x", build.store("w", weight.T), name="layer"), shift)
    if batch_norm:
        stored = [build.store(f"n.{part}", build.rng.uniform(0.5, 1.5, 8)) for part in "sbmv"]
        out = build.node("BatchNormalization", out, *stored)
    return build.model(build.relu(out) if relu else out), tuple(build.shape[1:])


def small(net: Any, **options: Any) -> onnx.ModelProto:
    """Return three convolutions, one of them in a residual branch, and a classifier."""
    build = net(3, 6, 6, **options)
    x = build.relu(build.conv("x", 3, 10, name="stem"))
    inner = build.relu(build.conv(x, 10, 9, name="one"))
    x = build.relu(build.node("Add", build.conv(inner, 9, 10, name="two"), x))
    proto: onnx.ModelProto = build.model(build.head(x, 10))
    return proto


def macs(model: ir.Model | onnx.ModelProto) -> int:
    return measure(ir.serde.deserialize_model(model) if isinstance(model, onnx.ModelProto) else model).macs


CASES = [
    ("Conv", {}), ("ConvTranspose", {}), ("Gemm", {}), ("Gemm", {"transB": 1}),
    ("Gemm", {"alpha": 0.5, "beta": 3.0}), ("MatMul", {}),
    ("Conv", {"batch_norm": True}), ("Gemm", {"alpha": -2.0, "beta": 0.3, "batch_norm": True}),
]  # fmt: skip


@pytest.mark.parametrize("reconstruct", ["none", "symmetric", "asymmetric"])
@pytest.mark.parametrize(("op", "more"), CASES)
def test_a_layer_of_low_rank_loses_nothing(
    op: str, more: dict[str, Any], reconstruct: str, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto, shape = low(net, op, **more)
    data = images(60, *shape)
    result, step = apply(proto, f"pca(keep=0.34,reconstruct={reconstruct},ridge=1e-9)", data)
    (row,) = step.result.numbers["pairs"]
    assert (row["node"], row["kind"], row["rank"]) == ("layer", "output", 2)
    fresh = images(20, *shape, seed=9)
    want, got = ((next(iter(run_model(m, fresh).values()))) for m in (proto, result))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4 * np.abs(want).max())


def test_the_golden_layer_keeps_its_bias(net: Any, apply: Any, run_model: Runner) -> None:
    build = net(3)
    build.store("w", np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    build.store("b", np.array([0.0, 3.0]))
    proto = build.model(build.node("Gemm", "x", "w", "b", name="layer"))
    data = {"x": np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)}
    result, step = apply(proto, "pca(keep=0.5,reconstruct=none)", data)
    assert step.result.numbers["pairs"][0]["rank"] == 1
    got = run_model(result, data)["layer_out"]
    np.testing.assert_allclose(got, np.stack([data["x"][:, 0], np.full(50, 3.0)], axis=1), atol=1e-6)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_what_is_left_is_the_tail_of_the_eigenvalues(
    batch_norm: bool, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    build = net(4, 5, 5)
    x = build.conv("x", 4, 8, name="layer")
    if batch_norm:
        x = build.node("BatchNormalization", x, *(build.store(p, build.rng.uniform(0.5, 1.5, 8)) for p in "sbmv"))
    outputs = ["layer_out"] if not batch_norm else [x, "layer_out"]
    proto = build.model(*outputs)
    data = images(40, 4, 5, 5)
    seen = run_model(proto, data)["layer_out"].transpose(0, 2, 3, 1).reshape(-1, 8).astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(seen.T, bias=True) * len(seen))[::-1]
    errors = []
    for rank in range(1, 7):
        result, step = apply(proto, f"pca(keep={rank / 8},reconstruct=none)", data)
        assert step.result.numbers["pairs"][0]["rank"] == rank
        got = run_model(result, data)["layer_out"].transpose(0, 2, 3, 1).reshape(-1, 8)
        np.testing.assert_allclose(got.mean(0), seen.mean(0), atol=1e-4)
        errors.append(float(np.square(got - seen).sum()))
        assert errors[-1] == pytest.approx(values[rank:].sum(), rel=1e-4)
    assert (np.diff(errors) < 0).all()


@pytest.mark.parametrize("size", ["keep=1", "flops=1", "params=1", "keep_ratio=1", "bytes=1"])
@pytest.mark.parametrize("reconstruct", ["none", "asymmetric"])
def test_neutral_sizes_change_nothing(
    size: str, reconstruct: str, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto = small(net)
    result, step = apply(proto, f"pca({size},reconstruct={reconstruct})", images(20, 3, 6, 6))
    assert step.result.numbers["pairs"] == []
    fresh = images(8, 3, 6, 6, seed=9)
    np.testing.assert_array_equal(run_model(result, fresh)["head_out"], run_model(proto, fresh)["head_out"])
    assert set(step.result.skipped.values()) <= {
        "the budget leaves it as it is", "even a pair of rank 1 costs more",
    }  # fmt: skip


@pytest.mark.parametrize("allocate", ["measured", "spectrum"])
@pytest.mark.parametrize("reconstruct", ["none", "symmetric", "asymmetric"])
@pytest.mark.parametrize("size", ["flops", "params", "keep_ratio", "bytes"])
def test_budgets(size: str, reconstruct: str, allocate: str, net: Any, apply: Any, images: Any) -> None:
    proto = small(net)
    text = f"pca({size}=0.7,reconstruct={reconstruct},allocate={allocate},rectify=0)"
    result, step = apply(proto, text, images(24, 3, 6, 6))
    before, after = measure(ir.serde.deserialize_model(proto)), measure(result)
    figure = {"flops": "macs", "bytes": "bytes"}.get(size, "params")
    got = getattr(after, figure) / getattr(before, figure)
    # A rank of the dearest layer costs so much.
    step_size = max(row["MACs as a pair"] / row["rank"] / row["MACs"] for row in step.result.numbers["pairs"])
    assert 0.7 - step_size <= got <= 0.7
    name = "params" if size == "keep_ratio" else size
    assert step.result.reached == {name: (0.7, pytest.approx(got, rel=1e-3))}
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    pairs = {row["node"] for row in step.result.numbers["pairs"]}
    assert pairs and not pairs & step.result.skipped.keys()
    assert pairs | step.result.skipped.keys() == {"stem", "one", "two", "head"}


@pytest.mark.parametrize("seed", range(3))
def test_a_refit_leaves_less_than_projection_at_the_same_ranks(
    seed: int, net: Any, apply: Any, images: Any, run_model: Runner
) -> None:
    proto = small(net, seed=seed)
    data = images(100, 3, 6, 6, seed=seed)
    want = run_model(proto, data)["head_out"]
    left, ranks = [], []
    for reconstruct in ("none", "symmetric", "asymmetric"):
        result, step = apply(proto, f"pca(keep=0.4,reconstruct={reconstruct})", data)
        left.append(float(np.square(run_model(result, data)["head_out"] - want).sum()))
        ranks.append({row["node"]: row["rank"] for row in step.result.numbers["pairs"]})
    assert ranks[0] == ranks[1] == ranks[2]
    assert left[2] <= left[0] and left[2] <= 1.02 * left[1]


def test_weights_by_what_a_relu_lets_through(net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    for batch_norm in (False, True):
        build = net(4)
        # Two outputs vary much but are never let through; the third is.
        build.store("w", np.diag([5.0, 5.0, 1.0, 0.1]) @ build.rng.standard_normal((4, 4)))
        shift, scale = np.array([-90.0, -90.0, 0.0, 0.0]), np.ones(4)
        if batch_norm:
            build.store("b", np.zeros(4))
            x = build.node("Gemm", "x", "w", "b", name="layer", transB=1)
            stored = [build.store("s", scale), build.store("h", shift), build.store("m", 0 * shift)]
            x = build.node("BatchNormalization", x, *stored, build.store("v", scale), epsilon=0.0)
        else:
            build.store("b", shift)
            x = build.node("Gemm", "x", "w", "b", name="layer", transB=1)
        proto = build.model(build.relu(x))
        data = images(200, 4)
        want = next(iter(run_model(proto, data).values()))
        errors = []
        for weighting in ("none", "relu"):
            result, step = apply(proto, f"pca(keep=0.25,reconstruct=none,weighting={weighting})", data)
            assert step.result.numbers["pairs"][0]["rank"] == 1
            errors.append(float(np.square(next(iter(run_model(result, data).values())) - want).sum()))
        assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(("op", "more"), CASES)
def test_means_stay(op: str, more: dict[str, Any], net: Any, apply: Any, images: Any, run_model: Runner) -> None:
    proto, shape = low(net, op, rank=6, relu=False, **more)
    data = {"x": 1 + images(60, *shape)["x"]}
    result, step = apply(proto, "pca(keep=0.34,reconstruct=none)", data)
    assert step.result.numbers["pairs"][0]["rank"] == 2
    axes = (0, 1) if op == "MatMul" else (0, 2, 3)[: 3 if "Conv" in op else 1]
    want, got = (next(iter(run_model(m, data).values())) for m in (proto, result))
    np.testing.assert_allclose(got.mean(axes), want.mean(axes), rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert np.abs(got - want).max() > 1e-3


def test_data_is_needed(net: Any, apply: Any) -> None:
    for reconstruct in ("none", "asymmetric"):
        with pytest.raises(DataError, match=r"^pca needs calibration data") as caught:
            apply(small(net), f"pca(flops=0.5,reconstruct={reconstruct})")
        assert "\n" not in str(caught.value)
    assert Pca.needs == {"calibration"} and not Pca.lossless


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flops": 0.5, "params": 0.5}, "pca: flops and params are both given; one size decides, give one of them"),
        ({"keep": 0.0}, "keep"),
        ({"flops": 1.5}, "flops"),
        ({"reconstruct": "both"}, "reconstruct"),
        ({"allocate": "even"}, "allocate"),
        ({"weighting": "relu"}, "weighting= is for reconstruct=none"),
        ({"latency": 0.5, "reconstruct": "none"}, "pca: latency= needs reconstruct=symmetric or asymmetric"),
        ({"rectify": -1}, "rectify"),
        ({"only": "re:("}, "pca"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        Pca(**options)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_left_alone_and_why(net: Any, apply: Any, images: Any) -> None:
    build = net(4, 6, 6)
    x = build.relu(build.conv("x", 4, 8, name="first"))
    x = build.relu(build.depthwise(x, 8))
    x = build.relu(build.conv(x, 8, 8, name="second"))
    x = build.relu(build.conv(x, 8, 1, 1, name="thin"))
    proto = build.model(build.head(x, 1))
    for reconstruct in ("none", "asymmetric"):
        _, step = apply(proto, f"pca(keep=0.3,ignore=first,reconstruct={reconstruct})", images(24, 4, 6, 6))
        assert [row["node"] for row in step.result.numbers["pairs"]] == ["second"]
        assert step.result.skipped["depth"] == "its channels do not mix (8 groups)"
        assert step.result.skipped["thin"] == step.result.skipped["head"] == "even a pair of rank 1 costs more"
        assert "first" in step.result.skipped


def test_same_input_and_seed_give_the_same_bytes(net: Any, apply: Any, images: Any) -> None:
    proto, data = small(net), images(24, 3, 6, 6)
    before = proto.SerializeToString(deterministic=True)
    for text in ("pca(flops=0.6)", "pca(flops=0.6,reconstruct=none)"):
        results = [ir.serde.serialize_model(apply(proto, text, data)[0]) for _ in range(2)]
        assert results[0].SerializeToString(deterministic=True) == results[1].SerializeToString(deterministic=True)
    assert proto.SerializeToString(deterministic=True) == before


def test_prepared_sizes_are_those_that_are_asked_for(net: Any, apply: Any, images: Any) -> None:
    found: list[Any] = []

    class Tried(Pca):
        def apply(self, model: ir.Model, context: Context) -> Any:
            found.append(replace(self, flops=None).prepared(model, context)(self))
            return super().apply(model, context)

    for options in ({}, {"reconstruct": "none"}, {"allocate": "spectrum"}):
        result, step = apply(small(net), [Tried(flops=0.6, **options)], images(24, 3, 6, 6))
        assert found[-1].numbers["pairs"] == step.result.numbers["pairs"]
        assert macs(found[-1].model) == macs(result)


def test_plans(net: Any, images: Any) -> None:
    from onnxprune.data import open_data
    from onnxprune.runtime.session import Settings, input_specs

    model = ir.serde.deserialize_model(small(net))
    bare = Context(model, measure(model), {"x": (1, 3, 6, 6)}, 0)
    plan = Pca(flops=0.6).plan(model, bare)
    assert {row["node"] for row in plan.rows} == {"stem", "one", "two", "head"}
    examples = open_data(images(24, 3, 6, 6), input_specs(model))
    fed = Context(model, measure(model), {"x": (1, 3, 6, 6)}, 0, examples=examples, settings=Settings())
    rows = Pca(flops=0.6).plan(model, fed).rows
    assert rows and all(1 <= row["rank"] < row["full rank"] for row in rows)
    assert len(Pca(flops=0.6, reconstruct="none").plan(model, fed).rows) == 4


def test_latency_is_measured(net: Any, apply: Any, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.fit import speed

    proto = small(net)
    whole = macs(proto)
    monkeypatch.setattr(speed, "ratio", lambda context, model: macs(model) / whole)
    _, step = apply(proto, "pca(latency=0.6,rectify=0)", images(24, 3, 6, 6))
    wanted, got = step.result.reached["latency"]
    assert wanted == 0.6 and 0.5 <= got <= 0.6
