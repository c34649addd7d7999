from __future__ import annotations

import json

import pytest

from onnxprune.data import Preprocess
from onnxprune.errors import OptionError
from onnxprune.exporters.metadata import describe


def test_entries() -> None:
    preprocess = Preprocess(mean=(0.5,), std=(0.25,), channels="L", resize=28, crop=28)
    entries = describe(preprocess, ("cat", "Käfer"), "digits")
    assert list(entries) == ["onnxprune.preprocess", "onnxprune.classes", "onnxprune.data"]
    assert Preprocess.from_json(entries["onnxprune.preprocess"]) == preprocess
    assert json.loads(entries["onnxprune.classes"]) == ["cat", "Käfer"]
    assert entries["onnxprune.data"] == "digits"


def test_what_is_unknown_is_left_out() -> None:
    assert describe() == {}
    assert describe(classes=()) == {}


def test_classes_are_told_apart_by_name() -> None:
    with pytest.raises(OptionError, match="class name 'cat' appears 2 times"):
        describe(classes=("cat", "dog", "cat"))
