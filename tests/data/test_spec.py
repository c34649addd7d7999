"""DATA strings: every form, drive letters, and what the refusals say."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.data import named_splits
from onnxprune.data.spec import ACCEPTED, parse_path, parse_spec
from onnxprune.errors import DataError


def refusal(text: str) -> str:
    with pytest.raises(DataError) as caught:
        parse_spec(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "path", "split", "function"),
    [
        ("random", "random", "", None, None),
        ("digits", "digits", "", None, None),
        ("digits:train", "digits", "", "train", None),
        ("digits:test", "digits", "", "test", None),
        ("mnist:/data/mnist", "mnist", "/data/mnist", None, None),
        ("mnist:/data/mnist:test", "mnist", "/data/mnist", "test", None),
        ("cifar10:data:train", "cifar10", "data", "train", None),
        ("fashion:data", "fashion", "data", None, None),
        ("cifar100:data:test", "cifar100", "data", "test", None),
        ("voxels", "voxels", "", None, None),
        ("voxels:train", "voxels", "", "train", None),
        ("imagenet:/data:val", "imagenet", "/data", "val", None),
        (r"mnist:C:\data", "mnist", r"C:\data", None, None),
        (r"mnist:C:\data:test", "mnist", r"C:\data", "test", None),
        ("mnist:C:/data", "mnist", "C:/data", None, None),
        ("loader.py:batches", "script", "loader.py", None, "batches"),
        (r"C:\work\loader.py:batches", "script", r"C:\work\loader.py", None, "batches"),
    ],
)
def test_forms_that_need_no_file(text: str, kind: str, path: str, split: str | None, function: str | None) -> None:
    spec = parse_spec(text)
    assert (spec.text, spec.kind, spec.path, spec.split, spec.function) == (text, kind, path, split, function)


@pytest.mark.parametrize(("name", "kind"), [("x.npz", "npz"), ("x.NPY", "npy"), ("a.b.zip", "zip")])
def test_files_are_told_by_suffix(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    file.touch()
    assert parse_spec(str(file)).kind == kind


def test_folder_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "images.npz"
    folder.mkdir()
    assert parse_spec(str(folder)).kind == "folder"


def test_path_object_is_never_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert parse_path("digits").kind == "folder"
    assert parse_spec("digits").kind == "digits"


@pytest.mark.parametrize(
    ("text", "guess"),
    [("digit", "digits"), ("minst:/x", "mnist"), ("cifar:/x", "cifar10"), ("Random", "random")],
)
def test_unknown_word_suggests(text: str, guess: str) -> None:
    message = refusal(text)
    if "/" not in text:
        assert message == f"unknown data {text!r}, did you mean {guess!r}? accepted are {ACCEPTED}"
    assert guess in message


def test_unknown_word_without_likeness() -> None:
    assert refusal("qqq") == f"unknown data 'qqq'; accepted are {ACCEPTED}"


def test_empty_text() -> None:
    assert refusal("") == f"unknown data ''; accepted are {ACCEPTED}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "digits:tset",
            "'digits:tset': digits has no split 'tset', accepted are train and test; did you mean 'test'?",
        ),
        ("mnist:root:val", "'mnist:root:val': mnist has no split 'val', accepted are train and test"),
        ("imagenet:r:q", "'imagenet:r:q': imagenet has no split 'q', accepted are train and val"),
        ("mnist", "'mnist' names no folder: write mnist:ROOT, where ROOT holds the mnist files"),
        ("cifar10:", "'cifar10:' names no folder: write cifar10:ROOT, where ROOT holds the cifar10 files"),
    ],
)
def test_wrong_splits_and_roots(text: str, message: str) -> None:
    assert refusal(text) == message


@pytest.mark.parametrize("text", ["gone.npz", "gone.npy", "gone.zip", "gone.py", "some/folder"])
def test_missing_files(text: str) -> None:
    assert refusal(text) == f"no such file or folder: {text!r}; accepted as data are {ACCEPTED}"


def test_script_without_function(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.touch()
    assert refusal(str(script)) == f"{str(script)!r} is a script: name its function, as in {script}:function"


def test_file_of_another_form(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.touch()
    assert refusal(str(table)) == f"{str(table)!r} is a file of no accepted form; accepted are {ACCEPTED}"


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("digits", ("digits:train", "digits:test")),
        ("mnist:/m", ("mnist:/m:train", "mnist:/m:test")),
        ("imagenet:/i", ("imagenet:/i:train", "imagenet:/i:val")),
        ("digits:train", None),
        ("random", None),
        ("no such thing", None),
    ],
)
def test_named_splits(text: str, sides: tuple[str, str] | None) -> None:
    assert named_splits(text) == sides
