"""One image: to the channels wanted, to size, and what size an input wants."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from onnxprune.data.inputs import Array, InputSpec, shape_text
from onnxprune.errors import DataError

CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


def shape_image(image: Array, channels: str, resize: int | None, crop: int | None, name: str) -> Array:
    """Return a uint8 image as (H,W,C) in these channels, resized and cropped.

    Args:
        image: uint8 of shape (H,W), (H,W,1) or (H,W,3) in RGB order.
        channels: RGB, BGR or L; colour becomes grey by ITU-R 601-2 luma, grey is replicated to colour.
        resize: length of the shorter side after bilinear resizing, or None.
        crop: side of the centred square cut out then, or None.
        name: what to call the image in errors.

    Raises:
        DataError: the array is no image, or too small to crop.
    """
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    flat = pixels.ndim == 2
    if pixels.dtype != np.uint8 or not (flat or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise DataError(
            f"{name} is {pixels.dtype} of shape {shape_text(pixels.shape)}; "
            "an image is uint8 of shape (H,W), (H,W,1) or (H,W,3)"
        )
    grey = channels == "L"
    if grey != flat or resize is not None:
        picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("L" if grey else "RGB")
        pixels = np.asarray(_shorter_side(picture, resize))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if crop is not None:
        pixels = _centre(pixels, crop, name)
    return pixels[:, :, ::-1] if channels == "BGR" else pixels


def image_side(want: InputSpec, layout: str, depth: int) -> tuple[int | None, int | None]:
    """Return height and width of the images an input wants, None where it does not say."""
    shape = want.shape
    if len(shape) == 4:
        sides = shape[2:4] if layout == "NCHW" else shape[1:3]
    elif len(shape) == 3:
        sides = shape[1:3]
    elif len(shape) == 2 and isinstance(shape[1], int):
        side = math.isqrt(shape[1] // depth)
        sides = (side, side) if side * side * depth == shape[1] else (None, None)
    else:
        sides = (None, None)
    height, width = (side if isinstance(side, int) else None for side in sides)
    return height, width


def _shorter_side(picture: Image.Image, side: int | None) -> Image.Image:
    width, height = picture.size
    if side is None or min(width, height) == side:
        return picture
    # The longer side is rounded down, as torchvision's Resize does.
    short, long = min(width, height), max(width, height)
    longer = max(side, side * long // short)
    size = (side, longer) if width <= height else (longer, side)
    return picture.resize(size, Image.Resampling.BILINEAR)


def _centre(pixels: Array, crop: int, name: str) -> Array:
    height, width = pixels.shape[:2]
    if crop > min(height, width):
        raise DataError(f"{name} is {height}x{width}, too small to crop to {crop}x{crop}: give resize in --preprocess")
    top, left = round((height - crop) / 2), round((width - crop) / 2)
    return pixels[top : top + crop, left : left + crop]
