"""Gates are judged by what is proved: bounds where there are bounds, counts where there are counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune.api import Gates, Options
from onnxprune.api.gating import judge_file, judge_gates
from onnxprune.budget import Gate
from onnxprune.errors import OptionError
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence
from onnxprune.evaluate.intervals import examples_needed, lower_bound
from onnxprune.runtime.timing import Ratio

CLASSES = [f"class{i}" for i in range(4)]


def evidence(counts: Sequence[int], flipped: Sequence[int], *, labels: Sequence[int] | None = None) -> Evidence:
    """Judge so many decisions of every class, of which so many change to the next class."""
    before = np.repeat(np.arange(len(counts)), counts)
    after = before.copy()
    for label, times in enumerate(flipped):
        after[np.flatnonzero(before == label)[:times]] = (label + 1) % len(counts)
    comparison, scores = Comparison(classes=CLASSES), np.eye(len(counts))
    truth = None if labels is None else np.repeat(labels, counts)
    comparison.update({"y": scores[before]}, {"y": scores[after]}, truth)
    return comparison.result()


def values() -> Evidence:
    comparison = Comparison()
    comparison.update({"y": np.ones((5, 1))}, {"y": np.ones((5, 1))})
    return comparison.result()


def only(gates: Gates, found: Evidence, ratio: Ratio | None = None) -> Gate:
    (gate,) = judge_gates(gates, found, 0.95, ratio)
    return gate


def test_every_class_is_judged_by_its_own_bound() -> None:
    found = evidence((200, 100, 60, 40), (1, 0, 3, 0))
    gate = only(Gates(min_class_agreement=0.87), found)
    low = lower_bound(57, 60)
    assert gate == Gate(
        "min_class_agreement", 0.87, low, True,
        "agreement of every class at least 0.87: lowest lower bound 0.8758 at 95 % ('class2': 60 examples, 57 agree); "
        "0 of 4 classes fall short: met",
    )  # fmt: skip
    assert low >= 0.8758


def test_the_observed_rate_proves_nothing() -> None:
    # 57 of 60 are 0.95, and every class else is above; what is proved of it is 0.8758.
    found = evidence((200, 100, 60, 100), (1, 0, 3, 0))
    assert found.agreement is not None
    assert min(each.rate for each in found.agreement.per_class) == 0.95
    gate = only(Gates(min_class_agreement=0.9), found)
    assert not gate.met
    assert gate.message.endswith("('class2': 60 examples, 57 agree); 1 of 4 classes falls short: not met")


def test_a_class_with_too_few_examples_is_told_apart_from_a_bad_one() -> None:
    gate = only(Gates(min_class_agreement=0.9), evidence((200, 28, 20, 100), (100, 0, 0, 0)))
    assert gate.message.endswith(
        "lowest lower bound 0.4396 at 95 % ('class0': 200 examples, 100 agree); 3 of 4 classes fall short: not met; "
        "20 examples of 'class2' cannot prove it even for an identical model (2 of 4 classes with too few); "
        "at least 29 of each class would"
    )
    assert examples_needed(0.9) == 29
    assert only(Gates(min_class_agreement=0.9), evidence((29, 29, 29, 29), (0, 0, 0, 0))).met
    one = only(Gates(min_class_agreement=1.0), evidence((200, 100, 60, 40), (0, 0, 0, 0)))
    assert one.message.endswith("4 of 4 classes fall short: not met; no number of examples can prove an agreement of 1")


def test_classes_that_were_never_chosen_are_left_out_and_said_so() -> None:
    gate = only(Gates(min_class_agreement=0.9), evidence((100, 0, 50, 0), (0, 0, 0, 0)))
    assert gate.met
    assert gate.message.endswith(
        "0 of 2 classes fall short: met; 2 of 4 classes left out, which the original never chose on these examples"
    )


def test_the_first_of_equally_bad_classes_is_named() -> None:
    gate = only(Gates(min_class_agreement=0.9), evidence((100, 50, 50, 50), (0, 0, 0, 0)))
    assert "('class1': 50 examples, 50 agree)" in gate.message


def test_the_confidence_is_that_of_the_bound() -> None:
    found = evidence((100, 40, 40, 40), (0, 0, 0, 0))
    (strict,) = judge_gates(Gates(min_class_agreement=0.9), found, 0.995)
    assert strict.got == lower_bound(40, 40, 0.995)
    assert not strict.met
    assert "at 99.5 %" in strict.message
    assert only(Gates(min_class_agreement=0.9), found).met


def test_the_largest_drop_of_accuracy_among_the_labels() -> None:
    # All of class 1 is labelled so, and 3 of 60 leave it: a drop of exactly 0.05.
    found = evidence((100, 60, 100, 100), (0, 3, 0, 0), labels=(0, 1, 2, 3))
    assert found.accuracy is not None
    gate = only(Gates(max_class_accuracy_drop=0.05), found)
    assert gate == Gate(
        "max_class_accuracy_drop", 0.05, 3 / 60, True,
        "accuracy drop of every class at most 0.05: largest 0.05 ('class1': 60 examples, 60 right before, 57 after); "
        "0 of 4 classes go beyond: met",
    )  # fmt: skip
    missed = only(Gates(max_class_accuracy_drop=0.04), found)
    assert not missed.met
    assert missed.message.endswith("1 of 4 classes goes beyond: not met")
    # In all, it is a drop of less than a hundredth.
    assert only(Gates(max_accuracy_drop=0.01), found).met


def test_labels_decide_which_class_it_is() -> None:
    # What the original calls class 0 and 1 is class 3: leaving class 0 for class 1 costs nothing.
    found = evidence((50, 50, 50, 50), (25, 0, 0, 0), labels=(3, 3, 2, 3))
    gate = only(Gates(max_class_accuracy_drop=0.0), found)
    assert gate.met
    assert gate.message.endswith(
        "0 of 2 classes go beyond: met; 2 of 4 classes left out, of which there are no examples"
    )


def test_gates_that_cannot_be_judged_are_not_met() -> None:
    unlabelled = only(Gates(max_class_accuracy_drop=0.5), evidence((10, 10), (0, 0)))
    assert unlabelled == Gate(
        "max_class_accuracy_drop", 0.5, None, False,
        "accuracy drop of every class at most 0.5: no labels to judge it by: not met",
    )  # fmt: skip
    for asked, name in (
        (Gates(min_agreement=0.5), "min_agreement"),
        (Gates(min_class_agreement=0.5), "min_class_agreement"),
        (Gates(max_class_accuracy_drop=0.5), "max_class_accuracy_drop"),
    ):
        gate = only(asked, values())
        assert (gate.name, gate.got, gate.met) == (name, None, False)
        assert gate.message.endswith(": no output holds class scores to judge it by: not met")
    for ratio in (None, Ratio(0.5, None, None, 0.95)):
        gate = only(Gates(max_latency_ratio=1.0), values(), ratio)
        assert (gate.got, gate.met) == (None, False)
        assert gate.message.startswith("latency ratio at most 1: could not be measured (")
        assert gate.message.endswith("): not met")


def test_time_is_judged_by_the_upper_end() -> None:
    ratio = Ratio(0.85, 0.75, 0.95, 0.95)
    assert only(Gates(max_latency_ratio=0.95), values(), ratio) == Gate(
        "max_latency_ratio", 0.95, 0.95, True,
        "latency ratio at most 0.95: upper end of the interval 0.95 (ratio 0.85, 95 % interval): met",
    )  # fmt: skip
    missed = only(Gates(max_latency_ratio=0.9), values(), ratio)
    assert (missed.got, missed.met) == (0.95, False)


def test_the_file_is_judged_by_its_bytes() -> None:
    assert judge_file(Gates(), 10) == []
    message = "file of at most 1,000 bytes: 1,000 bytes: met"
    assert judge_file(Gates(max_bytes=1000), 1000) == [Gate("max_bytes", 1000.0, 1000.0, True, message)]
    (missed,) = judge_file(Gates(max_bytes=1000), 1001)
    assert not missed.met


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("min_agreement", 1.1, r"min-agreement is 1.1; it must be in \[0, 1\], such as 0.99"),
        ("max_accuracy_drop", -0.1, r"max-accuracy-drop is -0.1; it must be in \[0, 1\], such as 0.01"),
        ("min_class_agreement", float("nan"), r"min-class-agreement is nan; it must be in \[0, 1\], such as 0.9"),
        ("max_class_accuracy_drop", 2, r"max-class-accuracy-drop is 2; it must be in \[0, 1\], such as 0.05"),
        ("max_latency_ratio", 0, "max-latency-ratio is 0; it must be a positive number, such as 0.6"),
        ("max_latency_ratio", float("inf"), "max-latency-ratio is inf; it must be a positive number"),
        ("max_bytes", 0, "size '0' is less than one byte"),
        ("max_bytes", -5, "size '-5' is no number of bytes"),
    ],
)
def test_gates_that_nothing_can_have_are_refused(name: str, value: float, sentence: str) -> None:
    asked: Any = {name: value}
    with pytest.raises(OptionError, match=f"^{sentence}"):
        Gates(**asked)


def test_the_file_of_a_result_is_judged_before_it_is_in_place(digits_net: Any, digits: Any, tmp_path: Path) -> None:
    def shrunk(limit: int) -> onnxprune.api.Result:
        return onnxprune.compress(
            digits_net(), "filters(flops=0.6)", **digits, gates=Gates(max_bytes=limit), options=Options(threads=1)
        )

    out = tmp_path / "o.onnx"
    size = shrunk(10**6).save(out).report.result.bytes
    assert out.stat().st_size == size
    assert shrunk(size).met
    tight = shrunk(size - 1)
    assert not tight.met
    assert tight.report.gates[-1].got == size
    out.unlink()
    assert tight.save(out, keep_failed=False).report.result is None
    assert list(tmp_path.iterdir()) == []
    assert tight.save(out).report.result.bytes == size


def test_sparse_storage_counts_as_it_is_written(digits_net: Any, digits: Any, tmp_path: Path) -> None:
    made = onnxprune.compress(
        digits_net(), "magnitude(sparsity=0.97,values=original)", **digits, gates=Gates(max_bytes=20_000),
        options=Options(threads=1),
    )  # fmt: skip
    assert not made.met
    sparse = made.save(tmp_path / "s.onnx", sparse_storage=True, keep_failed=False)
    assert sparse.met
    assert sparse.report.gates[-1].got == (tmp_path / "s.onnx").stat().st_size
    assert onnx.load(tmp_path / "s.onnx").graph.sparse_initializer
