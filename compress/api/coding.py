"""A whole model as one ``.surp`` file, and back from all of it or from its begin."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import onnx_ir as ir

from onnxprune.api.opening import ModelLike, open_model, task
from onnxprune.api.options import Options
from onnxprune.api.packing import pack
from onnxprune.codec import container
from onnxprune.codec.law import Law, Stop
from onnxprune.errors import CodecError, ModelError, OptionError
from onnxprune.graph import external, io, skeleton
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.source import parse
from onnxprune.graph.weights import weights

SPARSITY = 0.5
"""Where the code ends when no stop is given."""

_STEPS = 3


@dataclass(frozen=True)
class EncodeResult:
    """What :func:`encode` wrote.

    ``bytes`` = ``header_bytes`` + ``skeleton_bytes`` + ``values_bytes`` + ``body_bytes``. ``source_bytes`` counts
    external data. Bits per weight are those of the whole file, over all coded weights and over the non-zero ones.
    ``relative_l1``: error over the sum of magnitudes, every tensor over its norm; None with fitted values.
    ``skipped`` names nodes whose weight is in the skeleton as it was, and why.
    """

    path: str
    bytes: int
    source: str
    source_bytes: int
    header_bytes: int
    skeleton_bytes: int
    values_bytes: int
    body_bytes: int
    weights: int
    nonzeros: int
    hits: int
    relative_l1: float | None
    tensors: int
    fitted: bool
    skipped: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Bytes over those of the source."""
        return self.bytes / self.source_bytes

    @property
    def sparsity(self) -> float:
        """Share of zeros among the coded weights."""
        return 1 - self.nonzeros / self.weights

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file per coded weight."""
        return 8 * self.bytes / self.weights

    @property
    def bits_per_survivor(self) -> float | None:
        """Bits of the file per non-zero weight; None where there is none."""
        return 8 * self.bytes / self.nonzeros if self.nonzeros else None


@dataclass(frozen=True, eq=False)
class DecodeResult:
    """What :func:`decode` read: the model, how much of the stream it stands for, the file it was written to.

    ``bytes`` of ``file_bytes`` were there; ``hits`` of ``all_hits`` were followed; ``verified``: every byte used
    lies in a block whose checksum was compared; ``fitted``: the stored values took the place of the code's own.
    """

    model: ir.Model
    source: str
    bytes: int
    file_bytes: int
    weights: int
    nonzeros: int
    hits: int
    all_hits: int
    relative_l1: float | None
    verified: bool
    fitted: bool
    path: str | None
    result_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros among the coded weights."""
        return 1 - self.nonzeros / self.weights if self.weights else 0.0

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> DecodeResult:
        """Write the model, checked, at once or not at all; return a result that names the file.

        Raises:
            OptionError: ``path`` is the source, exists already (without ``force``) or cannot be written to.
            BackendError: Writing failed, or the checker refuses the model; nothing is left behind.
        """
        facts = io.save(self.model, _checked_output(path, Path(self.source), force))
        return replace(self, path=facts.path, result_bytes=facts.bytes)


def encode(
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    sparsity: float | None = None,
    bits: int | None = None,
    bytes: int | None = None,
    hits: int | None = None,
    relative_l1: float | None = None,
    alpha: float | None = None,
    decay: float = 0.9,
    patience: int = 20,
    seed: int = 0,
    centroid: float = 0.5,
    normalize: bool = True,
    values: str | None = None,
    only: str | None = None,
    ignore: str | None = None,
    options: Options | None = None,
    force: bool = False,
) -> EncodeResult:
    """Write a model as a ``.surp`` file (SuRP: Isik, Weissman, No, 2022).

    The weights of linear nodes are coded up to the first stop that is met, by default a sparsity of 0.5; everything
    else is kept as it is. Every prefix of the file that holds header and graph decodes to a coarser model.

    Args:
        model: path of an .onnx file, or a model in memory (it is not touched).
        out: the file to write.
        sparsity: stop: share of zeros among the coded weights, not below it.
        bits: stop: of the coded weights, header and graph not counted; never exceeded.
        bytes: stop: the same in bytes.
        hits: stop: that many announcements.
        relative_l1: stop: error over the sum of magnitudes, at most.
        alpha: first threshold over the mean magnitude; None means ln(n / ln n). With fitted values None means that
            the stream tells places and signs alone; with an alpha its prefixes are successive refinements too.
        decay: factor on alpha.
        patience: levels between two decays.
        centroid: decoded magnitudes are moved up by this share of the last threshold; 0 leaves the code's own.
        seed: of the scan order.
        normalize: divide every tensor by its L2 norm before pooling.
        values: ``"fitted"`` stores the model's own non-zero weights too, in float16, and codes exactly them; for a
            model that was pruned before.
        only: code the weights of these nodes alone: names, globs, re:..., parted by ;
        ignore: keep the weights of these nodes as they are.
        options: progress; the rest is not used.
        force: overwrite ``out``.

    Raises:
        OptionError: An option or ``out`` cannot be used.
        ModelError: The model is unusable or has no weight that can be coded.
        CodecError: Fitted values do not fit into float16.
        BackendError: Writing failed; nothing is left behind.
    """
    chosen = options or Options()
    law = Law(alpha, decay, patience, seed, centroid)
    stop = Stop(sparsity=sparsity, bits=bits, bytes=bytes, hits=hits, relative_l1=relative_l1)
    target = check_encode(model, out, stop, values, force=force)
    stop, fitted = Stop(sparsity=SPARSITY) if stop == Stop() else stop, values is not None
    selection = Selection.parse("encode", only, ignore)
    loaded = open_model(model, chosen)
    with task(chosen, "encoding", _STEPS) as advance:
        found = weights(lifted(loaded.model), selection)
        if not found.values:
            raise ModelError(f"'{loaded.facts.path}' has no weight that can be coded{_example(found.skipped)}")
        tensors, graph = skeleton.split(loaded.model, [str(value.name) for value in found.values])
        advance(1)
        with io.replaced(target) as file:
            packed = pack(
                file, tensors, graph, law, stop, fitted=fitted, normalize=normalize, coded=lambda: advance(1)
            )  # fmt: skip
        advance(1)
    header = packed.header
    return EncodeResult(
        str(target), header.file_size, loaded.facts.path, loaded.facts.bytes,
        header.begin, header.skeleton.stored, header.values.stored if header.values else 0, header.body,
        header.shape.count, header.nonzeros, header.shape.hits, packed.relative_l1,
        len(tensors), fitted, dict(found.skipped), packed.warnings,
    )  # fmt: skip


