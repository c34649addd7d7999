"""A user's own function as a pass: both forms of the model, every failure in one sentence, the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import recipe
from onnxprune.errors import OptionError
from onnxprune.passes.custom import Custom

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
HEADS = {
    "gs": "import onnx_graphsurgeon as gs\ndef f(graph: gs.Graph):\n",
    "gs text": "def f(graph: 'onnx_graphsurgeon.Graph'):\n",
    "gs late": "from __future__ import annotations\nimport onnx_graphsurgeon as gs\ndef f(graph: gs.Graph):\n",
    "gs for checkers": (
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import onnx_graphsurgeon as gs\ndef f(graph: gs.Graph):\n"
    ),
    "ir": "import onnx_ir as ir\ndef f(graph: ir.Model):\n",
    "ir text": "def f(graph: 'onnx_ir.Model'):\n",
    "none": "def f(graph):\n",
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a script into the working folder and return the step that calls a function of it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, function: str = "f") -> str:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return f"custom(mine.py:{function})"

    return write


def small(net: Any) -> onnx.ModelProto:
    build = net(8)
    proto: onnx.ModelProto = build.model(build.gemm(build.relu(build.gemm("x", 8, 6, name="one")), 6, 3, name="two"))
    onnx.helper.set_model_props(proto, {"note": "kept"})
    return proto


@pytest.mark.parametrize("kind", HEADS)
def test_the_annotation_says_what_the_function_gets(kind: str, script: Any, net: Any, apply: Any) -> None:
    word = "onnx_graphsurgeon.Graph" if kind.startswith("gs") else "onnx_ir.Model"
    body = (
        f"    kind = type(graph)\n    assert f'{{kind.__module__.partition(\".\")[0]}}.{{kind.__name__}}' == '{word}'\n"
    )
    result, step = apply(small(net), script(HEADS[kind] + body))
    assert result.metadata_props["note"] == "kept"
    assert step.result.numbers == {"nodes_before": 3, "nodes_after": 3}


@pytest.mark.parametrize("returned", ["", "    return graph\n"])
@pytest.mark.parametrize("kind", ["gs", "ir"])
def test_rewrites_in_place_or_by_returning(
    kind: str, returned: str, script: Any, net: Any, apply: Any, run_model: Any, images: Any
) -> None:
    bodies = {
        "gs": "    for node in graph.nodes:\n        if node.op == 'Relu':\n            node.op = 'Tanh'\n",
        "ir": "    for node in graph.graph:\n        if node.op_type == 'Relu':\n            node.op_type = 'Tanh'\n",
    }
    proto = small(net)
    source = ir.serde.deserialize_model(proto)
    result, _ = apply(source, script(HEADS[kind] + bodies[kind] + returned))
    assert [node.op_type for node in result.graph] == ["Gemm", "Tanh", "Gemm"]
    assert [node.op_type for node in source.graph] == ["Gemm", "Relu", "Gemm"]
    tanh = onnx.ModelProto()
    tanh.CopyFrom(proto)
    tanh.graph.node[1].op_type = "Tanh"
    data = images(4, 8)
    np.testing.assert_array_equal(run_model(result, data)["two_out"], run_model(tanh, data)["two_out"])


def test_weights_of_the_source_stay(script: Any, net: Any, apply: Any) -> None:
    text = (
        "import onnx_ir as ir\ndef f(model: ir.Model):\n"
        "    for value in model.graph.initializers.values():\n"
        "        if value.const_value.numpy().flags.writeable:\n            value.const_value.numpy()[...] = 0\n"
        "        else:\n            value.const_value = ir.tensor(0 * value.const_value.numpy(), name=value.name)\n"
    )
    source = ir.serde.deserialize_model(small(net))
    for value in source.graph.initializers.values():
        value.const_value = ir.Tensor(np.array(value.const_value.numpy()), name=value.name)
    before = ir.serde.serialize_model(source).SerializeToString()
    result, _ = apply(source, script(text))
    assert not any(value.const_value.numpy().any() for value in result.graph.initializers.values())
    assert ir.serde.serialize_model(source).SerializeToString() == before


def test_a_context_is_given_to_who_names_it(script: Any, net: Any, apply: Any, images: Any) -> None:
    text = "def f(model, context):\n    model.metadata_props['seen'] = f'{context.examples.count} {context.seed}'\n"
    result, _ = apply(small(net), script(text), images(7, 8), seed=3)
    assert result.metadata_props["seen"] == "7 3"
    result, _ = apply(small(net), script("def f(model, *, context=None):\n    assert context is not None\n"))


def test_neighbours_can_be_imported_and_printing_is_no_result(
    script: Any, tmp_path: Path, net: Any, apply: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside_custom.py").write_text("WORD = 'hello'\n", encoding="utf-8")
    apply(small(net), script("def f(model):\n    import beside_custom\n    print(beside_custom.WORD)\n"))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "custom: mine.py:f: the script has no function 'f'; it has none"),
        ("f = 3\ndef g(): pass\n", "custom: mine.py:f: the script has no function 'f'; it has g"),
        ("import nothing_like_it\n", "custom: mine.py:f failed with ModuleNotFoundError: No module named"),
        ("def f(:\n", "custom: mine.py:f failed with SyntaxError: "),
        ("def f(m):\n    raise ValueError('two\\nlines')\n", "custom: mine.py:f failed with ValueError: two lines"),
        ("def f(m):\n    raise SystemExit(3)\n", "custom: mine.py:f failed with SystemExit: 3"),
        ("def f(): pass\n", "custom: mine.py:f takes no parameter; the first one gets the model"),
        ("def f(m, a, b): pass\n", "custom: mine.py:f asks for a, b; it gets the model, and a context if it names one"),
        ("def f(m: int): pass\n", "the first parameter of mine.py:f is annotated int; annotate it onnx_graphsurgeon"),
        ("def f(m: 'Nothing'): pass\n", "is annotated Nothing; annotate it"),
        (
            "def f(m):\n    return 3\n",
            "mine.py:f returned something else: an onnx_graphsurgeon.Graph is expected, not int",
        ),
        (
            "def f(m):\n    m.graph.outputs[0].name = 'y'\n",
            "mine.py:f changed the outputs of the graph from two_out FLOAT[batch,3] to y FLOAT[batch,3]; "
            "give interface=change if that is meant",
        ),
        (
            "def f(m):\n    next(iter(m.graph)).op_type = 'NoSuchThing'\n",
            "custom: what 'mine.py:f' made is not valid: the rewritten model fails onnx.checker: ",
        ),
    ],
)
def test_failures(text: str, sentence: str, script: Any, net: Any, apply: Any) -> None:
    step = script(text)
    with pytest.raises(OptionError) as caught:
        apply(small(net), step)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_interface_may_change_with_leave(script: Any, net: Any, apply: Any) -> None:
    step = script("def f(m):\n    m.graph.outputs[0].name = 'y'\n").replace(")", ",interface=change)")
    assert apply(small(net), step)[0].graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("custom", "custom: the function is missing; for example custom(my_script.py:rewrite)"),
        ("custom(mine.py)", "custom: the function 'mine.py' is not of the form script.py:name"),
        ("custom(mine.py:)", "custom: the function 'mine.py:' is not of the form script.py:name"),
        ("custom(none.py:f)", "custom: there is no script 'none.py' for the function 'f'"),
        ("custom(mine.py:f,mine.py:g)", "'mine.py:g' is not of the form option=value"),
        ("custom(interface=keep,mine.py:f)", "'mine.py:f' is not of the form option=value"),
        ("custom(mine.py:f,function=mine.py:f)", "option 'function' is given twice"),
        ("surp(0.5)", "recipe step 'surp(0.5)': '0.5' is not of the form option=value"),
    ],
)
def test_refusals(text: str, sentence: str, script: Any) -> None:
    script("def f(m): pass\n")
    with pytest.raises(OptionError) as caught:
        recipe.parse(text)
    assert sentence in str(caught.value)


def test_the_place_stands_for_the_name(script: Any, tmp_path: Path) -> None:
    script("def f(m): pass\n")
    (tmp_path / "my own.py").write_text("def f(m): pass\n", encoding="utf-8")
    wanted = [Custom("mine.py:f"), Custom("my own.py:f", interface="change")]
    texts = ["custom(mine.py:f),custom(function='my own.py:f',interface=change)", recipe.canonical(wanted)]
    assert recipe.canonical(wanted).startswith("custom(mine.py:f),")
    for text in texts:
        assert recipe.parse(text) == wanted
    (tmp_path / "r.yaml").write_text("- custom: mine.py:f\n- custom: {function: 'my own.py:f', interface: change}\n")
    assert recipe.parse("r.yaml") == wanted


def test_the_example_in_graphsurgeon(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(8)
    for name, value in (("zero", 0.0), ("six", 6.0), ("four", 4.0)):
        build.store(name, np.array(value))
    value = build.node("Dropout", build.node("Identity", build.gemm("x", 8, 6, name="one")))
    value = build.node("Clip", build.node("Relu", value), "zero", "six", name="clip")
    value = build.node("Clip", value, "", "four", name="again")
    proto = build.model(build.gemm(value, 6, 3, name="two"))
    result, _ = apply(proto, f"custom({EXAMPLES / 'custom_gs.py'}:tidy_clips)")
    assert [node.op_type for node in result.graph] == ["Gemm", "Clip", "Gemm"]
    data = {"x": 9 * images(50, 8)["x"]}
    np.testing.assert_array_equal(run_model(result, data)["two_out"], run_model(proto, data)["two_out"])


@pytest.mark.parametrize("last", [False, True])
def test_the_example_in_onnx_ir(last: bool, net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(8)
    value = build.gemm("x", 8, 6, name="one")
    value = build.node("Mul", build.node("HardSigmoid", value, alpha=1 / 6, beta=0.5), value, name="swish")
    other = build.node("Mul", value, build.node("HardSigmoid", value), name="no_swish")
    proto = build.model(other, value) if last else build.model(build.gemm(other, 6, 3, name="two"))
    result, _ = apply(proto, f"custom({EXAMPLES / 'custom_ir.py'}:fuse_hard_swish)")
    assert [node.op_type for node in result.graph].count("HardSwish") == 1
    assert [node.op_type for node in result.graph].count("HardSigmoid") == 1
    data = images(5, 8)
    for name, want in run_model(proto, data).items():
        np.testing.assert_allclose(run_model(result, data)[name], want, rtol=1e-5, atol=1e-6)
    old = onnx.ModelProto()
    old.CopyFrom(proto)
    old.opset_import[0].version = 13
    with pytest.raises(OptionError, match="failed with ValueError: HardSwish needs opset 14, the model has 13"):
        apply(old, f"custom({EXAMPLES / 'custom_ir.py'}:fuse_hard_swish)")
