"""A ``.surp`` file that is still coming: feed its bytes, ask for the model that they make so far."""

from __future__ import annotations

import io as streams

import numpy as np
import onnx_ir as ir

from onnxprune.codec import container
from onnxprune.codec.decoder import StreamDecoder
from onnxprune.codec.header import LONGEST_RECORD, MAGIC, VERSION
from onnxprune.codec.law import Stop
from onnxprune.errors import CodecError
from onnxprune.graph import skeleton

# Where the file's first bytes say what is to come; see docs/surp-format.md.
_PRELUDE = 20
_VERSION, _LENGTH = slice(8, 10), slice(12, 16)


class Stream:
    """A growing file. Whole blocks are checked and followed once, however often a model is asked for.

    Attributes:
        received: bytes fed so far.
        header: None until it has come in full.
    """

    def __init__(self, stop: Stop | None = None) -> None:
        """``stop``: where to end; None for the end of the file."""
        self._stop = stop
        self._held = bytearray()
        self._graph = b""
        self._values: np.ndarray | None = None
        self._decoder: StreamDecoder | None = None
        self.received = 0
        self.header: container.Header | None = None

    @property
    def ready(self) -> bool:
        """There is a model, if only one whose coded weights are all zero."""
        return self._decoder is not None

    @property
    def done(self) -> bool:
        """The stop or the end is reached; more bytes change nothing."""
        return self._decoder is not None and self._decoder.done

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file.

        Raises:
            CodecError: No .surp file, a newer one, or a damaged part, with the place.
        """
        self.received += len(data)
        if self._decoder is not None:
            self._decoder.feed(data)
            return
        self._held += data
        if self.header is None and self._complete():
            self.header = container.read_header(streams.BytesIO(bytes(self._held)))
        header = self.header
        if header is None or len(self._held) < header.body_begin:
            return
        file = streams.BytesIO(bytes(self._held))
        file.seek(header.begin)
        self._graph, self._values = container.read_sections(file, header)
        self._decoder = StreamDecoder(header.shape, header.body, self._stop, origin=header.body_begin)
        self._held.clear()
        self._decoder.feed(file.read())

    def model(self, *, strict: bool = False, fitted: bool | None = None) -> ir.Model:
        """Return the model that the bytes so far make.

        Args:
            strict: refuse to use part of a block that cannot be checked yet.
            fitted: use the stored values for the weights that are known; None: once all are.

        Raises:
            CodecError: Header and graph have not come yet, a part is damaged, or ``strict``.
        """
        header, decoder = self.header, self._decoder
        if header is None or decoder is None:
            raise CodecError(f"there is no model in the first {self.received:,} bytes; header and graph come first")
        state = decoder.state(strict=strict)
        use = self._values is not None and (state.hits == header.shape.hits if fitted is None else fitted)
        return skeleton.joined(self._graph, container.weights_of(header, state, self._values if use else None))

    def _complete(self) -> bool:
        """Say whether the header can be read, or can be refused already."""
        begin = bytes(self._held[:_PRELUDE])
        if not MAGIC.startswith(begin[: len(MAGIC)]):
            return True
        if len(begin) < _PRELUDE:
            return False
        version, length = (int.from_bytes(begin[part], "little") for part in (_VERSION, _LENGTH))
        return version > VERSION or length > LONGEST_RECORD or len(self._held) >= _PRELUDE + length


def open_stream(*, sparsity: float | None = None, hits: int | None = None, bytes: int | None = None) -> Stream:
    """Return a reader for a ``.surp`` file that comes in pieces.

    Args:
        sparsity: stop: share of zeros among the coded weights, not below it.
        hits: stop: that many announcements.
        bytes: stop: of the coded weights, header and graph not counted.

    Raises:
        OptionError: A stop is out of range.
    """
    return Stream(Stop(sparsity=sparsity, hits=hits, bytes=bytes))
