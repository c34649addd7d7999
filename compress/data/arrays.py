"""Examples from arrays: .npz and .npy files, and arrays in memory."""

from __future__ import annotations

import functools
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxprune.data.examples import Examples, Rows
from onnxprune.data.inputs import Array, InputSpec, cast, check_kind, check_shape, check_symbols, only_input
from onnxprune.data.labels import read_labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

# What numpy and zipfile raise on files that are cut, damaged or of another format.
BROKEN = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    TypeError,
    SyntaxError,
    RuntimeError,
    MemoryError,
    OverflowError,
    tokenize.TokenError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


def array_examples(
    arrays: Mapping[str, Array],
    inputs: Sequence[InputSpec],
    source: str,
    preprocess: Preprocess | None = None,
) -> Examples:
    """Make examples of arrays by input name (``x`` for an only input), with labels in ``y``: class indices or targets.

    uint8 images given to a floating input are pixels and go through ``preprocess``.

    Raises:
        DataError: names, shapes, kinds or counts do not fit the model, or there are no examples.
    """
    names = _names(arrays, inputs, source)
    count = _count(arrays, names, source)
    columns = [_column(arrays[name], want, name, source, preprocess) for want, name in names.items()]
    plain = {column.want.name: column.array for column in columns if column.pixels is None}
    check_symbols(plain, [column.want for column in columns if column.pixels is None], source)
    labels, targets = None, None
    if _has_labels(arrays, names):
        labels, targets = read_labels(np.asarray(arrays["y"]), count, source)
    fetch = functools.partial(_fetch, columns)
    fetch(np.zeros(1, np.int64))  # sizes of pixels are checked now, not in the middle of a run
    warnings = _ignored(arrays, names, source)
    return Examples(source, count, labels, fetch, warnings=warnings, targets=targets)


def open_npz(path: str, inputs: Sequence[InputSpec], source: str, preprocess: Preprocess | None) -> Examples:
    """Open an .npz file; its arrays are loaded once, object arrays are refused.

    Raises:
        DataError: the file is not a readable .npz, or its arrays do not fit the model.
    """
    try:
        # Opened here, because numpy leaves a file that turns out not to be a zip open behind its error.
        with Path(path).open("rb") as file:
            arrays = _members(file, source)
    except BROKEN as error:
        raise unreadable(source, ".npz", error) from error
    return array_examples(arrays, inputs, source, preprocess)


def _members(file: BinaryIO, source: str) -> dict[str, Array]:
    stored = np.load(file, allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise DataError(f"{source} holds a single array, not an .npz archive; name it .npy")
    with stored:
        methods = {entry.compress_type for entry in stored.zip.infolist()} if stored.zip else set()
        if not methods <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise DataError(f"{source} is compressed in a way numpy does not write; save it with numpy.savez")
        return {name: _member(stored, name, source) for name in stored.files}


def open_npy(path: str, inputs: Sequence[InputSpec], source: str, preprocess: Preprocess | None) -> Examples:
    """Open an .npy file of the model's only input; it is mapped, not loaded.

    Raises:
        DataError: the file is not a readable .npy, or its array does not fit the model.
    """
    want = only_input(inputs, source, "an .npy file")
    try:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # an array without elements cannot be mapped; the plain reader tells why else
            array = np.load(path, allow_pickle=False)
    except BROKEN as error:
        raise unreadable(source, ".npy", error) from error
    if isinstance(array, np.lib.npyio.NpzFile):
        array.close()
        raise DataError(f"{source} is an .npz archive; name it .npz")
    return array_examples({want.name: array}, inputs, source, preprocess)


@dataclass(frozen=True)
class _Column:
    """One input's array; ``pixels`` is set where it holds images to preprocess."""

    array: Array
    want: InputSpec
    source: str
    pixels: Preprocess | None = None

    def fetch(self, rows: Rows) -> Array:
        part = np.ascontiguousarray(self.array[rows])
        if self.pixels is None:
            return cast(part, self.want)
        names = [f"image {row} of {self.source}" for row in rows]
        return self.pixels.apply(_channels_last(part, self.pixels.layout), self.want, names=names)


def _fetch(columns: Sequence[_Column], rows: Rows) -> dict[str, Array]:
    return {column.want.name: column.fetch(rows) for column in columns}


def _names(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], source: str) -> dict[InputSpec, str]:
    """Find the array of each input."""
    names: dict[InputSpec, str] = {}
    for want in inputs:
        name = "x" if len(inputs) == 1 and want.name not in arrays else want.name
        if name not in arrays:
            has = ", ".join(repr(key) for key in arrays) or "none"
            wanted = ", ".join(repr(one.name) for one in inputs)
            hint = " (or 'x' for its only input)" if len(inputs) == 1 else ""
            raise DataError(
                f"{source} has arrays {has}, but none for input {want.name!r}; the model wants {wanted}{hint}"
            )
        names[want] = name
    return names


