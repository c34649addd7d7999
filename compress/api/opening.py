"""Opening what a command works on: the model with its metadata, the runtime, the examples."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.api.options import Options
from onnxprune.data import DataLike, Examples, Preprocess, Split, open_data, split_data
from onnxprune.data.synthetic import Match
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate.kinds import KINDS, check_asked
from onnxprune.graph import io
from onnxprune.runtime.providers import parse_providers, resolve
from onnxprune.runtime.session import Settings, input_specs
from onnxprune.runtime.synthetic import matched


class GraphSurgeonGraph(Protocol):
    """An ``onnx_graphsurgeon.Graph``, which is imported only by those who use it."""

    nodes: Any
    opset: Any
    import_domains: Any


ModelLike = str | os.PathLike[str] | ir.Model | onnx.ModelProto | GraphSurgeonGraph


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
    loaded = read_model(model)
    if isinstance(model, str | os.PathLike):
        facts = io.facts(model)
    else:
        proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(loaded)
        written = proto.SerializeToString(deterministic=True)
        facts = io.FileFacts("(in memory)", len(written), hashlib.sha256(written).hexdigest())
    metadata = loaded.metadata_props
    output_kinds(loaded, options)
    return Loaded(
        loaded,
        facts,
        _preprocess(metadata, options),
        _classes(metadata, facts.path),
        metadata.get("onnxprune.data"),
    )


def read_model(model: ModelLike) -> ir.Model:
    """Return a model of our own: read from a file, or made of one in memory, which stays as it is.

    Raises:
        ModelError: The file is no usable model (see ``graph.io.load``), or the object is none at all.
    """
    if isinstance(model, str | os.PathLike):
        return io.load(model)
    if isinstance(model, ir.Model):
        return model.clone()
    if isinstance(model, onnx.ModelProto):
        return ir.serde.deserialize_model(model)
    # Whoever holds a graph of graphsurgeon has imported it.
    surgeon = sys.modules.get("onnx_graphsurgeon")
    if surgeon is not None and isinstance(model, surgeon.Graph):
        from onnxprune.graph.gs import from_gs

        return from_gs(model)
    raise ModelError(
        "a model is a path, an onnx_ir.Model, an onnx.ModelProto or an onnx_graphsurgeon.Graph, "
        f"not {type(model).__name__}"
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


def output_kinds(model: ir.Model, options: Options) -> dict[str, str]:
    """Return what outputs are judged as, where that was asked for or the model's metadata says (``onnxprune.output``).

    The metadata holds a kind for an only output, or a JSON object of kinds by output.

    Raises:
        OptionError: An output or a kind that was asked for does not exist.
        ModelError: The same of the metadata.
    """
    names = [str(value.name) for value in model.graph.outputs]
    check_asked(options.output_kinds, names)
    text = model.metadata_props.get("onnxprune.output")
    if text is None:
        return dict(options.output_kinds)
    try:
        found = {names[0]: text} if text in KINDS and len(names) == 1 else dict(json.loads(text))
        check_asked(found, names)
    except (TypeError, ValueError, OptionError) as error:
        raise ModelError(f"metadata 'onnxprune.output' is {text!r}, which cannot be used: {error}") from error
    return {**found, **options.output_kinds}


def open_runtime(options: Options) -> tuple[Settings, tuple[str, ...]]:
    """Return where to run, and notices about providers that were asked for and are not there."""
    found = resolve(parse_providers(options.providers))
    return Settings(found.names, options.batch_size, options.threads), found.notices


def open_split(
    loaded: Loaded,
    options: Options,
    data: DataLike | None,
    calib: DataLike | None,
    judged: DataLike | None,
    *,
    choosing: bool = False,
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
        drop_classes=options.drop_classes,
        choosing=choosing,
        seed=options.seed,
        preprocess=loaded.preprocess,
        classes=loaded.classes,
        download=options.download,
        match=matcher(loaded, options),
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
        match=matcher(loaded, options),
    )
    if options.eval_examples is not None and options.eval_examples < examples.count:
        rows = np.random.default_rng(options.seed).permutation(examples.count)
        examples = examples.take(rows[: options.eval_examples])
    return examples, examples.warnings


def matcher(loaded: Loaded, options: Options) -> Match:
    """Return what fits synthetic images to the model; it runs on the CPU, so that they are the same everywhere."""
    settings = Settings(threads=options.threads)
    return functools.cache(lambda name, look: matched(loaded.model, settings, name, look))


def input_shapes(examples: Examples | None) -> dict[str, tuple[int, ...]]:
    """Return the shape of every input for one example, read off the data."""
    if examples is None:
        return {}
    batch = next(examples.batches(1))
    return {name: tuple(array.shape) for name, array in batch.arrays.items()}


def task(options: Options, description: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Return a progress task, or a silent one where no progress is shown."""
    return nullcontext(lambda count: None) if options.progress is None else options.progress(description, total)
