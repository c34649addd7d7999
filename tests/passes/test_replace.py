"""Patterns that become one operator: equal outputs where ONNX Runtime can tell, and every match left alone named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import recipe
from onnxprune.api import Gates, compress
from onnxprune.api.planning import plan
from onnxprune.errors import ModelError, OptionError
from onnxprune.passes.replace import Replace

GELU = "Mul(Mul(x, Add(Erf(Div(x, 1.41421356)), 1)), 0.5)"
SILU = "Mul(x, Sigmoid(x))"
NORM = "d = Sub(x, ReduceMean(x, [-1])); Add(Mul(Div(d, Sqrt(Add(ReduceMean(Pow(d, 2), [-1]), 1e-5))), g), b)"


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], f"n_{output}", **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, Any],
    outputs: str = "y",
    *,
    shape: Sequence[Any] = ("batch", 4, 6),
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """Build a model of one input; stored numbers take its type unless they have one that is not float64."""
    dtype = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}.get(kind, np.float32)
    arrays = {name: np.asarray(data) for name, data in stored.items()}
    tensors = [
        numpy_helper.from_array(data.astype(dtype) if data.dtype == np.float64 else data, name)
        for name, data in arrays.items()
    ]
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def feeds(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


def gelu(swapped: bool = False, **options: Any) -> onnx.ModelProto:
    """GELU as older exporters spell it out, between two linear layers."""
    rng = np.random.default_rng(0)
    nodes = [
        node("MatMul", "x w", "h"),
        node("Div", "h root", "a"),
        node("Erf", "a", "e"),
        node("Add", "one e" if swapped else "e one", "p"),
        node("Mul", "p h" if swapped else "h p", "m"),
        node("Mul", "half m" if swapped else "m half", "g"),
        node("MatMul", "g v", "y"),
    ]
    stored = {
        "w": rng.standard_normal((6, 8)),
        "v": rng.standard_normal((8, 3)),
        "root": 2**0.5,
        "one": [1.0],
        "half": 0.5,
    }
    return graph(nodes, stored, **options)


def silu(**options: Any) -> onnx.ModelProto:
    nodes = [node("Neg", "x", "h"), node("Sigmoid", "h", "s"), node("Mul", "s h", "m"), node("Tanh", "m", "y")]
    return graph(nodes, {}, **options)


def ops(model: ir.Model) -> list[str]:
    return [item.op_type for item in model.graph]


@pytest.mark.parametrize("swapped", [False, True])
def test_gelu(swapped: bool, apply: Any, run_model: Any) -> None:
    proto = gelu(swapped)
    given = ir.serde.deserialize_model(proto)
    before = ir.serde.serialize_model(given).SerializeToString(deterministic=True)
    result, step = apply(given, [Replace(GELU, "Gelu(x)")])
    assert ops(result) == ["MatMul", "Gelu", "MatMul"]
    assert [item.name for item in result.graph] == ["n_h", "n_g", "n_y"]
    assert set(result.graph.initializers) == {"w", "v"}
    assert step.result.numbers["replaced"] == 1
    assert step.result.numbers["layers"] == [
        {"node": "n_g", "operators": "Div, Erf, Add, Mul, Mul", "variables": "x=h"}
    ]
    assert (step.result.skipped, step.result.warnings, step.foreign) == ({}, (), ())
    found, wanted = (run_model(model, feeds(5, 4, 6))["y"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert ir.serde.serialize_model(given).SerializeToString(deterministic=True) == before
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_numbers_match_as_far_as_half_precision_tells(kind: int, apply: Any) -> None:
    result, _ = apply(gelu(kind=kind), [Replace(GELU, "Gelu(x)")])
    assert ops(result) == ["MatMul", "Gelu", "MatMul"]
    result, _ = apply(gelu(kind=kind), [Replace(GELU.replace("1.41421356", "1.5"), "Gelu(x)")])
    assert "Gelu" not in ops(result)


def test_numbers_match_to_six_digits_in_single_precision(apply: Any) -> None:
    for number, count in (("1.4142135", 1), ("1.41422", 0), ("-1.4142135", 0)):
        _, step = apply(gelu(), [Replace(GELU.replace("1.41421356", number), "Gelu(x)")])
        assert step.result.numbers["replaced"] == count


def test_silu_by_an_operator_of_onnx_runtime(apply: Any, run_model: Any) -> None:
    proto = silu()
    result, step = apply(proto, "replace(pattern='Mul(x, Sigmoid(x))',by=com.microsoft::QuickGelu(x,alpha=1.0))")
    assert ops(result) == ["Neg", "QuickGelu", "Tanh"]
    assert dict(result.opset_imports) == {"": 20, "com.microsoft": 1}
    assert step.foreign == ()
    found, wanted = (run_model(model, feeds(5, 4, 6))["y"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_hard_swish_with_attributes_and_bounds(apply: Any, run_model: Any) -> None:
    nodes = [
        node("HardSigmoid", "x", "s", alpha=1 / 6, beta=0.5),
        node("Mul", "x s", "m"),
        node("Max", "m low", "t"),
        node("Min", "t high", "y"),
    ]
    proto = graph(nodes, {"low": -0.1, "high": 1.5})
    text = "Mul(x, HardSigmoid(x, alpha=0.16666667, beta=0.5))"
    result, step = apply(proto, [Replace(text, "HardSwish"), Replace("Min(Max(x, a), b)", "Clip(x, a, b)")])
    assert ops(result) == ["HardSwish", "Clip"]
    assert step.result.numbers["replaced"] == 1
    found, wanted = (run_model(model, feeds(5, 4, 6))["y"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    result, step = apply(proto, [Replace("Mul(x, HardSigmoid(x, alpha=0.2))", "HardSwish")])
    assert step.result.warnings == ("replace found no place for Mul(x, HardSigmoid(x, alpha=0.2))",)
    assert ops(result) == ["HardSigmoid", "Mul", "Max", "Min"]


def layer_norm(opset: int, twice: bool) -> onnx.ModelProto:
    """LayerNormalization as older exporters spell it out; ``twice``: the difference is computed two times."""
    rng = np.random.default_rng(0)
    axes: dict[str, Any] = {} if opset >= 18 else {"axes": [-1]}
    more = " axes" if opset >= 18 else ""
    nodes = [
        node("ReduceMean", f"x{more}", "mean", **axes),
        node("Sub", "x mean", "d"),
        *([node("Sub", "x mean", "d2")] if twice else []),
        node("Pow", "d2 two" if twice else "d two", "q"),
        node("ReduceMean", f"q{more}", "var", **axes),
        node("Add", "var eps", "ve"),
        node("Sqrt", "ve", "std"),
        node("Div", "d std", "z"),
        node("Mul", "g z", "zg"),
        node("Add", "zg b", "n"),
        node("Relu", "n", "y"),
    ]
    stored: dict[str, Any] = {"two": 2.0, "eps": 1e-5, "g": rng.standard_normal(6), "b": rng.standard_normal(6)}
    if opset >= 18:
        stored["axes"] = np.array([-1])
    return graph(nodes, stored, opset=opset)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("opset", [17, 18])
def test_layer_normalization(opset: int, twice: bool, apply: Any, run_model: Any) -> None:
    pattern = NORM if opset >= 18 else NORM.replace(", [-1]", ", axes=[-1]")
    proto = layer_norm(opset, twice)
    result, step = apply(proto, [Replace(pattern, "LayerNormalization(x, g, b, axis=-1, epsilon=1e-5)")])
    assert ops(result) == ["LayerNormalization", "Relu"]
    assert [str(value.name) for value in result.graph.node(0).inputs] == ["x", "g", "b"]
    found, wanted = (run_model(model, feeds(5, 4, 6))["y"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert step.result.numbers["layers"][0]["variables"] == "x=x, g=g, b=b"


def test_an_attribute_left_out_counts_with_its_default(apply: Any) -> None:
    proto = graph([node("Softmax", "x", "s"), node("Log", "s", "y")], {})
    for axis, name in ((-1, "LogSoftmax"), (1, "Log")):
        result, _ = apply(proto, [Replace(f"Log(Softmax(x, axis={axis}))", f"LogSoftmax(x, axis={axis})")])
        assert ops(result)[-1] == name
    result, _ = apply(proto, [Replace("Log(Softmax(x))", "LogSoftmax(x, axis=-1)")])
    assert ops(result) == ["LogSoftmax"]
    assert str(result.graph.outputs[0].name) == "y"


def test_text_and_list_attributes_and_inputs_left_out(apply: Any) -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[0, 2, 1]),
        helper.make_node("Clip", ["t", "", "top"], ["c"], "n_c"),
        node("DepthToSpace", "c4", "y", mode="CRD", blocksize=2),
    ]
    nodes.insert(2, node("Reshape", "c to", "c4"))
    proto = graph(nodes, {"top": 6.0, "to": np.array([-1, 4, 6, 1])}, shape=("batch", 4, 6))
    counts = {
        "Transpose(x, perm=[0, 2, 1])": 1,
        "Transpose(x, perm=[0, 1, 2])": 0,
        "Transpose(x, perm=0)": 0,
        "Clip(x, none, 6)": 1,
        "Clip(x, low, 6)": 0,
        "Clip(x)": 0,
        "Reshape(x, [-1, 4, 6, 1])": 1,
        "Reshape(x, [-1, 4, 6])": 0,
        "DepthToSpace(x, mode='CRD')": 1,
        "DepthToSpace(x, mode='DCR')": 0,
        "Relu(x)": 0,
        "my::Clip(x, none, top)": 0,
        "ai.onnx::Clip(x, none, top)": 1,
    }
    for pattern, count in counts.items():
        _, step = apply(proto, [Replace(pattern, "my::Op(x)")])
        assert step.result.numbers["replaced"] == count, pattern


def test_matches_are_found_in_order_and_never_overlap(apply: Any, run_model: Any) -> None:
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "c"), node("Relu", "c", "d"),
             node("Relu", "d", "y")]  # fmt: skip
    result, step = apply(graph(nodes, {}), [Replace("Relu(Relu(x))", "Relu(x)")])
    assert [item.name for item in result.graph] == ["n_b", "n_d", "n_y"]
    assert step.result.skipped == {
        "n_c": "it overlaps the match that ends at 'n_b'",
        "n_y": "it overlaps the match that ends at 'n_d'",
    }
    assert np.array_equal(run_model(result, feeds(2, 4, 6))["y"], np.maximum(feeds(2, 4, 6)["x"], 0))


def test_what_is_read_elsewhere_bars_a_match(apply: Any, run_model: Any) -> None:
    nodes = [
        node("Sigmoid", "x", "s"),
        node("Mul", "x s", "m"),
        node("Sigmoid", "m", "t"),
        node("Mul", "t m", "u"),
        node("Add", "u t", "v"),
        node("Sigmoid", "v", "w"),
        node("Mul", "v w", "y"),
    ]
    proto = graph(nodes, {}, "y w")
    result, step = apply(proto, [Replace(SILU, "com.microsoft::QuickGelu(x, alpha=1.0)")])
    assert ops(result) == ["QuickGelu", "Sigmoid", "Mul", "Add", "Sigmoid", "Mul"]
    assert step.result.skipped == {
        "n_u": "'t' inside the match is read by 'n_v' too",
        "n_y": "'w' inside the match is an output of the model",
    }
    for name, found in run_model(result, feeds(3, 4, 6)).items():
        np.testing.assert_allclose(found, run_model(proto, feeds(3, 4, 6))[name], rtol=1e-5, atol=1e-6)
    _, step = apply(proto, [Replace("Mul(Sigmoid(v), v)", "my::F", only="n_u")])
    assert step.result.warnings == ("replace left every match alone",)


def test_a_tensor_read_in_a_body_bars_a_match(apply: Any) -> None:
    body = helper.make_graph([node("Neg", "s", "b")], "then", [], [helper.make_empty_tensor_value_info("b")])
    other = helper.make_graph([node("Abs", "s", "o")], "else", [], [helper.make_empty_tensor_value_info("o")])
    nodes = [
        node("Sigmoid", "x", "s"),
        node("Mul", "x s", "m"),
        node("If", "yes", "i", then_branch=body, else_branch=other),
        node("Add", "m i", "y"),
    ]
    made = graph(nodes, {"yes": np.array(True)}, shape=(2, 3))
    result, step = apply(made, [Replace(SILU, "my::F(x)")])
    assert step.result.skipped == {"n_m": "'s' inside the match is read by 'n_o' too"}
    assert ops(result) == ["Sigmoid", "Mul", "If", "Add"]


def test_a_variable_is_one_tensor_and_stays_outside_the_match(apply: Any) -> None:
    nodes = [node("Relu", "x", "r"), node("Add", "r r", "a"), node("Relu", "x", "q"), node("Add", "a q", "y")]
    proto = graph(nodes, {})
    _, step = apply(proto, [Replace("Add(Relu(x), y)", "my::F(x, y)")])
    assert step.result.numbers["layers"] == [{"node": "n_y", "operators": "Relu, Add", "variables": "x=x, y=a"}]
    _, step = apply(proto, [Replace("Add(v, v)", "my::F(v)")])
    assert [row["node"] for row in step.result.numbers["layers"]] == ["n_a"]
    _, step = apply(proto, [Replace("Add(Relu(x), Relu(x))", "my::F(x)")])
    assert [row["node"] for row in step.result.numbers["layers"]] == ["n_a"]


def test_only_and_ignore_name_nodes_of_a_match(apply: Any) -> None:
    nodes = [node("Relu", "x", "a"), node("Neg", "a", "b"), node("Relu", "b", "c"), node("Neg", "c", "y")]
    for options, names in (
        ({"only": "n_a"}, ["n_b"]),
        ({"only": "re:n_[cy]"}, ["n_y"]),
        ({"ignore": "n_c"}, ["n_b"]),
        ({"ignore": "n_*"}, []),
    ):
        _, step = apply(graph(nodes, {}), [Replace("Neg(Relu(x))", "my::F(x)", **options)])
        assert [row["node"] for row in step.result.numbers["layers"]] == names
        assert len(step.result.skipped) == 2 - len(names)
        assert set(step.result.skipped.values()) <= {"only= does not name it", "ignore= names it"}


def test_a_number_that_a_caller_may_feed_is_none(apply: Any) -> None:
    proto = gelu()
    proto.graph.input.append(helper.make_tensor_value_info("half", TensorProto.FLOAT, []))
    result, step = apply(proto, [Replace(GELU, "Gelu(x)")])
    assert step.result.numbers["replaced"] == 0
    result, step = apply(proto, [Replace(GELU.replace("0.5", "h"), "my::F(x, h)")])
    assert step.result.numbers["replaced"] == 1
    assert [str(value.name) for value in result.graph.inputs] == ["x", "half"]
    assert "half" in result.graph.initializers


def test_constant_nodes_are_stored_numbers(apply: Any) -> None:
    proto = gelu()
    half = next(tensor for tensor in proto.graph.initializer if tensor.name == "half")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["half"], value=half))
    proto.graph.initializer.remove(half)
    assert ops(apply(proto, [Replace(GELU, "Gelu(x)")])[0]) == ["MatMul", "Gelu", "MatMul"]


def test_a_plugin_keeps_its_attributes_names_and_what_lies_behind_it(apply: Any) -> None:
    proto = gelu()
    by = "trt.plugins::MyGelu(x, plugin_version='1', plugin_namespace='', approximate=0, scale=0.5, axes=[1, 2])"
    result, step = apply(proto, [Replace(GELU, by)])
    assert step.foreign == ("trt.plugins::MyGelu",)
    new = next(item for item in result.graph if item.op_type == "MyGelu")
    assert (new.name, new.domain, str(new.outputs[0].name)) == ("n_g", "trt.plugins", "g")
    values = {name: attribute.value for name, attribute in new.attributes.items()}
    scale = values.pop("scale")
    assert scale == 0.5
    assert {name: list(v) if isinstance(v, tuple | list) else v for name, v in values.items()} == {
        "plugin_version": "1",
        "plugin_namespace": "",
        "approximate": 0,
        "axes": [1, 2],
    }
    assert dict(result.opset_imports) == {"": 20, "trt.plugins": 1}
    # Nobody can infer what a plugin returns, yet the layers behind it keep their cost.
    assert [str(size) for size in new.outputs[0].shape] == ["batch", "4", "8"]
    assert step.cost.unknown == {}
    assert step.cost.macs == 4 * 6 * 8 + 4 * 8 * 3
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    again, _ = apply(result, "cleanup")
    assert [str(size) for size in again.graph.node(1).outputs[0].shape] == ["batch", "4", "8"]


def test_version_is_that_of_a_new_domain(apply: Any) -> None:
    result, _ = apply(silu(), [Replace(SILU, "my::F(x)", version=3)])
    assert dict(result.opset_imports) == {"": 20, "my": 3}
    again, _ = apply(result, [Replace("Neg(x)", "my::G(x)")])
    assert dict(again.opset_imports) == {"": 20, "my": 3}
    with pytest.raises(OptionError, match="version=2, but the model imports version 3 of domain 'my'; leave version="):
        apply(result, [Replace("Neg(x)", "my::G(x)", version=2)])


def test_a_function_of_the_model_is_no_foreign_operator(apply: Any, run_model: Any) -> None:
    proto = silu()
    body = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["r"])]
    function = helper.make_function("my", "Silu", ["a"], ["r"], body, [helper.make_opsetid("", 20)])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    result, step = apply(proto, [Replace(SILU, "my::Silu(x)")])
    assert step.foreign == ()
    found, wanted = (run_model(model, feeds(5, 4, 6))["y"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_cost_that_is_no_longer_counted_is_told(apply: Any) -> None:
    _, step = apply(gelu(), [Replace("MatMul(x, w)", "my::Linear(x, w)", only="n_h")])
    text = "the FLOPs of 1 replaced nodes are missing from the cost: those of my::Linear are not counted"
    assert step.result.warnings == (text,)
    _, step = apply(gelu(), [Replace("MatMul(x, w)", "MatMul(x, w)")])
    assert step.result.warnings == ()


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        ("Gelu(x)", "replace: Gelu is there from opset 20 on; the model has opset 18"),
        (
            "Swoosh(x)",
            "replace: ONNX has no operator Swoosh; name the domain of another one, as in trt.plugins",
        ),
        ("Elu(x, x)", "replace: Elu of opset 18 takes 1 to 1 inputs; by='Elu(x, x)' gives 2"),
        ("Elu(x, beta=1.0)", "replace: Elu of opset 18 has no attribute beta"),
        ("Cast(x)", "replace: Cast of opset 18 has to be given attribute to"),
    ],
)
def test_operators_that_the_models_opset_does_not_have(by: str, sentence: str, apply: Any) -> None:
    with pytest.raises(OptionError) as caught:
        apply(silu(opset=18), [Replace(SILU, by)])
    assert str(caught.value).startswith(sentence)


def test_a_whole_number_serves_where_the_operator_wants_a_float(apply: Any, run_model: Any) -> None:
    result, _ = apply(silu(), [Replace(SILU, "Elu(x, alpha=2)")])
    assert run_model(result, feeds(2, 4, 6))["y"].shape == (2, 4, 6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("replace", "replace: pattern= is missing; for example replace(pattern="),
        ("replace(pattern=Relu(x))", "replace: by= is missing; for example replace(pattern="),
        ("replace(pattern=Relu(x),by=my::F(y))", "replace: by='my::F(y)' takes 'y'; the pattern has x"),
        (
            "replace(pattern=Relu(x),by=my::F(x),version=0)",
            "replace: version=0 is not accepted; give a whole",
        ),
        ("replace(pattern=Relu(x),by=my::F(x),only=)", "replace: only='' has an empty pattern"),
    ],
)
def test_options_are_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        recipe.parse(text)
    assert str(caught.value).startswith(sentence)


def test_canonical_text_gives_the_same_pass() -> None:
    items = [Replace(NORM, "trt.plugins::Norm(x, g, b, plugin_version='1')", only="a;b"), Replace(GELU, "Gelu")]
    assert recipe.parse(recipe.canonical(items)) == items


def test_plan(apply: Any) -> None:
    (found,) = plan(ir.serde.deserialize_model(gelu()), f"replace(pattern='{GELU}',by=trt.plugins::MyGelu(x))")
    assert found.rows == ({"node": "n_g", "operators": "Div, Erf, Add, Mul, Mul", "variables": "x=h"},)
    assert found.notes == (
        "trt.plugins::MyGelu would stand in 1 place",
        "ONNX Runtime has no operator trt.plugins::MyGelu: the model before this pass is what gets evaluated",
    )
    (found,) = plan(ir.serde.deserialize_model(gelu()), f"replace(pattern='{GELU}',by=Gelu)")
    assert found.notes == ("Gelu would stand in 1 place",)


def classifier() -> onnx.ModelProto:
    """A classifier with SiLU between its layers."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Gemm", "x w1 b1", "h"), node("Sigmoid", "h", "s"), node("Mul", "h s", "m"),
        node("Gemm", "m w2 b2", "y"),
    ]  # fmt: skip
    stored = {
        "w1": rng.standard_normal((6, 16)), "b1": rng.standard_normal(16),
        "w2": rng.standard_normal((16, 4)), "b2": rng.standard_normal(4),
    }  # fmt: skip
    return graph(nodes, stored, shape=("batch", 6))


