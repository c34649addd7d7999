"""Recipes written out: every pass with any options comes back from its canonical text and from YAML."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from onnxprune import recipe
from onnxprune.contract import OptionSpec, check_options, option, options_of
from onnxprune.errors import OptionError
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.extract import Extract
from onnxprune.passes.filters import Filters
from onnxprune.passes.id import Id
from onnxprune.passes.surp import Surp
from onnxprune.recipe import canonical, options, parse, to_yaml
from onnxprune.recipe_text import LISTS, deciders, quoted

NAMES = ["conv1", "layer1.*", "re:conv[12]", "re:(a|b), c='d'", "a b", "/blocks/0/fc", "x==y", '"', "it's", "'\",("]
# Texts with a form of their own.
FORMS = {
    "align": ["1", "16", "auto"],
    "nm": ["2:4", "1:2"],
    "stages": ["auto", "3"],
    "pattern": ["Mul(x, Sigmoid(x))", "Add(x, 0.5)"],
    "by": ["Relu(x)", "trt.plugins::Swish(x, beta=1.0)"],
    "function": [f"{__file__}:values"],  # the script must be there
}


@dataclass(frozen=True)
class Scripted:
    """A pass whose first value needs no name."""

    function: str = option("", str, "any text")
    again: int = option(0, int, "a number")
    name: ClassVar[str] = "scripted"
    positional: ClassVar[str] = "function"

    def __post_init__(self) -> None:
        check_options(self)


def values(spec: OptionSpec) -> st.SearchStrategy[Any]:
    """Return what an option may hold."""
    if spec.choices:
        return st.sampled_from(spec.choices)
    if spec.kind is tuple:
        return st.lists(st.builds(Surp) | st.builds(Cleanup, only=st.sampled_from(NAMES)), min_size=1).map(tuple)
    if spec.kind is bool:
        return st.booleans()
    if spec.kind is int:
        return st.integers(int(spec.low or 0), int(spec.high or 2**40))
    if spec.kind is float:
        low, high = (None if end is None else float(end) for end in (spec.low, spec.high))
        outer = {"exclude_min": spec.above and low is not None, "exclude_max": spec.below and high is not None}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **outer)
    if spec.name in LISTS:
        return st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(";".join)
    return st.sampled_from(FORMS.get(spec.name, NAMES))


@st.composite
def passes(draw: st.DrawFn) -> Any:
    """Draw any pass of the table with any options that it accepts."""
    found = recipe.pass_class(draw(st.sampled_from(sorted(recipe.PASSES))))
    specs = {spec.name: spec for spec in options_of(found)}
    sizes = [name for name in specs if name in deciders(found)]
    others = [name for name in specs if name not in sizes]
    told = {name for name in ("pattern", "by", "recipe", "function") if name in specs}
    chosen = told | set(draw(st.lists(st.sampled_from(others), unique=True, max_size=4)) if others else [])
    if sizes:
        chosen |= set(draw(st.lists(st.sampled_from(sizes), max_size=1)))
    try:
        return found(**{name: draw(values(specs[name])) for name in sorted(chosen)})
    except OptionError:
        assume(False)


def sized(items: list[Any]) -> list[Any]:
    """Write out the size of every bare pass, within passes too."""
    whole = []
    for item in items:
        given = {name: value for name, value in options(item).items() if not isinstance(getattr(item, name), tuple)}
        nested = {
            spec.name: tuple(sized(list(getattr(item, spec.name))))
            for spec in options_of(type(item))
            if spec.kind is tuple
        }
        whole.append(replace(item, **given, **nested))
    return whole


@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], deadline=None)
@given(st.lists(passes(), min_size=1, max_size=3))
def test_every_pass_comes_back_from_its_canonical_text(items: list[Any]) -> None:
    text = canonical(items)
    assert parse(text) == sized(items)
    assert canonical(parse(text)) == text


@settings(
    suppress_health_check=[
        HealthCheck.filter_too_much,
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
    ],
    deadline=None,
)
@given(items=st.lists(passes(), min_size=1, max_size=3))
def test_every_pass_comes_back_from_yaml(tmp_path: Path, items: list[Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(items), encoding="utf-8")
    back = parse(str(path))
    assert canonical(back) == canonical(items)
    # Spaces around the names of a list are no part of them.
    assert back == sized(items)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("conv1", "conv1"),
        ("layer?.*", "layer?.*"),
        (0.5, "0.5"),
        (True, "true"),
        ("a;b", "'a;b'"),
        ("a b", "'a b'"),
        ("re:conv.", "'re:conv.'"),
        ("a,b", "'a,b'"),
        ("f(x)", "'f(x)'"),
        ("it's", '"it\'s"'),
        ("'\"", "'''\"'"),
        ("", "''"),
    ],
)
def test_what_is_quoted(value: Any, text: str) -> None:
    assert quoted(value) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_text_comes_back(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "pass_class", lambda name: Scripted)
        assert parse(canonical([Scripted(again=1), Scripted(f"x={text}", 2)])) == [
            Scripted("", 1),
            Scripted(f"x={text}", 2),
        ]


def test_what_needs_no_name_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipe.PASSES, "scripted", "nowhere:Scripted")
    monkeypatch.setattr(recipe, "pass_class", lambda name: Scripted)
    for item in (Scripted("s.py:f", 3), Scripted("a b.py:f"), Scripted("x,(y).py:f", 3), Scripted("", 3)):
        assert parse(canonical([item])) == [item]
    assert canonical([Scripted("s.py:f", 3)]) == "scripted(s.py:f,again=3)"
    assert canonical([Scripted("s.py:f")]) == "scripted(s.py:f)"
    assert canonical([Scripted("a b.py:f", 3)]) == "scripted(function='a b.py:f',again=3)"
    assert canonical([Scripted(again=3)]) == "scripted(again=3)"


def test_the_form_of_yaml() -> None:
    items = parse("surp(sparsity=0.8,only='a;b'),id(preserve_zeros=no),cleanup,extract(recipe=(id,cleanup),outputs=x)")
    assert to_yaml(items) == (
        "passes:\n"
        "- surp:\n"
        "    sparsity: 0.8\n"
        "    only: [a, b]\n"
        "- id: {flops: 0.9, preserve_zeros: false}\n"
        "- cleanup\n"
        "- extract:\n"
        "    recipe:\n"
        "    - id: {flops: 0.9}\n"
        "    - cleanup\n"
        "    outputs: x\n"
    )


@pytest.mark.parametrize(
    ("content", "items"),
    [
        ("passes: [{filters: {keep: 0.5, only: [conv1, 're:layer.*']}}]", [Filters(keep=0.5, only="conv1;re:layer.*")]),
        ("passes: [{filters: {keep: 0.5, ignore: [conv1]}}]", [Filters(keep=0.5, ignore="conv1")]),
        ("passes: [{filters: {keep: 0.5, ignore: a;b}}]", [Filters(keep=0.5, ignore="a;b")]),
        (
            "passes: [{extract: {inputs: [a, b], recipe: [{id: {keep: 0.5, only: [c, d]}}, cleanup]}}]",
            [Extract((Id(keep=0.5, only="c;d"), Cleanup()), inputs="a;b")],
        ),
        ("passes: [{extract: {recipe: {id: {keep: 1}}}}]", [Extract((Id(keep=1.0),))]),
        ("passes: [{extract: {recipe: 'id(keep=1),cleanup'}}]", [Extract((Id(keep=1.0), Cleanup()))]),
        ("passes: [{surp: {normalize: no}}, {surp: {normalize: 'false'}}]", [Surp(normalize=False)] * 2),
    ],
)
def test_lists_numbers_and_recipes_within_yaml(tmp_path: Path, content: str, items: list[Any]) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    assert parse(str(tmp_path / "r.yaml")) == items


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("passes: [{id: {only: []}}]", "id: only=[] is not accepted; give at least one name, or leave the option out"),
        ("passes: [{id: {only: [a;b]}}]", "id: only: 'a;b' in the list is not accepted; give names, without ;"),
        ("passes: [{id: {only: [3]}}]", "id: only: 3 in the list is not accepted; give names, without ;"),
        ("passes: [{id: {only: ['']}}]", "id: only: '' in the list is not accepted; give names, without ;"),
        ("passes: [{id: {only: {a: b}}}]", "id: only={'a': 'b'} is not accepted; give text"),
        ("passes: [{id: {align: [8]}}]", "id: align=[8] is not accepted; give text"),
        ("passes: [{id: {kep: 1}}]", "id: unknown option 'kep': did you mean 'keep'?"),
        ("passes: [{idd: {keep: 1}}]", "unknown pass 'idd': did you mean 'id'?"),
        ("passes: [{extract: {recipe: 3}}]", "extract: recipe=3 is not accepted; give passes"),
        ("passes: [{extract: {recipe: [3]}}]", "extract: recipe: 3 is not a pass name or {name: {option: value}}"),
        ("passes: [{id: {flops: 0.5, flops: 0.6}}]", "is not YAML: 'flops' is given twice (line 1)"),
        ("passes: [id]\npasses: [surp]", "is not YAML: 'passes' is given twice (line 2)"),
        ("passes: [{? [a] : 1}]", "is not YAML: "),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(OptionError) as caught:
        parse(str(tmp_path / "r.yaml"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
