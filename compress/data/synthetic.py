"""Random images of shapes that cover one another: what a synthetic input looks like, and how one is drawn.

Natural images are smooth within things and jump between them. Flat shapes of all sizes that hide one another (the
dead leaves model: Lee, Mumford and Huang, 2001) have both, and with them a spectrum near 1/f; noise with the same
spectrum has no edges, and networks answer to it otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.data.inputs import Array, InputSpec
from onnxprune.data.pixels import CHANNELS
from onnxprune.data.preprocess import Preprocess

# Shares of the variance of every colour axis before anything is known of the model.
_SHARES = {1: (1.0,), 3: (0.92, 0.06, 0.02), 4: (0.88, 0.04, 0.04, 0.04)}
# How much of a pixel is the mean of its surroundings, before anything is known of the model.
_SOFTNESS = 0.5
_SHORTEST = 8
# Where neither the model nor its preprocessing says how large images are.
_FREE_SIDE = 32
_SHAPES = 40
# The smallest shapes have this share of the longer side as their radius.
_SMALLEST = 1 / 20
# Pixels of natural images spread over about a quarter of their range; what is normalised lies between these.
_SPREAD, _NORMALISED = 1 / 4, (0.08, 0.4)


@dataclass(frozen=True)
class Canvas:
    """Where the image lies in one example: ``shape`` of the example, and the image's layout, channels and sides."""

    shape: tuple[int, ...]
    layout: str
    channels: int
    height: int
    width: int

    def place(self, planes: Array) -> Array:
        """Return images [n, channels, height, width] as examples [n, *shape]."""
        laid = np.moveaxis(planes, 1, -1) if self.layout == "NHWC" else planes
        return laid.reshape(len(planes), *self.shape)


@dataclass(frozen=True)
class Look:
    """How synthetic images of one input are drawn.

    Every shape has one random colour: along each axis of :func:`colour_axes` an amplitude of ``colours`` times a
    normal number. ``softness`` in [0, 1] blurs the edges. Channel c is then ``offset[c] + gain[c] * image[c]``,
    clipped to [low[c], high[c]]. ``told`` says for the report where the figures are from.
    """

    canvas: Canvas
    colours: tuple[float, ...]
    softness: float
    gain: tuple[float, ...]
    offset: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    told: str


Match = Callable[[str, Look], Look]
"""Fits the look of the input of that name to what the model says of its first layers."""


def plain_look(want: InputSpec, preprocess: Preprocess | None, alone: bool) -> Look | None:
    """Return the look of an input of which only shape and preprocessing are known, or None where it is no image.

    Args:
        want: the input; images are real numbers of rank 4 with 1, 3 or 4 channels and sides of at least 8, and what
            ``preprocess`` lays out otherwise.
        preprocess: gives the range of pixels, their layout and size.
        alone: the model has no other input; free sides are the preprocessing's then, or 32.
    """
    canvas = _canvas(want, preprocess, alone) if want.floating else None
    if canvas is None:
        return None
    count = canvas.channels
    known = preprocess if preprocess is not None and CHANNELS[preprocess.channels] == count else None
    colours = tuple(math.sqrt(share) for share in _SHARES[count])
    if known is None:
        told = "have mean 0 and variance 1: the model tells nothing of its inputs"
        return Look(canvas, colours, _SOFTNESS, (1.0,) * count, (0.0,) * count, None, None, told)
    mean, std = np.broadcast_to(known.mean, count), np.broadcast_to(known.std, count)
    low, high = (0 - mean) / std, (255 * known.scale - mean) / std
    least, most = (share * (high - low) for share in _NORMALISED)
    # A mean or a deviation that was divided out is the data's own.
    gain = np.where((least <= 1) & (most >= 1), 1.0, _SPREAD * (high - low))
    offset = np.where((mean != 0) & (low < 0) & (high > 0), 0.0, (low + high) / 2)
    told = "keep to the range of pixels that preprocessing gives: the model keeps no statistics of its first layer"
    return Look(canvas, colours, _SOFTNESS, _tuple(gain), _tuple(offset), _tuple(low), _tuple(high), told)


def draw(look: Look, rng: np.random.Generator) -> Array:
    """Draw one example, of the shape of the look's canvas, in float64."""
    layers = softened(shapes(look.canvas, rng), look.softness)
    image = np.tensordot(colour_axes(look.canvas.channels).T * look.colours, layers, 1)
    gain, offset = (np.asarray(values)[:, None, None] for values in (look.gain, look.offset))
    image = offset + gain * image
    if look.low is not None and look.high is not None:
        image = np.clip(image, np.asarray(look.low)[:, None, None], np.asarray(look.high)[:, None, None])
    example: Array = look.canvas.place(image[None])[0]
    return example


