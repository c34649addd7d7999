"""Models run in pieces against the same models run at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import BackendError
from onnxprune.graph import constants
from onnxprune.runtime import staged as module
from onnxprune.runtime.session import Settings, open_session
from onnxprune.runtime.staged import MEMORY_LIMIT, Spool, Staged

SETTINGS = Settings(threads=1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def grown(seed: int, *, batch: int | str = "N") -> tuple[onnx.ModelProto, list[str]]:
    """Return a random graph of products, sums and activations over [batch, 6], and its values in order."""
    rng = np.random.default_rng(seed)
    nodes, stored, values = [], [], ["x", "z"]
    for i in range(12):
        kind = rng.choice(["MatMul", "Add", "Mul", "Tanh", "Concat", "Split"])
        first, second = (str(values[int(j)]) for j in rng.integers(max(0, len(values) - 4), len(values), 2))
        if kind == "MatMul":
            stored.append(numpy_helper.from_array((rng.standard_normal((6, 6)) / 2.4).astype(np.float32), f"w{i}"))
            nodes.append(helper.make_node("MatMul", [first, f"w{i}"], [f"v{i}"], f"n{i}"))
        elif kind == "Tanh":
            nodes.append(helper.make_node("Tanh", [first], [f"v{i}"], f"n{i}"))
        elif kind == "Concat":
            nodes.append(helper.make_node("Concat", [first, second], [f"c{i}"], f"n{i}c", axis=1))
            stored.append(numpy_helper.from_array((rng.standard_normal((12, 6)) / 3).astype(np.float32), f"w{i}"))
            nodes.append(helper.make_node("MatMul", [f"c{i}", f"w{i}"], [f"v{i}"], f"n{i}"))
        elif kind == "Split":
            nodes.append(helper.make_node("Split", [first], [f"a{i}", f"b{i}"], f"n{i}s", axis=1, num_outputs=2))
            nodes.append(helper.make_node("Concat", [f"b{i}", f"a{i}"], [f"v{i}"], f"n{i}", axis=1))
        else:
            nodes.append(helper.make_node(kind, [first, second], [f"v{i}"], f"n{i}"))
        values.append(f"v{i}")
    given = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 6]) for name in ("x", "z")]
    outs = [helper.make_tensor_value_info(values[-1], onnx.TensorProto.FLOAT, [batch, 6])]
    graph = helper.make_graph(nodes, "grown", given, outs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model, values


def batches(count: int = 3, size: int = 4, last: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(9)
    sizes = [size] * (count - 1) + [last]
    return [{name: rng.standard_normal((n, 6)).astype(np.float32) for name in ("x", "z")} for n in sizes]


def whole(model: ir.Model, names: list[str], feeds: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    taps = [name for name in names if name not in ("x", "z")]
    with open_session(model, SETTINGS, taps=taps) as session:
        return [{**batch, **session.run(batch)} for batch in feeds]


def pieces(staged: Staged, cuts: list[list[str]], feeds: list[dict[str, np.ndarray]]) -> Iterator[tuple[int, Any]]:
    for wanted in cuts:
        with staged.piece(wanted) as piece:
            for i, batch in enumerate(feeds):
                found = piece.run(i, batch)
                assert set(wanted) <= set(found)
                yield i, {name: found[name] for name in wanted}


def split(values: list[str], rng: np.random.Generator) -> list[list[str]]:
    """Part the values into random pieces, in order, with some values left out or asked for twice."""
    places = np.sort(rng.choice(len(values), 3, replace=False))
    parts = [list(part) for part in np.split(np.array(values), places)]
    chosen = [[str(v) for v in part if rng.random() < 0.7] for part in parts]
    found = [part for part in chosen if part] + [[values[-1], values[0], values[-1]]]
    return found


@pytest.mark.parametrize("limit", [MEMORY_LIMIT, 0, 300])
def test_random_pieces_equal_the_whole(limit: int, temporary: Path) -> None:
    for seed in range(12):
        proto, values = grown(seed)
        model, feeds = ir.serde.deserialize_model(proto), batches()
        before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
        want = whole(model, values, feeds)
        with Staged(model, SETTINGS, memory=limit) as staged:
            for i, found in pieces(staged, split(values, np.random.default_rng(seed)), feeds):
                for name, array in found.items():
                    np.testing.assert_allclose(array, want[i][name], rtol=1e-4, atol=1e-5)
            assert staged.spool.used <= limit
        assert list(temporary.iterdir()) == []
        assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes of every session that is opened."""
    found: list[str] = []
    plain = module.io.to_scratch

    def noted(model: ir.Model, folder: Path) -> Path:
        found.extend(str(node.name) for node in model.graph)
        return plain(model, folder)

    monkeypatch.setattr(module.io, "to_scratch", noted)
    return found


