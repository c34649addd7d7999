"""The language of patterns: what it reads, and how it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import OptionError
from onnxprune.graph.pattern import Absent, Call, Stored, Variable, parse_operator, parse_pattern

X, Y = Variable("x"), Variable("y")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("Relu(x)", Call("Relu", "", (X,))),
        (" Mul ( x , Sigmoid( x ) ) ", Call("Mul", "", (X, Call("Sigmoid", "", (X,))))),
        ("Add(x, 1)", Call("Add", "", (X, Stored((1.0,), False)))),
        ("Add(x, -1.5e-3)", Call("Add", "", (X, Stored((-0.0015,), False)))),
        ("Add(x, .5)", Call("Add", "", (X, Stored((0.5,), False)))),
        ("ReduceMean(x, [-1, +2])", Call("ReduceMean", "", (X, Stored((-1.0, 2.0), True)))),
        ("Clip(x, none, 6)", Call("Clip", "", (X, Absent(), Stored((6.0,), False)))),
        ("Softmax(x, axis=-1)", Call("Softmax", "", (X,), (("axis", -1),))),
        ("Resize(x, mode='a(,)')", Call("Resize", "", (X,), (("mode", "a(,)"),))),
        (
            'T(x, perm=[0, 2, 1], a=1., n=[], w=["u"])',
            Call("T", "", (X,), (("perm", (0, 2, 1)), ("a", 1.0), ("n", ()), ("w", ("u",)))),
        ),
        ("com.microsoft::Gelu(x)", Call("Gelu", "com.microsoft", (X,))),
        ("ai.onnx::Relu(my-x)", None),
        ("ai.onnx::Relu(x)", Call("Relu", "", (X,))),
        ("my-domain::F(G())", Call("F", "my-domain", (Call("G", "", ()),))),
        ("s = Sigmoid(x); Mul(x, s)", Call("Mul", "", (X, Call("Sigmoid", "", (X,))))),
        (
            "s = Sigmoid(x); t = Neg(s); Mul(t, s)",
            Call("Mul", "", (Call("Neg", "", (Call("Sigmoid", "", (X,)),)), Call("Sigmoid", "", (X,)))),
        ),
    ],
)
def test_patterns(text: str, call: Call | None) -> None:
    if call is None:
        assert parse_pattern(text, "replace") == Call("Relu", "", (Variable("my-x"),))
    else:
        assert parse_pattern(text, "replace") == call


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "pattern='': an operator such as Relu(x) is expected where the end stands (argument 1)"),
        ("x", "pattern='x': '(' is expected where the end stands"),
        ("Relu(x", "pattern='Relu(x': ',' is expected where the end stands"),
        ("Relu(x))", "pattern='Relu(x))': nothing more is expected where ')' stands"),
        ("Relu(x y)", "pattern='Relu(x y)': ',' is expected where 'y' stands"),
        ("Relu(,)", "pattern='Relu(,)': a number, 'text' or a [list] is expected where ',' stands"),
        ("Relu(x*2)", "pattern='Relu(x*2)': '*2)' cannot be read"),
        ("Relu(x, a=b)", "pattern='Relu(x, a=b)': a number, 'text' or a [list] is expected where 'b' stands"),
        ("Relu('x')", "pattern='Relu('x')': text stands for an attribute only, as in Op(x, mode='linear')"),
        ("Relu([[1]])", "pattern='Relu([[1]])': a list within a list is no attribute and no stored tensor of one axis"),
        ("a::(x)", "pattern='a::(x)': the name of an operator is expected where '(' stands"),
        ("s = Relu(x)", "pattern='s = Relu(x)': ';' is expected where the end stands"),
        ("s = 1; Add(x, s)", "pattern='s = 1; Add(x, s)': an operator such as Relu(x) is expected where '1' stands"),
        (
            ";".join(["a=Add(x,x)", *(f"{b}=Add({a},{a})" for a, b in zip("abcdef", "bcdefg", strict=True)), "Neg(g)"]),
            " spells out more than 64 operators",
        ),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_pattern(text, "replace")
    assert str(caught.value).startswith("replace: pattern=")
    assert sentence in str(caught.value)


@given(st.text("Relux(),[]=;:'1.-+e ", max_size=16))
def test_any_text_is_read_or_refused_in_one_sentence(text: str) -> None:
    try:
        call = parse_pattern(text, "replace")
    except OptionError as error:
        assert str(error)
    else:
        assert call.size() >= 1
    try:
        parse_operator(text, Call("Add", "", (X, Y)), "replace")
    except OptionError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("Gelu", Call("Gelu", "", (X, Y))),
        ("trt.plugins::Swish", Call("Swish", "trt.plugins", (X, Y))),
        ("Gelu(y)", Call("Gelu", "", (Y,))),
        ("F(y, none, x, axis=1)", Call("F", "", (Y, Absent(), X), (("axis", 1),))),
        ("F(x, x)", Call("F", "", (X, X))),
    ],
)
def test_operators(text: str, call: Call) -> None:
    assert parse_operator(text, parse_pattern("Mul(x, Sigmoid(y))", "replace"), "replace") == call


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "replace: by='': an operator such as Relu(x) is expected where the end stands"),
        ("Gelu(z)", "replace: by='Gelu(z)' takes 'z'; the pattern has x, y"),
        ("Clip(x, 0)", "replace: by='Clip(x, 0)' must take variables of the pattern only; give a stored number or"),
        ("Relu(Neg(x))", "replace: by='Relu(Neg(x))' must take variables of the pattern only"),
        ("Relu(x) y", "replace: by='Relu(x) y': nothing more is expected where 'y' stands"),
    ],
)
def test_refused_operators(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_operator(text, parse_pattern("Mul(x, Sigmoid(y))", "replace"), "replace")
    assert str(caught.value).startswith(sentence)


def test_variables_come_in_order_of_first_appearance() -> None:
    text = "d = Sub(x, ReduceMean(x)); Add(Mul(Div(d, Sqrt(Add(ReduceMean(Mul(d, d)), 1e-5))), g), b)"
    assert parse_pattern(text, "replace").variables() == ["x", "g", "b"]
    assert parse_pattern(text, "replace").size() == 13
