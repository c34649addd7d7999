"""Loading a model file into onnx-ir and writing one back, checked and atomically.

What onnx-ir would lose or get wrong on the way in is mended on the proto first: sparse initialisers become
dense (onnx-ir drops them), external data files are proved to exist, to be long enough and to lie inside the
model's folder before anything reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxprune.errors import BackendError, ModelError, OptionError
from onnxprune.graph import external, sparse
from onnxprune.graph.source import check_source, first_line, parse, use_plain_domain
from onnxprune.graph.text import check_text

FULL_CHECK = "onnxprune.full_check"
EXTERNAL = "onnxprune.external"
# Above this many bytes of weights a result goes to external data even where the source was one file: protobuf
# stops at 2 GiB and the skeleton needs room too.
INLINE_LIMIT = 1_800_000_000
# A temporary file with more bytes of weights than this is faster to write and open with external data.
_SCRATCH_LIMIT = 4_000_000
# File systems stop at 255 bytes, and the data file beside a model is named <model>.data.
_LONGEST_NAME = 240


@dataclass(frozen=True)
class FileFacts:
    """What a report says of a model file: its size (external data included) and its SHA-256."""

    path: str
    bytes: int
    sha256: str


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read, check and return the model at ``path``.

    External tensors stay on disk and are mapped when read. ``model.meta`` tells :func:`save` whether the source
    passed the full checker and whether it used external data.

    Raises:
        ModelError: The file is missing, empty, truncated or not ONNX; its external data is missing, too short
            or outside the model's folder; or the checker refuses the graph.
    """
    file = Path(path)
    proto = parse(file)
    check_text(proto, f"'{file}'")
    uses_external = external.verify(proto, file)
    full = check_source(proto, file, uses_external)
    external.take_in_attributes(proto, file)
    sparse.densify(proto, str(file.parent))
    use_plain_domain(proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"'{file}' cannot be read as a graph: {first_line(error)}") from error
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, str(file.resolve().parent))
    model.meta[FULL_CHECK] = full
    model.meta[EXTERNAL] = uses_external
    return model


def check_output(path: str | os.PathLike[str], *, source: str | os.PathLike[str] | None, force: bool) -> Path:
    """Return ``path`` when a result may be written there.

    Raises:
        OptionError: It is the source itself, exists already (without ``force``), is a folder, or its folder is
            missing or not writable.
    """
    out = Path(path)
    if len(out.name) > _LONGEST_NAME:
        raise OptionError(f"--out: the file name has {len(out.name)} characters, {_LONGEST_NAME} are accepted")
    if source is not None and out.exists() and Path(source).exists() and out.samefile(source):
        raise OptionError(f"--out '{out}' is the source model itself; give another path")
    if out.is_dir():
        raise OptionError(f"--out '{out}' is a folder; give a file name such as '{out / 'model.onnx'}'")
    if not out.parent.is_dir():
        raise OptionError(f"--out '{out}': the folder '{out.parent}' does not exist; make it first")
    for name in (out, _data_file(out)):
        if name.exists() and not force:
            raise OptionError(f"'{name}' exists already; give --force to overwrite it")
        if name.exists() and not name.is_file():
            raise OptionError(f"'{name}' is not an ordinary file, so it is not overwritten; give another path")
    if source is not None and _data_file(out).exists() and _data_file(out).resolve() in _parts(Path(source)):
        raise OptionError(f"--out '{out}' would overwrite '{_data_file(out)}' of the source model; give another path")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OptionError(f"--out '{out}': the folder '{out.parent}' is not writable ({error.strerror})") from error
    return out


def _parts(source: Path) -> set[Path]:
    """Return the files that a source model consists of (none where there is no such model)."""
    if not source.is_file():
        return set()
    return {part.resolve() for part in [source, *external.files(parse(source), source)]}


def _data_file(out: Path) -> Path:
    return out.with_name(out.name + ".data")


def to_folder(model: ir.Model, folder: Path, name: str, *, inline: int | None = None) -> Path:
    """Write ``model`` as ``folder/name``.

    Weights of more than ``inline`` bytes in all (:data:`INLINE_LIMIT` unless told) go to ``name.data`` beside it,
    and so they do where the source had them in external data.
    """
    file = folder / name
    external_data = _needs_external(model, INLINE_LIMIT if inline is None else inline)
    ir.save(model, file, external_data=f"{name}.data" if external_data else None)
    return file


def to_scratch(model: ir.Model, folder: Path) -> Path:
    """Write ``model`` into a folder for temporary files, to be read once by the checker or a session.

    Weights of more than a few megabytes lie beside the graph: protobuf would copy them twice, ONNX Runtime maps them.
    """
    return to_folder(model, folder, "model.onnx", inline=_SCRATCH_LIMIT)


