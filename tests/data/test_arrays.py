"""Arrays: .npz, .npy and in memory; names, shapes, kinds, labels, pixels, and damaged files."""

# ruff: noqa: E501  (tables of exact messages)

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxprune.data import InputSpec, Preprocess, open_data
from onnxprune.errors import DataError

F4 = np.dtype(np.float32)
ONE = [InputSpec("input", F4, ("batch", 1, 4, 4))]
TWO = [InputSpec("a", F4, ("n", "s")), InputSpec("b", np.dtype(np.int64), ("n", "s"))]
ROWS = np.arange(3)


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def refusal(data: Any, inputs: list[InputSpec], preprocess: Preprocess | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_data(data, inputs, preprocess=preprocess)
    return str(caught.value)


def test_npz_by_name_and_by_x(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((5, 1, 4, 4))
    for name in ("input", "x"):
        path = tmp_path / f"{name}.npz"
        named: dict[str, Any] = {name: values, "y": np.arange(5)}
        np.savez(path, **named)
        examples = open_data(str(path), ONE)
        assert (examples.source, examples.count, examples.warnings) == (str(path), 5, ())
        got = examples.fetch(np.array([4, 0]))["input"]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, values[[4, 0]].astype(np.float32))
        assert examples.labels is not None and examples.labels.dtype == np.int64
        np.testing.assert_array_equal(examples.labels, np.arange(5))


def test_npz_of_several_inputs(tmp_path: Path) -> None:
    path = tmp_path / "two.npz"
    np.savez_compressed(path, a=ones(4, 6), b=np.zeros((4, 6), np.int32), spare=ones(1))
    examples = open_data(path, TWO)
    arrays = examples.fetch(ROWS)
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "a": ((3, 6), "float32"),
        "b": ((3, 6), "int64"),
    }
    assert examples.warnings == (f"{path}: not used, as no input has this name: 'spare'",)


def test_npy_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(48.0).reshape(3, 1, 4, 4))
    examples = open_data(str(path), ONE)
    got = examples.fetch(np.array([2]))["input"]
    assert type(got) is np.ndarray and got.dtype == np.float32 and got[0, 0, 0, 0] == 32
    assert examples.labels is None


def test_memory_forms_agree_and_are_not_mutated() -> None:
    values = ones(3, 1, 4, 4)
    single, named = open_data(values, ONE), open_data({"x": values, "y": np.arange(3)}, ONE)
    assert (single.source, named.source) == ("array in memory", "arrays in memory")
    fetched = single.fetch(ROWS)["input"]
    fetched += 1
    np.testing.assert_array_equal(values, named.fetch(ROWS)["input"])


def test_static_batch_of_the_model_does_not_limit_the_examples() -> None:
    fixed = [InputSpec("input", F4, (1, 3))]
    assert open_data(ones(7, 3), fixed).count == 7


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("target", ["float64", "float32", "float16"])
def test_floats_cast(dtype: str, target: str) -> None:
    got = open_data(ones(3, 2).astype(dtype), [InputSpec("x", np.dtype(target), ("n", 2))]).fetch(ROWS)["x"]
    assert got.dtype == np.dtype(target)


def test_overflow_in_a_cast_is_found_as_infinity() -> None:
    examples = open_data(np.full((3, 2), 1e6), [InputSpec("x", np.dtype(np.float16), ("n", 2))])
    with pytest.raises(DataError, match=r"array 'x' holds infinity \(as float16\) in example 0"):
        list(examples.batches(2))


