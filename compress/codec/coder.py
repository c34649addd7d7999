"""The range coder under the stream: gap laws as exact integers, raw bits, counts, and readers of whole and cut blocks.

The coder itself is constriction's (32-bit words, 64-bit state, 24-bit probabilities). Probabilities are handed to it
as integers over 2^24, so that no rounding of another machine or library can change a symbol.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import constriction
import numpy as np

from onnxprune.errors import CodecError

LONGEST = (1 << 31) - 1
"""Most coordinates of one stream: counts are coded with a length of 5 bits."""

_TOTAL = 1 << 24
_LONGEST_RUN = 4096
_RUNS_PER_HIT = 16
_LEAST_MISS = 2.0**-20
_PIECE = 16

_queue: Any = constriction.stream.queue
_model: Any = constriction.stream.model


def frequencies(hits: int, among: int) -> np.ndarray:
    """Return the law of gaps where ``hits`` of ``among`` coordinates are hit: int64 [K + 1], summing to 2^24.

    Symbol j < K is a hit after j misses; symbol K stands for K misses and no hit. K = 16 among / hits, from 2 to 4096.
    """
    longest = min(_LONGEST_RUN, max(2, -(-_RUNS_PER_HIT * among // hits)))
    miss = max(1.0 - hits / among, _LEAST_MISS)
    survival = np.multiply.accumulate(np.full(longest, miss))  # in sequence: every product is an IEEE one
    room = _TOTAL - (longest + 1)
    reached = np.floor(room * (1.0 - survival)).astype(np.int64)
    return np.diff(np.concatenate(([0], reached, [room]))) + 1


@dataclass(frozen=True)
class GapLaw:
    """The model of one scan's gaps; ``longest`` is K of :func:`frequencies`."""

    model: Any
    longest: int

    @staticmethod
    def of(hits: int, among: int) -> GapLaw:
        """Return the law for ``hits`` of ``among`` coordinates."""
        table = frequencies(hits, among)
        # Weights that add up to 2^24 less their number are taken as they are, plus one each.
        return GapLaw(_model.Categorical((table - 1).astype(np.float64), perfect=False), len(table) - 1)

    def symbols(self, gaps: np.ndarray) -> np.ndarray:
        """Return the symbols, int32, of misses before each hit: runs of K, then the rest and its hit."""
        runs = gaps // self.longest
        symbols = np.full(len(gaps) + int(runs.sum()), self.longest, dtype=np.int32)
        symbols[np.cumsum(runs + 1) - 1] = gaps % self.longest
        return symbols


@lru_cache(maxsize=32)
def raw(bits: int) -> Any:
    """Return the model of ``bits`` raw bits, 1 to 16."""
    return _model.Uniform(1 << bits)


Part = tuple[np.ndarray, Any]
"""Symbols, int32, and their model."""


def count_parts(count: int) -> list[Part]:
    """Return the symbols of a count below 2^31: its length in 5 raw bits, then what follows the leading one."""
    length = count.bit_length()
    parts = [(np.array([length], dtype=np.int32), raw(5))]
    left = max(length - 1, 0)
    while left:
        bits = min(_PIECE, left)
        left -= bits
        parts.append((np.array([(count >> left) & ((1 << bits) - 1)], dtype=np.int32), raw(bits)))
    return parts


class Reader(Protocol):
    """Reads symbols; fewer than asked for come back where the data says no more for sure."""

    def read(self, model: Any, amount: int) -> np.ndarray:
        """Return up to ``amount`` symbols, int32."""


def read_count(reader: Reader) -> int | None:
    """Return a count written by :func:`count_parts`, None where the data ends before it does."""
    length = reader.read(raw(5), 1)
    if not len(length):
        return None
    value, left = min(int(length[0]), 1), max(int(length[0]) - 1, 0)
    while left:
        bits = min(_PIECE, left)
        left -= bits
        piece = reader.read(raw(bits), 1)
        if not len(piece):
            return None
        value = (value << bits) | int(piece[0])
    return value


class BlockCoder:
    """One block's payload in the making: takes whole units or none of them."""

    def __init__(self, limit: int) -> None:
        """``limit``: most bytes of payload."""
        self._coder, self._limit = _queue.RangeEncoder(), limit

    def add(self, parts: list[Part]) -> bool:
        """Append the symbols of one unit; return False, with nothing appended, where they do not fit."""
        most = sum(4 * len(symbols) for symbols, _ in parts) + 8  # no symbol takes more than 24 bits
        near = 4 * self._coder.num_words() + most > self._limit
        before = self._coder.clone() if near else None
        for symbols, model in parts:
            self._coder.encode(symbols, model)
        if near and 4 * self._coder.num_words() > self._limit:
            self._coder = before
            return False
        return True

    def payload(self) -> bytes:
        """Return the block's words, big-endian: bytes and numbers then have one order."""
        words: np.ndarray = self._coder.get_compressed()
        return words.astype(">u4").tobytes()


def _decoder(payload: bytes) -> Any:
    return _queue.RangeDecoder(np.frombuffer(payload, dtype=">u4").astype(np.uint32))


class WholeReader:
    """Reads a whole block."""

    def __init__(self, payload: bytes) -> None:
        """``payload``: whole words."""
        self._decoder = _decoder(payload)

    def read(self, model: Any, amount: int) -> np.ndarray:
        """Return ``amount`` symbols.

        Raises:
            CodecError: The payload is none that an encoder writes.
        """
        try:
            symbols: np.ndarray = self._decoder.decode(model, amount)
        except AssertionError as error:
            raise CodecError("its symbols cannot be decoded") from error
        return symbols


class CutReader:
    """Reads the begin of a block: the symbols that follow whatever the missing bytes are.

    Decodes twice, the missing bytes once all 0x00 and once all 0xFF. The coder keeps order, so symbols on which both
    agree are those of every continuation.
    """

    def __init__(self, payload: bytes, length: int) -> None:
        """``payload``: the bytes there are; ``length``: of the whole payload."""
        missing = length - len(payload)
        self._low, self._high = _decoder(payload + b"\0" * missing), _decoder(payload + b"\xff" * missing)
        self._ended = False

    def read(self, model: Any, amount: int) -> np.ndarray:
        """Return up to ``amount`` symbols that are sure."""
        if self._ended:
            return np.zeros(0, dtype=np.int32)
        before = self._low.clone(), self._high.clone()
        try:
            low: np.ndarray = self._low.decode(model, amount)
            differs = low != self._high.decode(model, amount)
        except AssertionError:  # bytes that no encoder writes: the two have parted on the way
            self._ended = True
            return self._singly(*before, model, amount)
        if differs.any():
            self._ended = True
            low = low[: int(np.argmax(differs))]
        return low

    @staticmethod
    def _singly(low: Any, high: Any, model: Any, amount: int) -> np.ndarray:
        sure: list[int] = []
        try:
            for _ in range(amount):
                symbol = int(low.decode(model))
                if symbol != int(high.decode(model)):
                    break
                sure.append(symbol)
        except AssertionError:
            pass
        return np.array(sure, dtype=np.int32)