def _has_labels(arrays: Mapping[str, Array], names: Mapping[InputSpec, str]) -> bool:
    return "y" in arrays and "y" not in names.values()


def _ignored(arrays: Mapping[str, Array], names: Mapping[InputSpec, str], source: str) -> tuple[str, ...]:
    extra = [repr(name) for name in arrays if name != "y" and name not in names.values()]
    return (f"{source}: not used, as no input has this name: {', '.join(extra)}",) if extra else ()


def _count(arrays: Mapping[str, Array], names: Mapping[InputSpec, str], source: str) -> int:
    counts = {}
    for want, name in names.items():
        array = arrays[name]
        if array.dtype.hasobject:
            raise _objects(name, source)
        if not array.ndim:
            raise DataError(f"{name!r} in {source} is a single number; input {want.name!r} wants {want.describe()}")
        counts[name] = len(array)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise DataError(f"{source}: arrays differ in their number of examples: {listed}")
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError(f"{source} holds no examples (its arrays have length 0); at least one is needed")
    return count


def _column(array: Array, want: InputSpec, name: str, source: str, preprocess: Preprocess | None) -> _Column:
    if preprocess is not None and want.floating and array.dtype == np.uint8 and _image_like(array):
        return _Column(array, want, source, preprocess)
    check_shape(array, want, name, source)
    check_kind(array, want, name, source)
    return _Column(array, want, source)


def _image_like(array: Array) -> bool:
    return array.ndim == 3 or (array.ndim == 4 and (array.shape[1] in (1, 3) or array.shape[3] in (1, 3)))


def _channels_last(images: Array, layout: str) -> Array:
    """Return stacked images as (n,H,W) or (n,H,W,C); ``layout`` decides where both axes could be channels."""
    if images.ndim == 3:
        return images
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    return images.transpose(0, 2, 3, 1) if first and (not last or layout == "NCHW") else images


def _member(stored: np.lib.npyio.NpzFile, name: str, source: str) -> Array:
    try:
        array: Array = stored[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise _objects(name, source) from error
        raise
    if not isinstance(array, np.ndarray):  # numpy hands out members that are no .npy files as raw bytes
        raise DataError(f"{name!r} in {source} is not a numpy array; save the file with numpy.savez")
    return array


def _objects(name: str, source: str) -> DataError:
    return DataError(f"{name!r} in {source} holds Python objects, which are never unpickled; save an array of numbers")


def unreadable(source: str, form: str, error: BaseException) -> DataError:
    """Return the sentence on a file that numpy or zipfile could not read (see ``BROKEN``)."""
    if "allow_pickle" in str(error) and form == ".npy":
        return DataError(f"{source} is no {form} file, or holds Python objects, which are never unpickled")
    reason = " ".join(str(error).split()) or type(error).__name__
    if "allow_pickle" in reason:
        reason = "it does not begin like one"
    return DataError(f"{source} cannot be read as {form}: truncated, damaged or of another format ({reason})")
