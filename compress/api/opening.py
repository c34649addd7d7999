"""Opening what a command works on: the model with its metadata, the runtime, the examples."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.api.options import Options
from onnxprune.data import DataLike, Examples, Preprocess, Split, open_data, split_data
from onnxprune.errors import DataError, ModelError
from onnxprune.graph import io
from onnxprune.runtime.providers import parse_providers, resolve
from onnxprune.runtime.session import Settings, input_specs

ModelLike = str | os.PathLike[str] | ir.Model | onnx.ModelProto


@dataclass(frozen=True)
class Loaded:
    """A model with what its file and metadata say of it."""

    model: ir.Model
    facts: io.FileFacts
    preprocess: Preprocess | None
    classes: list[str] | None
    data: str | None


def open_model(model: ModelLike, options: Options) -> Loaded:
    """Load a model and what its metadata says of preprocessing, classes and data."""
    if isinstance(model, str | os.PathLike):
        loaded, facts = io.load(model), io.facts(model)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
        loaded = model.clone() if isinstance(model, ir.Model) else ir.serde.deserialize_model(model)
        written = proto.SerializeToString(deterministic=True)
        facts = io.FileFacts("(in memory)", len(written), hashlib.sha256(written).hexdigest())
    metadata = loaded.metadata_props
    return Loaded(
        loaded,
        facts,
        _preprocess(metadata, options),
        _classes(metadata, facts.path),
        metadata.get("onnxprune.data"),
    )


def _preprocess(metadata: Mapping[str, str], options: Options) -> Preprocess | None:
    if isinstance(options.preprocess, Preprocess):
        return options.preprocess
    if options.preprocess is not None:
        return Preprocess.from_file(options.preprocess)
    text = metadata.get("onnxprune.preprocess")
    return None if text is None else Preprocess.from_json(text)


def _classes(metadata: Mapping[str, str], path: str) -> list[str] | None:
    text = metadata.get("onnxprune.classes")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelError(f"'{path}': metadata 'onnxprune.classes' is not JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"'{path}': metadata 'onnxprune.classes' is not a list of names")
    return names


def open_runtime(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """Return where to run, and notices about providers that were asked for and are not there."""
    found = resolve(parse_providers(options.providers))
    return Settings(found.names, options.batch_size, options.threads), found.notices


def open_split(
    loaded: Loaded, options: Options, data: DataLike | None, calib: DataLike | None, judged: DataLike | None
) -> Split:
    """Return calibration, choosing and evaluation examples (see ``onnxprune.data.split_data``)."""
    return split_data(
        input_specs(loaded.model),
        data=data,
        calib=calib,
        eval=judged,
        model_data=loaded.data,
        calib_examples=options.calib_examples,
        eval_examples=options.eval_examples,
        seed=options.seed,
        preprocess=loaded.preprocess,
        classes=loaded.classes,
        download=options.download,
    )


def open_examples(loaded: Loaded, options: Options, data: DataLike | None) -> tuple[Examples, tuple[str, ...]]:
    """Return all examples of ``data``, or the evaluation side of what the model's metadata names."""
    if data is None:
        split = open_split(loaded, options, None, None, None)
        if split.evaluation is None:
            raise DataError("there are no examples to evaluate on; give --data")
        return split.evaluation, split.warnings
    examples = open_data(
        data,
        input_specs(loaded.model),
        preprocess=loaded.preprocess,
        classes=loaded.classes,
        seed=options.seed,
        download=options.download,
    )
    if options.eval_examples is not None and options.eval_examples < examples.count:
        rows = np.random.default_rng(options.seed).permutation(examples.count)
        examples = examples.take(rows[: options.eval_examples])
    return examples, examples.warnings


def input_shapes(examples: Examples | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input for one example, read off the data."""
    if examples is None:
        return {}
    batch = next(examples.batches(1))
    return {name: tuple(array.shape) for name, array in batch.arrays.items()}


def task(options: Options, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Return a progress task, or a silent one where no progress is shown."""
    return nullcontext(lambda count: None) if options.progress is None else options.progress(description, total)