def _store_sparse(model: ir.Model, file: Path) -> None:
    """Write a model in the place of its dense form, which passed the full check: that knows no sparse initialisers."""
    arrays = sparse.smaller(model)
    if not arrays:
        return
    _data_file(file).unlink(missing_ok=True)
    to_folder(sparse.hollowed(model, arrays), file.parent, file.name)
    proto = onnx.load(file, load_external_data=False)
    sparse.sparsify(proto, arrays)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    if not external.files(proto, file):
        _data_file(file).unlink(missing_ok=True)
    _check_file(file, full=False)


def _needs_external(model: ir.Model, limit: int) -> bool:
    tensors = [tensor for value in _initializers(model) if (tensor := value.const_value) is not None]
    if model.meta.get(EXTERNAL) or any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        return True
    return sum(tensor.nbytes for tensor in tensors) > limit


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def check(model: ir.Model) -> None:
    """Check a rewritten model as thoroughly as its source passed.

    Raises:
        BackendError: The checker refuses it, which means that a rewrite of ours was wrong; or the folder for
            temporary files is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            _check_file(to_scratch(model, Path(folder)), full=bool(model.meta.get(FULL_CHECK, True)))
    except OSError as error:
        raise BackendError(f"the rewritten model cannot be written for checking: {error.strerror or error}") from error


def _check_file(file: Path, *, full: bool) -> None:
    try:
        onnx.checker.check_model(str(file), full_check=full)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        RuntimeError,
    ) as error:
        raise BackendError(f"the rewritten model fails onnx.checker: {first_line(error)}") from error


def save(model: ir.Model, path: str | os.PathLike[str], *, sparse_storage: bool = False) -> FileFacts:
    """Write ``model`` beside ``path``, check it there, and rename it into place, as :func:`staged` says.

    Raises:
        BackendError: The disk is full or the file cannot be written or checked.
    """
    with staged(model, path, sparse_storage=sparse_storage) as written:
        written.keep()
    return written.facts


@dataclass(frozen=True)
class Staged:
    """A model file that waits beside its place: ``facts`` are those it has there, :meth:`keep` puts it there."""

    facts: FileFacts
    _file: Path

    def keep(self) -> None:
        """Rename the file, and its external data, into place."""
        _move(self._file, Path(self.facts.path))


@contextlib.contextmanager
def staged(model: ir.Model, path: str | os.PathLike[str], *, sparse_storage: bool = False) -> Iterator[Staged]:
    """Write ``model`` beside ``path`` and check it there; it goes away again unless the block keeps it.

    On any failure, an interruption included, nothing is left behind and an older file stays as it was. With
    ``sparse_storage``, weights that take fewer bytes so are written as sparse initialisers; runtimes make them dense
    when they load.

    Raises:
        BackendError: The disk is full or the file cannot be written or checked.
    """
    out = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxprune-", dir=out.parent))
    except OSError as error:
        raise BackendError(f"'{out}' cannot be written: {error.strerror}") from error
    try:
        file = to_folder(model, folder, out.name)
        _check_file(file, full=bool(model.meta.get(FULL_CHECK, True)))
        if sparse_storage:
            _store_sparse(model, file)
        yield Staged(replace(facts(file), path=str(out)), file)
    except OSError as error:
        raise BackendError(f"'{out}' cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def size(model: ir.Model) -> int:
    """Return the bytes that :func:`save` would write; the name of external data counts as ``model.onnx.data``.

    Raises:
        BackendError: The folder for temporary files is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            return facts(to_folder(model, Path(folder), "model.onnx")).bytes
    except OSError as error:
        raise BackendError(f"the model cannot be written to be measured: {error.strerror or error}") from error


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file of any kind for writing, and rename it into place when the block ends well.

    On any failure, an interruption included, nothing is left behind and an older file stays as it was.

    Raises:
        BackendError: The file cannot be written.
    """
    out = Path(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix=".onnxprune-", dir=out.parent))
    except OSError as error:
        raise BackendError(f"'{out}' cannot be written: {error.strerror}") from error
    try:
        with (folder / out.name).open("wb") as file:
            yield file
        (folder / out.name).replace(out)
    except OSError as error:
        raise BackendError(f"'{out}' cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(file: Path, out: Path) -> None:
    """Rename a written model and its data into place; where one cannot follow the other, both stay as they were."""
    data, target = _data_file(file), _data_file(out)
    older = file.with_name(f"{out.name}.older")
    if not data.exists():
        file.replace(out)
        return
    try:
        if target.exists():
            target.replace(older)
        data.replace(target)
        file.replace(out)
    except BaseException:
        if not data.exists():
            target.unlink()
        if older.exists():
            older.replace(target)
        raise


def facts(path: str | os.PathLike[str]) -> FileFacts:
    """Return size and SHA-256 of a model file; external data files count in both, in order of their names."""
    file = Path(path)
    proto = parse(file)
    digest, size = hashlib.sha256(), 0
    for part in [file, *external.files(proto, file)]:
        size += part.stat().st_size
        with part.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return FileFacts(str(file), size, digest.hexdigest())
