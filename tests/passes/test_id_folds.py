"""The folds of ``id`` for every kind of consumer: least squares on what it reads, free where that is redundant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.kept import read_kept
from onnxprune.passes.id import Id

WIDTH = 8


Case = tuple[onnx.ModelProto, str, tuple[int, ...]]


def conv(net: Any, **options: Any) -> Case:
    build = net(2, 6, 6, **options)
    z = build.relu(build.conv("x", 2, WIDTH, name="first"))
    return build.model(build.conv(z, WIDTH, 3, name="last")), z, (2, 6, 6)


def pool(net: Any, **options: Any) -> Case:
    build = net(2, 6, 6, **options)
    z = build.node("MaxPool", build.relu(build.conv("x", 2, WIDTH)), kernel_shape=[2, 2], strides=[2, 2])
    return build.model(build.conv(z, WIDTH, 3)), z, (2, 6, 6)


def batch_norm(net: Any, **options: Any) -> Case:
    build = net(2, 6, 6, **options)
    made = build.conv("x", 2, WIDTH)
    mean, shift = build.bias(WIDTH, last=True), build.bias(WIDTH, last=True)
    if build.twins:
        mean[1], shift[1], mean[3], shift[3] = 2 * mean[0], 2 * shift[0], 0.0, -1.0
    stored = [
        build.store("bn.s", np.full(WIDTH, 1.5)),
        build.store("bn.b", shift),
        build.store("bn.m", mean),
        build.store("bn.v", np.full(WIDTH, 0.7)),
    ]
    z = build.relu(build.node("BatchNormalization", made, *stored))
    return build.model(build.conv(z, WIDTH, 3, 1)), z, (2, 6, 6)


def flatten(net: Any, **options: Any) -> Case:
    build = net(2, 4, 4, **options)
    z = build.relu(build.conv("x", 2, WIDTH))
    return build.model(build.gemm(build.node("Flatten", z), WIDTH * 16, 5, last=True)), z, (2, 4, 4)


def reshape(net: Any, **options: Any) -> Case:
    build = net(2, 4, 4, **options)
    z = build.relu(build.conv("x", 2, WIDTH))
    flat = build.node("Reshape", z, build.store("shape", np.array([-1, WIDTH * 16])))
    return build.model(build.gemm(flat, WIDTH * 16, 5, trans=False, last=True)), z, (2, 4, 4)


def mean_head(net: Any, **options: Any) -> Case:
    build = net(2, 4, 4, **options)
    made = build.relu(build.conv("x", 2, WIDTH))
    z = build.node("ReduceMean", made, build.store("axes", np.array([2, 3])), keepdims=0)
    return build.model(build.gemm(z, WIDTH, 5, last=True)), z, (2, 4, 4)


def gemm(net: Any, **options: Any) -> Case:
    build = net(6, **options)
    z = build.relu(build.gemm("x", 6, WIDTH))
    return build.model(build.gemm(z, WIDTH, 5, trans=False, last=True)), z, (6,)


def matmul_add(net: Any, **options: Any) -> Case:
    build = net(6, **options)
    z = build.relu(build.matmul("x", 6, WIDTH, name="first"))
    return build.model(build.matmul(z, WIDTH, 5, name="last", last=True)), z, (6,)


def tokens(net: Any, **options: Any) -> Case:
    build = net(5, 6, **options)
    z = build.relu(build.matmul("x", 6, WIDTH, name="first"))
    return build.model(build.matmul(z, WIDTH, 5, name="last", last=True)), z, (5, 6)


def transposed(net: Any, **options: Any) -> Case:
    build = net(2, 5, 5, **options)
    z = build.relu(build.conv("x", 2, WIDTH))
    return build.model(build.transposed(z, WIDTH, 3)), z, (2, 5, 5)


def from_transposed(net: Any, **options: Any) -> Case:
    build = net(2, 4, 4, **options)
    z = build.relu(build.transposed("x", 2, WIDTH))
    return build.model(build.conv(z, WIDTH, 3)), z, (2, 4, 4)


def depthwise(net: Any, **options: Any) -> Case:
    build = net(2, 6, 6, **options)
    z = build.relu(build.depthwise(build.relu(build.conv("x", 2, WIDTH, 1)), WIDTH))
    return build.model(build.conv(z, WIDTH, 3, 1)), z, (2, 6, 6)


CASES = [
    conv, pool, batch_norm, flatten, reshape, mean_head,
    gemm, matmul_add, tokens, transposed, from_transposed, depthwise,
]  # fmt: skip


def residual(net: Any, **options: Any) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A stream with two producers and three consumers, and an inner space."""
    build = net(2, 6, 6, **options)
    stream = build.relu(build.conv("x", 2, WIDTH, name="stem"))
    inner = build.relu(build.conv(stream, WIDTH, WIDTH, name="inner"))
    joined = build.relu(build.node("Add", stream, build.conv(inner, WIDTH, WIDTH, name="outer")))
    left, right = build.conv(joined, WIDTH, 3, name="left"), build.conv(joined, WIDTH, 3, 1, name="right")
    return build.model(build.node("Add", left, right)), (2, 6, 6)


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    scale = float(np.abs(wanted).max())
    return bool(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= tolerance * scale)


