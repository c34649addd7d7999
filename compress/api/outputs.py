"""Judging outputs that were made elsewhere: on a telephone, by TensorRT, by OpenVINO; no models are needed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.api.gating import judge_gates
from onnxprune.api.opening import task
from onnxprune.api.options import Gates, Options
from onnxprune.data import DataLike, Examples, InputSpec, open_data
from onnxprune.data.labels import read_labels
from onnxprune.data.outputs import LABELS, StoredOutputs, facts_of, open_labels, open_outputs
from onnxprune.data.spec import parse_path, parse_spec
from onnxprune.errors import DataError, OptionError
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.report import report as schema
from onnxprune.runtime.doctor import versions

OutputsLike = str | os.PathLike[str] | Mapping[str, NDArray[Any]]
LabelsLike = str | os.PathLike[str] | NDArray[Any]

_AT_ONCE = 256


def compare_outputs(
    original: OutputsLike,
    compressed: OutputsLike,
    labels: LabelsLike | None = None,
    *,
    data: DataLike | None = None,
    gates: Gates | None = None,
    options: Options | None = None,
) -> schema.Report:
    """Judge outputs against the original's, both made before, on the same examples in the same order.

    Args:
        original: an .npz file of arrays by output name (examples on axis 0), an .npy file of an only output, or
            arrays in memory. An only output may have another name in each.
        compressed: the same of the compressed model, or of another device or runtime.
        labels: an array, or a file of one; without it those of ``data``, else an array ``y`` in either file.
        data: what the labels are read from; its examples must be in the order of the outputs.
        gates: what must hold.
        options: seed, confidence, progress.

    Raises:
        OptionError: Labels come from two places, or a gate is on a model's file or time.
        DataError: A file is missing or damaged, or the counts of examples differ.
        ModelError: Outputs do not fit one another, or the original's hold NaN.
    """
    chosen, asked = options or Options(), gates or Gates()
    check_confidence(chosen.confidence)
    _check(asked, chosen, labels, data)
    first, second = open_outputs(original), open_outputs(compressed)
    if first.count != second.count:
        raise DataError(
            f"{first.source} holds {first.count} examples and {second.source} {second.count}; "
            "both must hold the same ones in the same order"
        )
    truth, targets = _labels(first, second, labels, data)
    renamed = {second.names[0]: first.names[0]} if len(first.names) == len(second.names) == 1 else {}
    comparison, start = Comparison(chosen.confidence, kinds=chosen.output_kinds), 0
    with task(chosen, "comparison", first.count) as advance:
        for before, after in zip(first.batches(_AT_ONCE), second.batches(_AT_ONCE), strict=True):
            stop = min(start + _AT_ONCE, first.count)
            after = {renamed.get(name, name): array for name, array in after.items()}
            parts = (None if each is None else each[start:stop] for each in (truth, targets))
            comparison.update(before, after, next(parts), targets=next(parts), examples=stop - start)
            advance(stop - start)
            start = stop
    evidence = comparison.result()
    seen = str(data) if isinstance(data, str | os.PathLike) else f"{first.source} (outputs alone)"
    sha256, _ = facts_of(original)
    other_sha256, size = facts_of(compressed)
    return schema.Report(
        source=schema.Source(first.source, sha256, None),
        result=schema.Result(second.source, other_sha256, size),
        recipe=None,
        steps=(),
        cost=None,
        data=schema.DataUsed(eval=schema.DataSide(seen, first.count, None)),
        agreement=evidence.agreement,
        accuracy=evidence.accuracy,
        output_error=evidence.output_error,
        outputs=evidence.outputs,
        gates=tuple(judge_gates(asked, evidence, chosen.confidence)),
        warnings=evidence.warnings,
        seed=chosen.seed,
        versions=versions(),
    )


def _check(asked: Gates, chosen: Options, labels: LabelsLike | None, data: DataLike | None) -> None:
    if labels is not None and data is not None:
        raise OptionError("labels and data exclude one another: labels are read from one place")
    if chosen.eval_examples is not None:
        raise OptionError("eval-examples is for models; outputs are compared on all examples they hold")
    for name, gate in (("max-latency-ratio", asked.max_latency_ratio), ("max-bytes", asked.max_bytes)):
        if gate is not None:
            raise OptionError(f"{name} is a gate on models; outputs alone have neither a time nor a model's file")


def _labels(
    first: StoredOutputs, second: StoredOutputs, labels: LabelsLike | None, data: DataLike | None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Return one label per example, or targets; the other is None, both without labels."""
    if data is not None:
        found = _labels_of(data)
        return read_labels(found, first.count, str(data) if isinstance(data, str | os.PathLike) else "the data")
    if labels is not None:
        if isinstance(labels, np.ndarray):
            return read_labels(labels, first.count, "labels in memory")
        return read_labels(open_labels(labels), first.count, os.fspath(labels))
    beside = [(each.labels, each.source) for each in (first, second) if each.labels is not None]
    if len(beside) == 2 and not np.array_equal(beside[0][0], beside[1][0]):
        raise DataError(
            f"labels {LABELS!r} differ between {beside[0][1]} and {beside[1][1]}; both hold the same examples "
            "(an output of that name must be saved under another)"
        )
    return read_labels(*beside[0][:1], first.count, beside[0][1]) if beside else (None, None)


def _labels_of(data: DataLike) -> NDArray[Any]:
    """Return the labels of DATA without a model that says what it is fed."""
    if isinstance(data, Mapping) and LABELS in data:
        return np.asarray(data[LABELS])
    if isinstance(data, Examples):
        held = data.targets if data.labels is None else data.labels
        if held is not None:
            return held
    if isinstance(data, str | os.PathLike):
        spec = parse_spec(data) if isinstance(data, str) else parse_path(os.fspath(data))
        if spec.kind in ("npz", "npy"):
            return open_labels(spec.path)
        if spec.kind not in ("script", "random"):
            # Images need an input to be fed to; of its pixels nothing is used.
            opened = open_data(data, [InputSpec("image", np.dtype(np.float32), (None, 3, None, None))])
            if opened.labels is not None:
                return opened.labels
    raise DataError("labels: none can be read from this data without a model; give them in an .npz file under 'y'")