def test_whole_numbers_bools_and_text() -> None:
    def fetched(values: Any, dtype: Any) -> Any:
        return open_data(np.asarray(values), [InputSpec("x", np.dtype(dtype), ("n",))]).fetch(ROWS)["x"]

    assert fetched([1, 2, 255], np.uint8).tolist() == [1, 2, 255]
    assert fetched([True, False, True], np.int64).tolist() == [1, 0, 1]
    assert fetched([True, False, True], np.bool_).dtype == np.bool_
    assert fetched(["a", "b", "c"], object).tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("data", "inputs", "message"),
    [
        ({"z": ones(3, 1, 4, 4), "y": ROWS}, ONE, "arrays in memory has arrays 'z', 'y', but none for input 'input'; the model wants 'input' (or 'x' for its only input)"),
        ({}, ONE, "arrays in memory has arrays none, but none for input 'input'; the model wants 'input' (or 'x' for its only input)"),
        ({"x": ones(3, 2)}, TWO, "arrays in memory has arrays 'x', but none for input 'a'; the model wants 'a', 'b'"),
        ({"x": ones(3, 3, 4, 4)}, ONE, "'x' in arrays in memory has shape (n,3,4,4); input 'input' wants (batch,1,4,4)"),
        ({"x": ones(3, 16)}, ONE, "'x' in arrays in memory has shape (n,16); input 'input' wants (batch,1,4,4)"),
        ({"x": np.float32(1)}, ONE, "'x' in arrays in memory is a single number; input 'input' wants (batch,1,4,4)"),
        ({"x": ones(0, 1, 4, 4)}, ONE, "arrays in memory holds no examples (its arrays have length 0); at least one is needed"),
        ({"a": ones(3, 2), "b": np.zeros((4, 2), int)}, TWO, "arrays in memory: arrays differ in their number of examples: 'a' has 3, 'b' has 4"),
        ({"a": ones(3, 2), "b": np.zeros((3, 5), int)}, TWO, "arrays in memory: dimension 's' is 2 in 'a' but 5 in 'b'; they must be equal"),
        ({"a": ones(3, 2), "b": ones(3, 2)}, TWO, "'b' in arrays in memory holds float32; input 'b' wants int64"),
        ({"x": np.array([[{}]] * 3, object)}, ONE, "'x' in arrays in memory holds Python objects, which are never unpickled; save an array of numbers"),
        ({"x": np.full((3, 1, 4, 4), "a")}, ONE, "'x' in arrays in memory holds <U1; input 'input' wants float32"),
        (ones(3, 2), TWO, "array in memory: a single array fills one input, but the model has 2 ('a', 'b'); give an .npz with one array per input"),
        (ones(3, 2), [], "the model has no inputs, so no data can be fed to it"),
        (ones(3, 2), [InputSpec("s", F4, ())], "input 's' is a scalar without a batch axis, so no examples can be fed to it"),
        (np.array([1, 300]), [InputSpec("x", np.dtype(np.uint8), ("n",))], "'x' in array in memory holds values from 1 to 300, which do not fit uint8 of input 'x'"),
        (np.array([1.0]), [InputSpec("x", np.dtype(bool), ("n",))], "'x' in array in memory holds float64; input 'x' wants bool"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(data: Any, inputs: list[InputSpec], message: str) -> None:
    assert refusal(data, inputs) == message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(4), "4 labels in 'y' for 3 examples; one per example is needed"),
        (np.zeros((3, 2), int), "labels 'y' have shape (3,2); [n] or [n,1] is needed"),
        (np.zeros((), int), "labels 'y' have shape (); [n] or [n,1] is needed"),
        (np.array([0, -1, 2]), "label -1 of example 1 is no class index; those start at 0"),
        (np.array([0, 2**63, 2], np.uint64), "label 9223372036854775808 of example 1 is no class index; those start at 0"),
        (ones(4), "4 labels in 'y' for 3 examples; one per example is needed"),
        (np.zeros((4, 2, 2), int), "4 labels in 'y' for 3 examples; one per example is needed"),
        (np.array([1.0, np.nan, 2.0]), "labels 'y' hold NaN or infinity; finite numbers are needed"),
        (np.array(["a", "b", "c"]), "labels 'y' hold <U1; class indices (whole numbers) are needed"),
    ],
)  # fmt: skip
def test_bad_labels(labels: Any, message: str) -> None:
    assert refusal({"x": ones(3, 1, 4, 4), "y": labels}, ONE) == f"arrays in memory: {message}"


def test_labels_in_a_column_and_real_ones() -> None:
    column = open_data({"x": ones(3, 1, 4, 4), "y": np.array([[2], [0], [1]], np.uint8)}, ONE)
    assert column.labels is not None and column.labels.tolist() == [2, 0, 1]
    real = open_data({"x": ones(3, 1, 4, 4), "y": ones(3)}, ONE)
    assert real.labels is None
    assert real.targets is not None and real.targets.tolist() == [1.0, 1.0, 1.0]
    assert real.warnings == ()
    maps = open_data({"x": ones(3, 1, 4, 4), "y": np.arange(12).reshape(3, 2, 2)}, ONE).take([2, 0])
    assert maps.labels is None and maps.targets is not None and maps.targets[:, 0, 0].tolist() == [8, 0]
    batches = list(maps.batches(1))
    assert [batch.labels for batch in batches] == [None, None]
    assert batches[1].targets is not None and batches[1].targets.tolist() == [[[0, 1], [2, 3]]]


