"""Examples as views and batches, the check for NaN, and fingerprints."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.data import Examples, Fingerprint, shared_examples
from onnxprune.errors import DataError, OptionError


def numbered(count: int = 10) -> Examples:
    data = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    return Examples("numbers", count, np.arange(count), lambda rows: {"x": data[rows]})


def fingerprint(examples: Examples, size: int, *, keep: bool = False) -> Fingerprint:
    made = Fingerprint(keep=keep)
    for batch in examples.batches(size):
        made.update(batch.arrays)
    return made


def test_batches_cover_everything_in_order() -> None:
    batches = list(numbered().batches(4))
    assert [len(batch.rows) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in batches]), np.arange(10))
    np.testing.assert_array_equal(np.concatenate([batch.arrays["x"][:, 0] for batch in batches]), np.arange(10) * 2)
    assert batches[-1].labels is not None
    np.testing.assert_array_equal(batches[-1].labels, [8, 9])


def test_take_of_take_keeps_order_labels_and_origin() -> None:
    view = numbered().take(np.array([7, 3, 5])).take([2, 0])
    assert view.count == 2 and view.origin is not None and view.labels is not None
    np.testing.assert_array_equal(view.origin, [5, 7])
    np.testing.assert_array_equal(view.labels, [5, 7])
    np.testing.assert_array_equal(next(view.batches(9)).arrays["x"][:, 0], [10, 14])


def test_held_examples_are_fetched_once_where_they_fit() -> None:
    calls = []

    def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(rows))
        return {"x": np.stack([np.full(4, row, np.float32) for row in rows])}

    plain = Examples("plain", 5, np.arange(5), fetch)
    held = plain.held(5 * 16)
    calls.clear()
    np.testing.assert_array_equal(next(held.take([4, 2]).batches(2)).arrays["x"][:, 0], [4, 2])
    assert not calls and held.labels is plain.labels
    assert plain.held(5 * 16 - 1) is plain


def test_unlabelled_stay_unlabelled() -> None:
    plain = Examples("plain", 3, None, lambda rows: {"x": rows})
    assert plain.take([1]).labels is None
    assert next(plain.batches(2)).labels is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "numbers: no examples were taken; at least one row is needed"),
        ([[0]], "numbers: no examples were taken; at least one row is needed"),
        ([0, 10], "numbers: rows 0..10 asked for, there are 10"),
        ([-1], "numbers: rows -1..-1 asked for, there are 10"),
    ],
)
def test_bad_rows(rows: list[int], message: str) -> None:
    with pytest.raises(DataError) as caught:
        numbered().take(rows)
    assert str(caught.value) == message


def test_batch_size_is_checked_at_once() -> None:
    with pytest.raises(OptionError, match=r"^batch size is 0, it must be at least 1$"):
        numbered().batches(0)


@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "NaN"), (np.inf, r"infinity \(as float32\)"), (-np.inf, "infinity")]
)
def test_nan_names_source_array_and_original_row(value: float, what: str) -> None:
    data = np.zeros((6, 3), np.float32)
    data[4, 1] = value
    examples = Examples("a.npz", 6, None, lambda rows: {"x": data[rows]})
    with pytest.raises(DataError, match=rf"^a\.npz: array 'x' holds {what}.* in example 4; finite"):
        list(examples.batches(4))
    with pytest.raises(DataError, match=r"in example 4;"):
        list(examples.take([0, 4, 1]).batches(4))
    list(examples.take([0, 1]).batches(1))


def test_whole_numbers_and_text_are_not_searched_for_nan() -> None:
    arrays = {"i": np.arange(3), "b": np.ones(3, bool), "t": np.array(["a", "b", "c"], object)}
    examples = Examples("mixed", 3, None, lambda rows: {name: array[rows] for name, array in arrays.items()})
    assert len(list(examples.batches(1))) == 3


def test_repr_is_short() -> None:
    assert len(repr(numbered(10_000))) < 200


def test_fingerprint_definition() -> None:
    data = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    made = Fingerprint(keep=True)
    made.update({"x": data})
    digests = [hashlib.blake2b(row.astype("<f4").tobytes(), digest_size=16).digest() for row in data]
    assert made.digests == digests and made.count == 2
    assert made.hexdigest() == hashlib.sha256(b"".join(digests)).hexdigest()


@given(size=st.integers(1, 12))
def test_fingerprint_does_not_depend_on_batches(size: int) -> None:
    assert fingerprint(numbered(), size).hexdigest() == fingerprint(numbered(), 10).hexdigest()


def test_fingerprint_sees_order_values_and_text() -> None:
    whole = fingerprint(numbered(), 5).hexdigest()
    assert whole != fingerprint(numbered().take(np.arange(10)[::-1]), 5).hexdigest()
    assert whole != fingerprint(numbered(9), 5).hexdigest()
    texts = []
    for words in (["ab", "c"], ["a", "bc"], ["ab", "c"]):
        made = Fingerprint()
        made.update({"t": np.array([words], dtype=object)})
        texts.append(made.hexdigest())
    assert texts[0] == texts[2] != texts[1]


def test_fingerprint_keeps_digests_only_on_demand() -> None:
    assert fingerprint(numbered(), 3).digests == []
    assert len(fingerprint(numbered(), 3, keep=True).digests) == 10


def test_shared_examples() -> None:
    first = fingerprint(numbered().take([0, 1, 2, 2]), 2, keep=True)
    second = fingerprint(numbered().take([2, 2, 2, 1, 9]), 3, keep=True)
    assert shared_examples(first, second) == shared_examples(second, first) == 3
    assert shared_examples(first, Fingerprint()) == 0
    with pytest.raises(OptionError, match="keep=True"):
        shared_examples(first, fingerprint(numbered(), 3))
