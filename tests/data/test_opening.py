"""Opening: torchvision sets by name, Examples as they are, and drawing fewer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import onnxprune.data
from onnxprune.data import Examples, InputSpec, Preprocess, open_data
from onnxprune.errors import DataError

ONE = [InputSpec("input", np.dtype(np.float32), ("batch", 1, 2, 2))]
GREY = Preprocess(scale=1.0, channels="L")


def datasets(monkeypatch: pytest.MonkeyPatch, maker: Callable[..., Any]) -> None:
    module = ModuleType("onnxprune.models.datasets")
    module.__dict__["open_torchvision"] = maker
    monkeypatch.setitem(sys.modules, "onnxprune.models.datasets", module)


def fake(kind: str, root: str, split: str, download: bool) -> tuple[Any, Any, list[str]]:
    base, count = (0, 5) if split == "train" else (100, 3)

    def images(rows: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [np.full((2, 2), base + row, np.uint8) for row in rows]

    return images, np.arange(count) % 2, [f"{kind}{download}", root]


def test_torchvision_split_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets(monkeypatch, fake)
    examples = open_data("mnist:/m:test", ONE, preprocess=GREY, download=True)
    assert (examples.source, examples.count) == ("mnist:/m:test", 3)
    assert examples.labels is not None and examples.labels.tolist() == [0, 1, 0]
    assert examples.fetch(np.array([2, 0]))["input"][:, 0, 0, 0].tolist() == [102, 100]
    swapped = open_data("mnist:/m:test", ONE, preprocess=GREY, classes=["/m", "mnistFalse"]).labels
    assert swapped is not None and swapped.tolist() == [1, 0, 1]


def test_torchvision_without_split_is_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets(monkeypatch, fake)
    examples = open_data("cifar10:/c", ONE, preprocess=GREY)
    assert examples.count == 8
    assert examples.labels is not None and examples.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0]
    got = examples.fetch(np.array([7, 0, 5, 4]))["input"][:, 0, 0, 0].tolist()
    assert got == [102, 0, 100, 4]


def test_torchvision_missing_is_answered_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    datasets(monkeypatch, missing)
    with pytest.raises(DataError) as caught:
        open_data("mnist:/m", ONE)
    assert str(caught.value) == ('mnist: is read by torchvision, which is missing: pip install "onnxprune[train]"')


def test_other_missing_modules_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    datasets(monkeypatch, missing)
    with pytest.raises(ModuleNotFoundError):
        open_data("mnist:/m", ONE)


def test_examples_draw_fewer_seeded() -> None:
    data = np.arange(40, dtype=np.float32).reshape(10, 1, 2, 2)
    some = open_data(data, ONE, examples=4, seed=1)
    again = open_data(data, ONE, examples=4, seed=1)
    assert some.count == 4 and some.origin is not None and again.origin is not None
    assert some.origin.tolist() == again.origin.tolist() == np.random.default_rng(1).permutation(10)[:4].tolist()
    assert open_data(data, ONE, examples=10).origin is None


def test_examples_pass_through_checked() -> None:
    values = np.zeros((3, 1, 2, 2), np.float32)

    def made(name: str, array: np.ndarray[Any, Any]) -> Examples:
        return Examples("mine", 3, None, lambda rows: {name: array[rows]})

    good = made("input", values)
    assert open_data(good, ONE) is good
    for bad, message in [
        (made("x", values), "mine has arrays 'x', but none for input 'input'"),
        (made("input", values[:, 0]), "'input' in mine has shape (n,2,2); input 'input' wants (batch,1,2,2)"),
        (made("input", values.astype(float)), "'input' in mine holds float64; the model wants float32"),
    ]:
        with pytest.raises(DataError) as caught:
            open_data(bad, ONE)
        assert str(caught.value) == message


def test_path_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 2, 2)))
    assert open_data(tmp_path / "x.npz", ONE).count == 3


def test_facade_lists_its_names_sorted() -> None:
    names = onnxprune.data.__all__
    assert names == sorted(names)
    assert all(hasattr(onnxprune.data, name) for name in names)