PLUGIN = f"replace(pattern='{SILU}',by=trt.plugins::Swish(x))"


def test_a_result_that_cannot_run_here_is_written_and_the_model_before_it_judged(tmp_path: Any) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((200, 6)).astype(np.float32)}
    gates = Gates(min_agreement=0.5)
    result = compress(classifier(), f"filters(keep=0.75),{PLUGIN}", data=data, gates=gates)
    assert [item.op_type for item in result.model.graph] == ["Gemm", "Swish", "Gemm"]
    assert result.report.warnings[0] == (
        "the result itself was not evaluated, because ONNX Runtime has no operator trt.plugins::Swish: "
        "all figures on decisions, outputs and latency are those of the model before replace (step 2)"
    )
    before = compress(classifier(), "filters(keep=0.75)", data=data, gates=gates)
    assert result.report.agreement == before.report.agreement
    assert result.report.output_error == before.report.output_error
    assert result.report.output_error.max_abs > 0
    assert result.met
    assert [step.pass_name for step in result.report.steps] == ["filters", "replace"]
    assert result.report.cost.macs == before.report.cost.macs
    saved = result.save(tmp_path / "plugin.onnx")
    onnx.checker.check_model(str(tmp_path / "plugin.onnx"), full_check=True)
    assert saved.report.result.bytes == (tmp_path / "plugin.onnx").stat().st_size
    assert not any("was not evaluated" in warning for warning in before.report.warnings)


