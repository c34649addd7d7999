"""Structured magnitude: scores, scopes, sizes, blocks, choices of nodes."""

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
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.passes.filters import Filters, channel_scores, strongest


def costs(model: ir.Model) -> tuple[int, int]:
    cost = measure(model)
    return cost.macs, cost.params


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.3])
def test_keep_cuts_every_space(conv_net: Callable[..., onnx.ModelProto], apply: Any, keep: float) -> None:
    result, step = apply(conv_net(0), f"filters(keep={keep})", None)
    kept = [row["kept"] for row in step.result.numbers["layers"]]
    assert kept == [max(1, int(keep * width + 1e-9)) for width in (8, 12, 20)]
    assert read_kept(result).keys() == (set() if keep == 1.0 else {"conv1", "conv2", "fc1"})


def test_the_smallest_filters_go(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    proto = conv_net(0)
    weight = next(t for t in proto.graph.initializer if t.name == "c1.w")
    norms = np.linalg.norm(onnx.numpy_helper.to_array(weight).reshape(8, -1), axis=1)
    result, _ = apply(proto, "filters(keep=0.5,only=conv1)", None)
    assert read_kept(result) == {"conv1": sorted(np.argsort(-norms)[:4].tolist())}


def test_norms_sum_over_the_producers_of_a_residual_stream(net: Any) -> None:
    build = net(2, 6, 6)
    first = build.conv("x", 2, 5, name="one")
    second = build.conv(build.relu(first), 5, 5, name="two", kernel=1)
    stream = build.node("Add", first, second, name="sum")
    proto = build.model(build.conv(stream, 5, 3, name="last"))
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(proto)))
    space = next(s for s in analysis.prunable if s.width == 5)
    arrays = [np.asarray(p.weight.const_value.numpy(), dtype=np.float64).reshape(5, -1) for p in space.producers]
    assert len(arrays) == 2
    np.testing.assert_allclose(channel_scores(analysis, space, "l1"), sum(np.abs(a).sum(1) for a in arrays))
    np.testing.assert_allclose(channel_scores(analysis, space, "l2") ** 2, sum((a**2).sum(1) for a in arrays))


@pytest.mark.parametrize("options", [{}, {"scope": "global", "norm": "l1"}, {"only": "conv2"}])
def test_what_is_prepared_gives_what_explicit_sizes_give(
    conv_net: Callable[..., onnx.ModelProto], options: dict[str, Any]
) -> None:
    def written(model: ir.Model) -> bytes:
        return ir.serde.serialize_model(model).SerializeToString(deterministic=True)

    model = ir.serde.deserialize_model(conv_net(0))
    before = written(model)
    context = Context(model, measure(model), {}, seed=0)
    attempt = Filters(**options).prepared(model, context)
    for flops in (0.5, 1.0, 0.01, 0.8, 0.5):
        sized = Filters(flops=flops, **options)
        found, wanted = attempt(sized), sized.apply(model, context)
        assert written(found.model) == written(wanted.model)
        assert replace(found, model=model) == replace(wanted, model=model)
    assert written(model) == before


@pytest.mark.parametrize("scope", ["space", "global"])
@pytest.mark.parametrize(("size", "place"), [("flops", 0), ("params", 1)])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_budgets_are_never_passed(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, scope: str, size: str, place: int, share: float
) -> None:
    proto = conv_net(1, channels=(16, 24), hidden=40)
    before = costs(ir.serde.deserialize_model(proto))
    result, step = apply(proto, f"filters({size}={share},scope={scope})", None)
    ratio = costs(result)[place] / before[place]
    assert ratio <= share
    assert ratio >= share - (0.02 if scope == "space" else 0.1)
    assert step.result.reached == {size: (share, ratio)}


