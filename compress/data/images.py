"""Examples from image files: a folder or a .zip of class folders, decoded only when fetched."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from onnxprune.data.examples import Examples, Rows
from onnxprune.data.inputs import Array, InputSpec
from onnxprune.data.labels import Labels, folder_labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MAX_MEMBER = 256 * 2**20  # bytes of one image unpacked from an archive; more is a bomb, not a picture
# What Pillow and zipfile raise on damaged images and members.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def open_folder(
    path: str, want: InputSpec, source: str, preprocess: Preprocess | None, classes: Sequence[str] | None
) -> Examples:
    """Open a folder of class folders with images, or a flat folder of unlabelled images.

    Raises:
        DataError: no images, an unknown class folder, or images that do not fit the input.
    """
    root = Path(path)
    members = _walk(root, source)

    def read(member: str) -> bytes:
        try:
            return (root / member).read_bytes()
        except OSError as error:
            raise DataError(f"{member} in {source} cannot be read ({error.strerror})") from error

    return _members(members, read, want, source, preprocess, classes)


def open_zip(
    path: str, want: InputSpec, source: str, preprocess: Preprocess | None, classes: Sequence[str] | None
) -> Examples:
    """Open a .zip as if it were the folder it holds; members are read in memory, nothing is unpacked to disk.

    Raises:
        DataError: as ``open_folder``, or the archive is damaged.
    """
    try:
        # One reader for all fetches: ZipFile locks its file, so several threads may read at once.
        archive = zipfile.ZipFile(path)
    except _BROKEN as error:
        raise DataError(
            f"{source} cannot be read as .zip: truncated, damaged or of another format ({error})"
        ) from error
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}

    def read(member: str) -> bytes:
        entry = entries[member]
        if entry.flag_bits & 1:
            raise DataError(f"{member} in {source} is encrypted; give an archive without a password")
        if entry.file_size > MAX_MEMBER:
            raise DataError(f"{member} in {source} unpacks to {entry.file_size} bytes; {MAX_MEMBER} at most are read")
        try:
            return archive.read(entry)
        except _BROKEN as error:
            raise DataError(f"{member} in {source} cannot be unpacked ({error})") from error

    return _members(list(entries), read, want, source, preprocess, classes)


def image_examples(
    images: Callable[[Rows], Sequence[Array]],
    names: Callable[[Rows], Sequence[str]],
    labels: Labels | None,
    count: int,
    want: InputSpec,
    source: str,
    preprocess: Preprocess | None,
    warnings: tuple[str, ...] = (),
) -> Examples:
    """Make examples of decoded uint8 images; the first one is fetched at once to see that it fits.

    Raises:
        DataError: there are no images, or the first does not fit the input.
    """
    if count == 0:
        raise DataError(f"{source} holds no examples; at least one is needed")
    used, guessed = known_or_plain(source, want, preprocess)

    def fetch(rows: Rows) -> dict[str, Array]:
        return {want.name: used.apply(images(rows), want, names=names(rows))}

    fetch(np.zeros(1, np.int64))
    return Examples(source, count, labels, fetch, warnings=warnings + guessed)


def known_or_plain(source: str, want: InputSpec, preprocess: Preprocess | None) -> tuple[Preprocess, tuple[str, ...]]:
    """Return the preprocessing, or pixels / 255 with a warning where none is known."""
    if preprocess is not None:
        return preprocess, ()
    plain = Preprocess.plain(want)
    how = "divided by 255 and not normalised" if want.floating else "given as they are"
    return plain, (
        f"{source}: no preprocessing is known, pixels are {how}; if the model was trained otherwise, give --preprocess",
    )


def decode(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8: (H,W) for grey, (H,W,3) for everything else.

    16-bit grey is scaled to 8 bits; palettes are resolved and transparency dropped; of an animation the
    first frame is taken.

    Raises:
        DataError: the image is damaged, of an unknown format, or holds real numbers.
    """
    try:
        # Pillow warns of images over 89 million pixels before it refuses those of twice that: refuse both.
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(data)) as picture,
        ):
            picture.load()
            if picture.mode.startswith("I"):
                deep = np.asarray(picture).astype(np.int64)
                return np.clip(deep // 257, 0, 255).astype(np.uint8)
            if picture.mode == "F":
                raise DataError(f"{name} holds real numbers; 8-bit or 16-bit images are needed")
            grey = picture.mode in ("1", "L", "LA", "La")
            return np.array(picture.convert("L" if grey else "RGB"))
    except _BROKEN as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name} cannot be decoded as an image ({reason or type(error).__name__})") from error


def _members(
    members: Sequence[str],
    read: Callable[[str], bytes],
    want: InputSpec,
    source: str,
    preprocess: Preprocess | None,
    classes: Sequence[str] | None,
) -> Examples:
    files = sorted((PurePosixPath(name) for name in members if _wanted(name)), key=lambda file: file.parts)
    if not files:
        shown = f"; it holds {members[0]!r}" if members else "; it is empty"
        raise DataError(f"{source} holds no images ({', '.join(SUFFIXES)}){shown}")
    texts = [str(file) for file in files]
    labels, warnings = _labels(files, classes, source)

    def images(rows: Rows) -> list[Array]:
        return [decode(read(texts[row]), f"{texts[row]} in {source}") for row in rows]

    def names(rows: Rows) -> list[str]:
        return [f"{texts[row]} in {source}" for row in rows]

    return image_examples(images, names, labels, len(files), want, source, preprocess, warnings)


def _walk(root: Path, source: str) -> list[str]:
    """List the files under a folder as POSIX paths; links to folders are followed, each folder once."""
    files: list[str] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else [name for name in sorted(below) if not name.startswith(".")]
        if real not in seen:
            seen.add(real)
            here = Path(folder).relative_to(root)
            files.extend((here / name).as_posix() for name in names)
    return files


def _wanted(name: str) -> bool:
    file = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in file.parts)
    return not hidden and file.suffix.lower() in SUFFIXES


def _labels(
    files: Sequence[PurePosixPath], classes: Sequence[str] | None, source: str
) -> tuple[Labels | None, tuple[str, ...]]:
    """Label images by the folder they lie in; one folder alone tells no classes apart."""
    folders = sorted({file.parent for file in files})
    if len(folders) == 1:
        if classes is not None and folders[0].name in classes:
            return folder_labels([file.parent.name for file in files], classes, source), ()
        return None, ()
    for folder in folders:
        inside = [other for other in folders if folder in other.parents]
        if inside:
            raise DataError(
                f"{source} holds images both in {str(folder)!r} and in its folder {str(inside[0])!r}; "
                "put each image into the folder of its class, or all into one folder"
            )
    warnings: tuple[str, ...] = ()
    names = [folder.name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        parents = sorted({str(folder.parent) for folder in folders if folder.name == twice[0]})
        warnings = (
            f"{source}: class folder {twice[0]!r} lies in {' and in '.join(parents)}; all were taken, "
            "so a training and a test part may be mixed",
        )
    return folder_labels([file.parent.name for file in files], classes, source), warnings