def test_every_node_runs_once(ran: list[str]) -> None:
    for seed in range(8):
        proto, values = grown(seed)
        feeds = batches(2)
        ran.clear()
        with Staged(ir.serde.deserialize_model(proto), SETTINGS) as staged:
            for name in [*values[4:-1:3], values[-1]]:
                list(pieces(staged, [[name]], feeds))
        assert len(ran) == len(set(ran)) > 0


def chain(count: int = 4) -> ir.Model:
    weights = [np.eye(6, dtype=np.float32) * (i + 2) for i in range(count)]
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"], f"n{i}") for i in range(count)]
    given = [helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, ["N", 6])]
    outs = [helper.make_tensor_value_info(f"v{count}", onnx.TensorProto.FLOAT, ["N", 6])]
    stored = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", given, outs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return ir.serde.deserialize_model(model)


def test_a_weight_changed_between_pieces_takes_effect(ran: list[str]) -> None:
    model, x = chain(), np.ones((2, 6), dtype=np.float32)
    with Staged(model, SETTINGS) as staged:
        with staged.piece(["v1"]) as piece:
            np.testing.assert_array_equal(piece.run(0, {"v0": x})["v1"], 2 * x)
        constants.set_array(model.graph.initializers["w1"], 10 * np.eye(6))
        constants.set_array(model.graph.initializers["w0"], 99 * np.eye(6))  # has run already
        with staged.piece(["v2"]) as piece:
            np.testing.assert_array_equal(piece.run(0, {"v0": x})["v2"], 20 * x)
        with staged.piece(["v4"]) as piece:
            np.testing.assert_array_equal(piece.run(0, {"v0": x})["v4"], 400 * x)
    assert ran == ["n0", "n1", "n2", "n3"]


def test_only_what_later_pieces_read_is_kept() -> None:
    model, x = chain(), np.ones((2, 6), dtype=np.float32)
    with Staged(model, SETTINGS) as staged:
        for name in ("v1", "v3", "v4"):
            with staged.piece([name]) as piece:
                piece.run(0, {"v0": x})
            assert staged.spool.names() == ({name} if name != "v4" else set())
        assert staged.spool.used == 0


def test_inputs_are_fetched_only_where_they_are_read() -> None:
    model, x = chain(), np.ones((2, 6), dtype=np.float32)

    class Refusing(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            raise AssertionError(name)

    with Staged(model, SETTINGS) as staged:
        with staged.piece(["v1", "v0"]) as piece:
            np.testing.assert_array_equal(piece.run(0, {"v0": x})["v0"], x)
        with staged.piece(["v4"]) as piece:
            np.testing.assert_array_equal(piece.run(0, Refusing())["v4"], 120 * x)


@pytest.mark.parametrize("limit", [0, MEMORY_LIMIT])
def test_nothing_is_left_after_an_exception(limit: int, temporary: Path) -> None:
    def failing() -> None:
        with Staged(chain(), SETTINGS, memory=limit) as staged, staged.piece(["v2"]) as piece:
            piece.run(0, {"v0": np.ones((2, 6), dtype=np.float32)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert list(temporary.iterdir()) == []


def test_a_full_folder_is_one_sentence(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with (
        Staged(chain(), SETTINGS, memory=0) as staged,
        staged.piece(["v2"]) as piece,
        pytest.raises(BackendError, match="temporary folder: No space left"),
    ):
        piece.run(0, {"v0": np.ones((2, 6), dtype=np.float32)})
    monkeypatch.setattr(module.io, "to_scratch", full)
    with Staged(chain(), SETTINGS) as staged, pytest.raises(BackendError, match="No space left"), staged.piece(["v2"]):
        pass
    assert list(temporary.iterdir()) == []


def test_the_spool_counts_what_it_holds(temporary: Path) -> None:
    spool = Spool(100)
    spool.put("a", 0, np.zeros(10, dtype=np.float32))
    spool.put("a", 0, np.ones(12, dtype=np.float32))  # in place of the first one
    assert spool.used == 48
    spool.put("b", 0, np.arange(20.0))
    assert spool.used == 48 and len(list(temporary.iterdir())) == 1
    np.testing.assert_array_equal(spool.get("b", 0), np.arange(20.0))
    texts = np.array(["one", "two"] * 50, dtype=object)
    spool.put("c", 0, texts)
    assert spool.get("c", 0) is texts
    spool.drop("b")
    spool.drop("nothing")
    assert spool.names() == {"a", "c"}
    spool.close()
    assert (spool.used, spool.names(), list(temporary.iterdir())) == (0, set(), [])


BODY = """
<ir_version: 9, opset_import: ["": 18]>
net (float[N, 6] x) => (float[N, 6] y) {
    early = Tanh(x)
    middle = Neg(early)
    flag = Constant<value = bool[1] {1}>()
    zero = Constant<value = int64[1] {0}>()
    chosen = Squeeze(flag, zero)
    picked = If(chosen) <
        then_branch = yes () => (float[N, 6] a) { p = Mul(early, early)  a = Add(p, middle) },
        else_branch = no () => (float[N, 6] b) { b = Identity(early) }
    >
    y = Add(picked, x)
}
"""


@pytest.mark.parametrize("limit", [0, MEMORY_LIMIT])
def test_values_read_inside_bodies(limit: int) -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(BODY))
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    early = np.tanh(x)
    with Staged(model, SETTINGS, memory=limit) as staged:
        for name, want in (
            ("early", early),
            ("middle", -early),
            ("picked", early**2 - early),
            ("y", early**2 - early + x),
        ):
            with staged.piece([name]) as piece:
                np.testing.assert_allclose(piece.run(0, {"x": x})[name], want, atol=1e-5)
        assert not staged.spool.names()


UNKNOWN = """
<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
net (float16[N, 6] x) => (float16[N, 6] y) {
    h = com.microsoft.QuickGelu<alpha = 1.0>(x)
    r = Relu(h)
    y = Add(r, h)
}
"""


def test_values_of_unknown_type() -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(UNKNOWN))
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float16)
    with open_session(model, SETTINGS) as session:
        want = session.run({"x": x})["y"]
    with Staged(model, SETTINGS) as staged:
        for name in ("h", "r", "y"):
            with staged.piece([name]) as piece:
                found = piece.run(0, {"x": x})[name]
        np.testing.assert_allclose(found, want, rtol=1e-2, atol=1e-3)


NESTED = """
<ir_version: 9, opset_import: ["": 18]>
net (float[N, 6] x) => (float[N, 3] y) {
    h = Tanh(x)
    parts = SplitToSequence<axis = 1>(h, size)
    one = Constant<value = int64 {1}>()
    second = SequenceAt(parts, one)
    zero = Constant<value = int64 {0}>()
    t = Neg(second)
    first = SequenceAt(parts, zero)
    y = Add(first, t)
}
"""


def test_sequences_do_not_leave_a_piece() -> None:
    proto = onnx.parser.parse_model(NESTED)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([3, 3]), "size"))
    model = ir.serde.deserialize_model(proto)
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    h = np.tanh(x)
    with Staged(model, SETTINGS) as staged:
        for name, want in (("h", h), ("second", h[:, 3:]), ("t", -h[:, 3:]), ("y", h[:, :3] - h[:, 3:])):
            with staged.piece([name]) as piece:
                np.testing.assert_allclose(piece.run(0, {"x": x})[name], want, atol=1e-6)
        assert not staged.spool.names()