def test_blocks(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    _, step = apply(conv_net(1, channels=(16, 24), hidden=40), "filters(flops=0.5,align=8)", None)
    assert all(row["kept"] % 8 == 0 for row in step.result.numbers["layers"])
    _, step = apply(conv_net(1, channels=(16, 24), hidden=40), "filters(keep=0.3,align=8)", None)
    assert [row["kept"] for row in step.result.numbers["layers"]] == [8, 8, 16]


def test_only_and_ignore(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    result, step = apply(conv_net(0), "filters(keep=0.5,only='conv*;re:fc1',ignore=conv2)", None)
    assert read_kept(result).keys() == {"conv1", "fc1"}
    assert step.result.skipped["conv2"] == "ignore= names it"
    _, step = apply(conv_net(0), "filters(keep=0.5,only=conv1)", None)
    assert step.result.skipped["fc1"] == "only= does not name it"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": 0.5, "flops": 0.5}, "keep and flops are both given"),
        ({"align": "some"}, "give auto or a positive whole number"),
        ({"only": "re:("}, "is not a regular expression"),
        ({"ignore": "a;;b"}, "has an empty pattern"),
        ({"norm": "l3"}, "give l1 or l2"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Filters(**options)


def test_ties_go_to_the_lowest_index() -> None:
    assert strongest(np.array([1.0, 2.0, 2.0, 1.0, 1.0]), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("keep", [0.75, 0.5])
def test_a_refit_never_costs_on_calibration_data(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any, kind: str, keep: float
) -> None:
    proto = conv_net(2, channels=(16, 24), hidden=40)
    data = {"input": np.random.default_rng(3).standard_normal((400, 1, 12, 12)).astype(np.float32)}
    want = run_model(proto, data)["logits"]
    plain, _ = apply(proto, f"filters(keep={keep})", data)
    result, step = apply(proto, f"filters(keep={keep},reconstruct={kind})", data)
    # The same channels stay, whatever makes up for the others.
    assert read_kept(result) == read_kept(plain)
    errors = [float(np.square(run_model(each, data)["logits"] - want).sum()) for each in (result, plain)]
    assert errors[0] < 0.5 * errors[1]
    assert {row["node"] for row in step.result.numbers["refits"]} >= {"conv2", "fc1", "fc2"}
    assert all(row["error_fitted"] <= row["error_folded"] + 1e-9 for row in step.result.numbers["refits"])
    assert step.result.numbers["layers"] == [
        {"space": name, "width": width, "kept": int(keep * width)}
        for name, width in (("conv1", 16), ("conv2", 24), ("fc1", 40))
    ]


def test_a_refit_with_nothing_to_cut_is_neutral(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any
) -> None:
    data = {"input": np.random.default_rng(3).standard_normal((20, 1, 12, 12)).astype(np.float32)}
    for text in ("filters(keep=1,reconstruct=asymmetric)", "filters(flops=1,reconstruct=symmetric)"):
        result, _ = apply(conv_net(2), text, data)
        np.testing.assert_allclose(
            run_model(result, data)["logits"], run_model(conv_net(2), data)["logits"], rtol=1e-5, atol=1e-6
        )


def test_a_refit_needs_data(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    assert Filters().needs == frozenset()
    assert Filters(reconstruct="symmetric").needs == {"calibration"}
    with pytest.raises(DataError, match="filters: reconstruct=symmetric needs calibration data"):
        apply(conv_net(2), "filters(keep=0.5,reconstruct=symmetric)")


def test_prepared_sizes_share_one_cutter(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    data = {"input": np.random.default_rng(3).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    found = []

    class Tried(Filters):
        def apply(self, model: ir.Model, context: Context) -> Any:
            found.append(replace(self, flops=None).prepared(model, context)(self))
            return super().apply(model, context)

    apply(conv_net(2), [Tried(flops=0.5, reconstruct="asymmetric")], data)
    result, _ = apply(conv_net(2), "filters(flops=0.5,reconstruct=asymmetric)", data)
    for name, value in result.graph.initializers.items():
        np.testing.assert_array_equal(
            found[0].model.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )


def test_spaces_whose_readers_take_no_refit_are_left_alone(net: Any, apply: Any, images: Any) -> None:
    build = net(6, 8)
    left, right = (build.matmul("x", 8, 10, name=name) for name in "qk")
    scores = build.node("MatMul", left, build.node("Transpose", right, perm=[0, 2, 1]), name="scores")
    proto = build.model(build.matmul(scores, 6, 3, name="last", last=True))
    _, plain = apply(proto, "filters(keep=0.5)")
    assert [row["space"] for row in plain.result.numbers["layers"]] == ["q"]
    _, step = apply(proto, "filters(keep=0.5,reconstruct=symmetric)", images(40, 6, 8))
    assert step.result.numbers["layers"] == []
    assert step.result.skipped["q"] == "'scores' multiplies them with other computed channels"


@pytest.mark.parametrize(
    "text", ["filters(keep=0.5)", "filters(keep=0.5,reconstruct=asymmetric)", "id(keep=0.5)", "surp"]
)
def test_half_precision_models_are_taken_as_they_are(
    text: str, net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    build = net(3, 8, 8, twins=True, dtype=np.float16)
    value = build.relu(build.conv(build.relu(build.conv("x", 3, 8, name="one")), 8, 8, name="two"))
    proto = build.model(build.head(value, 8))
    data = images(64, 3, 8, 8, dtype=np.float16)
    result, _ = apply(proto, text, data)
    assert {v.const_value.numpy().dtype for n, v in result.graph.initializers.items() if n.endswith((".w", ".b"))} == {
        np.dtype(np.float16)
    }
    got, want = (run_model(model, data)["head_out"].astype(np.float64) for model in (result, proto))
    assert np.isfinite(got).all()
    if text.startswith("id"):
        assert np.abs(got - want).max() <= 0.2 * np.abs(want).max()


@pytest.mark.parametrize("kind", ["none", "asymmetric"])
def test_bytes_and_latency_are_sizes_too(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from onnxprune.fit import speed

    proto = conv_net(3)
    data = {"input": np.random.default_rng(3).standard_normal((40, 1, 12, 12)).astype(np.float32)}
    source = measure(ir.serde.deserialize_model(proto))
    # The speed of a candidate is what its MACs say: a test must not depend on the machine.
    monkeypatch.setattr(speed, "ratio", lambda context, model: measure(model).macs / source.macs)
    result, step = apply(proto, f"filters(latency=0.6,reconstruct={kind})", data)
    wanted, got = step.result.reached["latency"]
    assert wanted == 0.6 and 0.45 < got <= 0.6 and got == measure(result).macs / source.macs
    result, step = apply(proto, f"filters(bytes=0.5,reconstruct={kind})", data)
    assert 0.45 < measure(result).bytes / source.bytes <= 0.5


def test_widths_that_stay_are_none_of_its_doing(net: Any, apply: Any) -> None:
    build = net(8)
    x = build.relu(build.gemm("x", 8, 99, name="one"))
    proto = build.model(build.gemm(build.relu(build.gemm(x, 99, 99, name="two")), 99, 3, name="head"))
    assert apply(proto, "filters(keep=1)", None)[1].result.warnings == ()
    (warning,) = apply(proto, "filters(keep=0.9,only=two)", None)[1].result.warnings
    assert "two (89)" in warning and "one" not in warning
