"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and ImageNet through torchvision, as plain arrays.

``onnxprune.data`` reaches this module by name for ``mnist:ROOT``, ``fashion:ROOT``, ``cifar10:ROOT``,
``cifar100:ROOT`` and ``imagenet:ROOT``; nothing is downloaded unless asked for.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

__all__ = ["CLASS_NAMES", "SPLITS", "Fetch", "open_torchvision"]

Images = list[npt.NDArray[np.uint8]]
Fetch = Callable[[npt.NDArray[np.int64]], Images]

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "mnist": tuple("0123456789"),
    "fashion": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
SPLITS = {
    "mnist": ("train", "test"),
    "fashion": ("train", "test"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "imagenet": ("train", "val"),
}
_READERS = {"mnist": "MNIST", "fashion": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_UNREADABLE = (
    RuntimeError,
    OSError,
    ValueError,
    AssertionError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    zlib.error,
)


def open_torchvision(
    kind: str, root: str | Path, split: str | None = None, download: bool = False
) -> tuple[Fetch, npt.NDArray[np.int64], tuple[str, ...]]:
    """Open a data set that lies in torchvision's own layout under ``root``.

    Args:
        kind: ``mnist``, ``fashion``, ``cifar10``, ``cifar100`` or ``imagenet``.
        root: The folder given to torchvision; ``~`` is expanded.
        split: ``train`` or ``test`` (ImageNet: ``val``); None is all splits, one after the other.
        download: Fetch missing files (not of ImageNet).

    Returns:
        A function from row indices to uint8 images (H,W) or (H,W,3); labels, int64 [n]; class names.

    Raises:
        DataError: If torchvision, the split or the files are missing, or the files are damaged.
    """
    if kind not in SPLITS:
        raise DataError(f"unknown torchvision data {kind!r}: accepted are {', '.join(SPLITS)}")
    accepted = SPLITS[kind]
    if split is not None and split not in accepted:
        raise DataError(f"{kind} has no split {split!r}: accepted are {' and '.join(accepted)}")
    if find_spec("torchvision") is None:
        raise DataError(f'{kind} needs torchvision: pip install "onnxprune[train]"')
    folder = Path(root).expanduser()
    if not folder.is_dir() and not download:
        raise DataError(f"{kind}: the folder {folder} does not exist: name one{_or_download(kind)}")
    opener = _imagenet if kind == "imagenet" else partial(_small, kind)
    return _joined([opener(folder, part, download) for part in ([split] if split else accepted)])


def _small(kind: str, folder: Path, split: str, download: bool) -> tuple[Fetch, npt.NDArray[np.int64], tuple[str, ...]]:
    """Open a set that torchvision reads into memory whole."""
    from torchvision import datasets

    reader = getattr(datasets, _READERS[kind])
    data = _opened(kind, folder, download, lambda: reader(folder, train=split == "train", download=download))
    images, labels = np.asarray(data.data, np.uint8), np.asarray(data.targets, np.int64)
    _check_lengths(kind, folder, len(images), len(labels))
    return _rows_of(images), labels, CLASS_NAMES.get(kind) or tuple(data.classes)


def _imagenet(folder: Path, split: str, download: bool) -> tuple[Fetch, npt.NDArray[np.int64], tuple[str, ...]]:
    from torchvision.datasets import ImageNet

    # torchvision would unpack a missing split from its archive, 150 GB on disk, without asking.
    if not (folder / split).is_dir() and not download:
        raise DataError(
            f"imagenet: the folder {folder / split} does not exist: unpack ILSVRC2012 there as torchvision "
            "lays it out, or put its archives in the root and give --download to have them unpacked"
        )
    data = _opened("imagenet", folder, download, lambda: ImageNet(folder, split=split))

    def fetch(rows: npt.NDArray[np.int64]) -> Images:
        return [_decoded(Path(data.samples[row][0])) for row in rows]

    labels = np.asarray(data.targets, np.int64)
    return fetch, labels, tuple(names[0] for names in data.classes)


def _opened(kind: str, folder: Path, download: bool, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except URLError as error:
        raise DataError(f"{kind}: cannot download to {folder}: {error.reason}") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "" if download else _or_download(kind)
        raise DataError(f"{kind}: no readable data under {folder} ({reason}): name another folder{advice}") from error


def _or_download(kind: str) -> str:
    return "" if kind == "imagenet" else " or give --download"


def _decoded(file: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"imagenet: cannot decode {file}: {error}") from error


def _rows_of(images: npt.NDArray[np.uint8]) -> Fetch:
    return lambda rows: list(images[rows])


def _check_lengths(kind: str, folder: Path, images: int, labels: int) -> None:
    if images != labels or not images:
        raise DataError(
            f"{kind}: the files under {folder} hold {images} images and {labels} labels; both must be equal"
        )


def _joined(
    parts: list[tuple[Fetch, npt.NDArray[np.int64], tuple[str, ...]]],
) -> tuple[Fetch, npt.NDArray[np.int64], tuple[str, ...]]:
    if len(parts) == 1:
        return parts[0]
    (first, head, names), (second, tail, _) = parts

    def fetch(rows: npt.NDArray[np.int64]) -> Images:
        return [(first(np.array([row])) if row < len(head) else second(np.array([row - len(head)])))[0] for row in rows]

    return fetch, np.concatenate([head, tail]), names