def test_a_plugin_put_into_the_source_is_told_apart(tmp_path: Any) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((100, 6)).astype(np.float32)}
    result = compress(classifier(), f"{PLUGIN},surp(sparsity=0.5)", data=data)
    assert result.report.warnings[0].endswith("are those of the source model itself")
    result = compress(classifier(), f"surp(sparsity=0.5),{PLUGIN},cleanup", data=data)
    assert result.report.warnings[0].endswith("are those of the model before replace (step 2)")


def test_a_pass_that_has_to_run_the_model_comes_before_a_plugin(apply: Any) -> None:
    data = {"x": np.random.default_rng(1).standard_normal((100, 6)).astype(np.float32)}
    # Behind an unknown operator nothing can be cut, so the pass asks for a layer that does not meet it.
    nodes = [node("Gemm", "x w1", "h"), node("Relu", "h", "r"), node("Gemm", "r w2", "m"), node("Neg", "m", "y")]
    rng = np.random.default_rng(0)
    stored = {"w1": rng.standard_normal((6, 16)), "w2": rng.standard_normal((16, 4))}
    proto = graph(nodes, stored, shape=("batch", 6))
    plugin = "replace(pattern=Neg(x),by=trt.plugins::Minus(x))"
    for text in (f"{plugin},id", f"extract(recipe=({plugin},id))", f"{plugin},extract(recipe=id,outputs=m)"):
        with pytest.raises(ModelError) as caught:
            apply(proto, text, data)
        name = "extract" if "extract" in text else "id"
        assert str(caught.value) == (
            f"{name} has to run the model, but ONNX Runtime has no operator trt.plugins::Minus; "
            "a pass that writes one (replace) comes last"
        )
    _, step = apply(proto, f"id(keep=0.5),{plugin}", data)
    assert step.foreign == ("trt.plugins::Minus",)


def test_inside_a_part(apply: Any) -> None:
    result, step = apply(classifier(), f"extract(recipe=({PLUGIN}),inputs=h,outputs=m)")
    assert ops(result) == ["Gemm", "Swish", "Gemm"]
    assert dict(result.opset_imports) == {"": 20, "trt.plugins": 1}
    assert step.foreign == ("trt.plugins::Swish",)
    assert step.result.numbers["steps"] == [{"pass": "replace", "replaced": 1}]