def only(model: ir.Model) -> list[int]:
    (kept,) = {tuple(kept) for kept in read_kept(model).values()}
    return list(kept)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.9])
def test_the_fold_is_least_squares_on_what_the_consumer_reads(
    case: Any, keep: float, net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    """The pruned model equals the original tail run on Z_I T, with T from least squares on Z itself."""
    proto, z, shape = case(net)
    data = images(200, *shape)
    result, step = apply(proto, [Id(keep=keep, reconstruct="none", select="pivots")], data)
    kept = only(result)
    assert len(kept) == int(keep * WIDTH)
    assert kept == sorted(set(kept))
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(proto))
    front = extractor.extract_model(["x"], [z])
    tail = extractor.extract_model([z], [proto.graph.output[0].name])
    read = run_model(front, data)[z]
    axis = 1 if read.ndim != 3 else 2
    rows = np.moveaxis(read, axis, -1).reshape(-1, WIDTH).astype(np.float64)
    matrix = np.linalg.lstsq(rows[:, kept], rows, rcond=None)[0]
    rebuilt = np.moveaxis((rows[:, kept] @ matrix).reshape(np.moveaxis(read, axis, -1).shape), -1, axis)
    name = proto.graph.output[0].name
    wanted = run_model(tail, {z: rebuilt.astype(np.float32)})[name]
    for optimise in (False, True):
        assert close(run_model(result, data, optimise=optimise)[name], wanted, 1e-4)
    (row,) = step.result.numbers["layers"]
    error = np.linalg.norm(rows - rows[:, kept] @ matrix) / np.linalg.norm(rows)
    assert row["relative_error"] == pytest.approx(error, rel=1e-4, abs=1e-6)
    assert (row["width"], row["kept"]) == (WIDTH, len(kept))


@pytest.mark.parametrize("case", CASES)
def test_twin_and_dead_channels_go_without_loss(case: Any, net: Any, apply: Any, images: Any, run_model: Any) -> None:
    proto, _, shape = case(net, twins=True)
    result, step = apply(proto, "id(keep=0.75,reconstruct=none)", images(200, *shape))
    kept = only(result)
    assert 3 not in kept
    assert 1 in kept
    assert 0 not in kept
    fresh = images(50, *shape, seed=9)
    name = proto.graph.output[0].name
    assert close(run_model(result, fresh)[name], run_model(proto, fresh)[name], 1e-5)
    assert step.result.numbers["layers"][0]["relative_error"] < 1e-5


