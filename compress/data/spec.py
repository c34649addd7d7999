"""Reading a DATA string: which form it is, where it lies, which split or function it names. Opens nothing."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import DataError

# Sources that come with a training side and a side to judge on, in this order.
NAMED_SPLITS: dict[str, tuple[str, str]] = {
    "digits": ("train", "test"),
    "mnist": ("train", "test"),
    "cifar10": ("train", "test"),
    "imagenet": ("train", "val"),
    "fashion": ("train", "test"),
    "cifar100": ("train", "test"),
    "voxels": ("train", "test"),
}
TORCHVISION = ("mnist", "cifar10", "imagenet", "fashion", "cifar100")
# Named sources that are part of the package or made on the spot: no ROOT.
GENERATED = ("voxels",)
EMBEDDED = ("digits", *GENERATED)
ACCEPTED = (
    "digits[:train|:test], x.npz, x.npy, a folder or .zip of class folders with images, mnist:ROOT[:split], "
    "fashion:ROOT[:split], cifar10:ROOT[:split], cifar100:ROOT[:split], imagenet:ROOT[:split], "
    "voxels[:train|:test], script.py:function, random"
)
_SCRIPT = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)", re.IGNORECASE | re.DOTALL)
_SUFFIXES = {".npz": "npz", ".npy": "npy", ".zip": "zip"}


@dataclass(frozen=True)
class Spec:
    """A parsed DATA string.

    Attributes:
        text: as the user wrote it.
        kind: digits, voxels, random, mnist, fashion, cifar10, cifar100, imagenet, script, npz, npy, zip or folder.
        path: file, folder or root; empty for digits, voxels and random.
        split: the split it names, or None.
        function: the function a script names, or None.
    """

    text: str
    kind: str
    path: str = ""
    split: str | None = None
    function: str | None = None

    @property
    def sides(self) -> tuple[str, str] | None:
        """Return the specs of the training and the judging side, or None where it has or names no splits."""
        if self.split is not None or self.kind not in NAMED_SPLITS:
            return None
        train, test = NAMED_SPLITS[self.kind]
        return f"{self.text}:{train}", f"{self.text}:{test}"


def parse_spec(text: str) -> Spec:
    """Read a DATA string.

    Raises:
        DataError: it has none of the accepted forms, or names a file or folder that does not exist.
    """
    head, colon, rest = text.partition(":")
    if head == "random" and not colon:
        return Spec(text, "random")
    if head in EMBEDDED and (rest or not colon):
        return Spec(text, head, split=_known_split(text, head, rest) if colon else None)
    if head in TORCHVISION and rest:
        root, split = _root_and_split(text, head, rest)
        return Spec(text, head, path=root, split=split)
    if script := _SCRIPT.fullmatch(text):
        return Spec(text, "script", path=script["path"], function=script["name"])
    return _path_spec(text)


def parse_path(path: str) -> Spec:
    """Read a path object: always a file or folder, even where its name is a word such as ``digits``.

    Raises:
        DataError: there is none, or it is of no accepted form.
    """
    return _path_spec(path)


def named_splits(text: str) -> tuple[str, str] | None:
    """Return the training and the judging side of a spec that has named splits and names none.

    ``digits`` gives ``("digits:train", "digits:test")``; ``digits:train``, ``x.npz`` and whatever is no
    DATA string give None.
    """
    try:
        return parse_spec(text).sides
    except DataError:
        return None


def _known_split(text: str, kind: str, split: str) -> str:
    accepted = NAMED_SPLITS[kind]
    if split not in accepted:
        close = difflib.get_close_matches(split, accepted, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"{text!r}: {kind} has no split {split!r}, accepted are {' and '.join(accepted)}{hint}")
    return split


def _root_and_split(text: str, kind: str, rest: str) -> tuple[str, str | None]:
    root, colon, tail = rest.rpartition(":")
    # In C:\data the part behind the colon is a path; a split is a bare word behind a root.
    if not colon or not root or "/" in tail or "\\" in tail:
        return rest, None
    return root, _known_split(text, kind, tail)


def _path_spec(text: str) -> Spec:
    path = Path(text)
    if text.strip() and path.is_dir():
        return Spec(text, "folder", path=text)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in _SUFFIXES:
        return Spec(text, _SUFFIXES[suffix], path=text)
    if path.is_file():
        if suffix == ".py":
            raise DataError(f"{text!r} is a script: name its function, as in {text}:function")
        raise DataError(f"{text!r} is a file of no accepted form; accepted are {ACCEPTED}")
    if suffix in _SUFFIXES or suffix == ".py" or "/" in text or "\\" in text:
        raise DataError(f"no such file or folder: {text!r}; accepted as data are {ACCEPTED}")
    raise _unknown(text)


def _unknown(text: str) -> DataError:
    head = text.partition(":")[0].strip().lower()
    if head in TORCHVISION:
        return DataError(f"{text!r} names no folder: write {head}:ROOT, where ROOT holds the {head} files")
    close = difflib.get_close_matches(head, [*NAMED_SPLITS, "random"], n=1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return DataError(f"unknown data {text!r}{hint} accepted are {ACCEPTED}")
