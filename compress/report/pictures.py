"""Small pictures of examples for a report's gallery: model inputs turned back into pixels, as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.data import Examples, Preprocess
from onnxprune.report.report import Report

SIDE = 80
"""The longest side of a picture, in pixels."""

_DEPTHS = {"RGB": 3, "BGR": 3, "L": 1}
_SMALLEST = 4
# How far outside 0..255 an array may lead and still be taken for preprocessed pixels.
_SLACK = 8.0

Pixels = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Where a report's flips can be looked at: the evaluation examples, and how they were preprocessed, if known."""

    examples: Examples
    preprocess: Preprocess | None = None

    def of(self, report: Report) -> dict[int, str]:
        """Return PNG data URIs by the flips' index; empty where the examples are made up, or no images."""
        if report.agreement is None or self.examples.synthetic:
            return {}
        found = {}
        for flip in report.agreement.flips.examples:
            place = self._place(flip.index)
            arrays = {} if place is None else self.examples.fetch(np.array([place], dtype=np.int64))
            uri = picture(arrays, self.preprocess)
            if uri is not None:
                found[flip.index] = uri
        return found

    def _place(self, index: int) -> int | None:
        if self.examples.origin is None:
            return index if index < self.examples.count else None
        places = np.flatnonzero(self.examples.origin == index)
        return int(places[0]) if len(places) else None


def picture(arrays: Mapping[str, NDArray[np.generic]], preprocess: Preprocess | None) -> str | None:
    """Return the first array that holds an image, one example [1, ...], as a PNG data URI; None where none does.

    Without preprocessing, or where undoing it leads far outside 0..255, the range of the array becomes black to white.
    """
    for array in arrays.values():
        laid = _laid_out(array, preprocess)
        if laid is not None and bool(np.isfinite(laid).all()):
            return _uri(_pixels(laid, array.dtype, preprocess))
    return None


def _laid_out(array: NDArray[np.generic], preprocess: Preprocess | None) -> Pixels | None:
    """Return one example as (H, W, C), C 1 or 3, or None where it is no image."""
    if array.dtype.kind not in "iuf":
        return None
    values = np.asarray(array[0], dtype=np.float64)
    if preprocess is not None and values.ndim < 3:
        depth = _DEPTHS[preprocess.channels]
        side = math.isqrt(values.size // depth)
        if values.ndim == 2 and depth == 1:
            values = values[None]
        elif values.ndim == 1 and side * side * depth == values.size:
            values = values.reshape((depth, side, side) if preprocess.layout == "NCHW" else (side, side, depth))
            return _sized(values.transpose(1, 2, 0) if preprocess.layout == "NCHW" else values)
    if values.ndim != 3:
        return None
    first = values.shape[0] in (1, 3)
    if preprocess is not None and preprocess.layout == "NHWC" and values.shape[2] in (1, 3):
        first = False
    if first:
        values = values.transpose(1, 2, 0)
    return _sized(values)


def _sized(values: Pixels) -> Pixels | None:
    return values if values.shape[2] in (1, 3) and min(values.shape[:2]) >= _SMALLEST else None


def _pixels(laid: Pixels, dtype: np.dtype[np.generic], preprocess: Preprocess | None) -> NDArray[np.uint8]:
    if preprocess is not None and len(preprocess.mean) in (1, laid.shape[2]):
        raw = (laid * np.array(preprocess.std) + np.array(preprocess.mean)) / preprocess.scale
        if raw.ndim == 3 and raw.shape == laid.shape and raw.min() >= -_SLACK and raw.max() <= 255 + _SLACK:
            if preprocess.channels == "BGR":
                raw = raw[:, :, ::-1]
            return np.asarray(np.rint(np.clip(raw, 0, 255)), dtype=np.uint8)
    if dtype == np.uint8:
        return laid.astype(np.uint8)
    low, high = float(laid.min()), float(laid.max())
    spread = high - low
    return np.rint((laid - low) * (255 / spread if spread > 0 else 0.0)).astype(np.uint8)


def _uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    shown = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
