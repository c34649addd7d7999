"""The pass ``ispasp``: what it cuts and what not, statistics of the dense model or the pruned prefix, corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Context
from onnxprune.data import open_data
from onnxprune.errors import DataError, OptionError
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.passes.ispasp import Ispasp
from onnxprune.recipe import parse
from onnxprune.runtime.collect import collect
from onnxprune.runtime.session import Settings, input_specs


def blocks(net: Any, **kinds: Any) -> onnx.ModelProto:
    """A residual block, an inverted residual with a normalised depthwise convolution, and a hidden dense layer."""
    b = net(3, 8, 8, **kinds)
    x = b.relu(b.conv("x", 3, 8, name="stem"))
    inner = b.relu(b.conv(x, 8, 12, name="a1"))
    x = b.relu(b.node("Add", x, b.conv(inner, 12, 8, name="a2")))
    wide = b.relu(b.conv(x, 8, 20, 1, name="expand"))
    stored = [b.store(f"norm.{n}", b.rng.uniform(0.5, 1.5, 20)) for n in "sbmv"]
    wide = b.relu(b.node("BatchNormalization", b.depthwise(wide, 20), *stored))
    x = b.node("Add", x, b.conv(wide, 20, 8, 1, name="project"))
    flat = b.node("Flatten", b.node("GlobalAveragePool", x))
    return b.model(b.gemm(b.relu(b.gemm(flat, 8, 16, name="up")), 16, 4, name="head", last=True))


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def context_of(proto: onnx.ModelProto, data: dict[str, np.ndarray], item: Ispasp) -> tuple[ir.Model, Context]:
    model = ir.serde.deserialize_model(proto)
    examples, settings = open_data(data, input_specs(model)), Settings(batch_size=16, threads=1)
    statistics = collect(model, item.wants(model), examples, settings)
    cost = measure(model, {})
    return model, Context(model, cost, {}, 0, statistics, examples=examples, settings=settings)


@pytest.mark.parametrize("kind", ["", ",importance=abs", ",importance=energy", ",prefix=true", ",fold=true"])
def test_hidden_channels_go_and_streams_stay(
    net: Any, apply: Any, images: Any, weights: Any, run_model: Any, kind: str
) -> None:
    proto, data = blocks(net), images(40, 3, 8, 8)
    result, step = apply(proto, f"ispasp(keep=0.5{kind})", data)
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {"a1": 6, "expand": 10, "up": 8}
    assert set(step.result.skipped) == {"stem", "head"}
    assert "3 linear nodes read its channels ('a1', 'expand', 'up')" in step.result.skipped["stem"]
    after = weights(result)
    assert after["a1.w"].shape == (6, 8, 3, 3)
    assert after["a2.w"].shape == (8, 6, 3, 3)
    assert after["depth.w"].shape == (10, 1, 3, 3)
    assert all(after[f"norm.{n}"].shape == (10,) for n in "sbmv")
    kept = read_kept(result)["expand"]
    assert np.array_equal(after["norm.v"], weights(proto)["norm.v"][kept])
    assert measure(result).macs < measure(ir.serde.deserialize_model(proto)).macs
    fed = {"x": data["x"][:4]}
    assert run_model(result, fed)["head_out"].shape == (4, 4)


@pytest.mark.parametrize("kind", ["", ",importance=energy", ",prefix=true"])
def test_a_cut_is_the_dense_model_without_what_the_readers_read(
    net: Any, apply: Any, images: Any, run_model: Any, kind: str
) -> None:
    proto, data = blocks(net), images(32, 3, 8, 8)
    result, _ = apply(proto, f"ispasp(keep=0.4{kind})", data)
    masked = onnx.ModelProto.FromString(proto.SerializeToString())
    for producer, reader in {"a1": "a2.w", "expand": "project.w", "up": "head.w"}.items():
        tensor = next(t for t in masked.graph.initializer if t.name == reader)
        array = onnx.numpy_helper.to_array(tensor).copy()
        array[:, np.setdiff1d(np.arange(array.shape[1]), read_kept(result)[producer])] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, reader))
    for optimise in (False, True):
        got, wanted = (run_model(model, data, optimise=optimise)["head_out"] for model in (result, masked))
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "recipe", ["ispasp(keep=1)", "ispasp(flops=1)", "ispasp(ratios=*=1)", "ispasp(keep=1,fold=yes)"]
)
def test_keeping_everything_changes_nothing(
    net: Any, apply: Any, images: Any, weights: Any, run_model: Any, recipe: str
) -> None:
    proto, data = blocks(net), images(16, 3, 8, 8)
    result, step = apply(proto, recipe, data)
    assert all(np.array_equal(array, weights(result)[name]) for name, array in weights(proto).items())
    assert np.array_equal(run_model(result, data)["head_out"], run_model(proto, data)["head_out"])
    assert [row["kept"] for row in step.result.numbers["layers"]] == [12, 20, 16]


def test_the_authors_choice_of_a_dense_layer(net: Any, apply: Any) -> None:
    """The golden case as a graph: W = [[1, 0, 2], [0, 1, -1]], h = (1, 2, 3)."""
    b = net(3)
    b.store("one.w", np.eye(3))
    b.store("two.w", np.array([[1.0, 0, 2], [0, 1, -1]]))
    hidden = b.relu(b.node("Gemm", "x", "one.w", name="one"))
    proto = b.model(b.node("Gemm", hidden, "two.w", name="two", transB=1))
    data = {"x": np.array([[1, 0, 1], [0, 2, 2]], dtype=np.float32)}
    result, step = apply(proto, "ispasp(ratios=one=0.34)", data)
    assert read_kept(result) == {"one": [2]}
    assert step.result.numbers["layers"] == [{"space": "one", "width": 3, "kept": 1, "rounds": 2}]


@pytest.mark.parametrize("kind", ["matmul", "conv"])
def test_matrix_products_and_flattened_maps(net: Any, apply: Any, run_model: Any, kind: str) -> None:
    rng = np.random.default_rng(2)
    if kind == "matmul":
        b = net(5, 6)
        hidden = b.relu(b.matmul("x", 6, 14, name="one"))
        proto, data = b.model(b.matmul(hidden, 14, 6, name="two", last=True)), {"x": rng.standard_normal((30, 5, 6))}
    else:
        b = net(2, 4, 4)
        hidden = b.node("Flatten", b.relu(b.conv("x", 2, 14, name="one")))
        proto, data = b.model(b.gemm(hidden, 14 * 16, 6, name="two")), {"x": rng.standard_normal((30, 2, 4, 4))}
    data = {"x": data["x"].astype(np.float32)}
    out = proto.graph.output[0].name
    wanted = run_model(proto, data)[out]
    errors = {}
    for options in ("", ",importance=energy", ",fold=true", ",importance=energy,fold=true,prefix=true"):
        result, _ = apply(proto, f"ispasp(keep=0.5{options})", data)
        assert len(read_kept(result)["one"]) == 7
        errors[options] = float(np.square(run_model(result, data)[out] - wanted).sum())
    assert errors[",fold=true"] < errors[""]
    assert errors[",importance=energy,fold=true,prefix=true"] < errors[",importance=energy"]


@pytest.mark.parametrize("importance", ["sum", "energy"])
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_fold_never_raises_the_readers_error(
    net: Any, apply: Any, images: Any, run_model: Any, importance: str, keep: float, stride: int
) -> None:
    b = net(3, 8, 8)
    hidden = b.relu(b.conv("x", 3, 12, name="one"))
    proto = b.model(b.conv(hidden, 12, 6, name="two", strides=[stride] * 2))
    data = images(24, 3, 8, 8)
    wanted = run_model(proto, data)["two_out"]
    errors = []
    for fold in ("no", "yes"):
        result, step = apply(proto, f"ispasp(keep={keep},importance={importance},fold={fold})", data)
        errors.append(float(np.square(run_model(result, data)["two_out"] - wanted).sum()))
    assert errors[1] < errors[0]
    row = step.result.numbers["layers"][0]
    assert row["error_folded"] < row["error_cut"]
    spread = float(np.square(wanted - wanted.mean(axis=(0, 2, 3), keepdims=True)).sum())
    assert errors[0] / spread == pytest.approx(row["error_cut"] ** 2, rel=1e-4)
    assert errors[1] / spread == pytest.approx(row["error_folded"] ** 2, rel=1e-3)


def test_a_fold_leaves_zeros_alone(net: Any, apply: Any, images: Any, weights: Any) -> None:
    data = images(40, 3, 8, 8)
    sparse, _ = apply(blocks(net), "magnitude(sparsity=0.5,values=original)", data)
    result, _ = apply(sparse, "ispasp(keep=0.5,fold=true)", data)
    before, after = weights(sparse), weights(result)
    for producer, reader in {"a1": "a2.w", "expand": "project.w", "up": "head.w"}.items():
        was = before[reader][:, read_kept(result)[producer]]
        assert not after[reader][was == 0].any()
        assert not np.array_equal(after[reader], was)


@pytest.mark.parametrize("name", ["a1", "expand"])
@pytest.mark.parametrize("importance", ["sum", "energy"])
def test_the_prefix_matters_only_behind_a_cut(net: Any, apply: Any, images: Any, name: str, importance: str) -> None:
    proto, data = blocks(net), images(40, 3, 8, 8)
    results = [
        apply(proto, [Ispasp(ratios=f"{name}=0.4", prefix=prefix, importance=importance)], data)[0]
        for prefix in (False, True)
    ]
    assert written(results[0]) == written(results[1])


def test_behind_a_cut_the_prefix_is_the_cut_model(net: Any, apply: Any, images: Any) -> None:
    proto, data = blocks(net), images(40, 3, 8, 8)
    at_once, _ = apply(proto, "ispasp(ratios='a1=0.2;expand=0.2;up=0.3',prefix=true)", data)
    one_by_one, _ = apply(proto, "ispasp(ratios=a1=0.2),ispasp(ratios=expand=0.2),ispasp(ratios=up=0.3)", data)
    assert written(at_once) == written(one_by_one)


@pytest.mark.parametrize("reconstruct", ["symmetric", "asymmetric"])
def test_reconstruction_keeps_the_choice_and_comes_closer(
    net: Any, apply: Any, images: Any, run_model: Any, reconstruct: str
) -> None:
    proto, data = blocks(net), images(60, 3, 8, 8)
    wanted = run_model(proto, data)["head_out"]
    plain, _ = apply(proto, "ispasp(keep=0.4)", data)
    result, step = apply(proto, f"ispasp(keep=0.4,reconstruct={reconstruct})", data)
    assert read_kept(result) == read_kept(plain)
    assert len(step.result.numbers["refits"]) >= 3
    errors = [np.linalg.norm(run_model(model, data)["head_out"] - wanted) for model in (plain, result)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("size", ["flops", "params", "bytes"])
def test_budgets_are_kept(net: Any, apply: Any, images: Any, size: str) -> None:
    proto, data = blocks(net), images(20, 3, 8, 8)
    _, step = apply(proto, f"ispasp({size}=0.6)", data)
    wanted, got = step.result.reached[size]
    assert wanted == 0.6
    assert 0.5 < got <= 0.6


def test_a_latency_is_measured(net: Any, apply: Any, images: Any) -> None:
    result, step = apply(blocks(net), "ispasp(latency=0.9)", images(20, 3, 8, 8), settings=Settings(threads=1))
    wanted, got = step.result.reached["latency"]
    assert wanted == 0.9
    assert got > 0.0
    assert set(read_kept(result)) <= {"a1", "expand", "up"}


@pytest.mark.parametrize(
    "options", [{}, {"importance": "energy"}, {"prefix": True}, {"fold": True}, {"reconstruct": "symmetric"}]
)
def test_what_is_prepared_gives_what_explicit_sizes_give(net: Any, images: Any, options: dict[str, Any]) -> None:
    proto, data = blocks(net), images(20, 3, 8, 8)
    model, context = context_of(proto, data, Ispasp(**options))
    before = written(model)
    attempt = Ispasp(**options).prepared(model, context)
    for flops in (0.6, 1.0, 0.01, 0.6):
        sized = Ispasp(flops=flops, **options)
        found, wanted = attempt(sized), sized.apply(model, context)
        assert written(found.model) == written(wanted.model)
        assert replace(found, model=model) == replace(wanted, model=model)
    assert written(model) == before


def test_ratios_name_spaces_and_tell_of_names_that_fit_none(net: Any, apply: Any, images: Any) -> None:
    result, step = apply(
        blocks(net), "ispasp(ratios='a?=0.01; re:(exp|x=y).* = 0.3; stem=0.5; a1=1')", images(20, 3, 8, 8)
    )
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {"a1": 1, "expand": 6}
    assert step.result.skipped["up"] == "ratios= does not name it"
    assert step.result.warnings == (
        "ispasp: ratios: 'stem' names no space that can be cut; the reasons are listed with the step",
    )
    context = Context(ir.serde.deserialize_model(blocks(net)), measure(ir.serde.deserialize_model(blocks(net))), {}, 0)
    plan = Ispasp(ratios="expand=0.3").plan(context.original, context)
    assert [(row["space"], row["planned"]) for row in plan.rows] == [("expand", 6)]


def test_widths_in_blocks(net: Any, apply: Any, images: Any) -> None:
    result, _ = apply(blocks(net), "ispasp(ratios='a1=0.4;expand=0.3',align=4)", images(20, 3, 8, 8))
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {"a1": 4, "expand": 8}


def test_other_forms_stay_with_a_reason(net: Any, apply: Any, images: Any) -> None:
    b = net(4, 8, 8)
    x = b.relu(b.conv("x", 4, 8, name="one"))
    b.store("group.w", b.rng.standard_normal((6, 4, 3, 3)))
    x = b.relu(b.node("Conv", x, "group.w", name="group", group=2, pads=[1] * 4))
    x = b.relu(b.transposed(x, 6, 5, name="up"))
    x = b.relu(b.conv(x, 5, 7, name="two"))
    left, right = b.conv(x, 7, 4, name="left"), b.conv(x, 7, 4, name="right")
    proto = b.model(left, right)
    result, step = apply(proto, "ispasp(keep=0.5)", images(10, 4, 8, 8))
    reasons = step.result.skipped
    assert any("'group' reads its channels in groups" in reason for reason in reasons.values())
    assert any(
        reason == "'up' is no convolution or matrix product with a stored weight that it alone uses"
        for reason in reasons.values()
    )
    assert "2 linear nodes read its channels ('left', 'right')" in reasons["two"]
    assert list(read_kept(result)) == ["up"]
    alone, step = apply(proto, "ispasp(keep=0.5,only=two)", images(10, 4, 8, 8))
    assert not read_kept(alone)
    assert step.result.warnings == ("ispasp found no channels that it can cut; the reasons are listed with the step",)


def test_activations_below_zero_count_by_their_magnitude(net: Any, apply: Any, images: Any) -> None:
    b = net(3, 8, 8)
    hidden = b.conv("x", 3, 8, name="one")
    proto = b.model(b.conv(hidden, 8, 4, name="two"))
    data = images(30, 3, 8, 8)
    for importance in ("sum", "abs", "energy"):
        result, _ = apply(proto, f"ispasp(keep=0.5,importance={importance})", data)
        assert len(read_kept(result)["one"]) == 4


@pytest.mark.parametrize("prefix", [False, True])
def test_fixed_batches_are_counted_once(net: Any, apply: Any, images: Any, prefix: bool) -> None:
    dynamic = blocks(net)
    fixed = onnx.ModelProto.FromString(dynamic.SerializeToString())
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    item, data = Ispasp(keep=0.5, prefix=prefix, fold=prefix), images(21, 3, 8, 8)
    results = [apply(proto, [item], data)[0] for proto in (dynamic, fixed)]
    assert read_kept(results[0]) == read_kept(results[1])


def test_not_a_number_is_named(net: Any, apply: Any, images: Any) -> None:
    proto = blocks(net)
    tensor = next(t for t in proto.graph.initializer if t.name == "stem.b")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(8, np.inf, dtype=np.float32), "stem.b"))
    for prefix in ("no", "yes"):
        with pytest.raises(DataError, match=r"tensor '.+' holds NaN or infinity on"):
            apply(proto, f"ispasp(keep=0.5,prefix={prefix})", images(10, 3, 8, 8))


@pytest.mark.parametrize("options", ["", ",prefix=true", ",fold=true", ",importance=energy", ",reconstruct=symmetric"])
def test_without_data_there_is_one_sentence(net: Any, apply: Any, options: str) -> None:
    with pytest.raises(DataError) as caught:
        apply(blocks(net), f"ispasp(keep=0.5{options})")
    assert str(caught.value) == "ispasp needs calibration data; give --data or --calib"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keep=0.5,ratios=a=0.5", "ispasp: ratios and keep are both given; one of them decides, give one"),
        ("flops=0.5,keep=0.5", "ispasp: keep and flops are both given; one size decides, give one of them"),
        (
            "ratios=a",
            "ispasp: ratios: 'a' is not accepted; give pattern=ratio parted by ;, ratios in (0, 1]",
        ),
        ("ratios=a=1.5", "ispasp: ratios: 'a=1.5' is not accepted; give pattern=ratio parted by ;, ratios in (0, 1]"),
        ("ratios=a=nan", "ispasp: ratios: 'a=nan' is not accepted; give pattern=ratio parted by ;, ratios in (0, 1]"),
        (
            "ratios='a=0.5;'",
            "ispasp: ratios: '' is not accepted; give pattern=ratio parted by ;, ratios in (0, 1]",
        ),
        ("rounds=0", "ispasp: rounds=0 is not accepted; give a whole number in [1, 10000]"),
        ("importance=max", "ispasp: importance=max is not accepted; give sum or abs or energy"),
        (
            "fold=true,reconstruct=symmetric",
            "ispasp: fold=true and reconstruct= both change what the readers weigh; give one of them",
        ),
    ],
)
def test_bad_options_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(f"ispasp({text})")
    assert str(caught.value) == said


def test_a_broken_pattern_is_told() -> None:
    with pytest.raises(OptionError, match=r"ispasp: ratios='re:\(' is not a regular expression: "):
        Ispasp(ratios="re:(=0.5")


def test_a_bare_pass_searches(digits_net: Callable[..., onnx.ModelProto], digits: dict[str, Any]) -> None:
    import onnxprune
    from onnxprune.api import Options

    report = onnxprune.compress(digits_net(), "ispasp", **digits, options=Options(threads=1)).report
    assert report.agreement is not None
    assert report.agreement.top1.rate >= 0.98
    assert report.cost.macs.ratio < 0.9


def test_widths_that_stay_are_none_of_its_doing(net: Any, apply: Any, images: Any) -> None:
    build = net(8)
    x = build.relu(build.gemm("x", 8, 99, name="one"))
    proto = build.model(build.gemm(build.relu(build.gemm(x, 99, 99, name="two")), 99, 3, name="head"))
    assert apply(proto, "ispasp(keep=1)", images(20, 8))[1].result.warnings == ()
    (warning,) = apply(proto, "ispasp(keep=0.9,only=two)", images(20, 8))[1].result.warnings
    assert "two (89)" in warning and "one" not in warning
