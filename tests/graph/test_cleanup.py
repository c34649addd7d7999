"""Tidying a graph changes nothing that it computes; sharing is undone and restored exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import constants
from onnxprune.graph.cleanup import cleanup, finish, name_nodes, prepare, remove_identities, unshare
from onnxprune.graph.cost import measure
from onnxprune.runtime.session import Settings, open_session


def names(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# Identities ------------------------------------------------------------------------------------------------------


def test_identity_chains_go_and_outputs_stay(net: Any, tidied: Any) -> None:
    n = net()
    value = n.op("Identity", n.op("Identity", "x"))
    kept = n.op("Identity", value)
    result, counts = tidied(
        n.model({"x": ["N", 3]}, kept, n.op("Relu", n.op("Identity", value)), n.op("Identity", kept))
    )
    assert counts["identities"] == 3
    assert names(result) == ["Identity", "Relu", "Identity"]


def test_identity_of_a_weight(net: Any, tidied: Any) -> None:
    """Some exporters share weights through Identity nodes."""
    n = net()
    weight = n.weight(4, 4)
    value = n.op("MatMul", n.op("MatMul", "x", n.op("Identity", weight)), weight)
    result, _ = tidied(n.model({"x": ["N", 4]}, value))
    assert names(result) == ["MatMul", "MatMul"]
    assert [t.name for t in result.graph.initializer] == [weight]


def dropout(n: Any, mode: bool | None) -> str:
    inputs = [n.op("Relu", "x"), n.const(np.float32(0.5))]
    return str(n.op("Dropout", *inputs, *([] if mode is None else [n.const(np.array(mode))])))


@pytest.mark.parametrize(("mode", "left"), [(None, 0), (False, 0), (True, 1)])
def test_dropout_goes_unless_it_trains(net: Any, mode: bool | None, left: int) -> None:
    n = net()
    model = ir.serde.deserialize_model(n.model({"x": ["N", 3]}, n.op("Neg", dropout(n, mode))))
    assert names(ir.serde.serialize_model(cleanup(model)[0])).count("Dropout") == left


@pytest.mark.parametrize(("attributes", "left"), [({}, 1), ({"is_test": 0}, 1), ({"is_test": 1}, 0)], ids=str)
def test_before_opset_7_dropout_trains_unless_told_otherwise(net: Any, attributes: dict[str, int], left: int) -> None:
    n = net(opset=6, ir_version=3)
    model = ir.serde.deserialize_model(n.model({"x": ["N", 3]}, n.op("Neg", n.op("Dropout", "x", **attributes))))
    assert names(ir.serde.serialize_model(cleanup(model)[0])).count("Dropout") == left


def test_dropout_whose_mask_is_read_stays(net: Any, tidied: Any) -> None:
    n = net()
    value, mask = n.op("Dropout", "x", outputs=2)
    result, _ = tidied(n.model({"x": ["N", 3]}, n.op("Neg", value), n.op("Not", mask)))
    assert names(result).count("Dropout") == 1


def test_bodies_that_read_outer_values(net: Any, run_model: Any) -> None:
    """What a body reads from outside may be renamed or folded outside; the body must follow."""
    n = net()
    identity, folded = n.op("Identity", n.op("Relu", "x")), n.op("Neg", n.const(np.float32(3)))
    held = n.op("Constant", value_float=2.0)
    kind = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 3])
    branches = {}
    for word, op in (("then_branch", "Add"), ("else_branch", "Mul")):
        inner = [
            helper.make_node("Constant", [], ["c"], value_float=4.0),
            helper.make_node(op, [identity, folded], ["p"]),
            helper.make_node("Identity", ["p"], ["q"]),
            helper.make_node("Add", ["q", "c"], ["s"]),
            helper.make_node("Mul", ["s", held], ["r"]),
        ]
        branches[word] = helper.make_graph(inner, word, [], [kind])
    out = n.op("If", n.op("Greater", n.op("ReduceSum", "x", keepdims=0), n.const(np.float32(0))), **branches)
    model = n.model({"x": ["N", 3]}, out)
    result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(model))[0])
    onnx.checker.check_model(result, full_check=True)
    assert "Identity" not in names(result)
    for sign in (1, -1):
        x = {"x": sign * np.ones((2, 3), np.float32)}
        np.testing.assert_array_equal(run_model(result, x)[out], run_model(model, x)[out])


def test_constants_inside_bodies_of_old_models(net: Any, run_model: Any) -> None:
    """Before IR version 4 initialisers had to be inputs, and a branch has none: constants stay nodes there."""
    n = net(opset=8, ir_version=3)
    kind = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 3])
    held = numpy_helper.from_array(np.float32(4))
    branches = {
        word: helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=held), helper.make_node(op, ["x", "c"], ["r"])],
            word,
            [],
            [kind],
        )
        for word, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    model = n.model({"x": [1, 3]}, n.op("If", n.const(np.array(True)), **branches))
    result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(model))[0])
    onnx.checker.check_model(result, full_check=True)
    x = {"x": np.ones((1, 3), np.float32)}
    np.testing.assert_array_equal(*(run_model(m, x)[model.graph.output[0].name] for m in (model, result)))


# Sharing, names, dead parts --------------------------------------------------------------------------------------


def shared(n: Any) -> onnx.ModelProto:
    weight, bias = n.weight(4, 4), n.weight(4)
    value = "x"
    for _ in range(3):
        value = n.op("Add", n.op("MatMul", value, weight), bias)
    return n.model({"x": ["N", 4]}, n.op("Mul", n.op("Add", bias, value), bias))


@pytest.mark.parametrize(("opset", "ir_version"), [(8, 3), (18, 9)])
def test_sharing_is_undone_and_restored_exactly(net: Any, tidied: Any, opset: int, ir_version: int) -> None:
    model = shared(net(opset=opset, ir_version=ir_version))
    work = prepare(ir.serde.deserialize_model(model))
    assert all(len(value.uses()) == 1 for value in work.graph.initializers.values())
    assert len(work.graph.initializers) == 8
    result, _ = tidied(model)
    assert [t.SerializeToString() for t in result.graph.initializer] == [
        t.SerializeToString() for t in model.graph.initializer
    ]
    assert [list(node.input) for node in result.graph.node] == [list(node.input) for node in model.graph.node]
    assert [i.name for i in result.graph.input] == [i.name for i in model.graph.input]


def test_writing_a_prepared_model_renames_nothing_in_its_source(net: Any) -> None:
    n = net()
    held = n.op("Constant", value=numpy_helper.from_array(np.ones(4, np.float32), "inside"))
    weight = n.weight(4, 4)
    value = n.op("MatMul", n.op("MatMul", "x", weight), weight)
    proto = n.model({"x": ["N", 4]}, n.op("Add", value, held))
    before = proto.SerializeToString(deterministic=True)
    source = ir.serde.deserialize_model(proto)
    ir.serde.serialize_model(prepare(source))
    assert proto.SerializeToString(deterministic=True) == before
    assert ir.serde.serialize_model(source).graph.initializer[0].name == weight
    assert ir.serde.serialize_model(source).graph.node[0].attribute[0].t.name == "inside"


def test_copies_share_the_memory_of_their_source(net: Any) -> None:
    work = prepare(ir.serde.deserialize_model(shared(net())))
    tensors = {id(constants.bare_tensor(value.const_value)) for value in work.graph.initializers.values()}
    assert len(work.graph.initializers) == 8
    assert len(tensors) == 2


def test_copies_that_changed_alike_are_merged_with_one_another(net: Any) -> None:
    work = prepare(ir.serde.deserialize_model(shared(net())))
    copies = [value for name, value in work.graph.initializers.items() if name.startswith("w1")]
    for copy in copies[1:]:
        constants.set_array(copy, np.zeros((4, 4)))
    finish(work)
    kept = [value for name, value in work.graph.initializers.items() if name.startswith("w1")]
    assert [len(value.uses()) for value in kept] == [1, 2]


def test_copies_that_differ_in_the_sign_of_zero_stay_apart(net: Any) -> None:
    work = prepare(ir.serde.deserialize_model(shared(net())))
    first, second, _ = (value for name, value in work.graph.initializers.items() if name.startswith("w1"))
    constants.set_array(first, np.zeros((4, 4)))
    constants.set_array(second, -np.zeros((4, 4)))
    finish(work)
    assert len([name for name in work.graph.initializers if name.startswith("w1")]) == 3


def test_copies_get_names_that_nobody_has(net: Any) -> None:
    n = net()
    weight = n.const(np.ones((2, 2), np.float32), name="w")
    n.nodes.append(helper.make_node("MatMul", ["x", weight], ["w/1"], "first"))
    out = n.op("MatMul", "w/1", weight)
    work = prepare(ir.serde.deserialize_model(n.model({"x": ["N", 2]}, out)))
    onnx.checker.check_model(ir.serde.serialize_model(finish(work)), full_check=True)
    assert list(prepare(work).graph.initializers) == ["w", "w/1_1"]


def test_weights_read_in_a_body_or_given_out_stay_shared(net: Any) -> None:
    n = net()
    weight = n.weight(4, 4)
    model = n.model({"x": ["N", 4]}, n.op("MatMul", n.op("MatMul", "x", weight), weight))
    model.graph.output.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, [4, 4]))
    work = ir.serde.deserialize_model(model)
    unshare(work)
    assert list(work.graph.initializers) == [weight]


def test_names_of_nodes_are_kept_and_made_unique() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "Relu_0"),
        helper.make_node("Relu", ["b"], ["c"], "twice"),
        helper.make_node("Relu", ["c"], ["d"], "twice"),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", kinds[:1], kinds[1:]))
    work = ir.serde.deserialize_model(model)
    name_nodes(work)
    found = [node.name for node in work.graph]
    assert found == ["Relu_1", "Relu_0", "twice", "twice_0", "Relu_2"]
    name_nodes(work)
    assert [node.name for node in work.graph] == found


def test_unnamed_nodes_have_one_name_for_cost_and_surgery(net: Any) -> None:
    n = net()
    model = n.model({"x": ["N", 3]}, n.op("MatMul", n.op("MatMul", "x", n.weight(3, 4)), n.weight(4, 5)))
    for node in model.graph.node:
        node.name = ""
    source = ir.serde.deserialize_model(model)
    assert list(measure(source).nodes) == [node.name for node in prepare(source).graph] == ["MatMul_0", "MatMul_1"]
    for node in source.graph:
        node.name = "same"
    cost = measure(source)
    assert cost.params == 12 + 20
    assert cost.macs == 12 + 20


def test_dead_parts_go(net: Any, tidied: Any) -> None:
    n = net()
    n.op("MatMul", n.op("Relu", "x"), n.weight(3, 4))
    n.weight(7)
    result, counts = tidied(n.model({"x": ["N", 3]}, n.op("Neg", "x")))
    assert names(result) == ["Neg"]
    assert not result.graph.initializer
    assert counts == {"identities": 0, "folded": 0, "nodes_removed": 2}


def test_dead_initialisers_of_old_models_leave_the_inputs_too(net: Any, tidied: Any) -> None:
    n = net(opset=8, ir_version=3)
    n.weight(7, name="dead")
    result, _ = tidied(n.model({"x": ["N", 3]}, n.op("Add", "x", n.weight(3, name="alive"))))
    assert [t.name for t in result.graph.initializer] == ["alive"]
    assert [i.name for i in result.graph.input] == ["x", "alive"]


def test_what_is_prepared_has_no_initialisers_that_old_models_do_not_read(net: Any) -> None:
    n = net(opset=8, ir_version=3)
    n.weight(7, name="dead")
    work = prepare(ir.serde.deserialize_model(n.model({"x": ["N", 3]}, n.op("Add", "x", n.weight(3, name="alive")))))
    with open_session(work, Settings()) as session:  # ONNX Runtime refused it
        session.run({"x": np.zeros((1, 3), np.float32)})
    assert list(work.graph.initializers) == ["alive"]


def test_folding_in_old_models_lists_the_result_as_an_input(net: Any, tidied: Any) -> None:
    n = net(opset=8, ir_version=3)
    result, counts = tidied(n.model({"x": ["N", 3]}, n.op("Add", "x", n.op("Neg", n.weight(3)))))
    assert counts["folded"] == 1
    assert [i.name for i in result.graph.input] == ["x", result.graph.initializer[0].name]


def test_removing_identities_counts_them(net: Any) -> None:
    n = net()
    model = ir.serde.deserialize_model(n.model({"x": ["N", 3]}, n.op("Relu", n.op("Identity", n.op("Identity", "x")))))
    assert remove_identities(model) == 2


def test_shared_models_are_neutral(shared_data: Any, run_model: Any) -> None:
    for path in sorted((shared_data / "onnx").glob("*.onnx")):
        if "56" in path.name:
            continue
        model = onnx.load(path)
        result = ir.serde.serialize_model(cleanup(ir.serde.deserialize_model(model))[0])
        sizes = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
        x = {model.graph.input[0].name: np.random.default_rng(0).standard_normal(sizes).astype(np.float32)}
        for name, want in run_model(model, x).items():
            np.testing.assert_array_equal(run_model(result, x)[name], want, err_msg=path.name)
