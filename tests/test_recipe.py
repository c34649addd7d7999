"""Recipes: text and YAML to passes and back, targets, and every refusal's sentence."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune import recipe
from onnxprune.budget import Target
from onnxprune.contract import check_options, option
from onnxprune.errors import OptionError
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.fold_bn import FoldBn
from onnxprune.passes.id import Id
from onnxprune.passes.surp import Surp
from onnxprune.recipe import canonical, options, parse

PASS_NAMES = ", ".join(sorted(recipe.PASSES))
# Passes that do nothing without being told where or what.
TOLD = {"custom", "extract", "replace"}
ID_OPTIONS = (
    "keep, flops, params, bytes, latency, mode, reconstruct, select, allocate, ridge, rectify, step, steps, refresh, "
    "score, log_interval, factor, swap, align, only, ignore, preserve_zeros"
)


@dataclass(frozen=True)
class Wordy:
    """A pass with a free text, as later passes have."""

    word: str = option("", str, "any text")
    again: str = option("", str, "any text")
    name: ClassVar[str] = "wordy"

    def __post_init__(self) -> None:
        check_options(self)


@pytest.fixture
def wordy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = recipe.pass_class
    monkeypatch.setattr(recipe, "pass_class", lambda name: Wordy if name == "wordy" else original(name))


def refusal(text: str, *targets: Target) -> str:
    with pytest.raises(OptionError) as caught:
        parse(text, targets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("surp", [Surp()]),
        ("surp,id", [Surp(), Id()]),
        ("id,surp,id", [Id(), Surp(), Id()]),
        ("surp()", [Surp()]),
        (" surp ( ) ", [Surp()]),
        ("surp(sparsity=0.8),id(flops=0.5)", [Surp(sparsity=0.8), Id(flops=0.5)]),
        ("surp( sparsity = .8 ,\n values = original )", [Surp(sparsity=0.8, values="original")]),
        ("surp(values='original'),surp(values=\"original\")", [Surp(values="original")] * 2),
        ("surp(sparsity='0.8')", [Surp(sparsity=0.8)]),
        ("id(keep=1,preserve-zeros=off)", [Id(keep=1.0, preserve_zeros=False)]),
        ("id(preserve_zeros=YES)", [Id()]),
        ("fold-bn,cleanup", [FoldBn(), Cleanup()]),
        ("surp(alpha=1e1,patience=3)", [Surp(alpha=10.0, patience=3)]),
    ],
)
def test_text(text: str, passes: list[Any]) -> None:
    assert parse(text) == passes


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the recipe is empty; name at least one pass, for example surp,id"),
        ("  ", "the recipe is empty; name at least one pass, for example surp,id"),
        ("surp,", "recipe 'surp,': there is nothing between two commas or after the last one"),
        (",surp", "recipe ',surp': there is nothing between two commas or after the last one"),
        ("surp,,id", "recipe 'surp,,id': there is nothing between two commas or after the last one"),
        ("surp(sparsity=0.5,)", "recipe 'sparsity=0.5,': there is nothing between two commas or after the last one"),
        ("surp(sparsity=(0.5)", "recipe 'surp(sparsity=(0.5)': a '(' is never closed"),
        ("surp)", "recipe 'surp)': ')' at position 5 closes nothing"),
        ("surp(alpha=1)(alpha=2)", "recipe 'alpha=1)(alpha=2': ')' at position 8 closes nothing"),
        ("surp(values='original)", "recipe 'surp(values='original)': a \"'\" is never closed"),
        ("surp id", "recipe step 'surp id' is not of the form name or name(option=value, ...)"),
        ("0.5", "recipe step '0.5' is not of the form name or name(option=value, ...)"),
        ("surp,(id)", "recipe step '(id)' is not of the form name or name(option=value, ...)"),
        ("surp(0.8)", "recipe step 'surp(0.8)': '0.8' is not of the form option=value"),
        ("surp(=1)", "recipe step 'surp(=1)': '=1' is not of the form option=value"),
        ("id(keep=1, keep=1)", "recipe step 'id(keep=1, keep=1)': option 'keep' is given twice"),
        ("idd", f"unknown pass 'idd': did you mean 'id'?; there are {PASS_NAMES}"),
        ("SURPP,id", f"unknown pass 'SURPP'; there are {PASS_NAMES}"),
        ("quantize", f"unknown pass 'quantize': did you mean 'dequantize'?; there are {PASS_NAMES}"),
        (
            "id(kep=1)",
            f"id: unknown option 'kep': did you mean 'keep'?; it takes {ID_OPTIONS}",
        ),
        ("id(size=1)", f"id: unknown option 'size'; it takes {ID_OPTIONS}"),
        ("cleanup(x=1)", "cleanup: unknown option 'x'; it takes only, ignore"),
        ("surp(sparsity=1)", "surp: sparsity=1.0 is not accepted; give a number in [0, 1)"),
        ("surp(sparsity=)", "surp: sparsity= is not accepted; give a number in [0, 1)"),
        ("surp(sparsity=80%)", "surp: sparsity=80% is not accepted; give a number in [0, 1)"),
        ("surp(patience=2.5)", "surp: patience=2.5 is not accepted; give a whole number in [1, 1000000]"),
        ("surp(values=(a,b))", "surp: values=(a,b) is not accepted; give reconstruction or original or refit"),
        ("surp(normalize=maybe)", "surp: normalize=maybe is not accepted; give true or false"),
        ("id(keep=0)", "id: keep=0.0 is not accepted; give a number in (0, 1]"),
        ("id(keep=0.5,flops=0.5)", "id: keep and flops are both given; one size decides, give one of them"),
    ],
)
def test_refusals(text: str, sentence: str) -> None:
    assert refusal(text) == sentence


@pytest.mark.usefixtures("wordy")
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("wordy(word=a)", "a"),
        ("wordy(word='a,b')", "a,b"),
        ('wordy(word="a)b((")', "a)b(("),
        ("wordy(word=f(a,b))", "f(a,b)"),
        ("wordy(word=f(a,g(b,c)),again=)", "f(a,g(b,c))"),
        ("wordy(word = ' a ')", " a "),
        ("wordy(word=a=b)", "a=b"),
        ("wordy(word=it's)", "it's"),
        ("wordy(word='')", ""),
        ("wordy(word='it\"s')", 'it"s'),
        ("wordy(word=\"a'b',c\")", "a'b',c"),
    ],
)
def test_quotes_and_parentheses_keep_a_value_together(text: str, word: str) -> None:
    assert parse(text) == [Wordy(word)]
    assert parse(canonical(parse(text))) == [Wordy(word)]


SURPS = st.builds(
    Surp,
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    values=st.sampled_from(["reconstruction", "original"]),
    alpha=st.none() | st.floats(0, 1e6, exclude_min=True),
    decay=st.floats(0, 1, exclude_min=True, exclude_max=True),
    patience=st.integers(1, 1_000_000),
    normalize=st.booleans(),
)
SIZES = st.floats(0, 1, exclude_min=True)
IDS = st.builds(Id, keep=SIZES, preserve_zeros=st.booleans()) | st.builds(Id, flops=st.none() | SIZES)
PASSES = st.lists(SURPS | IDS | st.builds(FoldBn) | st.builds(Cleanup), min_size=1, max_size=4)


def sized(passes: list[Any]) -> list[Any]:
    """Write out the size that a bare pass uses, as the canonical text does."""
    return [replace(item, **options(item)) for item in passes]


@given(PASSES)
def test_canonical_text_gives_the_same_passes(passes: list[Any]) -> None:
    assert parse(canonical(passes)) == sized(passes)
    assert parse(canonical(sized(passes))) == sized(passes)
    assert canonical(parse(canonical(passes))) == canonical(passes)


@given(st.lists(st.text("ab (),='\"x\n", max_size=8), max_size=2))
def test_canonical_text_of_any_words(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        original = recipe.pass_class
        patch.setattr(recipe, "pass_class", lambda name: Wordy if name == "wordy" else original(name))
        assert parse(canonical([Wordy(*words)])) == [Wordy(*words)]


@given(st.text("surpid(),=0.5'\" -\n", max_size=20))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        passes = parse(text)
    except OptionError as error:
        assert str(error)
    else:
        assert parse(canonical(passes)) == sized(passes)


def test_a_bare_pass_names_its_size_in_the_canonical_text_and_in_the_options() -> None:
    assert canonical([Surp(), Id(), Cleanup()]) == "surp(sparsity=0.5),id(flops=0.9),cleanup"
    assert options(Surp()) == {"sparsity": 0.5}
    assert options(Id(preserve_zeros=False)) == {"flops": 0.9, "preserve_zeros": False}
    assert options(Id(keep=0.5)) == {"keep": 0.5}
    assert options(Cleanup()) == {}


def test_targets_fill_what_names_no_size() -> None:
    assert parse("surp,id", [Target("flops", 0.5)]) == [Surp(), Id(flops=0.5)]
    assert parse("surp,id", [Target("sparsity", 0.8), Target("keep", 0.5)]) == [Surp(sparsity=0.8), Id(keep=0.5)]
    assert parse("id,id", [Target("flops", 0.5)]) == [Id(), Id(flops=0.5)]
    assert parse("id(flops=0.7),id", [Target("flops", 0.5)]) == [Id(flops=0.7), Id(flops=0.5)]
    assert parse("id,id(flops=0.7)", [Target("flops", 0.5)]) == [Id(flops=0.5), Id(flops=0.7)]
    assert parse("id(preserve_zeros=no)", [Target("keep", 1.0)]) == [Id(keep=1.0, preserve_zeros=False)]


@pytest.mark.parametrize(
    ("text", "targets", "sentence"),
    [
        ("surp", [("flops", 0.5)], "--target flops=0.5: no pass of the recipe takes it; add a pass for it or drop"),
        ("surp", [("bytes", 0.5)], "--target bytes=0.5: no pass of the recipe takes it; add a pass for it or drop"),
        ("id(keep=0.5)", [("flops", 0.5)], "--target flops=0.5: id names a size already; add a pass for it or drop"),
        ("id", [("flops", 0.5), ("keep", 0.5)], "--target keep=0.5: id names a size already; add a pass for it or"),
        ("cleanup", [("sparsity", 0.5)], "--target sparsity=0.5: no pass of the recipe takes it; add a pass for it"),
    ],
)
def test_targets_that_nobody_takes(text: str, targets: list[tuple[str, float]], sentence: str) -> None:
    assert refusal(text, *[Target(*each) for each in targets]).startswith(sentence)


@pytest.mark.parametrize(
    ("content", "passes"),
    [
        ("passes: [surp, id]", [Surp(), Id()]),
        ("- surp\n- id:\n    flops: 0.5\n", [Surp(), Id(flops=0.5)]),
        ("passes:\n  - surp: {sparsity: 0.8, values: original}\n  - id:\n", [Surp(0.8, "original"), Id()]),
        ("passes: ['surp(sparsity=0.8)', fold-bn]", [Surp(sparsity=0.8), FoldBn()]),
        ("passes: [{id: {preserve-zeros: no, keep: 1}}]", [Id(keep=1.0, preserve_zeros=False)]),
        ("passes: [{surp: {alpha: 1e1, patience: 3.0, sparsity: '0.5'}}]", [Surp(0.5, alpha=10.0, patience=3)]),
    ],
)
@pytest.mark.parametrize("name", ["r.yaml", "r.yml"])
def test_yaml(tmp_path: Path, name: str, content: str, passes: list[Any]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert parse(str(tmp_path / name)) == passes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "needs a list under 'passes', for example passes: [surp, {id: {flops: 0.5}}]"),
        ("surp: {sparsity: 0.5}", "needs a list under 'passes', for example passes: [surp, {id: {flops: 0.5}}]"),
        ("passes: surp", "needs a list under 'passes', for example passes: [surp, {id: {flops: 0.5}}]"),
        ("passes: [surp]\ntarget: 1", ": unknown key 'target'; only 'passes' is read"),
        ("passes: [3]", ": 3 is not a pass name or {name: {option: value}}"),
        ("passes: [{surp: 0.5}]", ": {'surp': 0.5} is not a pass name or {name: {option: value}}"),
        ("passes: [{surp: , id: }]", ": {'surp': None, 'id': None} is not a pass name or {name: {option: value}}"),
        ("passes: [surp", "is not YAML: expected ',' or ']', but got '<stream end>' (line 1)"),
    ],
)
def test_yaml_refusals_name_the_file(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content, encoding="utf-8")
    message = refusal(str(path))
    assert message.startswith(f"recipe file '{path}'")
    assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("passes: []", "the recipe is empty; name at least one pass, for example surp,id"),
        ("passes: ['surp,id']", "recipe step 'surp,id' is not of the form name or name(option=value, ...)"),
        ("passes: [{surp: {patience: 2.5}}]", "surp: patience=2.5 is not accepted; give a whole number in"),
        ("passes: [{surp: {sparsity: yes}}]", "surp: sparsity=True is not accepted; give a number in [0, 1)"),
        ("passes: [{id: {keep: null}}]", "id: keep=None is not accepted; give a number in (0, 1]"),
        ("passes: [{surp: {values: [original]}}]", "surp: values=['original'] is not accepted; give reconstruction"),
        ("passes: [{surp: {1: 2}}]", "surp: unknown option '1'; it takes sparsity, values"),
    ],
)
def test_yaml_entries_are_checked_like_text(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "r.yaml").write_text(content, encoding="utf-8")
    assert refusal(str(tmp_path / "r.yaml")).startswith(sentence)


def test_yaml_that_is_missing_binary_or_a_folder(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.yaml")) == f"recipe file '{tmp_path / 'none.yaml'}' does not exist"
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert refusal(str(tmp_path / "b.yaml")).startswith(f"recipe file '{tmp_path / 'b.yaml'}' is not YAML: ")
    (tmp_path / "d.yaml").mkdir()
    assert "d.yaml' does not exist" in refusal(str(tmp_path / "d.yaml"))


def test_naming_one_pass_loads_only_its_own_file() -> None:
    code = (
        "import sys; from onnxprune.recipe import pass_class; pass_class('cleanup'); "
        "print([m for m in sys.modules if m.startswith('onnxprune.passes.')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['onnxprune.passes.cleanup'] False"


def test_every_pass_of_the_table_is_complete() -> None:
    for name in recipe.PASSES:
        found = recipe.pass_class(name)
        assert found.name == name
        assert found.summary
        assert found.summary[0].islower()
        assert isinstance(found.lossless, bool)
        assert found.needs <= {"calibration", "labels", "training"}
        if name in TOLD:
            with pytest.raises(OptionError) as caught:
                found()
            assert refusal(name) == str(caught.value)
            continue
        assert found() == parse(name)[0]
        assert canonical([found()]).partition("(")[0] == name


def test_bare_passes_are_told_and_take_a_size() -> None:
    surp, cut, sized, clean = recipe.parse("surp(values=original),filters,filters(keep=0.5),cleanup")
    assert [recipe.bare(item) for item in (surp, cut, sized, clean)] == [True, True, False, False]
    assert recipe.canonical([recipe.sized(surp, 0.25), recipe.sized(cut, 1.0)]) == (
        "surp(sparsity=0.25,values=original),filters(flops=1.0)"
    )
    assert recipe.bare(surp)


def test_what_else_says_how_far_a_pass_goes() -> None:
    for text in ("surp(hits=5)", "surp(relative_l1=0.5)", "surp(bits=10)", "magnitude(nm=2:4)", "magnitude(std=1)"):
        (item,) = recipe.parse(text)
        assert not recipe.bare(item)
        assert recipe.canonical([item]) == text.replace("std=1)", "std=1.0)")
    assert all(recipe.bare(item) for item in recipe.parse("surp,magnitude(scope=layer)"))
    with pytest.raises(OptionError, match=r"--target sparsity=0.9: surp names a size already"):
        recipe.parse("surp(hits=5)", [Target("sparsity", 0.9)])
