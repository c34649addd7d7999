"""Outputs of other runtimes from files: in order, by the piece, and with one sentence where they are broken."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data.outputs import StoredOutputs, facts_of, open_labels, open_outputs
from onnxprune.errors import DataError

SCORES = np.arange(28, dtype=np.float32).reshape(7, 4)


def whole(stored: StoredOutputs, size: int) -> dict[str, np.ndarray]:
    parts = list(stored.batches(size))
    assert all(len(array) <= size for part in parts for array in part.values())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_read_by_the_piece(tmp_path: Path, save: Any, size: int) -> None:
    arrays = {
        "logits": SCORES,
        "half": SCORES.astype(np.float16),
        "boxes": np.arange(42, dtype=np.int64).reshape(7, 2, 3),
        "names": np.array([f"n{i}" for i in range(7)]),
        "turned": np.asfortranarray(SCORES),
        "big": SCORES.astype(">f4"),
        "y": np.arange(7),
    }
    save(tmp_path / "a.npz", **arrays)
    stored = open_outputs(tmp_path / "a.npz")
    assert (stored.count, stored.names) == (7, ("logits", "half", "boxes", "names", "turned", "big"))
    assert stored.labels is not None and stored.labels.tolist() == list(range(7))
    for name, array in whole(stored, size).items():
        assert (array.dtype.kind, array.itemsize) == (arrays[name].dtype.kind, arrays[name].itemsize)
        assert np.array_equal(array, arrays[name])


def test_arrays_in_memory_and_single_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SCORES)
    np.savez(tmp_path / "y.npz", y=SCORES)
    for given, name in ((tmp_path / "a.npy", "output"), (tmp_path / "y.npz", "y"), ({"z": SCORES, "y": [1] * 7}, "z")):
        stored = open_outputs(given)
        assert stored.names == (name,)
        assert np.array_equal(whole(stored, 2)[name], SCORES)
    assert stored.labels is not None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": SCORES, "b": SCORES[:3]}, "outputs differ in their number of examples: 'a' has 7, 'b' has 3"),
        ({"a": SCORES[:0]}, "holds no examples"),
        ({"a": np.array(1.0)}, "'a' in arrays in memory is a single number"),
        ({"a": np.array([None, 1])}, "holds Python objects"),
        ({}, "holds no arrays"),
    ],
)
def test_what_cannot_be_compared_is_refused(arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_outputs(arrays)


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "a.npz", a=rng.random((1000, 9)))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:2000])
    (tmp_path / "not.npy").write_bytes(b"nothing of the kind")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    for name, message in (
        ("cut.npz", "cannot be read as .npz"),
        ("not.npy", "is no .npy file|cannot be read as .npy"),
        ("other.npz", "'a.txt' in .* is not a numpy array"),
        ("gone.npz", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            open_outputs(tmp_path / name)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"neither \.npz nor \.npy"):
        open_outputs(tmp_path / "a.txt")
    damaged = bytearray(data)
    damaged[3000] ^= 255
    (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
    stored = open_outputs(tmp_path / "damaged.npz")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        whole(stored, 10)


def test_labels_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.arange(4))
    np.savez(tmp_path / "only.npz", truth=np.arange(4))
    np.savez(tmp_path / "y.npz", x=SCORES, y=np.arange(4))
    np.savez(tmp_path / "none.npz", x=SCORES, z=SCORES)
    for name in ("l.npy", "only.npz", "y.npz"):
        assert open_labels(tmp_path / name).tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="has arrays 'x', 'z', but no labels under 'y'"):
        open_labels(tmp_path / "none.npz")


def test_facts_tell_arrays_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SCORES)
    assert facts_of(tmp_path / "a.npy")[1] == (tmp_path / "a.npy").stat().st_size
    first = facts_of({"a": SCORES})
    assert first == facts_of({"a": SCORES.copy()}) and first[1] == SCORES.nbytes
    assert len({first, facts_of({"b": SCORES}), facts_of({"a": SCORES.reshape(4, 7)})}) == 3