TURNED = """
<ir_version: 9, opset_import: ["": 18]>
net (float[4, 5, 6] x) => (float[4, 6] y) {
    turned = Transpose<perm = [1, 0, 2]>(x)
    both = Tanh(turned)
    back = Transpose<perm = [1, 0, 2]>(x)
    sum = Add(both, back)
    ahead = Transpose<perm = [1, 0, 2]>(sum)
    axes = Constant<value = int64[1] {1}>()
    y = ReduceSum<keepdims = 0>(ahead, axes)
}
"""


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_fixed_batch_that_is_not_the_first_axis(count: int) -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TURNED))
    x = np.random.default_rng(0).standard_normal((count, 5, 6)).astype(np.float32)
    with open_session(model, SETTINGS) as session:
        want = session.run({"x": x})["y"]
    assert want.shape == (count, 6)
    with Staged(model, SETTINGS) as staged:
        for name in ("both", "sum", "ahead", "y"):
            with staged.piece([name]) as piece:
                found = piece.run(0, {"x": x})[name]
        np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batches(batch: int) -> None:
    for seed in range(4):
        proto, values = grown(seed, batch=batch)
        model, feeds = ir.serde.deserialize_model(proto), batches(3, batch, max(1, batch - 2))
        want = whole(model, values, feeds)
        with Staged(model, SETTINGS, memory=200) as staged:
            for i, found in pieces(staged, [[values[3]], [values[6], values[8]], [values[-1]]], feeds):
                for name, array in found.items():
                    assert len(array) == len(feeds[i]["x"])
                    np.testing.assert_allclose(array, want[i][name], rtol=1e-4, atol=1e-5)


def test_initialisers_listed_as_inputs_are_not_fed() -> None:
    model = chain()
    for value in list(model.graph.initializers.values()):
        model.graph.inputs.append(value)
    x = np.ones((2, 6), dtype=np.float32)
    with Staged(model, SETTINGS) as staged:
        for name in ("v2", "v4"):
            with staged.piece([name]) as piece:
                found = piece.run(0, {"v0": x})
        np.testing.assert_array_equal(found["v4"], 120 * x)


def test_a_piece_that_cannot_be_loaded_says_so() -> None:
    text = UNKNOWN.replace("QuickGelu", "NoSuchThing")
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    with (
        Staged(model, SETTINGS) as staged,
        pytest.raises(BackendError, match="cannot load a part of the model"),
        staged.piece(["y"]),
    ):
        pass
