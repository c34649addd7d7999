"""The embedded digits: 1,797 grey 8x8 images of handwritten digits (credit and terms in digits.LICENSE)."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxprune.data.inputs import Array, InputSpec
from onnxprune.data.pixels import CHANNELS, image_side
from onnxprune.data.preprocess import Preprocess
from onnxprune.errors import DataError

CLASSES = tuple("0123456789")
TRAIN_COUNT = 1437  # the first 80 % by index; the remaining 360 are the test set


def load(split: str | None = None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images, uint8 [n,8,8] in 0..255, and labels, int64 [n].

    Args:
        split: ``train`` (the first 1,437), ``test`` (the last 360) or None for all 1,797.

    Raises:
        DataError: another split.
    """
    rows = {None: slice(None), "train": slice(TRAIN_COUNT), "test": slice(TRAIN_COUNT, None)}.get(split)
    if rows is None:
        raise DataError(f"digits has no split {split!r}; accepted are train and test")
    with resources.files("onnxprune.data").joinpath("digits.npz").open("rb") as file:
        stored: Any = np.load(file, allow_pickle=False)
        images, labels = stored["images"][rows], stored["labels"][rows]
    # Stored as the 17 levels of the original; 255/16 per level.
    return np.rint(images * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def prepare(images: npt.NDArray[np.uint8], want: InputSpec, preprocess: Preprocess) -> Array:
    """Return digits as the model wants them: bilinear to its height and width, then normalised.

    Resizing happens in floating point (PIL mode F), so nothing is rounded back to 8 bits, and straight to
    the model's size: ``resize`` and ``crop`` of the preprocessing are not used. Grey is replicated for
    colour inputs.
    """
    depth = CHANNELS[preprocess.channels]
    height, width = (8 if side is None else side for side in image_side(want, preprocess.layout, depth))
    pixels = np.empty((len(images), height, width), np.float32)
    for position, image in enumerate(images.astype(np.float32)):
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        pixels[position] = np.asarray(resized)
    return preprocess.normalise(np.repeat(pixels[..., None], depth, axis=3), want)