def test_redundant_channels_are_dropped_even_when_more_were_asked_for(
    net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    proto, _, shape = conv(net, twins=True)
    result, step = apply(proto, "id(keep=0.9,reconstruct=none)", images(200, *shape))
    assert len(only(result)) == 6
    (row,) = step.result.numbers["layers"]
    assert row["note"] == "numerical rank 6 is below 7: the rest is redundant"
    fresh = images(50, *shape, seed=9)
    assert close(run_model(result, fresh)["last_out"], run_model(proto, fresh)["last_out"], 1e-5)


def test_a_residual_stream_keeps_one_set_of_channels_and_a_matrix_per_consumer(
    net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    proto, shape = residual(net, twins=True)
    result, step = apply(proto, "id(keep=0.75,reconstruct=none)", images(300, *shape))
    kept = read_kept(result)
    assert kept["stem"] == kept["outer"]
    assert set(kept) == {"stem", "outer", "inner"}
    assert all(len(each) == 6 and 3 not in each for each in kept.values())
    assert {row["space"] for row in step.result.numbers["layers"]} == {"stem", "inner"}
    fresh = images(50, *shape, seed=9)
    name = proto.graph.output[0].name
    assert close(run_model(result, fresh)[name], run_model(proto, fresh)[name], 1e-5)


def test_a_residual_stream_without_twins_runs_and_reports_its_worst_consumer(
    net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    proto, shape = residual(net)
    data = images(300, *shape)
    result, step = apply(proto, "id(keep=0.5,reconstruct=none)", data)
    rows = {row["space"]: row for row in step.result.numbers["layers"]}
    assert rows["stem"]["kept"] == rows["inner"]["kept"] == 4
    assert 0 < rows["stem"]["relative_error"] < 1
    plain, folded = prepare(ir.serde.deserialize_model(proto)), result
    analysis = spaces.analyse(plain)
    surgery.cut(analysis, {name: read_kept(result)[name] for name in ("stem", "inner")})
    name = proto.graph.output[0].name
    old = run_model(proto, data)[name]
    errors = [np.linalg.norm(run_model(model, data)[name] - old) for model in (folded, finish(plain))]
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_keep_their_type(
    dtype: type, net: Any, apply: Any, images: Any, run_model: Any, weights: Any
) -> None:
    proto, _, shape = (conv if dtype is np.float16 else gemm)(net, twins=True, dtype=dtype)  # no double Conv in ORT
    result, _ = apply(proto, "id(keep=0.75,reconstruct=none)", images(200, *shape, dtype=dtype))
    assert all(data.dtype == dtype for data in weights(result).values())
    assert result.graph.inputs[0].dtype == result.graph.outputs[0].dtype == ir.DataType.from_numpy(np.dtype(dtype))
    fresh = images(20, *shape, seed=9, dtype=dtype)
    found, wanted = (run_model(model, fresh)[proto.graph.output[0].name] for model in (result, proto))
    assert found.dtype == dtype
    assert close(found, wanted, 1e-2 if dtype is np.float16 else 1e-5)
    assert len(only(result)) == 6


def test_the_graph_shapes_of_the_result_are_its_own(net: Any, apply: Any, images: Any) -> None:
    proto, _, shape = depthwise(net)
    result, _ = apply(proto, "id(keep=0.5,reconstruct=none)", images(100, *shape))
    by_name = {node.name: node for node in result.graph}
    assert by_name["depth"].attributes["group"].as_int() == 4
    assert by_name["depth"].outputs[0].shape[1] == 4


def test_groups_and_places_that_repeat_others_are_free(net: Any, apply: Any, images: Any, run_model: Any) -> None:
    """A grid of groups and places: the second of two equal groups goes, and so does the doubled place of each."""
    build = net(3, 6, 6)
    made = build.rng.standard_normal((4, 3, 3, 3)) / 5
    build.store("a.w", np.concatenate([made[:2], 2 * made[:2], made[2:], 2 * made[2:]]))
    value = build.relu(build.node("Conv", "x", "a.w", name="a", pads=[1, 1, 1, 1]))
    block = build.rng.standard_normal((2, 1, 2, 3, 3)) / 4
    weight = np.concatenate([block, 2 * block], axis=1)[[0, 0, 1, 1]]
    build.store("g.w", weight.reshape(8, 2, 3, 3))
    value = build.relu(build.node("Conv", value, "g.w", name="g", group=4, pads=[1, 1, 1, 1]))
    proto = build.model(build.head(value, 8))
    result, step = apply(proto, "id(keep=0.5,reconstruct=none)", images(64, 3, 6, 6))
    assert {name: len(kept) for name, kept in read_kept(result).items()} == {"a": 4, "g": 2}
    assert max(row["relative_error"] for row in step.result.numbers["layers"]) < 1e-6
    fresh = images(16, 3, 6, 6, seed=99)
    wanted = run_model(proto, fresh)["head_out"]
    assert np.abs(run_model(result, fresh)["head_out"] - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_heads_of_attention_are_folded(net: Any, apply: Any, images: Any, run_model: Any) -> None:
    """What a head that goes gave to the next layer comes from the others as far as they can give it."""
    build = net(5, 8)
    parts = []
    for name in ("q", "k", "v"):
        flat = build.node(
            "Reshape", build.matmul("x", 8, 12, name=name), build.store(f"{name}.s", np.array([0, 5, 4, 3]))
        )
        parts.append(build.node("Transpose", flat, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]))
    # Nearly even attention: heads see nearly the same, 12 channels of 8 dimensions.
    scores = build.node("MatMul", build.node("Mul", parts[0], build.store("little", np.array(0.05))), parts[1])
    scores = build.node("Softmax", scores, axis=-1)
    mixed = build.node("Transpose", build.node("MatMul", scores, parts[2]), perm=[0, 2, 1, 3])
    joined = build.node("Reshape", mixed, build.store("joined", np.array([0, 5, 12])))
    proto = build.model(build.matmul(joined, 12, 8, name="out", last=True))
    data = images(200, 5, 8)
    folded, step = apply(proto, "id(keep=0.75,reconstruct=none)", data)
    assert {row["space"]: row["kept"] for row in step.result.numbers["layers"]} == {"q": 3, "v": 2}
    plain = ir.serde.deserialize_model(proto)
    work = prepare(plain)
    analysis = spaces.analyse(work)
    kept = read_kept(folded)["v"]
    heads, places = sorted({channel // 3 for channel in kept}), sorted({channel % 3 for channel in kept})
    surgery.cut(analysis, {"q": heads, "v": places})
    fresh = images(50, 5, 8, seed=99)
    wanted = run_model(proto, fresh)["out_add_out"]
    errors = [np.linalg.norm(run_model(m, fresh)["out_add_out"] - wanted) for m in (folded, finish(work))]
    assert errors[0] < 0.8 * errors[1]
