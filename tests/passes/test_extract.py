"""A recipe for a part of the model: the same as on the whole, nothing outside touched, every bad cut refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import recipe
from onnxprune.api.planning import plan
from onnxprune.api.reporting import size_gates
from onnxprune.contract import Context, Observer, StepResult, Tap
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph.cost import measure
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.extract import Extract
from onnxprune.passes.filters import Filters
from onnxprune.passes.surp import Surp

IMAGES = {"input": np.random.default_rng(0).standard_normal((120, 1, 12, 12)).astype(np.float32)}


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def interface(model: ir.Model) -> tuple[Any, ...]:
    proto = ir.serde.serialize_model(model)
    return list(proto.graph.input), list(proto.graph.output), list(proto.opset_import), proto.ir_version


def refusal(model: onnx.ModelProto, apply: Any, text: str, data: Any = None) -> str:
    with pytest.raises(ModelError) as caught:
        apply(model, text, data)
    return str(caught.value)


def test_a_recipe_that_changes_nothing_gives_equal_outputs(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any, weights: Any
) -> None:
    proto = conv_net(0)
    given = ir.serde.deserialize_model(proto)
    before = written(given)
    result, step = apply(given, "extract(recipe=cleanup,inputs=p1,outputs=g1)")
    assert np.array_equal(run_model(result, IMAGES)["logits"], run_model(proto, IMAGES)["logits"])
    assert interface(result) == interface(given)
    assert [node.name for node in result.graph] == [node.name for node in given.graph]
    assert dict(result.metadata_props) == dict(given.metadata_props)
    assert all(np.array_equal(data, weights(proto)[name]) for name, data in weights(result).items())
    assert step.result.numbers["part"]["nodes"] == 4
    assert step.result.skipped == {}
    assert written(given) == before


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (
            "extract(recipe=id(keep=0.5,reconstruct=none),inputs=input,outputs=r2)",
            "id(keep=0.5,reconstruct=none,only=conv1)",
        ),
        ("extract(recipe=id(keep=0.5,reconstruct=none),outputs=c2)", "id(keep=0.5,reconstruct=none,only=conv1)"),
        ("extract(recipe=id(keep=0.3),inputs=r2)", "id(keep=0.3,only=fc1)"),
        ("extract(recipe=filters(keep=0.5),inputs=input;r2)", None),
        (
            "extract(recipe=(surp(sparsity=0.4,values=original),id(keep=0.5,reconstruct=none)),outputs=r2)",
            "surp(sparsity=0.4,values=original,only=conv*),id(keep=0.5,reconstruct=none,only=conv1)",
        ),
        (
            "extract(recipe=surp(sparsity=0.7,values=reconstruction),inputs=c1,outputs=r3)",
            "surp(sparsity=0.7,values=reconstruction,only=conv2;fc1)",
        ),
    ],
)
def test_a_part_is_treated_as_the_whole_would_be_there(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, part: str, whole: str | None
) -> None:
    proto = conv_net(2)
    if whole is None:
        text = "the outputs of the part do not depend on tensor 'input' of inputs=; leave it out"
        assert refusal(proto, apply, part, IMAGES) == text
        return
    found, wanted = (weights(apply(proto, text, IMAGES)[0]) for text in (part, whole))
    assert found.keys() == wanted.keys()
    for name, data in wanted.items():
        np.testing.assert_array_equal(found[name], data, err_msg=name)


def test_sizes_are_the_parts_own_and_what_lies_outside_stays(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any, run_model: Any
) -> None:
    proto = conv_net(1, channels=(16, 24), hidden=40)
    result, step = apply(proto, "extract(recipe=(fold_bn,filters(flops=0.5)),outputs=r2)")
    part = step.result.numbers["part"]
    before, after = part["macs"]
    assert 0.45 * before <= after <= 0.5 * before
    # One convolution reads the image, the other its 16 channels, cut to what the part's own budget allows.
    assert before == 16 * 9 * 144 + 24 * 16 * 9 * 16
    assert step.result.reached == {"flops": (0.5, after / before)}
    assert [gate.message.partition(":")[0] for gate in size_gates([step])] == ["extract, of its part"]
    assert measure(result).macs == measure(ir.serde.deserialize_model(proto)).macs - before + after
    for name in ("g1.w", "g1.b", "g2.w", "g2.b"):
        assert np.array_equal(weights(result)[name], weights(proto)[name])
    assert [entry["pass"] for entry in step.result.numbers["steps"]] == ["fold_bn", "filters"]
    assert step.result.numbers["layers"] == [{"pass": "filters", "space": "conv1", "width": 16, "kept": 8}]
    assert step.result.skipped == {"conv2": "filters: graph output 'r2'"}
    onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
    assert run_model(result, IMAGES)["logits"].shape == (120, 5)


def test_a_second_inner_pass_sees_what_the_first_did(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, weights: Any
) -> None:
    both, step = apply(conv_net(0), "extract(recipe=(surp(sparsity=0.6),id(keep=0.5)),outputs=r2)", IMAGES)
    kept = weights(both)["c2.w"]
    assert kept.shape[1] == 4
    assert np.count_nonzero(kept) < 0.6 * kept.size
    assert step.result.reached == {"sparsity": (0.6, step.result.numbers["steps"][0]["sparsity"])}


def test_missing_sizes_are_told_and_the_missed_one_counts(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    _, step = apply(conv_net(0), "extract(recipe=(filters(flops=0.0001),filters(flops=0.9)),outputs=r2)")
    assert step.result.reached["flops"][0] == 0.0001
    assert not any(gate.met for gate in size_gates([step]))
    _, step = apply(conv_net(0), "extract(recipe=(filters(flops=0.9),filters(flops=0.5)),outputs=r2)")
    assert step.result.reached["flops"][0] == 0.5


@dataclass(frozen=True)
class Probe:
    """A pass that looks at its context."""

    look: Callable[[ir.Model, Context], None]
    tap: Tap | None = None
    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "looks"
    lossless: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        self.look(model, context)
        return StepResult(model, {"relu2": "it was looked at"}, warnings=("looked",))


def test_inner_passes_find_the_part_as_their_source_and_its_inputs_as_their_examples(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any
) -> None:
    proto = conv_net(0)
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    tapped.graph.output.append(helper.make_tensor_value_info("p1", TensorProto.FLOAT, ["batch", 8, 6, 6]))
    wanted = run_model(tapped, IMAGES)["p1"]
    seen = []

    def look(model: ir.Model, context: Context) -> None:
        assert [str(value.name) for value in context.original.graph.inputs] == ["p1"]
        assert context.original_cost == measure(context.original, context.inputs)
        assert context.inputs == {"p1": (1, 8, 6, 6)}
        assert context.examples is not None
        seen.extend(batch.arrays["p1"] for batch in context.examples.batches(50))
        assert model.ir_version == proto.ir_version

    item = Extract((Probe(look), Probe(look)), "p1", "r2")
    assert item.needs == {"calibration"}
    assert Extract.needs == frozenset()
    _, step = apply(proto, [item], IMAGES)
    np.testing.assert_allclose(np.concatenate(seen[:3]), wanted, rtol=1e-5, atol=1e-6)
    assert len(seen) == 6
    assert step.result.skipped == {"relu2": "probe: it was looked at; probe: it was looked at"}
    assert step.result.warnings == ("extract: looked", "extract: looked")


def test_missing_data_is_told_before_any_work(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    with pytest.raises(DataError, match="id needs calibration data; give --data or --calib"):
        apply(conv_net(0), "extract(recipe=id,outputs=r2)")


@pytest.fixture
def tied(net: Any) -> onnx.ModelProto:
    """Two equal layers that share their weight, the first of them in the part."""
    build = net(6)
    build.store("w", build.rng.standard_normal((6, 6)))
    first = build.relu(build.node("MatMul", "x", "w", name="one"))
    return build.model(build.node("MatMul", first, "w", name="two"))


def test_a_weight_shared_across_the_border(tied: onnx.ModelProto, apply: Any, weights: Any) -> None:
    result, _ = apply(tied, "extract(recipe=surp(sparsity=0.5,values=original),outputs=one_out)")
    found = weights(result)
    assert set(found) == {"w", "w_1"}
    assert np.array_equal(found["w"], weights(tied)["w"])
    assert np.count_nonzero(found["w_1"]) == 18
    readers = {str(node.name): str(node.inputs[1].name) for node in result.graph if node.op_type == "MatMul"}
    assert readers == {"one": "w_1", "two": "w"}
    same, _ = apply(tied, "extract(recipe=surp(sparsity=0),outputs=one_out)")
    assert set(weights(same)) == {"w"}


def test_names_that_are_taken_outside_are_not_taken_twice(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(4, 5, 5)
    build.store("w", build.rng.standard_normal((6, 4, 3, 3)))
    stored = [build.store(f"bn.{n}", build.rng.uniform(0.5, 1.5, 6)) for n in "sbmv"]
    normed = build.relu(build.node("BatchNormalization", build.node("Conv", "x", "w", name="c"), *stored, name="n"))
    # Folding the normalisation makes a bias, and this is what it would be called.
    other = build.store("w_bias", build.rng.standard_normal((6, 1, 1)))
    proto = build.model(build.node("Add", normed, other, name="shift"))
    result, step = apply(proto, f"extract(recipe=fold_bn,outputs={normed})")
    assert step.result.numbers["steps"] == [{"pass": "fold_bn", "folded": 1}]
    data = images(4, 4, 5, 5)
    found, wanted = (run_model(model, data)["shift_out"] for model in (result, proto))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_statistics_follow_a_tensor_that_was_renamed(net: Any, apply: Any, images: Any) -> None:
    build = net(4, 6, 6)
    inner = build.relu(build.conv("x", 4, 8, name="one"))
    middle = build.relu(build.conv(inner, 8, 6, name="two"))
    proto = build.model(build.conv(middle, 6, 3, name="three"))

    seen = []

    @dataclass(frozen=True)
    class Renaming(Probe):
        def apply(self, model: ir.Model, context: Context) -> StepResult:
            work = model.clone()
            next(node for node in work.graph if node.name == "one").outputs[0].name = "three_out_"
            next(node for node in work.graph if node.name == "one").outputs[0].name = "three.b"
            assert context.collect is not None
            from onnxprune.runtime.observers import Gram

            found = context.collect(work, {Tap("three.b", 1): Gram(1, 8)})
            seen.append(found[Tap("three.b", 1)].gram)
            return StepResult(work)

    result, _ = apply(proto, [Extract((Renaming(lambda model, context: None),), None, middle)], images(40, 4, 6, 6))
    assert seen[0].shape == (8, 8)
    names = [str(out.name) for node in result.graph for out in node.outputs]
    assert "three.b_1" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        ("inputs=pp1", "inputs=: the model has no tensor 'pp1': did you mean 'p1'?"),
        ("outputs=conv_2", "outputs=: the model has no tensor 'conv_2'; give names of tensors (edges), not of nodes"),
        ("inputs=c1.w", "inputs=: tensor 'c1.w' is a constant; name one that is computed from the model's inputs"),
        ("inputs=p1,outputs=p1", "tensor 'p1' is an input and an output of the part, so nothing lies between"),
        (
            "inputs=p1,outputs=r1",
            "the part needs tensor 'input' too, which inputs= leaves outside; name it there, or a",
        ),
        ("inputs=p1,outputs=r2;input", "the part needs tensor 'input' too, which inputs= leaves outside"),
        ("inputs=p1;c1,outputs=r2", "the outputs of the part do not depend on tensor 'c1' of inputs=; leave it out"),
    ],
)
def test_bad_ends_are_refused(conv_net: Callable[..., onnx.ModelProto], apply: Any, ends: str, sentence: str) -> None:
    assert refusal(conv_net(0), apply, f"extract(recipe=cleanup,{ends})").startswith(sentence)


def test_what_is_read_outside_must_be_an_output(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(4, 6, 6)
    first = build.relu(build.conv("x", 4, 8, name="one"))
    second = build.relu(build.conv(first, 8, 8, name="two"))
    total = build.node("Add", first, second, name="sum")
    proto = build.model(build.conv(total, 8, 3, name="last"), first)
    text = f"tensor '{first}' inside the part is an output of the model; name it in outputs= too"
    assert refusal(proto, apply, f"extract(recipe=filters,outputs={second})") == text
    proto.graph.output.pop()
    text = f"tensor '{first}' inside the part is read by 'sum' outside it; name it in outputs= too"
    assert refusal(proto, apply, f"extract(recipe=filters,outputs={second})") == text
    result, step = apply(proto, f"extract(recipe=filters(keep=0.5),outputs={second};{first})")
    assert step.result.numbers["layers"] == []
    data = images(3, 4, 6, 6)
    assert np.array_equal(run_model(result, data)["last_out"], run_model(proto, data)["last_out"])


def branching(outer: str) -> onnx.ModelProto:
    """A network whose If reads, inside its branches, a tensor of the main graph."""
    rng = np.random.default_rng(0)
    branch = helper.make_graph(
        [helper.make_node("Mul", [outer, "w"], ["b"], "inner")], "then", [], [helper.make_empty_tensor_value_info("b")]
    )
    other = helper.make_graph(
        [helper.make_node("Neg", [outer], ["o"], "neg")], "else", [], [helper.make_empty_tensor_value_info("o")]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Mul", ["r", "w"], ["m"], "scale"),
        helper.make_node("ReduceMax", ["m"], ["top"], "max", keepdims=0),
        helper.make_node("Greater", ["top", "limit"], ["yes"], "greater"),
        helper.make_node("If", ["yes"], ["i"], "if", then_branch=branch, else_branch=other),
        helper.make_node("Tanh", ["i"], ["y"], "tanh"),
    ]
    graph = helper.make_graph(
        nodes,
        "branching",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [
            numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), "w"),
            numpy_helper.from_array(np.float32(0.5), "limit"),
        ],
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 4]) for n in ("r", "m", "i")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_bodies_inside_and_outside_the_part(apply: Any, run_model: Any) -> None:
    proto = branching("r")
    data = {"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}
    wanted = run_model(proto, data)["y"]
    text = "tensor 'r' inside the part is read by 'if' outside it; name it in outputs= too"
    assert refusal(proto, apply, "extract(recipe=cleanup,outputs=m)") == text
    assert refusal(proto, apply, "extract(recipe=cleanup,inputs=yes,outputs=i)").startswith(
        "the part needs tensor 'x' too"
    )
    for ends in ("outputs=m;r", "inputs=yes;r,outputs=i", "inputs=r", "inputs=x,outputs=yes;r", ""):
        result, _ = apply(proto, f"extract(recipe=cleanup,{ends})" if ends else "extract(recipe=cleanup)")
        onnx.checker.check_model(ir.serde.serialize_model(result), full_check=True)
        assert np.array_equal(run_model(result, data)["y"], wanted), ends
        assert set(result.graph.initializers) == {"w", "limit"}, ends


def test_shapes_that_the_graph_computes_do_not_hold_a_part_open(apply: Any, run_model: Any) -> None:
    """PyTorch's older exporter flattens by Shape, Gather and Concat: folding cuts the way to the batch."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Shape", ["r"], ["s"], "shape"),
        helper.make_node("Gather", ["s", "zero"], ["batch"], "gather"),
        helper.make_node("Unsqueeze", ["batch", "axes"], ["b1"], "unsqueeze"),
        helper.make_node("Concat", ["b1", "rest"], ["to"], "concat", axis=0),
        helper.make_node("Tanh", ["r"], ["t"], "tanh"),
        helper.make_node("Reshape", ["t", "to"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "w"], ["h"], "one"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "two"),
    ]
    stored = {
        "zero": np.array(0),
        "axes": np.array([0]),
        "rest": np.array([-1]),
        "w": rng.standard_normal((12, 6)).astype(np.float32),
        "v": rng.standard_normal((6, 2)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(data, name) for name, data in stored.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = {"x": rng.standard_normal((5, 3, 4)).astype(np.float32)}
    result, step = apply(proto, "extract(recipe=filters(keep=0.5),inputs=t)")
    assert step.result.numbers["layers"] == [{"pass": "filters", "space": "one", "width": 6, "kept": 3}]
    assert run_model(result, data)["y"].shape == (5, 2)


@pytest.mark.parametrize("version", [3, 8])
def test_initialisers_that_are_inputs(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any, version: int
) -> None:
    proto = conv_net(0)
    proto.ir_version = version
    proto.opset_import[0].version = 8 if version == 3 else 18
    if version == 3:
        proto.graph.node[0].attribute.append(helper.make_attribute("group", 1))
        listed = [t.name for t in proto.graph.initializer]
    else:
        listed = ["c2.b"]
    for tensor in proto.graph.initializer:
        if tensor.name in listed:
            proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(proto)
    if version == 8:
        text = "the part needs tensor 'c2.b' too"
        assert refusal(proto, apply, "extract(recipe=cleanup,inputs=p1,outputs=r2)").startswith(text)
        given = "extract(recipe=filters(keep=0.5),inputs=input;c2.b,outputs=r2)"
    else:
        given = "extract(recipe=filters(keep=0.5),outputs=r2)"
    result, step = apply(proto, given)
    back = ir.serde.serialize_model(result)
    onnx.checker.check_model(back)
    assert [value.name for value in back.graph.input] == [value.name for value in proto.graph.input]
    # A bias that the caller may feed holds its layer as it is.
    assert [row["kept"] for row in step.result.numbers["layers"]] == ([4] if version == 3 else [])
    assert run_model(back, IMAGES)["logits"].shape == (120, 5)
    same, _ = apply(proto, given.replace("keep=0.5", "keep=1"))
    assert np.array_equal(run_model(same, IMAGES)["logits"], run_model(proto, IMAGES)["logits"])


def test_plan_shows_the_inner_plans(conv_net: Callable[..., onnx.ModelProto]) -> None:
    text = "extract(recipe=(surp(sparsity=0.5),filters(flops=0.5),fold_bn),inputs=input,outputs=r2)"
    (found,) = plan(ir.serde.deserialize_model(conv_net(0)), text)
    assert found.name == "extract"
    assert found.options["recipe"] == "(surp(sparsity=0.5),filters(flops=0.5),fold_bn)"
    assert found.notes[0] == "the part: 6 nodes from input to r2, 972 parameters, 24,192 MACs"
    assert "surp: 468 of 936 weights become zero" in found.notes
    assert found.notes[-1].startswith("fold_bn: ")
    assert [row["pass"] for row in found.rows] == ["surp", "surp", "filters"]
    assert all(list(row) == list(found.rows[0]) for row in found.rows)
    assert found.skipped == {"conv2": "filters: graph output 'r2'"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extract", "extract: recipe= must give the passes for the part, for example extract(recipe=(fold_bn,"),
        ("extract(outputs=c1)", "extract: recipe= must give the passes for the part, for example"),
        ("extract(recipe=)", "extract: recipe= must give the passes for the part, for example"),
        ("extract(recipe=idd)", "unknown pass 'idd': did you mean 'id'?"),
        ("extract(recipe=(id,))", "recipe 'id,': there is nothing between two commas or after the last one"),
        ("extract(recipe=id(keep=2))", "id: keep=2.0 is not accepted; give a number in (0, 1]"),
        ("extract(recipe=id,inputs=a;;b)", "extract: inputs='a;;b' must name tensors, each once, parted by ;"),
        ("extract(recipe=id,outputs=a;a)", "extract: outputs='a;a' must name tensors, each once, parted by ;"),
        ("extract(recipe=part.yaml)", "recipe step 'part.yaml' is not of the form name or name(option=value, ...)"),
        ("extract(recipe=" * 400 + "id" + ")" * 400, "the recipe has recipes inside recipes, too many to read"),
    ],
)
def test_options_are_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        recipe.parse(text)
    assert str(caught.value).startswith(sentence)


def test_passes_in_python() -> None:
    assert recipe.parse("extract(recipe=filters)") == [Extract((Filters(),))]
    for wrong in ("filters", [Filters()], ("filters",), Filters()):
        with pytest.raises(OptionError, match="extract: recipe"):
            Extract(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("extract(recipe=cleanup,outputs=a)", Extract((Cleanup(),), None, "a")),
        ("extract(recipe=(surp,cleanup))", Extract((Surp(sparsity=0.5), Cleanup()))),
        ("extract(recipe='surp,cleanup')", Extract((Surp(sparsity=0.5), Cleanup()))),
        ("extract(recipe=\"filters(only='a,b')\")", Extract((Filters(only="a,b", flops=0.9),))),
        ("extract(recipe=filters(only='a,b)'),inputs='c(,)')", Extract((Filters(only="a,b)", flops=0.9),), "c(,)")),
        ("extract(recipe=(extract(recipe=(cleanup),inputs=a)),inputs=b)", Extract((Extract((Cleanup(),), "a"),), "b")),
    ],
)
def test_recipes_within_recipes_and_back(text: str, item: Extract) -> None:
    canonical = recipe.canonical(recipe.parse(text))
    assert recipe.parse(canonical) == [item]
    assert recipe.canonical(recipe.parse(canonical)) == canonical


@pytest.mark.parametrize(
    "content",
    [
        "- extract: {recipe: 'filters(keep=0.5),cleanup', outputs: a}",
        "- extract: {recipe: [{filters: {keep: 0.5}}, cleanup], outputs: a}",
        "- extract(recipe=(filters(keep=0.5),cleanup),outputs=a)",
    ],
)
def test_yaml(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    assert recipe.parse(str(tmp_path / "r.yaml")) == [Extract((Filters(keep=0.5), Cleanup()), None, "a")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- extract: {recipe: 3}", "extract: recipe=3 is not accepted; give passes"),
        ("- extract: {recipe: [3]}", "extract: recipe: 3 is not a pass name or {name: {option: value}}"),
        ("- extract: {recipe: []}", "extract: recipe= must give the passes for the part"),
    ],
)
def test_yaml_refusals(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(OptionError) as caught:
        recipe.parse(str(tmp_path / "r.yaml"))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", ["resnet20", "resnet20-bn"])
def test_one_stage_of_a_trained_network(shared_data: Path, name: str, apply: Any, run_model: Any) -> None:
    from onnxprune.graph import io

    model = io.load(shared_data / "onnx" / f"{name}.onnx")
    adds = [node for node in model.graph if node.op_type == "Add" and node.inputs[1].producer() is not None]
    start, end = (str(adds[i].outputs[0].name) for i in (2, 4))
    relu = {str(n.inputs[0].name): str(n.outputs[0].name) for n in model.graph if n.op_type == "Relu"}
    ends = f"inputs={relu.get(start, start)},outputs={relu.get(end, end)}"
    data = {"input": np.random.default_rng(0).standard_normal((40, 3, 32, 32)).astype(np.float32)}
    result, step = apply(model, f"extract(recipe=id(flops=0.7),{ends})", data)
    before, after = step.result.numbers["part"]["macs"]
    assert 0.6 * before < after <= 0.7 * before
    same, _ = apply(model, f"extract(recipe=id(keep=1),{ends})", data)
    assert np.array_equal(run_model(same, data)["logits"], run_model(model, data)["logits"])
    assert run_model(result, data)["logits"].shape == (40, 10)


@pytest.mark.parametrize(
    "text",
    [
        "extract(recipe=filters(keep=0.5),inputs=input,outputs=r2)",
        "replace(pattern=Relu(x),by='com.microsoft::QuickGelu(x, alpha=2.0)',only=relu1)",
    ],
)
def test_weights_in_data_files(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, run_model: Any, tmp_path: Path, text: str
) -> None:
    from onnxprune.graph import io

    proto = conv_net(0)
    wanted, _ = apply(proto, text)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    result, _ = apply(io.load(tmp_path / "m.onnx"), text)
    io.save(result, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").exists()
    found = run_model(tmp_path / "out.onnx", IMAGES)["logits"]
    np.testing.assert_array_equal(found, run_model(wanted, IMAGES)["logits"])