def check_encode(
    model: ModelLike, out: str | os.PathLike[str], stop: Stop, values: str | None = None, *, force: bool = False
) -> Path:
    """Return where :func:`encode` will write, or refuse before any work.

    Raises:
        OptionError: ``out`` cannot be written to or belongs to the model; ``values`` is unknown or excludes a stop.
        ModelError: ``out`` exists and the model is unusable.
    """
    if values not in (None, "fitted"):
        raise OptionError(f"values='{values}' is not accepted; give fitted, or nothing for the code's own values")
    if values and stop != Stop():
        raise OptionError("values=fitted codes all non-zero weights of a pruned model; give no stop beside it")
    source = Path(model) if isinstance(model, str | os.PathLike) else None
    target = io.check_output(out, source=source, force=force)
    if source is not None and source.is_file() and target.exists():
        for part in external.files(parse(source), source):
            if part.exists() and part.samefile(target):
                raise OptionError(f"--out '{target}' holds weights of the source model; give another path")
    return target


def _example(skipped: Mapping[str, str]) -> str:
    first = next(iter(skipped.items()), None)
    return "" if first is None else f": node '{first[0]}', {first[1]}"


def _checked_output(out: str | os.PathLike[str], source: Path, force: bool) -> Path:
    target = Path(out)
    for name in (target, target.with_name(f"{target.name}.data")):
        if name.exists() and source.exists() and name.samefile(source):
            raise OptionError(f"--out '{target}' would overwrite the .surp file '{source}'; give another path")
    return io.check_output(target, source=None, force=force)


def decode(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    fraction: float | None = None,
    bytes: int | None = None,
    sparsity: float | None = None,
    hits: int | None = None,
    strict: bool = False,
    fitted: bool | None = None,
    options: Options | None = None,
    force: bool = False,
) -> DecodeResult:
    """Read a ``.surp`` file, whole or cut off, up to the first stop that is met.

    Args:
        source: the file.
        out: where to write the model; None keeps it in memory.
        fraction: stop: share of the coded weights' bytes, header and graph not counted.
        bytes: stop: that many bytes of them.
        sparsity: stop: share of zeros among the coded weights, not below it.
        hits: stop: that many announcements.
        strict: refuse a file that is cut off, whose last part cannot be checked.
        fitted: use the stored values; None: where all of the stream was read, for which they were made.
        options: progress; the rest is not used.
        force: overwrite ``out``.

    Raises:
        OptionError: An option or ``out`` cannot be used.
        CodecError: No .surp file, a newer one, cut off before its stream, or corrupt, with the place.
        BackendError: Writing failed, or the checker refuses the model; nothing is left behind.
    """
    path = Path(source)
    stop = Stop(fraction=fraction, bytes=bytes, sparsity=sparsity, hits=hits)
    if out is not None:
        _checked_output(out, path, force)
    size = _size(path)
    with task(options or Options(), "decoding", size) as advance, path.open("rb") as file:
        try:
            found = container.decode(_watched(file, advance), stop, strict=strict, fitted=fitted)
            model = skeleton.joined(found.skeleton, found.tensors)
        except CodecError as error:
            raise CodecError(f"'{path}': {error}") from error
    header, state = found.header, found.state
    if fitted and header.values is None:
        raise OptionError(f"'{path}' holds no fitted values")
    result = DecodeResult(
        model, str(path), size, header.file_size, header.shape.count, len(state.support), state.hits,
        header.shape.hits, None if header.values else state.relative_l1, state.verified, found.fitted, None, None,
        tuple(_remarks(found, size, stop)),
    )  # fmt: skip
    return result if out is None else result.save(out, force=force)


def _size(path: Path) -> int:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise CodecError(f"'{path}' {what}; give the path of a .surp file")
    return path.stat().st_size


def _watched(file: BinaryIO, advance: Callable[[int], None]) -> BinaryIO:
    """Return a file to read from that tells how much was read."""

    class Watched:
        def read(self, size: int = -1) -> builtins.bytes:
            piece = file.read(size)
            advance(len(piece))
            return piece

    return cast("BinaryIO", Watched())


def _remarks(found: container.Model, size: int, stop: Stop) -> Iterator[str]:
    header, state = found.header, found.state
    if size < header.file_size and not state.complete:
        yield f"the file is cut off: {size:,} of {header.file_size:,} bytes are there, so the model is a coarser one"
    if not state.verified:
        yield "the last bytes used lie in a block that is cut off and could not be checked"
    wanted = stop.support(header.shape.count)
    if wanted is not None and state.complete and len(state.support) < wanted and stop.hits is None:
        yield f"the file ends at a sparsity of {1 - len(state.support) / header.shape.count:.6g}, before the one asked"
    if header.values is not None and not found.fitted:
        yield "the fitted values were not used: they are those of the whole stream"
