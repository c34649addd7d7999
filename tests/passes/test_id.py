"""The pass ``id``: sizes, zeros that survive, refusals, records."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import DataError, OptionError
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.passes.id import Id
from onnxprune.runtime.session import Settings


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize("keep", [1e-6, 0.05, 0.3, 0.49, 0.5, 0.77, 0.99])
def test_keep_is_floored_in_every_space(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, keep: float
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    result, step = apply(conv_net(0), [Id(keep=keep, reconstruct="none")], data)
    wanted = {"conv1": 8, "conv2": 12, "fc1": 20}
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {
        name: max(1, int(keep * width + 1e-9)) for name, width in wanted.items()
    }
    assert step.result.reached == {}
    assert step.result.numbers["spaces"] == 3
    after = weights(result)
    first, second, hidden = (len(read_kept(result)[name]) for name in wanted)
    assert after["c1.w"].shape == (first, 1, 3, 3)
    assert all(after[name].shape == (first,) for name in ("c1.b", "bn.s", "bn.b", "bn.m", "bn.v"))
    assert after["c2.w"].shape == (second, first, 3, 3)
    assert after["flat"].tolist() == [-1, second * 16]
    assert after["g1.w"].shape == (hidden, second * 16)
    assert after["g2.w"].shape == (5, hidden)


def test_keeping_everything_changes_nothing_and_needs_no_data(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, run_model: Any
) -> None:
    result, step = apply(conv_net(0), "id(keep=1)")
    before, after = weights(conv_net(0)), weights(result)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read_kept(result) == {}
    assert step.result.numbers["layers"] == []
    feeds = {"input": np.random.default_rng(0).standard_normal((4, 1, 12, 12)).astype(np.float32)}
    assert np.array_equal(run_model(result, feeds)["logits"], run_model(conv_net(0), feeds)["logits"])


@pytest.mark.parametrize("flops", [0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97])
def test_flops_are_never_passed_and_nearly_used(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, flops: float
) -> None:
    proto = conv_net(0, channels=(16, 24), hidden=64)
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    result, step = apply(proto, [Id(flops=flops)], data)
    ratio = measure(result).macs / measure(ir.serde.deserialize_model(proto)).macs
    assert 0.98 * flops <= ratio <= flops
    assert step.result.reached == {"flops": (flops, ratio)}


def test_flops_count_from_the_source_model_at_its_own_size(
    conv_net: Callable[..., onnx.ModelProto], apply: Any
) -> None:
    proto = conv_net(0, channels=(16, 24), hidden=64)
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    result, step = apply(proto, "id(flops=0.6),id(flops=0.5)", data)
    ratio = measure(result).macs / measure(ir.serde.deserialize_model(proto)).macs
    assert 0.48 <= ratio <= 0.5
    assert step.result.reached["flops"][1] == pytest.approx(ratio)
    again, last = apply(proto, "id(flops=0.5),id(flops=0.9)", data)
    assert last.result.numbers["layers"] == []
    assert last.result.reached["flops"][1] <= 0.5
    assert measure(again).macs == last.cost.macs


def test_all_flops_change_nothing_and_too_few_are_told(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    whole, step = apply(conv_net(0), "id(flops=1)", data)
    assert step.result.reached == {"flops": (1.0, 1.0)}
    assert all(np.array_equal(weights(whole)[n], w) for n, w in weights(conv_net(0)).items())
    least, step = apply(conv_net(0), "id(flops=0.001)", data)
    assert {len(kept) for kept in read_kept(least).values()} == {1}
    wanted, got = step.result.reached["flops"]
    assert wanted == 0.001
    assert got > wanted


def test_a_bare_pass_takes_a_tenth_and_promises_nothing(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    result, step = apply(conv_net(0), "id", data)
    ratio = measure(result).macs / measure(ir.serde.deserialize_model(conv_net(0))).macs
    assert 0.8 < ratio <= 0.9
    assert step.result.reached == {}


def supports(model: ir.Model, weights: Any) -> dict[str, np.ndarray]:
    return {name: data != 0 for name, data in weights(model).items()}


@pytest.mark.parametrize("preserve", [True, False])
def test_zeros_of_an_earlier_pass_survive_unless_they_may_go(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, preserve: bool
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((100, 1, 12, 12)).astype(np.float32)}
    sparse, _ = apply(conv_net(0), "surp(sparsity=0.6)")
    result, _ = apply(sparse, [Id(keep=0.5, preserve_zeros=preserve)], data)
    first, second, hidden = (np.array(read_kept(result)[name]) for name in ("conv1", "conv2", "fc1"))
    before, after = supports(sparse, weights), supports(result, weights)
    columns = (second[:, None] * 16 + np.arange(16)).ravel()
    was = {
        "c2.w": before["c2.w"][second][:, first],
        "g1.w": before["g1.w"][hidden][:, columns],
        "g2.w": before["g2.w"][:, hidden],
    }
    assert np.array_equal(after["c1.w"], before["c1.w"][first])  # it consumes nothing that was cut
    for name, support in was.items():
        if preserve:
            assert np.array_equal(after[name], support)
        else:
            assert (after[name] >= support).all()
            assert after[name].sum() > support.sum()


def test_preserving_zeros_still_beats_dropping(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((200, 1, 12, 12)).astype(np.float32)}
    sparse, _ = apply(conv_net(0), "surp(sparsity=0.4)")
    result, _ = apply(sparse, "id(keep=0.6)", data)
    plain = prepare(sparse)
    surgery.cut(spaces.analyse(plain), read_kept(result))
    old = run_model(sparse, data)["logits"]
    errors = [np.linalg.norm(run_model(m, data)["logits"] - old) for m in (result, finish(plain))]
    assert errors[0] < 0.9 * errors[1]


def test_few_rows_fill_up_by_norm_with_a_note(net: Any, apply: Any, images: Any, run_model: Any) -> None:
    build = net(6)
    hidden = build.relu(build.gemm("x", 6, 40, name="wide"))
    proto = build.model(build.gemm(hidden, 40, 3, name="last", last=True))
    result, step = apply(proto, "id(keep=0.5,reconstruct=none)", images(5, 6))
    (row,) = step.result.numbers["layers"]
    assert (row["kept"], row["width"]) == (20, 40)
    assert row["note"] == "only 5 rows for 40 channels; give more calibration examples"
    found = run_model(result, images(5, 6))["last_out"]
    wanted = run_model(proto, images(5, 6))["last_out"]
    assert np.allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())  # five rows are met exactly


def test_a_space_that_is_dead_on_the_data_keeps_one_channel(net: Any, apply: Any, images: Any) -> None:
    build = net(6)
    made = build.gemm("x", 6, 8, name="first")
    dead = build.node("Mul", build.relu(made), build.store("zero", np.zeros(1)))
    result, step = apply(
        build.model(build.gemm(dead, 8, 3, last=True)), "id(keep=0.5,reconstruct=none)", images(200, 6)
    )
    assert read_kept(result) == {"first": [0]}
    assert step.result.numbers["layers"][0]["relative_error"] == 0.0


def test_kept_indices_compose_over_two_passes(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((100, 1, 12, 12)).astype(np.float32)}
    once, _ = apply(conv_net(0), "id(keep=0.75)", data)
    twice, _ = apply(once, "id(keep=0.5)", data)
    before = weights(conv_net(0))
    for name in ("conv1", "conv2", "fc1"):
        assert set(read_kept(twice)[name]) < set(read_kept(once)[name])
    # Nothing is folded into the first layer, so its rows tell where they came from.
    assert np.array_equal(weights(twice)["c1.w"], before["c1.w"][read_kept(twice)["conv1"]])
    assert json.loads(twice.metadata_props["onnxprune.kept"]) == read_kept(twice)


def test_the_interface_and_the_callers_model_stay(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    proto = conv_net(0)
    given = ir.serde.deserialize_model(proto)
    before = written(given)
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    result, _ = apply(given, "id(keep=0.5)", data)
    assert written(given) == before
    back = ir.serde.serialize_model(result)
    assert list(back.graph.input) == list(proto.graph.input)
    assert list(back.graph.output) == list(proto.graph.output)
    assert back.opset_import == proto.opset_import
    assert back.ir_version == proto.ir_version
    assert [node.name for node in back.graph.node] == [node.name for node in proto.graph.node]
    props = {item.key: item.value for item in back.metadata_props}
    assert {"onnxprune.classes", "onnxprune.kept", "onnxprune.widths"} == set(props)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 13, 64])
def test_threads_and_batches_do_not_decide(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, threads: int, batch: int
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    usual, _ = apply(conv_net(0), "id(keep=0.5)", data)
    other, _ = apply(conv_net(0), "id(keep=0.5)", data, settings=Settings(threads=threads, batch_size=batch))
    assert read_kept(usual) == read_kept(other)
    for name, data_ in weights(usual).items():
        assert np.allclose(data_, weights(other)[name], rtol=1e-4, atol=1e-5)


def test_calibration_labels_and_order_do_not_matter(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    images = np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)
    usual, _ = apply(conv_net(0), "id(keep=0.5)", {"input": images, "y": np.zeros(60, dtype=np.int64)})
    turned, _ = apply(conv_net(0), "id(keep=0.5)", {"input": images[::-1].copy()})
    assert read_kept(usual) == read_kept(turned)


def test_what_cannot_be_cut_is_listed_with_its_reason(net: Any, apply: Any, images: Any) -> None:
    build = net(4, 6, 6)
    first = build.relu(build.conv("x", 4, 8, name="free"))
    grouped = build.conv(first, 4, 8, name="grouped", group=2)
    mixed = build.node("Softmax", build.conv(build.relu(grouped), 8, 8, name="mixed"), name="soft", axis=1)
    proto = build.model(build.conv(mixed, 8, 3, name="last"))
    result, step = apply(proto, "id(keep=0.5,reconstruct=none)", images(50, 4, 6, 6))
    skipped = step.result.skipped
    assert skipped["free#2"] == "'grouped' reads its channels in groups or in an irregular order"
    assert skipped["soft"] == "Softmax over the channel axis mixes channels"
    assert skipped["mixed"] == "'soft': Softmax over the channel axis mixes channels"
    assert skipped["last"] == f"graph output '{proto.graph.output[0].name}'"
    # Of the grouped convolution one group of two goes, with what it reads, and half of the places of its outputs.
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {"free": 4, "grouped": 2}
    assert step.result.numbers["spaces"] == 2


def test_channels_that_no_linear_node_reads_are_left_alone(net: Any, apply: Any, images: Any) -> None:
    build = net(2, 6, 6)
    made = build.conv("x", 2, 8, name="alone")
    total = build.node("ReduceSum", build.relu(made), build.store("axes", np.array([1, 2, 3])), keepdims=0)
    _, step = apply(build.model(total), "id(keep=0.5)", images(50, 2, 6, 6))
    assert "alone" in step.result.skipped
    assert step.result.warnings


def test_missing_data_is_told(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    with pytest.raises(DataError, match="id needs calibration data; give --data or --calib"):
        apply(conv_net(0), "id(keep=0.5)")


def test_options() -> None:
    for name in ("keep", "flops"):
        for value in (0.0, -1.0, 1.5, float("nan")):
            with pytest.raises(OptionError, match=rf"id: {name}=\S+ is not accepted; give a number in \(0, 1\]"):
                Id(**{name: value})
    with pytest.raises(OptionError, match="id: keep and flops are both given; one size decides, give one of them"):
        Id(keep=0.5, flops=0.5)
    with pytest.raises(OptionError, match="id: swap=true bounds the entries of T; it needs mode=oneshot and recon"):
        Id(flops=0.5, swap=True)
    with pytest.raises(OptionError, match="id: factor=tsqr gives pivots and T; it needs mode=oneshot and recon"):
        Id(flops=0.5, factor="tsqr")
    with pytest.raises(
        OptionError, match="id: mode=iditer stops at a budget; give flops=, params= or bytes=, not keep"
    ):
        Id(keep=0.5, mode="iditer")


@pytest.mark.parametrize(
    "recipe", ["id(keep=0.5,reconstruct=none,swap=true)", "id(keep=0.5,reconstruct=none,factor=tsqr)"]
)
def test_swaps_and_streamed_qr_give_sound_models(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any, recipe: str
) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((100, 1, 12, 12)).astype(np.float32)}
    result, step = apply(conv_net(0), recipe, data)
    assert np.isfinite(run_model(result, data)["logits"]).all()
    assert all(row["largest_entry"] <= 1e3 for row in step.result.numbers["layers"])


@pytest.mark.parametrize("size", ["bytes", "params", "latency"])
def test_other_currencies_are_kept_to(conv_net: Callable[..., onnx.ModelProto], apply: Any, size: str) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    proto = conv_net(0, channels=(32, 48), hidden=64)
    result, step = apply(proto, f"id({size}=0.6)", data)
    wanted, got = step.result.reached[size]
    assert wanted == 0.6
    assert read_kept(result)
    if size != "latency":  # time is measured, and a small net's on a busy machine proves nothing
        assert got <= 0.6


def test_numbers_are_ready_for_json(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32)}
    for recipe in ("id(flops=0.5)", "id(flops=0.5,reconstruct=none)", "id(flops=0.5,mode=iditer)"):
        _, step = apply(conv_net(0), recipe, data)
        assert json.loads(json.dumps(dict(step.result.numbers))) == step.result.numbers
        assert json.loads(json.dumps(dict(step.result.skipped))) == step.result.skipped
        for row in step.result.numbers["layers"]:
            assert 0 <= row.get("relative_error", 0.0) < 1
        for row in step.result.numbers.get("refits", []):
            assert 0 <= row["error_fitted"] <= row["error_folded"]
