"""Opening DATA: from a spec, a path or arrays in memory to Examples that fit the model."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.data import digits
from onnxprune.data.arrays import array_examples, open_npy, open_npz
from onnxprune.data.examples import Examples, Rows
from onnxprune.data.generated import RANDOM_COUNT, open_script, random_examples
from onnxprune.data.images import image_examples, known_or_plain, open_folder, open_zip
from onnxprune.data.inputs import Array, InputSpec, check_inputs, check_shape, only_input
from onnxprune.data.labels import Labels, align_labels
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.spec import NAMED_SPLITS, Spec, parse_path, parse_spec
from onnxprune.data.synthetic import Match
from onnxprune.data.voxels import open_voxels
from onnxprune.errors import DataError, OptionError

DataLike: TypeAlias = "str | os.PathLike[str] | npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | Examples"

# Reached by name so that the deploy side neither imports nor needs torch: module and function.
_TORCHVISION = ("onnxprune.models.datasets", "open_torchvision")


def open_data(
    spec: DataLike,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    download: bool = False,
    examples: int | None = None,
    match: Match | None = None,
) -> Examples:
    """Open any DATA form for a model with these inputs.

    Args:
        spec: a DATA string, a path, an array for the only input, arrays by name, or Examples as they are.
        inputs: what the model wants.
        preprocess: how pixels become input; None guesses pixels / 255 for images, with a warning.
        classes: class names in the order of the model's outputs.
        seed: seed of ``random``, and of the draw where ``examples`` asks for fewer than there are.
        download: allow ``mnist: fashion: cifar10: cifar100: imagenet:`` to fetch what is missing.
        examples: at most this many, drawn at random; for ``random`` how many to make (default 256).
        match: for ``random``: fits images to what is known of the model's first layers.

    Raises:
        OptionError: ``seed`` is negative or ``examples`` is not positive.
        DataError: the data is missing or broken, or does not fit the model.
    """
    if seed < 0:
        raise OptionError(f"seed is {seed}, it must not be negative")
    if examples is not None and examples <= 0:
        raise OptionError(f"the number of examples is {examples}, it must be at least 1")
    check_inputs(inputs)
    if isinstance(spec, Examples):
        _check_examples(spec, inputs)
        opened = spec
    elif isinstance(spec, np.ndarray):
        want = only_input(inputs, "array in memory", "a single array")
        opened = array_examples({want.name: spec}, inputs, "array in memory", preprocess)
    elif isinstance(spec, Mapping):
        arrays = {name: np.asarray(array) for name, array in spec.items()}
        opened = array_examples(arrays, inputs, "arrays in memory", preprocess)
    else:
        parsed = parse_spec(spec) if isinstance(spec, str) else parse_path(os.fspath(spec))
        if parsed.kind == "random":
            return random_examples(inputs, examples or RANDOM_COUNT, seed, preprocess, match)
        opened = _open_spec(parsed, inputs, preprocess, classes, download)
    if examples is not None and examples < opened.count:
        opened = opened.take(np.random.default_rng(seed).permutation(opened.count)[:examples])
    return opened


def _open_spec(
    spec: Spec,
    inputs: Sequence[InputSpec],
    preprocess: Preprocess | None,
    classes: Sequence[str] | None,
    download: bool,
) -> Examples:
    match spec.kind:
        case "voxels":
            return open_voxels(spec.split, only_input(inputs, spec.text, "voxels"), spec.text)
        case "npz":
            return open_npz(spec.path, inputs, spec.text, preprocess)
        case "npy":
            return open_npy(spec.path, inputs, spec.text, preprocess)
        case "script":
            return open_script(spec.path, spec.function or "", inputs, preprocess)
    want = only_input(inputs, spec.text, "image data")
    match spec.kind:
        case "folder":
            return open_folder(spec.path, want, spec.text, preprocess, classes)
        case "zip":
            return open_zip(spec.path, want, spec.text, preprocess, classes)
        case "digits":
            return _open_digits(spec, want, preprocess, classes)
        case _:
            return _open_torchvision(spec, want, preprocess, classes, download)


def _check_examples(examples: Examples, inputs: Sequence[InputSpec]) -> None:
    """Check on one example that the caller's Examples feed this model."""
    arrays = examples.fetch(np.zeros(1, np.int64))
    for want in inputs:
        if want.name not in arrays:
            has = ", ".join(repr(name) for name in arrays)
            raise DataError(f"{examples.source} has arrays {has}, but none for input {want.name!r}")
        array = arrays[want.name]
        check_shape(array, want, want.name, examples.source)
        if array.dtype != want.dtype and want.dtype.kind not in "OUST":
            raise DataError(f"{want.name!r} in {examples.source} holds {array.dtype}; the model wants {want.dtype}")


def _open_digits(spec: Spec, want: InputSpec, preprocess: Preprocess | None, classes: Sequence[str] | None) -> Examples:
    images, labels = digits.load(spec.split)
    used, warnings = known_or_plain(spec.text, want, preprocess)
    fetch = functools.partial(_digit_rows, images, want, used)
    fetch(np.zeros(1, np.int64))
    return Examples(spec.text, len(images), align_labels(labels, digits.CLASSES, classes), fetch, warnings=warnings)


def _digit_rows(images: npt.NDArray[np.uint8], want: InputSpec, preprocess: Preprocess, rows: Rows) -> dict[str, Array]:
    return {want.name: digits.prepare(images[rows], want, preprocess)}


def _open_torchvision(
    spec: Spec,
    want: InputSpec,
    preprocess: Preprocess | None,
    classes: Sequence[str] | None,
    download: bool,
) -> Examples:
    splits = NAMED_SPLITS[spec.kind] if spec.split is None else (spec.split,)
    parts = [_torchvision_part(spec.kind, spec.path, split, download) for split in splits]
    starts = np.cumsum([0, *(len(labels) for _, labels, _ in parts)])
    fetchers = [images for images, _, _ in parts]
    labels = np.concatenate([align_labels(labels, names, classes) for _, labels, names in parts])
    images = functools.partial(_joined, fetchers, starts)
    return image_examples(images, _row_names(spec.text), labels, len(labels), want, spec.text, preprocess)


def _torchvision_part(
    kind: str, root: str, split: str, download: bool
) -> tuple[Callable[[Rows], list[Array]], Labels, Sequence[str]]:
    module, function = _TORCHVISION
    try:
        maker = getattr(importlib.import_module(module), function)
        images, labels, names = maker(kind, root, split, download)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "torchvision"):
            raise
        raise DataError(f'{kind}: is read by torchvision, which is missing: pip install "onnxprune[train]"') from error
    return images, np.asarray(labels, dtype=np.int64), names


def _joined(fetchers: Sequence[Callable[[Rows], list[Array]]], starts: Rows, rows: Rows) -> list[Array]:
    """Fetch rows numbered through several parts, in the order asked for."""
    images: dict[int, Array] = {}
    for part, fetch in enumerate(fetchers):
        places = np.flatnonzero((rows >= starts[part]) & (rows < starts[part + 1]))
        if places.size:
            images.update(zip(places.tolist(), fetch(rows[places] - starts[part]), strict=True))
    return [images[place] for place in range(len(rows))]


def _row_names(source: str) -> Callable[[Rows], list[str]]:
    return lambda rows: [f"image {row} of {source}" for row in rows]