def test_an_input_called_y_is_an_input() -> None:
    examples = open_data({"y": ones(3, 2)}, [InputSpec("y", F4, ("n", 2))])
    assert examples.labels is None and list(examples.fetch(ROWS)) == ["y"]


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize("array", [PIXELS, PIXELS[..., None], PIXELS[:, None]])
def test_whole_number_images_are_pixels_where_preprocessing_is_known(array: Any) -> None:
    preprocess = Preprocess(mean=(0.5,), std=(0.5,), channels="L")
    got = open_data(array, ONE, preprocess=preprocess).fetch(ROWS)["input"]
    np.testing.assert_allclose(got[:, 0], (PIXELS / 255 - 0.5) / 0.5, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_layout_decides_where_both_axes_could_be_channels(layout: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 3, 3, 3), dtype=np.uint8)
    inputs = [InputSpec("x", F4, ("n", 3, 3, 3))]
    got = open_data(array, inputs, preprocess=Preprocess(scale=1.0, layout=layout)).fetch(ROWS)["x"]
    np.testing.assert_array_equal(got, array)


def test_whole_numbers_for_a_real_input_need_preprocessing() -> None:
    hint = "save the numbers as floats, or give uint8 images (n,H,W), (n,H,W,C) or (n,C,H,W) together with --preprocess"
    assert (
        refusal(PIXELS[:, None], ONE) == f"'input' in array in memory holds uint8; input 'input' wants float32; {hint}"
    )
    flat = [InputSpec("x", F4, ("n", 16))]
    assert "holds uint8" in refusal(PIXELS.reshape(3, 16), flat, Preprocess(channels="L"))


def test_pixels_of_a_wrong_size_are_refused_on_opening() -> None:
    big = np.zeros((3, 5, 5), np.uint8)
    assert refusal(big, ONE, Preprocess(channels="L")) == (
        "image 0 of array in memory is 5x5; input 'input' wants 4x4: give resize in --preprocess"
    )


def test_objects_in_files_are_never_unpickled(tmp_path: Path) -> None:
    objects = np.array([{}, {}, {}], object)
    np.savez(tmp_path / "o.npz", x=objects)
    np.savez(tmp_path / "l.npz", x=ones(3, 1, 4, 4), y=objects)
    np.save(tmp_path / "o.npy", objects)
    told = "holds Python objects, which are never unpickled; save an array of numbers"
    assert refusal(tmp_path / "o.npz", ONE) == f"'x' in {tmp_path / 'o.npz'} {told}"
    assert refusal(tmp_path / "l.npz", ONE) == f"'y' in {tmp_path / 'l.npz'} {told}"
    assert "holds Python objects, which are never unpickled" in refusal(tmp_path / "o.npy", ONE)


def test_files_of_another_format(tmp_path: Path) -> None:
    npz, npy = tmp_path / "a.npz", tmp_path / "a.npy"
    for path in (npz, npy):
        path.write_bytes(b"")
        assert f"{path} cannot be read as {path.suffix}: truncated, damaged or of another" in refusal(path, ONE)
        path.write_text("hello, this is text")
        assert str(path) in refusal(path, ONE)
    with npz.open("wb") as file:
        np.save(file, ones(3))
    assert refusal(npz, ONE) == f"{npz} holds a single array, not an .npz archive; name it .npy"
    with npy.open("wb") as file:
        np.savez(file, x=ones(3))
    assert refusal(npy, ONE) == f"{npy} is an .npz archive; name it .npz"


def test_empty_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", ones(0, 1, 4, 4))
    assert "holds no examples" in refusal(tmp_path / "e.npy", ONE)


def test_npz_with_other_members(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input.txt", "hello")
    assert "'input.txt' in" in refusal(path, ONE)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x.npy", b"hello")
    assert refusal(path, ONE).endswith("is compressed in a way numpy does not write; save it with numpy.savez")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_files_are_data_errors(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(buffer, x=np.random.default_rng(0).random((3, 1, 4, 4)), y=ROWS)
    else:
        np.save(buffer, np.random.default_rng(0).random((3, 1, 4, 4)))
    whole = bytearray(buffer.getvalue())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(bytes(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header may be invalid Python, which numpy parses
        try:
            list(open_data(path, ONE).batches(2))
        except DataError as error:
            assert str(path) in str(error)
