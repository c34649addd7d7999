"""The stream's decoder: takes a body's bytes as they come, checks whole blocks and follows them."""

from __future__ import annotations

import numpy as np

from onnxprune.codec import blocks
from onnxprune.codec.coder import CutReader, Reader, WholeReader
from onnxprune.codec.cursor import Cursor, Decoded
from onnxprune.codec.law import Stop, scan_order
from onnxprune.codec.stream import Shape
from onnxprune.errors import CodecError


class StreamDecoder:
    """Decodes a body that comes in pieces: :meth:`feed` them, then ask for the :meth:`state`.

    Whole blocks are checked and followed once; only the begin of a block that has not come in full is followed again.

    Attributes:
        received: bytes fed so far.
        done: the stop or the end of the stream is reached; more bytes change nothing.
    """

    def __init__(self, shape: Shape, body: int, stop: Stop | None = None, *, origin: int = 0) -> None:
        """Prepare for a body of ``body`` bytes that begins at byte ``origin`` of its file.

        Args:
            shape: what the header says.
            body: bytes of the whole body.
            stop: sparsity, non-zeros, hits, relative L1; bytes, bits and fraction limit what is taken of the body.
            origin: for messages.

        Raises:
            CodecError: No body has that many bytes.
        """
        if body % 4 or (body == 0 and shape.hits):
            raise CodecError(f"no body has {body:,} bytes and {shape.hits:,} hits")
        stop = Stop() if stop is None else stop
        limits = [body if stop.size() is None else min(body, stop.size() or 0)]
        if stop.fraction is not None:
            limits.append(int(stop.fraction * body))
        self._limit = min(limits)
        self._extents = list(blocks.extents(body))
        self._cursor = Cursor(shape, stop)
        self._order: np.ndarray | None = None
        self._origin, self._block, self._held = origin, 0, bytearray()
        self._beyond = bytearray()  # the rest of the block in which the limit lies: it vouches for its begin
        self.received = 0

    @property
    def done(self) -> bool:
        """No more bytes are of use."""
        if self._cursor.done or self._block == len(self._extents):
            return True
        length = self._extents[self._block][1]
        return self.received >= self._limit and (not self._held or len(self._held) + len(self._beyond) >= length)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            CodecError: A block is damaged; the message says which and where it begins.
        """
        take = max(0, min(len(data), self._limit - self.received))
        self._beyond += data[take:] if self.received + take == self._limit else b""
        self.received += take
        self._held += data[:take]
        while not self._cursor.done and self._block < len(self._extents):
            length = self._extents[self._block][1]
            if len(self._held) < length:
                return
            block = bytes(self._held[:length])
            del self._held[:length]
            if not blocks.sound(block):
                raise self._damage("is corrupt")
            self._follow(self._cursor, block, cut=False)
            self._block += 1
        if not self._cursor.done:
            raise CodecError(f"the body ends after {self._cursor.hits:,} of {self._cursor.shape.hits:,} hits")

    def state(self, *, strict: bool = False, last: bool = False) -> Decoded:
        """Return what the bytes so far say.

        Args:
            strict: refuse to use part of a block that cannot be checked.
            last: nothing more will be fed; saves a copy of the weights.

        Raises:
            CodecError: ``strict`` and a partial block is in use, or the part is damaged.
        """
        cursor = self._cursor
        verified = True
        if not cursor.done and self._held:
            length = self._extents[self._block][1]
            verified = blocks.sound((bytes(self._held) + bytes(self._beyond))[:length])
            if not verified and len(self._held) + len(self._beyond) >= length:
                raise self._damage("is corrupt")
            if strict and not verified:
                raise self._damage("is cut off and cannot be verified", f" ({len(self._held):,} of {length:,} bytes)")
            cursor = cursor if last else cursor.copy()
            self._follow(cursor, bytes(self._held), cut=True)
        elif not last:
            cursor = cursor.copy()
        if self._order is None:
            law = cursor.shape.law
            self._order = scan_order(cursor.shape.count, law.seed).astype(np.uint32)
        return cursor.result(self._order, verified=verified)

    def _follow(self, cursor: Cursor, block: bytes, *, cut: bool) -> None:
        opened = blocks.opened(block)
        if opened is None:
            return
        units, payload = opened
        whole = blocks.payload_length(self._extents[self._block][1])
        reader: Reader = CutReader(payload, whole) if cut else WholeReader(payload)
        try:
            for _ in range(units):
                if cursor.done or not cursor.step(reader):
                    return
        except CodecError as error:
            raise self._damage(f"is damaged: {error}") from error

    def _damage(self, what: str, more: str = "") -> CodecError:
        begin = self._origin + self._extents[self._block][0]
        return CodecError(f"block {self._block} at byte {begin:,} {what}{more}")
