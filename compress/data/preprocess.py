"""From pixels to model input: x = (pixel * scale - mean) / std, with channel order, layout and size."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.data.inputs import Array, InputSpec, shape_text
from onnxprune.data.pixels import CHANNELS, image_side, shape_image
from onnxprune.errors import DataError, OptionError

LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Preprocess:
    """How pixels 0..255 become model input: ``x = (pixel * scale - mean) / std``.

    Attributes:
        scale: factor on the pixels, 1/255 by default.
        mean: one value, or one per channel in the order of ``channels``.
        std: as ``mean``; positive.
        channels: ``RGB``, ``BGR`` or ``L`` (grey); images of another kind are converted.
        layout: ``NCHW`` or ``NHWC``.
        resize: length of the shorter side after bilinear resizing, None to leave images as they are.
        crop: side of the centred square cut out after resizing, None for no cropping.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    resize: int | None = None
    crop: int | None = None

    def __post_init__(self) -> None:
        _one_of("channels", self.channels, tuple(CHANNELS))
        _one_of("layout", self.layout, LAYOUTS)
        object.__setattr__(self, "scale", _number("scale", self.scale, positive=True))
        depth = CHANNELS[self.channels]
        object.__setattr__(self, "mean", _numbers("mean", self.mean, depth, positive=False))
        object.__setattr__(self, "std", _numbers("std", self.std, depth, positive=True))
        _side("resize", self.resize)
        _side("crop", self.crop)
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise OptionError(
                f"preprocessing: crop is {self.crop}, it must be at most {self.resize}, the value of resize"
            )

    @classmethod
    def from_json(cls, text: str, where: str = "metadata onnxprune.preprocess") -> Preprocess:
        """Read the JSON form, as a model's metadata carries it; fields left out take their defaults.

        Raises:
            DataError: not JSON, an unknown field, or a value out of range.
        """
        try:
            return cls._from_document(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON ({error})") from error
        except OptionError as error:
            raise DataError(f"{where}: {error}") from error

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Preprocess:
        """Read a YAML or JSON file (``--preprocess``); fields left out take their defaults.

        Raises:
            OptionError: the file is missing or unreadable, has an unknown field, or a value out of range.
        """
        import yaml

        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
            document = json.loads(text) if file.suffix.lower() == ".json" else yaml.safe_load(text)
            return cls._from_document(document)
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{file}: cannot read the preprocessing file ({error})") from error
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise OptionError(f"{file}: not valid YAML or JSON ({reason})") from error
        except OptionError as error:
            raise OptionError(f"{file}: {error}") from error

    @classmethod
    def plain(cls, want: InputSpec) -> Preprocess:
        """Guess for an image input of which nothing is known: pixels / 255, or as they are for integers."""
        last = want.shape[-1] if len(want.shape) == 4 else None
        first = want.shape[1] if len(want.shape) == 4 else None
        layout = "NHWC" if first not in (1, 3) and last in (1, 3) else "NCHW"
        depth = last if layout == "NHWC" else first
        grey = depth == 1 or (len(want.shape) != 4 and not _colour_sized(want))
        return cls(scale=1 / 255 if want.floating else 1.0, channels="L" if grey else "RGB", layout=layout)

    def to_json(self) -> str:
        """Return the canonical JSON: scale, mean, std, channels, layout, resize, crop in this order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({name: list(v) if isinstance(v, tuple) else v for name, v in values.items()})

    def apply(self, images: Sequence[Array] | Array, want: InputSpec, *, names: Sequence[str] = ()) -> Array:
        """Return the batch the model wants, made of uint8 images (H,W) or (H,W,C) with 1 or 3 channels.

        Args:
            images: one array per image, or images of one size stacked on axis 0.
            want: the model's input.
            names: what to call each image in errors, ``image 0`` and so on by default.

        Raises:
            DataError: an image is no uint8 image, or its size or channels do not fit the input.
        """
        pixels = []
        for position, image in enumerate(images):
            name = names[position] if names else f"image {position}"
            pixels.append(shape_image(image, self.channels, self.resize, self.crop, name))
            _check_size(pixels[-1].shape[:2], self, want, name)
            if pixels[-1].shape != pixels[0].shape:
                raise DataError(
                    f"{name} is {_size(pixels[-1])}, but another image of the batch is {_size(pixels[0])}: "
                    "give resize and crop in --preprocess"
                )
        if not pixels:
            raise DataError(f"no images to preprocess for input {want.name!r}")
        return self.normalise(np.stack(pixels), want)

    def normalise(self, pixels: Array, want: InputSpec) -> Array:
        """Scale, centre and lay out pixels (n,H,W,C) in the order of ``channels``, in the input's type.

        Sizes are left alone. Inputs of rank 4 get the layout; (n,H,W) and (n,features) get it reshaped.

        Raises:
            DataError: the result does not fit the input.
        """
        work = np.float64 if want.dtype == np.float64 else np.float32
        centred = pixels.astype(work) * np.asarray(self.scale, work) - np.asarray(self.mean, work)
        batch: Array = centred / np.asarray(self.std, work)
        if self.layout == "NCHW":
            batch = batch.transpose(0, 3, 1, 2)
        return _cast(_reshape(batch, self, want), want)

    @classmethod
    def _from_document(cls, document: object) -> Preprocess:
        if not isinstance(document, Mapping):
            raise OptionError(f"preprocessing must be a mapping of fields, not {document!r}")
        known = [field.name for field in fields(cls)]
        for name in document:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise OptionError(f"preprocessing: unknown field {name!r}, accepted are {', '.join(known)}{hint}")
        return cls(**document)


def _colour_sized(want: InputSpec) -> bool:
    """Tell whether a flat input is three square planes and not one."""
    features = want.shape[1] if len(want.shape) == 2 else None
    if not isinstance(features, int) or math.isqrt(features) ** 2 == features:
        return False
    return features % 3 == 0 and math.isqrt(features // 3) ** 2 == features // 3


def _size(pixels: Array) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"


def _check_size(size: tuple[int, ...], preprocess: Preprocess, want: InputSpec, name: str) -> None:
    if len(want.shape) == 2:  # flat: only the number of pixels counts, and _reshape checks it
        return
    height, width = image_side(want, preprocess.layout, CHANNELS[preprocess.channels])
    if height in (None, size[0]) and width in (None, size[1]):
        return
    hint = "give resize in --preprocess"
    if preprocess.resize is not None:
        done = f"resize {preprocess.resize}" + (f" and crop {preprocess.crop}" if preprocess.crop else "")
        hint = f"that is after {done}; change them in --preprocess"
    wanted = f"{'?' if height is None else height}x{'?' if width is None else width}"
    raise DataError(f"{name} is {size[0]}x{size[1]}; input {want.name!r} wants {wanted}: {hint}")


def _reshape(batch: Array, preprocess: Preprocess, want: InputSpec) -> Array:
    """Fit a laid-out batch of rank 4 to the rank of the input."""
    depth_axis = 1 if preprocess.layout == "NCHW" else 3
    if len(want.shape) == 3 and batch.shape[depth_axis] == 1:
        batch = batch.squeeze(depth_axis)
    elif len(want.shape) == 2:
        batch = batch.reshape(len(batch), -1)
    pairs = zip(batch.shape[1:], want.shape[1:], strict=False)
    if batch.ndim != len(want.shape) or any(isinstance(w, int) and w != got for got, w in pairs):
        raise DataError(
            f"preprocessed images have shape {shape_text(('n', *batch.shape[1:]))}; "
            f"input {want.name!r} wants {want.describe()}: change channels ({preprocess.channels}), "
            f"layout ({preprocess.layout}) or resize in --preprocess"
        )
    return batch


def _cast(batch: Array, want: InputSpec) -> Array:
    if want.dtype.kind in "iu":
        room = np.iinfo(want.dtype)
        batch = np.clip(np.rint(batch), room.min, room.max)
    elif not want.floating:
        raise DataError(f"input {want.name!r} wants {want.dtype}; images can only feed numbers")
    return np.ascontiguousarray(batch.astype(want.dtype, copy=False))


def _one_of(field: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise OptionError(f"preprocessing: {field} is {value!r}, accepted are {', '.join(accepted)}")


def _number(field: str, value: Any, *, positive: bool) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not abs(value) <= sys.float_info.max or (positive and value <= 0):
        kind = "positive finite number" if positive else "finite number"
        raise OptionError(f"preprocessing: {field} is {value!r}, it must be a {kind}")
    return float(value)


def _numbers(field: str, values: Any, depth: int, *, positive: bool) -> tuple[float, ...]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, (Sequence, np.ndarray)):
        raise OptionError(f"preprocessing: {field} is {values!r}, it must be a list of numbers")
    if len(values) not in (1, depth):
        wanted = "1 number" if depth == 1 else f"1 or {depth} numbers, one per channel"
        raise OptionError(f"preprocessing: {field} has {len(values)} numbers, it must have {wanted}")
    return tuple(_number(field, value, positive=positive) for value in values)


def _side(field: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
        raise OptionError(f"preprocessing: {field} is {value!r}, it must be a whole number of pixels or null")
