"""Outputs that a model gave elsewhere, in an .npz or .npy file: read in order, a few examples at a time."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxprune.data.arrays import BROKEN, unreadable
from onnxprune.data.inputs import Array
from onnxprune.errors import DataError

LABELS = "y"
"""The name under which a file of outputs may hold labels, beside the outputs."""

_PIECE = 1 << 20


@dataclass(frozen=True, eq=False)
class StoredOutputs:
    """Arrays by output name, examples on axis 0, and the labels that lie beside them.

    Attributes:
        source: the file, or what to call arrays in memory.
        count: number of examples, at least 1.
        names: the outputs in the order of the file.
        labels: the array ``y``, where there are outputs besides.
        arrays: the arrays, where they lie in memory.
    """

    source: str
    count: int
    names: tuple[str, ...]
    labels: Array | None = field(repr=False)
    arrays: Mapping[str, Array] = field(repr=False, default_factory=dict)

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield all examples in order, ``size`` at a time, holding no more of a file than that.

        Raises:
            DataError: the file is damaged.
        """
        with contextlib.ExitStack() as stack:
            columns = dict(self.arrays) or _columns(self.source, self.names, stack)
            for start in range(0, self.count, size):
                stop = min(start + size, self.count)
                try:
                    yield {name: np.asarray(column[start:stop]) for name, column in columns.items()}
                except BROKEN as error:
                    raise unreadable(self.source, _form(self.source), error) from error


class _Column:
    """One array of an archive, read forward: rows are asked for in order."""

    def __init__(self, file: IO[bytes], header: tuple[tuple[int, ...], bool, np.dtype[Any]]) -> None:
        self._file = file
        self.shape, self._turned, self.dtype = header

    def __getitem__(self, rows: slice) -> Array:
        shape = (rows.stop - rows.start, *self.shape[1:])
        wanted = math.prod(shape) * self.dtype.itemsize
        found = bytearray()
        while len(found) < wanted:
            piece = self._file.read(min(_PIECE, wanted - len(found)))
            if not piece:
                raise EOFError(f"an array ends after {len(found)} of {wanted} bytes")
            found += piece
        return np.frombuffer(found, self.dtype).reshape(shape)


def open_outputs(given: str | os.PathLike[str] | Mapping[str, Array]) -> StoredOutputs:
    """Open outputs by name: an .npz file, an .npy file of an only output, or arrays in memory.

    An array ``y`` beside other arrays holds labels.

    Raises:
        DataError: the file is missing, damaged or of another form, or its arrays differ in their number of examples.
    """
    if isinstance(given, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in given.items()}
        return _opened("arrays in memory", {name: (array.shape, array.dtype) for name, array in arrays.items()}, arrays)
    path = os.fspath(given)
    if not Path(path).is_file():
        raise DataError(f"no such file: {path!r}; outputs are read from an .npz or .npy file")
    form = _form(path)
    if form == ".npy":
        mapped = _mapped(path)
        return _opened(path, {"output": (mapped.shape, mapped.dtype)}, {"output": mapped})
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {name: _header(archive, name, path) for name in _members(archive, path)}
            turned = {name: _whole(archive, name) for name, header in headers.items() if header[1]}
            labels = _whole(archive, LABELS) if LABELS in headers and len(headers) > 1 else None
    except BROKEN as error:
        raise unreadable(path, form, error) from error
    found = _opened(path, {name: (header[0], header[2]) for name, header in headers.items()}, {}, labels)
    if turned:  # columns come first in such an array, so that no row can be read alone
        with zipfile.ZipFile(path) as archive:
            found = StoredOutputs(
                path, found.count, found.names, labels, {name: _whole(archive, name) for name in found.names}
            )
    return found


def open_labels(path: str | os.PathLike[str]) -> Array:
    """Return the labels of a file: the array ``y`` of an .npz or its only one, or an .npy file.

    Raises:
        DataError: the file is missing or damaged, or holds several arrays and no ``y``.
    """
    text = os.fspath(path)
    if not Path(text).is_file():
        raise DataError(f"no such file: {text!r}; labels are read from an .npz or .npy file")
    if _form(text) == ".npy":
        return np.array(_mapped(text))
    try:
        with zipfile.ZipFile(text) as archive:
            names = _members(archive, text)
            if LABELS in names or len(names) == 1:
                return _whole(archive, LABELS if LABELS in names else names[0])
    except BROKEN as error:
        raise unreadable(text, ".npz", error) from error
    raise DataError(f"{text} has arrays {', '.join(map(repr, names))}, but no labels under {LABELS!r}")


def facts_of(given: str | os.PathLike[str] | Mapping[str, Array]) -> tuple[str, int]:
    """Return the sha256 and the bytes of a file, or of arrays in memory (names, types, shapes and numbers)."""
    if not isinstance(given, Mapping):
        with Path(given).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), Path(given).stat().st_size
    whole, size = hashlib.sha256(), 0
    for name, array in ((str(name), np.ascontiguousarray(given[name])) for name in sorted(given)):
        whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        whole.update(array.tobytes())
        size += array.nbytes
    return whole.hexdigest(), size


def _opened(
    source: str,
    found: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    arrays: Mapping[str, Array],
    labels: Array | None = None,
) -> StoredOutputs:
    names = tuple(name for name in found if name != LABELS or len(found) == 1)
    if not names:
        raise DataError(f"{source} holds no arrays; one per output is needed")
    for name, (shape, dtype) in found.items():
        if dtype.hasobject:
            raise DataError(f"{name!r} in {source} holds Python objects, which are never unpickled; save numbers")
        if not shape:
            raise DataError(f"{name!r} in {source} is a single number; outputs have examples on axis 0")
    counts = {name: found[name][0][0] for name in names}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
        raise DataError(f"{source}: outputs differ in their number of examples: {listed}")
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError(f"{source} holds no examples (its arrays have length 0); at least one is needed")
    if arrays and LABELS in found and LABELS not in names:
        labels = arrays[LABELS]
    return StoredOutputs(source, count, names, labels, {name: arrays[name] for name in names if name in arrays})


def _form(path: str) -> str:
    form = Path(path).suffix.lower()
    if form not in (".npz", ".npy"):
        raise DataError(f"outputs {path!r} are neither .npz nor .npy; save them with numpy.savez")
    return form


def _mapped(path: str) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except BROKEN as error:
        raise unreadable(path, ".npy", error) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} is an .npz archive; name it .npz")
    return array


def _members(archive: zipfile.ZipFile, path: str) -> list[str]:
    files = [entry.filename for entry in archive.infolist()]
    others = [name for name in files if not name.endswith(".npy")]
    if others:
        raise DataError(f"{others[0]!r} in {path} is not a numpy array; save the file with numpy.savez")
    return [name.removesuffix(".npy") for name in files]


def _header(archive: zipfile.ZipFile, name: str, path: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with archive.open(f"{name}.npy") as file:
        return _read_header(file)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, turned, dtype = read(file)
    return shape, bool(turned) and len(shape) > 1, dtype


def _whole(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def _columns(path: str, names: tuple[str, ...], stack: contextlib.ExitStack) -> dict[str, _Column]:
    try:
        archive = stack.enter_context(zipfile.ZipFile(path))
        files = {name: stack.enter_context(archive.open(f"{name}.npy")) for name in names}
        return {name: _Column(file, _read_header(file)) for name, file in files.items()}
    except BROKEN as error:
        raise unreadable(path, _form(path), error) from error
