"""Hidden units of LSTM, GRU and RNN: cut with every gate, bias, state and peephole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = ["LSTM", "GRU", "RNN"]
HIDDEN, STEPS = 6, 5


def layer(
    n: Any, kind: str, value: str, ins: int, *, hidden: int = HIDDEN, both: bool = False, bias: bool = True,
    states: tuple[str, ...] = (), outputs: int = 1, name: str = "rec", **attributes: Any,
) -> Any:  # fmt: skip
    gates, directions = GATES[kind], 2 if both else 1
    parameters = [n.weight(directions, gates * hidden, ins), n.weight(directions, gates * hidden, hidden)]
    parameters.append(n.weight(directions, 2 * gates * hidden) if bias else "")
    if states:
        parameters += ["", *states]
    direction = {"direction": "bidirectional"} if both else {}
    return n.op(kind, value, *parameters, outputs=outputs, hidden_size=hidden, name=name, **direction, **attributes)


def last_step(n: Any, value: str, width: int) -> str:
    """The way in which exporters read an output [T, D, N, H]: directions beside hidden units, then the last step."""
    moved = n.op("Transpose", value, perm=[0, 2, 1, 3])
    joined = n.op("Reshape", moved, n.ints(0, 0, -1))
    taken = n.op("Gather", joined, n.const(np.array(-1)), axis=0)
    return str(n.op("Gemm", taken, n.weight(width, 4), n.weight(4), name="head"))


def sequence(n: Any, *outputs: str, **inputs: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = n.model({"x": [STEPS, "N", 3], **inputs}, *outputs)
    return model


@pytest.mark.parametrize("opset", [9, 14, 22])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_one_layer(net: Any, cut_equals_masked: Any, opset: int, kind: str, both: bool) -> None:
    for seed in range(2):
        n = net(opset=opset, ir_version=8)
        value = layer(n, kind, "x", 3, both=both, bias=seed == 0)
        model = sequence(n, last_step(n, value, HIDDEN * (2 if both else 1)))
        assert cut_equals_masked(model, seed=seed) == {"rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_on_top_of_each_other(net: Any, cut_equals_masked: Any, kind: str) -> None:
    """The input of the first layer is cut with what makes it, that of the second with the first layer."""
    n = net()
    value = n.op("MatMul", "x", n.weight(3, 5), name="in")
    value = layer(n, kind, value, 5, both=True, name="one")
    value = n.op("Reshape", n.op("Transpose", value, perm=[0, 2, 1, 3]), n.ints(0, 0, 2 * HIDDEN))
    value = layer(n, kind, value, 2 * HIDDEN, hidden=7, name="two")
    value = n.op("Squeeze", value, n.ints(1))
    model = sequence(n, n.op("MatMul", value, n.weight(7, 2), name="head"))
    for seed in range(3):
        assert cut_equals_masked(model, seed=seed) == {"in": 5, "one": HIDDEN, "two": 7}


@pytest.mark.parametrize("kind", KINDS)
def test_last_hidden_state_is_read(net: Any, cut_equals_masked: Any, kind: str) -> None:
    n = net()
    _, state = layer(n, kind, "x", 3, outputs=2, both=True)
    flat = n.op("Reshape", n.op("Transpose", state, perm=[1, 0, 2]), n.ints(0, 2 * HIDDEN))
    model = sequence(n, n.op("Gemm", flat, n.weight(2 * HIDDEN, 4), n.weight(4)))
    assert cut_equals_masked(model) == {"rec": HIDDEN}


def test_cell_state_is_read(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    _, hidden, cell = layer(n, "LSTM", "x", 3, outputs=3)
    total = n.op("Squeeze", n.op("Add", hidden, cell), n.ints(0))
    model = sequence(n, n.op("Gemm", total, n.weight(HIDDEN, 4), n.weight(4)))
    assert cut_equals_masked(model) == {"rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_initial_states(net: Any, cut_equals_masked: Any, kind: str) -> None:
    n = net()
    states = tuple(n.weight(1, 1, HIDDEN) for _ in range(2 if kind == "LSTM" else 1))
    value = layer(n, kind, "x", 3, states=states)
    model = n.model({"x": [STEPS, 1, 3]}, last_step(n, value, HIDDEN))
    for seed in range(3):
        # The batch of a stored state is fixed, so there is one size to try.
        work = prepare(ir.serde.deserialize_model(model))
        assert [space.width for space in spaces.analyse(work).prunable] == [HIDDEN]
        assert cut_equals_masked(model, seed=seed) == {"rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_that_are_computed_as_exporters_do(net: Any, cut_equals_masked: Any, kind: str) -> None:
    """Zeros of the batch's size: the node reads only what stays of them."""
    n = net()
    batch = n.op("Gather", n.op("Shape", "x"), n.ints(1), axis=0)
    shape = n.op("Concat", n.ints(1), batch, n.ints(HIDDEN), axis=0)
    states = tuple(
        n.op("Add", n.op("ConstantOfShape", shape), n.const(np.linspace(0, 1, HIDDEN, dtype=np.float32)))
        for _ in range(2 if kind == "LSTM" else 1)
    )
    value = layer(n, kind, "x", 3, states=states)
    model = sequence(n, last_step(n, value, HIDDEN))
    assert cut_equals_masked(model) == {"rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_initial_states_from_the_caller(net: Any, cut_equals_masked: Any, kind: str) -> None:
    n = net()
    names = ("h", "c")[: 2 if kind == "LSTM" else 1]
    value = layer(n, kind, "x", 3, states=names)
    model = sequence(n, last_step(n, value, HIDDEN), **{name: [1, "N", HIDDEN] for name in names})
    for seed in range(2):
        assert cut_equals_masked(model, seed=seed) == {"rec": HIDDEN}


def test_initial_states_from_an_encoder(net: Any, cut_equals_masked: Any) -> None:
    """A decoder that goes on where an encoder stopped has the encoder's hidden units."""
    n = net()
    _, hidden, cell = layer(n, "LSTM", "x", 3, outputs=3, name="encoder")
    value = layer(n, "LSTM", "y", 2, states=(hidden, cell), name="decoder")
    model = sequence(n, last_step(n, value, HIDDEN), y=[4, "N", 2])
    assert cut_equals_masked(model) == {"encoder": HIDDEN}


def test_what_is_not_cut_reads_its_states_as_before(net: Any) -> None:
    n = net()
    model = sequence(n, last_step(n, layer(n, "GRU", "x", 3, states=("h",)), HIDDEN), h=[1, "N", HIDDEN])
    work = prepare(ir.serde.deserialize_model(model))
    surgery.cut(spaces.analyse(work), {})
    assert [node.op_type for node in finish(work).graph] == [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("both", [False, True])
def test_peepholes(net: Any, cut_equals_masked: Any, both: bool) -> None:
    n = net()
    directions = 2 if both else 1
    value = layer(
        n, "LSTM", "x", 3, both=both, states=("", "", n.weight(directions, 3 * HIDDEN)), input_forget=0, clip=3.0
    )
    model = sequence(n, last_step(n, value, HIDDEN * directions))
    for seed in range(3):
        assert cut_equals_masked(model, seed=seed) == {"rec": HIDDEN}


@pytest.mark.parametrize("both", [False, True])
def test_linear_before_reset(net: Any, cut_equals_masked: Any, both: bool) -> None:
    n = net()
    value = layer(n, "GRU", "x", 3, both=both, linear_before_reset=1)
    model = sequence(n, last_step(n, value, HIDDEN * (2 if both else 1)))
    for seed in range(3):
        assert cut_equals_masked(model, seed=seed) == {"rec": HIDDEN}


def test_other_activations(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    value = layer(n, "RNN", "x", 3, activations=["Relu"])
    assert cut_equals_masked(sequence(n, last_step(n, value, HIDDEN))) == {"rec": HIDDEN}


def test_lengths_of_sequences(net: Any, cut_equals_masked: Any, run_model: Any) -> None:
    n = net()
    value = layer(n, "LSTM", "x", 3)
    model = n.model({"x": [STEPS, 2, 3]}, last_step(n, value, HIDDEN))
    node = next(node for node in model.graph.node if node.name == "rec")
    lengths = helper.make_tensor("lengths", TensorProto.INT32, [2], [3, 5])
    model.graph.initializer.append(lengths)
    node.input.append("lengths")
    work = prepare(ir.serde.deserialize_model(model))
    surgery.cut(spaces.analyse(work), {"rec": range(HIDDEN)})
    feed = {"x": np.ones((STEPS, 2, 3), np.float32)}
    want, got = run_model(model, feed), run_model(finish(work), feed)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    assert cut_equals_masked(model) == {"rec": HIDDEN}


def test_kept_rows_are_those_of_every_gate(net: Any) -> None:
    n = net()
    model = sequence(n, last_step(n, layer(n, "GRU", "x", 3), HIDDEN))
    work = prepare(ir.serde.deserialize_model(model))
    node = next(node for node in work.graph if node.name == "rec")
    before = [value.const_value.numpy().copy() for value in node.inputs[1:4]]  # type: ignore[union-attr]
    surgery.cut(spaces.analyse(work), {"rec": [1, 4]})
    kernel, recurrence, bias = (value.const_value.numpy() for value in node.inputs[1:4])  # type: ignore[union-attr]
    rows = [gate * HIDDEN + unit for gate in range(3) for unit in (1, 4)]
    np.testing.assert_array_equal(kernel, before[0][:, rows])
    np.testing.assert_array_equal(recurrence, before[1][:, rows][:, :, [1, 4]])
    np.testing.assert_array_equal(bias, before[2][:, [*rows, *(3 * HIDDEN + row for row in rows)]])
    assert node.attributes["hidden_size"].as_int() == 2


def test_recurrence_is_opaque(net: Any) -> None:
    """What goes cannot be made up for inside the recurrence, so least-squares passes must leave it."""
    n = net()
    value = n.op("MatMul", "x", n.weight(3, 5), name="in")
    model = sequence(n, last_step(n, layer(n, "GRU", value, 5), HIDDEN))
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(model)))
    reasons = {space.name: analysis.opaque(space) for space in analysis.prunable}
    assert reasons == {"in": None, "rec": "'rec' feeds them back to itself"}


def refusal(model: onnx.ModelProto) -> str:
    return spaces.analyse(prepare(ir.serde.deserialize_model(model))).refused["rec"]


def test_hidden_state_as_output_of_the_graph(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    value, state = layer(n, "LSTM", "x", 3, outputs=2)
    model = sequence(n, last_step(n, value, HIDDEN), state)
    assert refusal(model) == f"graph output '{state}'"
    assert cut_equals_masked(model) == {}


def test_weights_that_may_be_fed_are_refused(net: Any) -> None:
    n = net()
    model = sequence(n, last_step(n, layer(n, "LSTM", "x", 3), HIDDEN))
    fed = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [1, 4 * HIDDEN, HIDDEN])
    model.graph.input.append(helper.make_tensor_value_info(fed.name, TensorProto.FLOAT, list(fed.dims)))
    assert refusal(model) == "its weights are computed, shared with a body, or may be fed by the caller"


def time_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equal model whose recurrent nodes have time first, between transposes: ONNX Runtime has no other."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = list(result.graph.node)
    del result.graph.node[:]
    for node in nodes:
        after = []
        layout = next((a for a in node.attribute if a.name == "layout"), None)
        if layout is not None:
            node.attribute.remove(layout)
            for place in (0, 5, 6):
                if place < len(node.input) and node.input[place]:
                    turned = f"{node.name}/in{place}"
                    result.graph.node.append(
                        helper.make_node("Transpose", [node.input[place]], [turned], perm=[1, 0, 2])
                    )
                    node.input[place] = turned
            for place, out in enumerate(node.output):
                if out:
                    node.output[place] = f"{node.name}/out{place}"
                    perm = [2, 0, 1, 3] if place == 0 else [1, 0, 2]
                    after.append(helper.make_node("Transpose", [node.output[place]], [out], perm=perm))
        result.graph.node.extend([node, *after])
    return result


@pytest.fixture
def batch_first_equals_masked(cut_equals_masked_by: Any, run_model: Any) -> Any:
    return cut_equals_masked_by(lambda model, feeds: run_model(time_first(model), feeds))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_batch_first(net: Any, batch_first_equals_masked: Any, kind: str, direction: str) -> None:
    for seed in range(2):
        n = net(opset=14, ir_version=8)
        both = direction == "bidirectional"
        width = HIDDEN * (2 if both else 1)
        value = n.op("MatMul", "x", n.weight(3, 5), name="in")
        attributes = {} if both else {"direction": direction}
        value, state = layer(n, kind, value, 5, both=both, outputs=2, layout=1, **attributes)
        joined = n.op("Reshape", value, n.ints(0, 0, -1))
        flat = n.op("Reshape", state, n.ints(0, width))
        ends = n.op("MatMul", joined, n.weight(width, 4)), n.op("MatMul", flat, n.weight(width, 2))
        model = n.model({"x": ["N", STEPS, 3]}, *ends)
        assert batch_first_equals_masked(model, seed=seed) == {"in": 5, "rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first_with_states_from_the_caller(net: Any, batch_first_equals_masked: Any, kind: str) -> None:
    n = net()
    names = ("h", "c")[: 2 if kind == "LSTM" else 1]
    value = layer(n, kind, "x", 3, states=names, layout=1)
    out = n.op("MatMul", n.op("Squeeze", value, n.ints(2)), n.weight(HIDDEN, 4))
    model = n.model({"x": ["N", STEPS, 3], **{name: ["N", 1, HIDDEN] for name in names}}, out)
    assert batch_first_equals_masked(model) == {"rec": HIDDEN}


@pytest.mark.parametrize("kind", KINDS)
def test_reverse(net: Any, cut_equals_masked: Any, kind: str) -> None:
    n = net()
    value = layer(n, kind, "x", 3, direction="reverse")
    assert cut_equals_masked(sequence(n, last_step(n, value, HIDDEN))) == {"rec": HIDDEN}


def test_time_first_said_aloud_is_no_obstacle(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    model = sequence(n, last_step(n, layer(n, "GRU", "x", 3, layout=0), HIDDEN))
    assert cut_equals_masked(model) == {"rec": HIDDEN}


def test_channels_along_time_are_refused(net: Any, cut_equals_masked: Any) -> None:
    n = net()
    moved = n.op("Transpose", n.op("MatMul", "x", n.weight(3, 4), name="in"), perm=[2, 1, 0])
    model = sequence(n, last_step(n, layer(n, "RNN", moved, STEPS), HIDDEN))
    assert refusal(model) == "its time or batch axis carries channels"
    assert cut_equals_masked(model) == {}
