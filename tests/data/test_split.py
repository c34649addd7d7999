"""The split: sizes, disjointness, determinism, what falls back to what, and its warnings."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.data import Examples, InputSpec, Preprocess, open_data, split_data
from onnxprune.errors import DataError, OptionError

ONE = [InputSpec("input", np.dtype(np.float32), ("batch", 1))]
IMAGE = [InputSpec("input", np.dtype(np.float32), ("batch", 1, 8, 8))]
GREY = Preprocess(channels="L")
LOUD = "inputs are random numbers: nothing measured on them says how the model does on real data"


def pool(count: int, start: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(start, start + count, dtype=np.float32)[:, None]


def members(examples: Examples | None) -> list[int]:
    if examples is None:
        return []
    return [int(value) for value in examples.fetch(np.arange(examples.count))["input"][:, 0]]


@pytest.mark.parametrize(
    ("count", "calibration"), [(2, 1), (3, 1), (4, 1), (7, 1), (8, 2), (100, 25), (4000, 1000), (9000, 1000)]
)
def test_pool_gives_a_quarter_up_to_1000(count: int, calibration: int) -> None:
    split = split_data(ONE, data=pool(count))
    assert split.calibration is not None and split.evaluation is not None
    assert (split.calibration.count, split.evaluation.count) == (calibration, count - calibration)
    assert split.choosing is None and split.warnings == ()


@given(
    count=st.integers(2, 60),
    calib=st.none() | st.integers(1, 70),
    judge=st.none() | st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
def test_pool_is_shared_out_disjoint_and_repeatably(
    count: int, calib: int | None, judge: int | None, seed: int
) -> None:
    options: dict[str, Any] = {"calib_examples": calib, "eval_examples": judge, "seed": seed}
    if calib is not None and calib >= count:
        with pytest.raises(DataError, match="leave none for evaluation"):
            split_data(ONE, data=pool(count), **options)
        return
    first, second = (split_data(ONE, data=pool(count), **options) for _ in range(2))
    parts = [members(first.calibration), members(first.choosing), members(first.evaluation)]
    assert parts == [members(second.calibration), members(second.choosing), members(second.evaluation)]
    everything = [member for part in parts for member in part]
    assert len(everything) == len(set(everything)) and set(everything) <= set(range(count))
    assert len(parts[0]) == (max(1, count // 4) if calib is None else calib)
    left = count - len(parts[0])
    assert len(parts[2]) == (left if judge is None else min(judge, left))
    assert len(parts[1]) == left - len(parts[2])


@given(
    calib_count=st.integers(1, 40),
    eval_count=st.integers(1, 40),
    calib=st.none() | st.integers(1, 50),
    judge=st.none() | st.integers(1, 50),
    seed=st.integers(0, 99),
)
def test_two_sources_never_mix(
    calib_count: int, eval_count: int, calib: int | None, judge: int | None, seed: int
) -> None:
    split = split_data(
        ONE,
        calib=pool(calib_count),
        eval=pool(eval_count, 1000),
        calib_examples=calib,
        eval_examples=judge,
        seed=seed,
    )
    calibration, choosing, evaluation = map(members, (split.calibration, split.choosing, split.evaluation))
    assert sorted(calibration + choosing) == list(range(calib_count))
    assert len(calibration) == min(calib or 1000, calib_count)
    assert len(set(evaluation)) == min(judge or 1000, eval_count) and min(evaluation) >= 1000


def test_rows_are_the_same_on_every_platform() -> None:
    split = split_data(ONE, data=pool(8), seed=0)
    assert members(split.calibration) + members(split.evaluation) == [2, 4, 3, 6, 5, 0, 1, 7]


def test_calibration_leaves_at_most_1000_for_choosing() -> None:
    split = split_data(ONE, calib=pool(2500), eval=pool(5))
    assert split.calibration is not None and split.choosing is not None
    assert (split.calibration.count, split.choosing.count) == (1000, 1000)
    assert not set(members(split.calibration)) & set(members(split.choosing))


def test_calib_alone_is_a_pool() -> None:
    alone, data = split_data(ONE, calib=pool(40)), split_data(ONE, data=pool(40))
    assert members(alone.calibration) == members(data.calibration)
    assert members(alone.evaluation) == members(data.evaluation)


def test_caps_are_warned_about() -> None:
    split = split_data(ONE, calib=pool(5), eval=pool(6), calib_examples=7, eval_examples=8)
    assert split.warnings == (
        "calibration: 7 examples were asked for, array in memory has 5; all were taken",
        "evaluation: 8 examples were asked for, array in memory has 6; all were taken",
    )
    single = split_data(ONE, data=pool(8), eval_examples=9)
    assert single.warnings == (
        "evaluation: 9 examples were asked for, array in memory after calibration has 6; all were taken",
    )


@pytest.mark.parametrize(
    ("count", "asked", "message"),
    [
        (1, None, "array in memory has 1 example: 1 for calibration leave none for evaluation"),
        (5, 5, "array in memory has 5 examples: 5 for calibration leave none for evaluation"),
        (5, 9, "array in memory has 5 examples: 9 for calibration leave none for evaluation"),
    ],
)
def test_nothing_left_for_evaluation(count: int, asked: int | None, message: str) -> None:
    with pytest.raises(DataError) as caught:
        split_data(ONE, data=pool(count), calib_examples=asked)
    assert str(caught.value) == f"{message}; take fewer with --calib-examples, or give --calib and --eval"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "random", "calib": "random"}, "--data excludes --calib and --eval"),
        ({"data": "random", "eval": "random"}, "--data excludes --calib and --eval"),
        ({"calib_examples": 0}, "--calib-examples is 0, it must be at least 1"),
        ({"eval_examples": -3}, "--eval-examples is -3, it must be at least 1"),
        ({"seed": -1}, "seed is -1, it must not be negative"),
    ],
)
def test_options_that_exclude_one_another(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        split_data(ONE, **options)
    assert str(caught.value).startswith(message)


def images(**options: Any) -> Any:
    return split_data(IMAGE, preprocess=GREY, **options)


@pytest.mark.parametrize("options", [{"data": "digits"}, {"calib": "digits"}, {"calib": "digits", "eval": "digits"}])
def test_named_splits_are_never_mixed(options: dict[str, str]) -> None:
    split = images(**options)
    assert (split.calibration.source, split.evaluation.source) == ("digits:train", "digits:test")
    assert (split.calibration.count, split.choosing.count, split.evaluation.count) == (1000, 437, 360)
    assert split.warnings == ()


def test_a_named_split_given_is_a_pool() -> None:
    split = images(data="digits:test")
    assert (split.calibration.source, split.calibration.count, split.evaluation.count) == (
        "digits:test",
        90,
        270,
    )


def test_imagenet_is_judged_on_val(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def maker(kind: str, root: str, split: str, download: bool) -> Any:
        seen.append((kind, root, split, download))
        return lambda rows: [np.zeros((8, 8), np.uint8) for _ in rows], np.zeros(4, int), ["a"]

    module = ModuleType("onnxprune.models.datasets")
    module.__dict__["open_torchvision"] = maker
    monkeypatch.setitem(sys.modules, "onnxprune.models.datasets", module)
    split = images(data="imagenet:/i", download=True)
    assert seen == [("imagenet", "/i", "train", True), ("imagenet", "/i", "val", True)]
    assert split.evaluation.source == "imagenet:/i:val"


def test_nothing_given_takes_the_models_own_data() -> None:
    split = images(model_data="digits")
    assert (split.calibration.source, split.evaluation.source) == ("digits:train", "digits:test")
    assert split.warnings == ()


def test_nothing_known_is_random_with_two_seeds_and_loud() -> None:
    split = split_data(ONE, calib_examples=5, seed=2)
    assert split.calibration is not None and split.evaluation is not None and split.choosing is None
    assert split.calibration.synthetic and split.evaluation.synthetic
    assert (split.calibration.count, split.evaluation.count) == (5, 256)
    both = split.calibration.fetch(np.arange(5))["input"], split.evaluation.fetch(np.arange(5))["input"]
    assert not np.array_equal(*both)
    assert split.warnings == (
        "no data was given and the model names none: random numbers are used",
        LOUD,
    )


@pytest.mark.parametrize("options", [{"data": "random"}, {"calib": "random"}, {"calib": "random", "eval": "random"}])
def test_random_on_both_sides_differs(options: dict[str, Any]) -> None:
    split = split_data(ONE, **options)
    assert split.calibration is not None and split.evaluation is not None
    rows = np.arange(9)
    assert not np.array_equal(split.calibration.fetch(rows)["input"], split.evaluation.fetch(rows)["input"])
    assert split.warnings == (LOUD,)


def test_eval_alone_calibrates_on_the_models_training_side() -> None:
    split = images(eval="digits", model_data="digits")
    assert (split.calibration.source, split.evaluation.source) == ("digits:train", "digits:test")
    assert split.choosing.count == 437
    assert split.warnings == ("only evaluation data was given: calibration uses the model's own data, digits:train",)


def test_eval_alone_without_known_data_calibrates_on_random() -> None:
    split = split_data(ONE, eval=pool(7))
    assert split.calibration is not None and split.calibration.synthetic
    assert split.evaluation is not None and split.evaluation.count == 7 and not split.evaluation.synthetic
    assert split.warnings == (
        "only evaluation data was given and the model names no data: calibration uses random numbers",
        LOUD,
    )


def test_eval_alone_never_calibrates_on_itself() -> None:
    split = images(eval="digits:train", model_data="digits")
    assert split.calibration.synthetic
    assert split.warnings[0] == (
        "only evaluation data was given and the model names the same, digits:train: calibration uses random numbers"
    )


def test_metadata_never_runs_a_script(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    script = tmp_path / "evil.py"
    script.write_text(f"open({str(marker)!r}, 'w').close()\ndef batches(): yield {{'input': [[1.0]]}}\n")
    either: list[dict[str, Any]] = [{}, {"eval": pool(3)}]
    for options in either:
        with pytest.raises(DataError, match=r"is a script, which is never run from there \(the model's metadata"):
            split_data(ONE, model_data=f"{script}:batches", **options)
    assert not marker.exists()


def test_metadata_naming_lost_data_says_where_it_came_from() -> None:
    with pytest.raises(DataError) as caught:
        split_data(ONE, model_data="gone.npz")
    assert str(caught.value).endswith("(the model's metadata names this data; give --data, or --calib and --eval)")


def test_warnings_of_the_examples_are_gathered_once() -> None:
    split = split_data(IMAGE, data="digits")
    assert len(split.warnings) == 2  # one for digits:train, one for digits:test
    assert all("no preprocessing is known" in warning for warning in split.warnings)


def test_examples_can_be_split() -> None:
    mine = open_data({"input": pool(8), "y": np.arange(8)}, ONE)
    split = split_data(ONE, data=mine)
    assert split.evaluation is not None and split.evaluation.labels is not None
    assert members(split.evaluation) == split.evaluation.labels.tolist()