def colour_axes(channels: int) -> Array:
    """Return orthogonal axes [axes, channels], each of length ``sqrt(channels)``, the first one brightness.

    They are the cosine transform's; of three channels that is brightness, the first against the last, and the middle
    against both, along which the colours of natural images hardly correlate (Ohta, Kanade and Sakai, 1980).
    """
    places = np.arange(channels)
    axes = np.cos(math.pi * places[:, None] * (places[None] + 0.5) / channels)
    return np.asarray(axes * math.sqrt(channels) / np.linalg.norm(axes, axis=1, keepdims=True))


def shapes(canvas: Canvas, rng: np.random.Generator) -> Array:
    """Paint flat ellipses over one another, the largest first: one layer per colour axis [channels, height, width].

    Radii have a density of 1 / r^3 between a twentieth of the longer side and the whole. Every layer has mean 0 and
    variance 1 over all draws, and no two are correlated.
    """
    height, width = canvas.height, canvas.width
    longer = max(height, width)
    smallest = max(1.0, _SMALLEST * longer)
    radii = np.sort((smallest**-2 + (longer**-2.0 - smallest**-2) * rng.random(_SHAPES)) ** -0.5)[::-1]
    places = rng.random((_SHAPES, 2)) * (np.array([height, width]) + 2 * smallest) - smallest
    angles, ratios = rng.uniform(0, math.pi, _SHAPES), rng.uniform(0.4, 1.0, _SHAPES)
    colours = rng.standard_normal((_SHAPES + 1, canvas.channels))
    layers = np.empty((canvas.channels, height, width))
    layers[:] = colours[0][:, None, None]
    for (y, x), r, angle, ratio, colour in zip(places, radii, angles, ratios, colours[1:], strict=True):
        top, left = max(0, math.ceil(y - r)), max(0, math.ceil(x - r))
        down = np.arange(top, min(height, math.floor(y + r) + 1))[:, None] - y
        along = np.arange(left, min(width, math.floor(x + r) + 1))[None] - x
        cos, sin = math.cos(angle), math.sin(angle)
        inside = (along * cos + down * sin) ** 2 + ((down * cos - along * sin) / ratio) ** 2 < r * r
        layers[:, top : top + inside.shape[0], left : left + inside.shape[1]][:, inside] = colour[:, None]
    return layers


def softened(layers: Array, softness: float) -> Array:
    """Return layers [..., height, width] of which each pixel is, to this share, a mean of the 3 x 3 around it.

    The mean is weighted 1, 2, 1 along both sides.
    """
    around = np.pad(layers, [(0, 0)] * (layers.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    around = (around[..., :-2, :] + 2 * around[..., 1:-1, :] + around[..., 2:, :]) / 4
    around = (around[..., :-2] + 2 * around[..., 1:-1] + around[..., 2:]) / 4
    return np.asarray((1 - softness) * layers + softness * around)


def _canvas(want: InputSpec, preprocess: Preprocess | None, alone: bool) -> Canvas | None:
    shape = want.shape[1:]
    layout = "NCHW" if preprocess is None else preprocess.layout
    depth: int | str | None = 0 if preprocess is None else CHANNELS[preprocess.channels]
    plane: tuple[int | str | None, ...] = ()
    if len(shape) == 3:
        found = _layout(shape, preprocess)
        layout, depth, plane = found, *((shape[0], shape[1:]) if found == "NCHW" else (shape[2], shape[:2]))
        if preprocess is not None and alone:
            plane = tuple(_side(side, preprocess) for side in plane)
    elif len(shape) == 2 and depth == 1:
        plane = shape
    elif len(shape) == 1 and isinstance(shape[0], int) and isinstance(depth, int) and depth:
        side = math.isqrt(shape[0] // depth)
        plane = (side, side) if side * side * depth == shape[0] else ()
    sides = [side for side in plane if isinstance(side, int) and side >= _SHORTEST]
    if len(sides) < 2 or not isinstance(depth, int) or depth not in _SHARES:
        return None
    height, width = sides
    whole = {1: (depth * height * width,), 2: (height, width)}
    laid = (depth, height, width) if layout == "NCHW" else (height, width, depth)
    return Canvas(whole.get(len(shape), laid), layout, depth, height, width)


def _layout(shape: tuple[int | str | None, ...], preprocess: Preprocess | None) -> str:
    """Return which axis carries the channels: what the preprocessing says, unless their number shows otherwise."""
    first, last = shape[0] in _SHARES, shape[2] in _SHARES
    if preprocess is not None and (first, last)[preprocess.layout == "NHWC"]:
        return preprocess.layout
    return "NHWC" if last and not first else "NCHW"


def _side(side: int | str | None, preprocess: Preprocess) -> int:
    sizes = (side, preprocess.crop, preprocess.resize)
    return next((size for size in sizes if isinstance(size, int)), _FREE_SIDE)


def _tuple(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
