"""Which channels belong together, in which order they lie along an axis, and what a cut would cost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune.errors import BackendError, ModelError
from onnxprune.graph import kept, spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.fold_bn import fold_batch_norms
from onnxprune.graph.shapes import concrete_shapes


def analysed(model: onnx.ModelProto) -> spaces.Analysis:
    return spaces.analyse(prepare(ir.serde.deserialize_model(model)))


def conv(n: Any, value: str, ins: int, outs: int, name: str) -> str:
    return str(n.op("Conv", value, n.weight(outs, ins, 3, 3), n.weight(outs), pads=[1, 1, 1, 1], name=name))


def residual(n: Any) -> onnx.ModelProto:
    stem = conv(n, "x", 3, 4, "stem")
    value = n.op("Add", stem, conv(n, n.op("Relu", conv(n, stem, 4, 5, "in")), 5, 4, "out"))
    flat = n.op("Flatten", n.op("MaxPool", value, kernel_shape=[4, 4], strides=[4, 4]))
    return n.model({"x": ["N", 3, 8, 8]}, n.op("Gemm", flat, n.weight(16, 5), n.weight(5), name="head"))


def test_members_of_every_space(net: Any) -> None:
    analysis = analysed(residual(net()))
    found = {
        space.name: (
            space.width,
            [p.node.name for p in space.producers],
            [c.node.name for c in space.consumers],
            space.frozen is None,
        )
        for space in analysis.spaces
    }
    assert found == {
        "stem": (4, ["stem", "out"], ["in", "head"], True),
        "in": (5, ["in"], ["out"], True),
        "head": (5, ["head"], [], False),
    }
    assert list(found) == ["stem", "in", "head"]
    assert [space.name for space in analysis.prunable] == ["stem", "in"]


@pytest.mark.parametrize(
    ("order", "outer", "inner"), [([0, 1, 2, 3], 1, 16), ([0, 2, 3, 1], 16, 1), ([0, 2, 1, 3], 4, 4)], ids=str
)
def test_layout_of_a_flattened_axis(net: Any, order: list[int], outer: int, inner: int) -> None:
    n = net()
    value = n.op("Flatten", n.op("Transpose", conv(n, "x", 3, 6, "a"), perm=order))
    analysis = analysed(n.model({"x": ["N", 3, 4, 4]}, n.op("Gemm", value, n.weight(96, 5), n.weight(5))))
    (consumer,) = analysis.prunable[0].consumers
    found = surgery.layout(analysis, consumer)
    assert found is not None
    assert (found.outer, found.channels.tolist(), found.inner) == (outer, list(range(6)), inner)
    rows = surgery.weight_rows(consumer, found)
    assert rows.shape == (96 * 5 // 6, 6)
    before = consumer.weight.const_value.numpy().copy()
    surgery.set_weight_rows(consumer, found, rows)
    np.testing.assert_array_equal(consumer.weight.const_value.numpy(), before)
    swapped = rows[:, ::-1]
    surgery.set_weight_rows(consumer, found, swapped)
    np.testing.assert_allclose(surgery.weight_rows(consumer, found), swapped, rtol=1e-6)
    assert consumer.weight.dtype == ir.DataType.FLOAT


def test_depthwise_multiplier_repeats_each_channel(net: Any) -> None:
    n = net()
    value = n.op("Conv", conv(n, "x", 3, 4, "a"), n.weight(8, 1, 1, 1), group=4, name="d")
    analysis = analysed(n.model({"x": ["N", 3, 4, 4]}, conv(n, value, 8, 5, "b")))
    (consumer,) = analysis.prunable[0].consumers
    assert surgery.layout(analysis, consumer) == surgery.Layout(1, pytest.approx([0, 1, 2, 3]), 2)
    assert len(analysis.tracer.rewrites) == 1


def test_irregular_order_has_no_layout(net: Any) -> None:
    """A sum with its own transpose ties channels crosswise; the axis then follows no simple pattern."""
    n = net()
    value = n.op("MatMul", "x", n.weight(4, 3), name="a")
    crossed = n.op("Add", value, n.op("MatMul", "x", n.weight(4, 3), name="b"))
    model = n.model({"x": ["N", 6, 4]}, n.op("MatMul", crossed, n.weight(3, 5)))
    analysis = analysed(model)
    (consumer,) = analysis.prunable[0].consumers
    irregular = np.array([0, 1, 0, 0, 1, 1])
    analysis.tracer.labels[consumer.weight][consumer.weight_axis] = irregular
    assert surgery.layout(analysis, consumer) is None


def test_predicted_shapes_name_every_cut_axis(net: Any) -> None:
    model = residual(net())
    analysis = analysed(model)
    shapes = concrete_shapes(analysis.model, example_shapes(analysis.model))
    chosen = {"stem": [0, 2], "in": [4]}
    predicted = spaces.predicted_shapes(analysis, shapes, chosen)
    surgery.cut(analysis, chosen)
    result = finish(analysis.model)
    measured = concrete_shapes(result, example_shapes(result))
    assert {name: predicted[name] for name in measured} == measured
    assert spaces.predicted_macs(analysis, shapes, {}) > spaces.predicted_macs(analysis, shapes, chosen)


def test_cut_keeps_exactly_the_named_channels(net: Any) -> None:
    n = net()
    model = n.model({"x": ["N", 3, 4, 4]}, conv(n, conv(n, "x", 3, 4, "a"), 4, 5, "b"))
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    analysis = analysed(model)
    surgery.cut(analysis, {"a": np.array([3, 1])})
    first, bias, second, other = (v.const_value.numpy() for v in finish(analysis.model).graph.initializers.values())
    w1, b1, w2, b2 = before.values()
    np.testing.assert_array_equal(first, w1[[1, 3]])
    np.testing.assert_array_equal(bias, b1[[1, 3]])
    np.testing.assert_array_equal(second, w2[:, [1, 3]])
    np.testing.assert_array_equal(other, b2)


def test_bfloat16_is_cut_and_folded_as_it_is(net: Any) -> None:
    """ONNX Runtime computes little in this type on a CPU, so that only the stored values are compared."""
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    n = net(opset=23, ir_version=11, dtype=bfloat16)
    value = n.norm(conv(n, "x", 3, 4, "a"), 4)
    model = n.model({"x": ["N", 3, 4, 4]}, conv(n, value, 4, 5, "b"))
    analysis = analysed(model)
    (consumer,) = analysis.prunable[0].consumers
    found = surgery.layout(analysis, consumer)
    assert found is not None
    surgery.set_weight_rows(consumer, found, surgery.weight_rows(consumer, found))
    surgery.cut(analysis, {"a": [0, 3]})
    result = ir.serde.serialize_model(finish(analysis.model))
    onnx.checker.check_model(result, full_check=True)
    assert {t.data_type for t in result.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for tensor in result.graph.initializer:
        data = before[tensor.name]
        wanted = data[:, [0, 3]] if data.shape[:2] == (5, 4) else data[[0, 3]] if data.shape[0] == 4 else data
        assert numpy_helper.to_array(tensor).tobytes() == wanted.tobytes()
    folded, count, _ = fold_batch_norms(ir.serde.deserialize_model(model))
    assert count == 1
    assert {v.dtype for v in folded.graph.initializers.values()} == {ir.DataType.BFLOAT16}


def test_keeping_everything_changes_nothing(net: Any) -> None:
    model = residual(net())
    analysis = analysed(model)
    surgery.cut(analysis, {space.name: np.arange(space.width) for space in analysis.prunable})
    result = ir.serde.serialize_model(finish(analysis.model))
    assert [t.SerializeToString() for t in result.graph.initializer] == [
        t.SerializeToString() for t in model.graph.initializer
    ]


def test_a_space_keeps_at_least_one_channel(net: Any) -> None:
    analysis = analysed(residual(net()))
    with pytest.raises(BackendError, match="without a single channel"):
        surgery.cut(analysis, {"stem": []})


def test_cutting_twice_is_cutting_once(net: Any) -> None:
    model = residual(net())
    first = analysed(model)
    surgery.cut(first, {"stem": [0, 1, 3]})
    second = spaces.analyse(prepare(finish(first.model)))
    surgery.cut(second, {"stem": [0, 2]})
    once = analysed(model)
    surgery.cut(once, {"stem": [0, 3]})
    got, want = (ir.serde.serialize_model(finish(a.model)) for a in (second, once))
    assert [t.SerializeToString() for t in got.graph.initializer] == [
        t.SerializeToString() for t in want.graph.initializer
    ]


def test_analysis_is_the_same_every_time(net: Any) -> None:
    model = residual(net())
    first, second = analysed(model), analysed(model)
    assert [s.channels.tolist() for s in first.spaces] == [s.channels.tolist() for s in second.spaces]
    assert first.refused == second.refused


def test_weights_of_a_size_that_the_batch_might_have(net: Any) -> None:
    """A symbolic batch is never taken for a channel axis of the same size."""
    n = net()
    value = n.op("Add", n.op("MatMul", "x", n.weight(4, 6), name="a"), n.weight(6))
    model = n.model({"x": ["N", 4]}, n.op("MatMul", value, n.weight(6, 5)))
    assert [space.width for space in analysed(model).prunable] == [6]


def test_norms_of_slices(net: Any) -> None:
    n = net()
    analysis = analysed(residual(n))
    producer = analysis.prunable[0].producers[0]
    data = producer.weight.const_value.numpy()
    wanted = [np.linalg.norm(data[i]) for i in range(4)]
    np.testing.assert_allclose(surgery.axis_norms(producer.weight, 0), wanted, rtol=1e-6)


def test_real_models_have_the_spaces_of_their_architecture(shared_data: Any) -> None:
    widths = {}
    for name in ("resnet20", "resnet20-bn", "lenet300"):
        analysis = spaces.analyse(prepare(ir.load(shared_data / "onnx" / f"{name}.onnx")))
        widths[name] = sorted(space.width for space in analysis.prunable)
    assert widths["lenet300"] == [100, 300]
    for name in ("resnet20", "resnet20-bn"):
        assert [widths[name].count(width) for width in (16, 32, 64)].count(0) == 0, widths


# What was kept ---------------------------------------------------------------------------------------------------


def test_kept_channels_are_counted_in_the_source(net: Any) -> None:
    model = ir.serde.deserialize_model(residual(net()))
    kept.record_kept(model, {"stem": np.array([0, 1, 1, 1, 0, 0], bool)})
    kept.record_kept(model, {"stem": np.array([1, 0, 1], bool), "in": np.array([0, 0, 0, 0, 1], bool)})
    assert kept.read_kept(model) == {"in": [4], "stem": [1, 3]}
    assert kept.read_widths(model) == {"in": 5, "stem": 6}
    assert model.metadata_props[kept.KEY] == '{"in":[4],"stem":[1,3]}'
    assert model.metadata_props[kept.WIDTHS] == '{"in":5,"stem":6}'


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"a": 3}', '{"a": [1.5]}', '{"a": ["1"]}', '{"a": [-1]}'])
def test_broken_entries_are_one_sentence(net: Any, text: str) -> None:
    model = ir.serde.deserialize_model(residual(net()))
    model.metadata_props[kept.KEY] = text
    with pytest.raises(ModelError, match="is not a JSON object of lists of channel indices; delete it"):
        kept.record_kept(model, {"stem": np.array([True])})


@pytest.mark.parametrize("text", ["", "[1]", '{"a": [3]}', '{"a": 0}', '{"a": "3"}'])
def test_broken_widths_are_one_sentence(net: Any, text: str) -> None:
    model = ir.serde.deserialize_model(residual(net()))
    model.metadata_props[kept.WIDTHS] = text
    with pytest.raises(ModelError, match="is not a JSON object of numbers of channels; delete it"):
        kept.record_kept(model, {"stem": np.array([True])})


def test_entry_of_another_model_is_refused(net: Any) -> None:
    model = ir.serde.deserialize_model(residual(net()))
    model.metadata_props[kept.KEY] = json.dumps({"stem": [5, 6]})
    with pytest.raises(ModelError, match=r"lists 2 channels of 'stem', which has more; delete it"):
        kept.record_kept(model, {"stem": np.array([0, 0, 0, 1], bool)})
