"""What a batch of outputs and labels must be before it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import DataError, ModelError


def count_examples(outputs: Mapping[str, NDArray[Any]], judged: str | None, examples: int | None) -> int:
    """Return the number of examples in a batch: as told, else the rows of the judged or the first output."""
    if examples is not None:
        return examples
    array = outputs[judged] if judged is not None and judged in outputs else next(iter(outputs.values()))
    return array.shape[0] if array.ndim else 1


def nan_rows(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell for each row (axis 0; one row for a scalar) whether it holds NaN."""
    rows = array.shape[0] if array.ndim else 1
    if not np.issubdtype(array.dtype, np.floating):
        return np.zeros(rows, dtype=np.bool_)
    return np.asarray(np.isnan(array).reshape(rows, -1).any(axis=1))


def refuse_nan(model: str, outputs: Mapping[str, NDArray[Any]], seen: int) -> None:
    """Refuse outputs with NaN; ``seen`` examples came before this batch.

    Raises:
        ModelError: naming the model, the output and the first such example.
    """
    for name, array in outputs.items():
        bad = nan_rows(array)
        if bad.any():
            raise ModelError(
                f"{model}: output {name!r} is NaN for example {seen + int(bad.argmax())} (counted from 0); "
                "a model can be judged only where its outputs are numbers"
            )


def check_scores(model: str, name: str, array: NDArray[Any], rows: int, classes: int) -> None:
    """Refuse class scores that are not floating of shape [rows, classes].

    Raises:
        ModelError: naming the model, the output and both shapes.
    """
    if array.shape != (rows, classes) or not np.issubdtype(array.dtype, np.floating):
        raise ModelError(
            f"{model}: output {name!r} is {array.dtype} of shape {array.shape}; "
            f"class scores of shape ({rows}, {classes}) are wanted"
        )


def check_steady_labels(earlier: bool | None, labels: object) -> None:
    """Refuse labels that only some batches have; ``earlier`` is None before the first batch.

    Raises:
        DataError: saying so.
    """
    if earlier is not None and earlier != (labels is not None):
        raise DataError("labels: some batches have them and some do not; give labels for all examples or for none")
