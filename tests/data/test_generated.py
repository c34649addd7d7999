"""Examples from a user's script, and random ones."""

# ruff: noqa: E501  (tables of exact messages)

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onnxprune.data import InputSpec, open_data
from onnxprune.errors import DataError, OptionError

F4 = np.dtype(np.float32)
ONE = [InputSpec("input", F4, ("batch", 2))]

GOOD = """
from __future__ import annotations
import dataclasses
import numpy as np
import neighbour

@dataclasses.dataclass
class Size:
    rows: int

def batches():
    for start in (0, 3):
        rows = Size(3).rows
        yield {"input": np.full((rows, 2), start + neighbour.ONE, np.float32), "y": np.arange(start, start + rows)}

def whole():
    return {"x": [[1.0, 2.0]]}
"""


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "loader.py"
    path.write_text(text)
    return f"{path}:batches"


def test_script_yields_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "neighbour.py").write_text("ONE = 1\n")
    spec = script(tmp_path, GOOD)
    path, modules = list(sys.path), set(sys.modules)
    examples = open_data(spec, ONE)
    assert sys.path == path
    assert set(sys.modules) - modules == {"neighbour"}
    sys.modules.pop("neighbour")
    assert (examples.source, examples.count) == (spec, 6)
    np.testing.assert_array_equal(examples.fetch(np.array([0, 5]))["input"][:, 0], [1, 4])
    assert examples.labels is not None and examples.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert open_data(spec.replace(":batches", ":whole"), ONE).count == 1
    sys.modules.pop("neighbour")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def batches(:", "failed with SyntaxError: invalid syntax (loader.py, line 1)"),
        ("import nowhere_to_be_found", "failed with ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def other(): pass", "the script has no function 'batches'; it has other"),
        ("batches = 3", "the script has no function 'batches'; it has none"),
        ("def batches(): raise ValueError('no\\nluck')", "failed with ValueError: no luck"),
        ("def batches(): raise SystemExit(3)", "failed with SystemExit: 3"),
        ("def batches(path): pass", "failed with TypeError: batches() missing 1 required positional argument: 'path'"),
        ("def batches():\n    yield {'input': [[1.0, 2.0]]}\n    1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("def batches(): return 3", "returned int; it must yield dicts of named arrays"),
        ("def batches(): return []", "yielded no batches; at least one example is needed"),
        ("def batches(): yield [1]", "batch 0 is list; it must be a dict of named arrays"),
        ("def batches(): yield {'input': 1.0}", "'input' in batch 0 is no array with examples on axis 0"),
        ("def batches(): yield {'input': [[1.0, 2.0]], 'y': [1, 2]}", "arrays of batch 0 differ in their number of examples: {'input': 1, 'y': 2}"),
        ("def batches():\n    yield {'input': [[1.0, 2.0]], 'y': [1]}\n    yield {'input': [[1.0, 2.0]]}", "batch 1 has arrays ['input'], batch 0 has ['input', 'y']; all must have the same"),
        ("def batches():\n    yield {'input': [[1.0, 2.0]]}\n    yield {'input': [[1.0]]}", "'input' has shape (n,1) in batch 1 and (n,2) in batch 0; all must have the same"),
        ("def batches(): yield {}", " has arrays none, but none for input 'input'; the model wants 'input' (or 'x' for its only input)"),
    ],
)  # fmt: skip
def test_scripts_that_fail(body: str, message: str, tmp_path: Path) -> None:
    spec = script(tmp_path, body)
    with pytest.raises(DataError) as caught:
        open_data(spec, ONE)
    told = str(caught.value)
    assert told.startswith(spec)
    assert told.removeprefix(spec).lstrip(": ") == message.strip()
    assert "onnxprune_user_script" not in sys.modules


def test_missing_script() -> None:
    with pytest.raises(DataError, match=r"^no such script: 'gone\.py'; script\.py:function needs an existing file$"):
        open_data("gone.py:batches", ONE)


def test_random_is_seeded_by_row() -> None:
    some, more = open_data("random", ONE, seed=3, examples=4), open_data("random", ONE, seed=3, examples=9)
    rows = np.array([3, 1])
    np.testing.assert_array_equal(some.fetch(rows)["input"], more.fetch(rows)["input"])
    assert (some.count, more.count, open_data("random", ONE).count) == (4, 9, 256)
    other = open_data("random", ONE, seed=4).fetch(rows)["input"]
    assert not np.array_equal(other, some.fetch(rows)["input"])


def test_random_values_are_fixed_across_platforms() -> None:
    got = open_data("random", ONE, seed=0).fetch(np.array([0]))["input"]
    np.testing.assert_array_equal(got[0], np.random.default_rng([0, 0, 0]).standard_normal(2, dtype=np.float32))


def test_random_of_every_kind_is_synthetic_and_says_so() -> None:
    inputs = [
        InputSpec("f", np.dtype(np.float16), ("n", 500)),
        InputSpec("i", np.dtype(np.int32), (1, "seq", None)),
        InputSpec("b", np.dtype(bool), ("n", 40)),
    ]
    examples = open_data("random", inputs, examples=20)
    arrays = next(examples.batches(20)).arrays
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "f": ("float16", (20, 500)),
        "i": ("int32", (20, 1, 1)),
        "b": ("bool", (20, 40)),
    }
    assert abs(float(arrays["f"].astype(float).mean())) < 0.05
    assert abs(float(arrays["f"].astype(float).std()) - 1) < 0.05
    assert arrays["i"].min() >= 0 and arrays["i"].max() <= 9
    assert examples.synthetic and examples.labels is None
    assert examples.warnings == (
        "inputs are random numbers: nothing measured on them says how the model does on real data",
        "random: input 'i' has free dimensions (seq,?), each was set to 1",
    )


def test_random_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"^random cannot make object for input 't'; give data"):
        open_data("random", [InputSpec("t", np.dtype(object), ("n",))])


@pytest.mark.parametrize(
    ("seed", "examples", "message"),
    [
        (-1, None, "seed is -1, it must not be negative"),
        (0, 0, "the number of examples is 0, it must be at least 1"),
    ],
)
def test_bad_options(seed: int, examples: int | None, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        open_data("random", ONE, seed=seed, examples=examples)
    assert str(caught.value) == message
