"""Examples that are made: by a function of the user's, or at random from a seed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxprune.data.arrays import array_examples
from onnxprune.data.examples import Examples, Rows
from onnxprune.data.inputs import Array, InputSpec, shape_text
from onnxprune.data.preprocess import Preprocess
from onnxprune.data.script import function_of, loaded
from onnxprune.data.synthetic import Look, Match, draw, plain_look
from onnxprune.errors import DataError

RANDOM_COUNT = 256
# Bytes of drawn images that one source keeps.
_KEPT = 256 << 20


def open_script(
    path: str, function: str, inputs: Sequence[InputSpec], preprocess: Preprocess | None = None
) -> Examples:
    """Run ``function()`` of a script and keep the batches it yields: dicts of arrays by input name or ``y``.

    Raises:
        DataError: the script or function is missing or fails, or what it yields does not fit.
    """
    source = f"{path}:{function}"
    if not Path(path).is_file():
        raise DataError(f"no such script: {path!r}; script.py:function needs an existing file")
    batches: list[dict[str, Array]] = []
    try:
        with loaded(path) as module:
            for batch in _batches(module, function, source):
                batches.append(_checked(batch, len(batches), batches, source))
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's script raises is told as its failure
        reason = " ".join(str(error).split())
        raise DataError(f"{source} failed with {type(error).__name__}: {reason}") from error
    if not batches:
        raise DataError(f"{source} yielded no batches; at least one example is needed")
    arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return array_examples(arrays, inputs, source, preprocess)


def random_examples(
    inputs: Sequence[InputSpec],
    count: int = RANDOM_COUNT,
    seed: int = 0,
    preprocess: Preprocess | None = None,
    match: Match | None = None,
) -> Examples:
    """Make seeded random examples: images of random shapes, standard normal reals, whole numbers 0..9, or booleans.

    Every row has its own seed, so a row is the same however many are made or fetched. Symbolic dimensions
    other than the batch become 1; those of images with known preprocessing what it says, else 32.

    Args:
        inputs: what the model wants.
        count: how many examples.
        seed: of all of them.
        preprocess: gives the range of pixels, so that images keep to it.
        match: fits images to what is known of the model's first layers.

    Raises:
        DataError: an input's element type has no random form.
    """
    for want in inputs:
        if not (want.floating or want.dtype.kind in "iub"):
            raise DataError(f"random cannot make {want.dtype} for input {want.name!r}; give data for this model")
    warnings = ["inputs are random numbers: nothing measured on them says how the model does on real data"]
    looks: dict[str, Look] = {}
    for want in inputs:
        look = plain_look(want, preprocess, alone=len(inputs) == 1)
        if look is not None:
            looks[want.name] = look = look if match is None else match(want.name, look)
            warnings.append(f"random: images of random shapes for input {want.name!r} {look.told}")
        loose = [side for side in want.shape[1:] if not isinstance(side, int)]
        if loose:
            each = "each was set to 1" if look is None else f"examples have shape {shape_text(look.canvas.shape)}"
            warnings.append(f"random: input {want.name!r} has free dimensions {shape_text(loose)}, {each}")
    fetch = functools.partial(_random_rows, tuple(inputs), looks, {}, seed)
    return Examples("random", count, None, fetch, synthetic=True, warnings=tuple(warnings))


def _random_rows(
    inputs: Sequence[InputSpec],
    looks: Mapping[str, Look],
    drawn: dict[tuple[str, int], Array],
    seed: int,
    rows: Rows,
) -> dict[str, Array]:
    """Make these rows; images, which take long, are kept in ``drawn`` as far as memory is given to them."""
    arrays: dict[str, Array] = {}
    for position, want in enumerate(inputs):
        look = looks.get(want.name)
        sides = tuple(side if isinstance(side, int) else 1 for side in want.shape[1:])
        stacked = np.empty((len(rows), *(sides if look is None else look.canvas.shape)), want.dtype)
        for place, row in enumerate(rows):
            key = (want.name, int(row))
            if key in drawn:
                stacked[place] = drawn[key]
                continue
            rng = np.random.default_rng([seed, position, int(row)])
            stacked[place] = _draw(rng, want, look, sides)
            if look is not None and (len(drawn) + 1) * stacked[place].nbytes <= _KEPT:
                drawn[key] = stacked[place].copy()
        arrays[want.name] = stacked
    return arrays


def _draw(rng: np.random.Generator, want: InputSpec, look: Look | None, shape: tuple[int, ...]) -> Array:
    if look is not None:
        return draw(look, rng).astype(want.dtype)
    if want.floating:
        return rng.standard_normal(shape, dtype=np.float32).astype(want.dtype)
    return rng.integers(0, 2 if want.dtype.kind == "b" else 10, size=shape).astype(want.dtype)


def _batches(module: ModuleType, function: str, source: str) -> Iterable[Any]:
    made = function_of(module, function, source)()
    if isinstance(made, Mapping):
        return [made]
    if not isinstance(made, Iterable):
        raise DataError(f"{source} returned {type(made).__name__}; it must yield dicts of named arrays")
    return made


def _checked(batch: Any, position: int, before: Sequence[Mapping[str, Array]], source: str) -> dict[str, Array]:
    if not isinstance(batch, Mapping):
        raise DataError(f"{source}: batch {position} is {type(batch).__name__}; it must be a dict of named arrays")
    arrays = {str(name): np.asarray(value) for name, value in batch.items()}
    for name, array in arrays.items():
        if not array.ndim or array.dtype.hasobject:
            raise DataError(f"{source}: {name!r} in batch {position} is no array with examples on axis 0")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{source}: arrays of batch {position} differ in their number of examples: {counts}")
    if before and arrays.keys() != before[0].keys():
        raise DataError(
            f"{source}: batch {position} has arrays {sorted(arrays)}, batch 0 has {sorted(before[0])}; "
            "all must have the same"
        )
    for name, array in arrays.items():
        if before and array.shape[1:] != before[0][name].shape[1:]:
            raise DataError(
                f"{source}: {name!r} has shape {shape_text(('n', *array.shape[1:]))} in batch {position} "
                f"and {shape_text(('n', *before[0][name].shape[1:]))} in batch 0; all must have the same"
            )
    return arrays
