"""Examples: rows of a source fetched lazily as arrays by input name, their labels and their fingerprint."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from onnxprune.data.inputs import Array
from onnxprune.errors import DataError, OptionError

Rows = npt.NDArray[np.int64]

_DIGEST = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive examples: arrays by input name stacked on axis 0, labels, rows within their Examples, targets."""

    arrays: dict[str, Array]
    labels: Rows | None
    rows: Rows
    targets: Array | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """A source of examples, read only when rows are fetched.

    Attributes:
        source: the spec as the user wrote it, for reports and errors.
        count: number of examples, at least 1.
        labels: class indices, int64 [count], or None if unlabelled.
        fetch: row indices (0..count-1) -> arrays by model input name, stacked on axis 0.
        synthetic: the examples are random numbers and mean nothing.
        warnings: what the report should say about them.
        origin: row of each example in the source as opened, int64 [count]; None means 0..count-1.
        targets: labels that are no class indices, [count, ...]: real numbers, or maps of whole numbers.
    """

    source: str
    count: int
    labels: Rows | None = field(repr=False)
    fetch: Callable[[Rows], dict[str, Array]] = field(repr=False)
    synthetic: bool = False
    warnings: tuple[str, ...] = ()
    origin: Rows | None = field(default=None, repr=False)
    targets: Array | None = field(default=None, repr=False)

    def take(self, rows: npt.ArrayLike) -> Examples:
        """Return a view of these rows, in this order.

        Raises:
            DataError: there are no rows, or one of them is not there.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        if chosen.ndim != 1 or chosen.size == 0:
            raise DataError(f"{self.source}: no examples were taken; at least one row is needed")
        if chosen.min() < 0 or chosen.max() >= self.count:
            raise DataError(f"{self.source}: rows {chosen.min()}..{chosen.max()} asked for, there are {self.count}")
        fetch = self.fetch
        return replace(
            self,
            count=int(chosen.size),
            labels=None if self.labels is None else self.labels[chosen],
            fetch=lambda positions: fetch(chosen[positions]),
            origin=chosen if self.origin is None else self.origin[chosen],
            targets=None if self.targets is None else self.targets[chosen],
        )

    def held(self, limit: int) -> Examples:
        """Return the same examples read into memory; itself where they would take more than ``limit`` bytes."""
        first = self.fetch(np.arange(1, dtype=np.int64))
        if self.count * sum(array.nbytes for array in first.values()) > limit:
            return self
        arrays = self.fetch(np.arange(self.count, dtype=np.int64))
        return replace(self, fetch=lambda rows: {name: array[rows] for name, array in arrays.items()})

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all examples in order, ``size`` at a time; the last batch may be smaller.

        Raises:
            OptionError: the size is not positive.
            DataError: an array holds NaN or infinity; the message names source, array and example.
        """
        if size <= 0:
            raise OptionError(f"batch size is {size}, it must be at least 1")
        return self._batches(size)

    def _batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            rows = np.arange(start, min(start + size, self.count), dtype=np.int64)
            arrays = self.fetch(rows)
            for name, array in arrays.items():
                self._check_finite(name, array, rows)
            labels, targets = (None if each is None else each[rows] for each in (self.labels, self.targets))
            yield Batch(arrays, labels, rows, targets)

    def _check_finite(self, name: str, array: Array, rows: Rows) -> None:
        if array.dtype.kind in "iubOUST" or bool(np.isfinite(array).all()):
            return
        bad = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
        what = "NaN" if bool(np.isnan(array[bad]).any()) else f"infinity (as {array.dtype})"
        row = int(rows[bad]) if self.origin is None else int(self.origin[rows[bad]])
        raise DataError(f"{self.source}: array {name!r} holds {what} in example {row}; finite numbers are needed")


class Fingerprint:
    """Identity of examples, streamed: one blake2b of 16 bytes per example, sha256 over those in order.

    It does not depend on how the examples were batched. With ``keep`` the digests stay in ``digests``, 16 bytes an
    example, which ``shared_examples`` needs.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self._digests = bytearray()
        self.count = 0
        self._whole = hashlib.sha256()

    def update(self, arrays: Mapping[str, Array]) -> None:
        """Add every example of a batch of arrays stacked on axis 0."""
        columns = [np.ascontiguousarray(arrays[name]) for name in sorted(arrays)]
        for row in zip(*columns, strict=True):
            digest = hashlib.blake2b(b"".join(_bytes(np.asarray(part)) for part in row), digest_size=_DIGEST).digest()
            self._whole.update(digest)
            self.count += 1
            if self.keep:
                self._digests += digest

    @property
    def digests(self) -> list[bytes]:
        """The digest of every example, in order; empty without ``keep``."""
        return list(self.each_digest())

    def each_digest(self) -> Iterator[bytes]:
        """Yield the digest of every example, in order; none without ``keep``."""
        for start in range(0, len(self._digests), _DIGEST):
            yield bytes(self._digests[start : start + _DIGEST])

    def hexdigest(self) -> str:
        """Return the sha256 over all examples so far, in order, as hexadecimal text."""
        return self._whole.hexdigest()


def shared_examples(first: Fingerprint, second: Fingerprint) -> int:
    """Count the examples that sit in both, a repeated one as often as in the side that has it less.

    Raises:
        OptionError: a fingerprint was made without ``keep=True``.
    """
    for one in (first, second):
        if one.count and not one.keep:
            raise OptionError("shared_examples needs fingerprints made with keep=True")
    fewer, more = sorted((first, second), key=lambda one: one.count)
    left = Counter(fewer.digests)
    for digest in more.each_digest():
        if left.get(digest, 0):
            left[digest] -= 1
    return fewer.count - left.total()


def _bytes(part: Array) -> bytes:
    if part.dtype.kind == "O":  # text: an object array's own bytes are pointers
        return b"".join(len(text).to_bytes(8, "little") + text for text in (str(p).encode() for p in part.flat))
    return part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes()
