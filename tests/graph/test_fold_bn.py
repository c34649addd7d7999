"""BatchNormalization disappears into the linear node in front of it, or stays and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.fold_bn import fold_batch_norms


@pytest.fixture
def folded(run_model: Any, feeds: Any) -> Callable[..., tuple[onnx.ModelProto, int, dict[str, str]]]:
    """Fold, check that outputs and interface stay, and return the model, the count and the reasons."""

    def check(proto: onnx.ModelProto, *, tolerance: float = 2e-5) -> tuple[onnx.ModelProto, int, dict[str, str]]:
        source = ir.serde.deserialize_model(proto)
        before = ir.serde.serialize_model(source).SerializeToString(deterministic=True)
        work, count, skipped = fold_batch_norms(source)
        result = ir.serde.serialize_model(work)
        assert ir.serde.serialize_model(source).SerializeToString(deterministic=True) == before
        onnx.checker.check_model(result, full_check=True)
        assert [str(o) for o in result.graph.output] == [str(o) for o in proto.graph.output]
        left = sum(node.op_type == "BatchNormalization" for node in result.graph.node)
        assert left == len(skipped)
        given = feeds(proto)
        want, got = run_model(proto, given), run_model(result, given)
        for name in want:
            assert got[name].dtype == want[name].dtype
            np.testing.assert_allclose(got[name], want[name], rtol=tolerance, atol=tolerance)
        return result, count, skipped

    return check


def image(n: Any, *outputs: str) -> onnx.ModelProto:
    return n.model({"x": ["N", 4, 6, 6]}, *outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("opset", "ir_version"), [(7, 3), (9, 4), (14, 7), (15, 8), (18, 9), (23, 11)])
def test_conv_at_every_form_of_the_operator(net: Any, folded: Any, opset: int, ir_version: int, bias: bool) -> None:
    n = net(opset=opset, ir_version=ir_version)
    stored = [n.weight(6, 4, 3, 3), *([n.weight(6)] if bias else [])]
    value = n.op("Relu", n.norm(n.op("Conv", "x", *stored, name="c"), 6, epsilon=1e-2))
    result, count, skipped = folded(image(n, value))
    assert (count, skipped) == (1, {})
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu"]
    if ir_version < 4:
        assert {t.name for t in result.graph.initializer} == {i.name for i in result.graph.input} - {"x"}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_and_transposed(net: Any, folded: Any, groups: int, bias: bool) -> None:
    n = net()
    first = [n.weight(8, 4 // groups, 3, 3), *([n.weight(8)] if bias else [])]
    value = n.norm(n.op("Conv", "x", *first, group=groups), 8)
    second = [n.weight(8, 12 // groups, 2, 2), *([n.weight(12)] if bias else [])]
    value = n.norm(n.op("ConvTranspose", n.op("Relu", value), *second, group=groups, strides=[2, 2]), 12)
    result, count, _ = folded(image(n, n.op("Relu", value)))
    assert count == 2
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "ConvTranspose", "Relu"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (3, 6), (3, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_gemm(net: Any, folded: Any, transposed: int, bias: tuple[int, ...] | None, alpha: float) -> None:
    n = net()
    weight = n.weight(*((6, 4) if transposed else (4, 6)))
    stored = [weight, *([] if bias is None else [n.weight(*bias)])]
    value = n.op("Relu", n.norm(n.op("Gemm", "x", *stored, transB=transposed, alpha=alpha), 6))
    result, count, _ = folded(n.model({"x": [3, 4]}, value))
    assert count == 1
    assert [node.op_type for node in result.graph.node] == ["Gemm", "Relu"]


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions(net: Any, folded: Any, dims: int) -> None:
    n = net()
    value = n.op("Relu", n.norm(n.op("Conv", "x", n.weight(6, 4, *[3] * dims)), 6))
    assert folded(n.model({"x": ["N", 4, *[6] * dims]}, value))[1] == 1


def test_half_precision_stays_and_is_computed_in_double(net: Any, folded: Any) -> None:
    n = net(dtype=np.float16)
    model = image(n, n.op("Relu", n.norm(n.op("Conv", "x", n.weight(6, 4, 3, 3)), 6)))
    result, count, _ = folded(model, tolerance=2e-2)
    assert count == 1
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}
    tensors = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weight, gamma, beta, mean, variance = tensors.values()
    scale = gamma / np.sqrt(variance + 1e-5)
    got = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    first, second = got.values()
    np.testing.assert_array_equal(first, (weight * scale.reshape(-1, 1, 1, 1)).astype(np.float16))
    np.testing.assert_array_equal(second, (beta - scale * mean).astype(np.float16))


def test_half_precision_that_would_overflow_is_left_alone(net: Any, folded: Any) -> None:
    n = net(dtype=np.float16)
    tiny = n.const(np.full(6, 6e-8), dtype=np.float16)
    big = n.const(np.full(6, 60000.0), dtype=np.float16)
    parameters = [big, n.weight(6), n.const(np.zeros(6), dtype=np.float16), tiny]
    value = n.op("BatchNormalization", n.op("Conv", "x", n.weight(6, 4, 1, 1), name="c"), *parameters, name="b")
    work, count, skipped = fold_batch_norms(ir.serde.deserialize_model(image(n, n.op("Relu", value))))
    assert count == 0
    assert skipped == {"b": "the folded weights of 'c' do not fit into float16"}
    assert all(np.isfinite(value.const_value.numpy()).all() for value in work.graph.initializers.values())


def test_norm_that_is_the_graph_output(net: Any, folded: Any) -> None:
    n = net()
    out = n.norm(n.op("Conv", "x", n.weight(6, 4, 3, 3), name="c"), 6)
    result, count, _ = folded(image(n, out))
    assert count == 1
    assert [(node.name, list(node.output)) for node in result.graph.node] == [("c", [out])]


def test_norm_that_is_the_graph_output_and_read_inside(net: Any, folded: Any) -> None:
    n = net()
    out = n.norm(n.op("Conv", "x", n.weight(6, 4, 3, 3), name="c"), 6)
    result, count, _ = folded(image(n, n.op("Relu", out), out))
    assert count == 1
    assert result.graph.node[1].input[0] == out


def test_weights_shared_by_two_convolutions_get_a_fold_each(net: Any, folded: Any) -> None:
    n = net()
    weight, bias = n.weight(4, 4, 3, 3), n.weight(4)
    value = n.norm(n.op("Conv", "x", weight, bias, pads=[1, 1, 1, 1]), 4)
    value = n.norm(n.op("Conv", value, weight, bias, pads=[1, 1, 1, 1]), 4)
    result, count, _ = folded(image(n, n.op("Conv", value, weight, bias)))
    assert count == 2
    assert len(result.graph.initializer) == 6


def refusal(n: Any, case: str) -> tuple[onnx.ModelProto, str]:
    weight, parameters = n.weight(4, 4, 3, 3, name="w"), [n.positive(4), n.weight(4), n.weight(4), n.positive(4)]
    if case == "no linear node":
        return image(n, n.op("BatchNormalization", "x", *parameters, name="b")), (
            "no Conv, ConvTranspose or Gemm is in front of it"
        )
    if case == "activation between":
        value = n.op("Relu", n.op("Conv", "x", weight, name="c"))
        return image(n, n.op("BatchNormalization", value, *parameters, name="b")), (
            "no Conv, ConvTranspose or Gemm is in front of it"
        )
    if case == "computed weight":
        # Scaled by something that depends on the input: what depends on constants alone is folded beforehand.
        some = n.op("ReduceMean", "x", keepdims=0)
        value = n.op("Conv", "x", n.op("Mul", weight, some), name="c")
        out = n.op("BatchNormalization", value, *parameters, name="b")
        return image(n, out), "the weight or bias of 'c' is computed, not stored"
    value = n.op("Conv", "x", weight, name="c")
    if case == "computed parameters":
        parameters[0] = n.op("Mul", parameters[0], n.op("ReduceMean", "x", keepdims=0))
    out = n.op("BatchNormalization", value, *parameters, name="b")
    if case == "computed parameters":
        return image(n, out), "its parameters are computed, not stored"
    if case == "read twice":
        return image(n, out, n.op("Relu", value)), "the output of 'c' is read elsewhere too"
    if case == "given out":
        return image(n, out, value), "the output of 'c' is read elsewhere too"
    model = image(n, out)
    info = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 4, 3, 3])
    if case == "weight given out":
        model.graph.output.append(info)
        return model, "'w' of 'c' is read inside a body or is a graph output too"
    assert case == "weight that may be fed"
    model.graph.input.append(info)
    return model, "the weight or bias of 'c' is computed, not stored"


REFUSALS = [
    "no linear node", "activation between", "computed weight", "computed parameters", "read twice", "given out",
    "weight given out", "weight that may be fed",
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_leave_the_node_and_name_the_reason(net: Any, folded: Any, case: str) -> None:
    model, reason = refusal(net(), case)
    _, count, skipped = folded(model)
    assert (count, skipped) == (0, {"b": reason})


def test_training_form_is_refused(net: Any) -> None:
    for outputs, reason in (
        (lambda out: out[:1], "it is in training form (training_mode = 1)"),
        (lambda out: out[:2], "it is in training form (its statistics are read)"),
    ):
        n = net()
        parameters = [n.positive(4), n.weight(4), n.weight(4), n.positive(4)]
        value = n.op("Conv", "x", n.weight(4, 4, 3, 3))
        found = n.op("BatchNormalization", value, *parameters, name="b", outputs=3, training_mode=1)
        _, count, skipped = fold_batch_norms(ir.serde.deserialize_model(image(n, *outputs(found))))
        assert (count, skipped) == (0, {"b": reason})


def test_statistics_for_every_position_are_refused(net: Any) -> None:
    n = net(opset=8, ir_version=3)
    parameters = [n.positive(4, 4, 4) for _ in range(4)]
    value = n.op("Conv", "x", n.weight(4, 4, 3, 3))
    model = image(n, n.op("BatchNormalization", value, *parameters, spatial=0, name="b"))
    _, count, skipped = fold_batch_norms(ir.serde.deserialize_model(model))
    assert (count, skipped) == (0, {"b": "it normalises every position on its own (spatial = 0)"})


def test_gemm_that_scales_its_bias_is_refused(net: Any, folded: Any) -> None:
    n = net()
    value = n.op("Gemm", "x", n.weight(4, 6), n.weight(6), beta=0.5, name="g")
    out = n.op("BatchNormalization", value, n.positive(6), n.weight(6), n.weight(6), n.positive(6), name="b")
    _, count, skipped = folded(n.model({"x": ["N", 4]}, out))
    assert (count, skipped) == (0, {"b": "'g' scales its bias (beta)"})


def test_operator_of_another_domain_is_not_taken_for_a_convolution(net: Any) -> None:
    n = net()
    n.nodes.append(helper.make_node("Conv", ["x", n.weight(4, 4, 1, 1)], ["own"], "c", domain="my.ops"))
    n.norm("own", 4)
    out = n.nodes[-1].output[0]
    graph = helper.make_graph(
        n.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["N", 4, 6, 6])],
        n.stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my.ops", 1)])
    _, count, skipped = fold_batch_norms(ir.serde.deserialize_model(model))
    assert count == 0
    assert list(skipped.values()) == ["no Conv, ConvTranspose or Gemm is in front of it"]


def test_weight_read_inside_a_body_keeps_its_values(net: Any, folded: Any) -> None:
    """The body would otherwise see the folded values."""
    n = net()
    weight = n.weight(4, 4, 1, 1, name="w")
    value = n.norm(n.op("Conv", "x", weight, name="c"), 4)
    kind = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 4, 6, 6])
    branches = {
        word: helper.make_graph([helper.make_node("Conv", [value, "w"], ["r"])], word, [], [kind])
        for word in ("then_branch", "else_branch")
    }
    out = n.op("If", n.const(np.array(True)), **branches)
    _, count, skipped = folded(image(n, out))
    assert count == 0
    assert list(skipped.values()) == ["'w' of 'c' is read inside a body or is a graph output too"]


def test_real_model_with_norms(shared_data: Any, run_model: Any) -> None:
    path = shared_data / "onnx" / "resnet20-bn.onnx"
    work, count, skipped = fold_batch_norms(ir.load(path))
    result = ir.serde.serialize_model(work)
    assert skipped == {}
    assert count > 15
    x = {result.graph.input[0].name: np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)}
    for name, want in run_model(path, x).items():
        np.testing.assert_allclose(run_model(result, x)[name], want, rtol=1e-4, atol=1e-4)
