"""Framing of the body: blocks of 64 KiB, each with its CRC and its number of units, so that damage has a place."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from onnxprune.codec.coder import BlockCoder, Part

BLOCK = 1 << 16
"""Bytes of every block but the last."""

_HEAD = struct.Struct("<II")


class BlockWriter:
    """Packs units into blocks; a unit never crosses from one block into the next.

    Attributes:
        blocks: finished, as bytes.
    """

    def __init__(self, limit: int | None = None) -> None:
        """``limit``: most bytes of all blocks together; None for none."""
        self.blocks: list[bytes] = []
        self._left = limit
        self._coder, self._units = self._fresh(), 0

    def add(self, parts: list[Part]) -> bool:
        """Append one unit; return False, with nothing appended, where the limit is reached."""
        if self._coder.add(parts):
            self._units += 1
            return True
        if not self._units:
            return False
        if self._left is not None and self._left <= BLOCK:
            return False
        self._close()
        return self.add(parts)

    def finish(self) -> list[bytes]:
        """Return all blocks; the last one is as short as it can be."""
        if self._units:
            payload = self._coder.payload()
            self.blocks.append(seal(self._units, payload))
            self._units = 0
        return self.blocks

    def _close(self) -> None:
        payload = self._coder.payload()
        self.blocks.append(seal(self._units, payload + bytes(BLOCK - _HEAD.size - len(payload))))
        if self._left is not None:
            self._left -= BLOCK
        self._coder, self._units = self._fresh(), 0

    def _fresh(self) -> BlockCoder:
        size = BLOCK if self._left is None else min(BLOCK, self._left)
        return BlockCoder(size - _HEAD.size)


def seal(units: int, payload: bytes) -> bytes:
    """Return a block: CRC32 of what follows it, the number of units, the payload."""
    counted = struct.pack("<I", units) + payload
    return struct.pack("<I", zlib.crc32(counted)) + counted


def sound(block: bytes) -> bool:
    """Say whether a whole block's bytes are those that were written."""
    return len(block) >= _HEAD.size and zlib.crc32(block[4:]) == _HEAD.unpack_from(block)[0]


def opened(block: bytes) -> tuple[int, bytes] | None:
    """Return the number of units and the payload of a block or of its begin; None where its head is cut."""
    if len(block) < _HEAD.size:
        return None
    return _HEAD.unpack_from(block)[1], block[_HEAD.size :]


def payload_length(block_length: int) -> int:
    """Return the bytes of payload in a block."""
    return block_length - _HEAD.size


def extents(body: int) -> Iterator[tuple[int, int]]:
    """Yield begin and length of every block of a body of ``body`` bytes."""
    for begin in range(0, body, BLOCK):
        yield begin, min(BLOCK, body - begin)
