"""What models that are timed side by side are fed: common inputs, batch sizes, real or random examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.api.opening import Loaded
from onnxprune.api.options import Options
from onnxprune.data import DataLike, Examples, InputSpec, open_data
from onnxprune.data.generated import random_examples
from onnxprune.data.inputs import check_inputs, shape_text
from onnxprune.errors import BackendError, ModelError, OptionError
from onnxprune.runtime.session import input_specs


def common_inputs(loaded: Sequence[Loaded]) -> list[InputSpec]:
    """Return what every model can be fed: the first model's inputs, free sizes fixed where another fixes them.

    Raises:
        ModelError: A model has other inputs than the first.
        DataError: The models have no inputs that examples could fill.
    """
    first = loaded[0]
    common = {want.name: want for want in input_specs(first.model)}
    check_inputs(list(common.values()))
    for other in loaded[1:]:
        found = {want.name: want for want in input_specs(other.model)}
        if found.keys() != common.keys():
            names = (", ".join(side) or "none" for side in (found, common))
            raise _other_inputs(other, first, " against ".join(names))
        for name, want in common.items():
            common[name] = _merged(want, found[name], other, first)
    return list(common.values())


def _merged(want: InputSpec, found: InputSpec, other: Loaded, first: Loaded) -> InputSpec:
    pairs = list(zip(want.shape, found.shape, strict=False))
    fits = len(want.shape) == len(found.shape) and not any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs
    )
    if not fits or want.dtype != found.dtype:
        texts = (f"{want.name!r} {side.dtype} {side.describe()}" for side in (found, want))
        raise _other_inputs(other, first, " against ".join(texts))
    return replace(want, shape=tuple(b if isinstance(b, int) else a for a, b in pairs))


def _other_inputs(other: Loaded, first: Loaded, difference: str) -> ModelError:
    return ModelError(
        f"'{other.facts.path}' takes other inputs than '{first.facts.path}': {difference}; "
        "models that are timed side by side must take the same"
    )


def batch_sizes(asked: Sequence[int] | None, inputs: Sequence[InputSpec], loaded: Sequence[Loaded]) -> list[int]:
    """Return the batch sizes to run: as asked, or the one that a model fixes, or 1.

    Raises:
        OptionError: One is not positive, or not the one that a model fixes.
    """
    fixed = inputs[0].shape[0]
    if asked is None:
        return [fixed if isinstance(fixed, int) else 1]
    sizes = list(dict.fromkeys(asked))
    if not sizes or min(sizes) < 1:
        raise OptionError(f"batch sizes are {sizes}; give whole numbers from 1")
    wrong = [size for size in sizes if isinstance(fixed, int) and size != fixed]
    if wrong:
        fixing = next(item for item in loaded if isinstance(input_specs(item.model)[0].shape[0], int))
        raise OptionError(f"batch size {wrong[0]} cannot be run: '{fixing.facts.path}' fixes its batch at {fixed}")
    return sizes


def examples_to_run(
    data: DataLike | None, inputs: Sequence[InputSpec], first: Loaded, options: Options, most: int
) -> tuple[Examples, list[str]]:
    """Return the examples to run, and what is to be said about them."""
    if data is None:
        opened = random_examples(inputs, most, options.seed)
    else:
        opened = open_data(
            data, inputs, preprocess=first.preprocess, classes=first.classes,
            seed=options.seed, download=options.download,
        )  # fmt: skip
    said = list(opened.warnings)
    if opened.synthetic:
        # That random inputs say nothing about decisions is beside the point here.
        sizes = _made_up(inputs, feed_of(opened, 1))
        said = [f"{sizes}; give --data for true sizes"] if sizes else []
    if opened.count < most:
        said.append(f"{opened.source} has {opened.count} examples: they are repeated to fill a batch of {most}")
    return opened, said


def _made_up(inputs: Sequence[InputSpec], feeds: Mapping[str, np.ndarray]) -> str:
    """Say what free dimensions other than the batch became; empty where there are none."""
    parts = [
        f"{want.name!r} {want.describe()} became {shape_text(('n', *feeds[want.name].shape[1:]))}"
        for want in inputs
        if not all(isinstance(side, int) for side in want.shape[1:])
    ]
    return f"free dimensions were made up: {', '.join(parts)}" if parts else ""


def feed_of(examples: Examples, size: int) -> dict[str, np.ndarray]:
    """Return the first ``size`` examples as arrays by input name, repeated from the start where there are fewer."""
    rows = np.arange(size) % examples.count
    return next(examples.take(rows).batches(size)).arrays


@contextlib.contextmanager
def sizes_made_up(inputs: Sequence[InputSpec], examples: Examples) -> Iterator[None]:
    """Say that sizes were made up where ONNX Runtime fails on them."""
    try:
        yield
    except BackendError as error:
        said = _made_up(inputs, feed_of(examples, 1)) if examples.synthetic else ""
        if not said:
            raise
        raise BackendError(f"{error}; {said}, give --data") from error
