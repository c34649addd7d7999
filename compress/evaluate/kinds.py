"""What an output is: class scores, class maps, values, an embedding, or discrete (compared by equality)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OptionError
from onnxprune.evaluate.evidence import OutputKind
from onnxprune.evaluate.maps import fitting_map

PROBABILITY_SLACK = 1e-3
"""How far a row of probabilities may sum from 1: a half-precision softmax does not hit it."""

KINDS: Final[Mapping[str, OutputKind]] = {
    "scores": "class scores",
    "maps": "class maps",
    "values": "values",
    "embedding": "embedding",
}
"""The kinds that may be asked for, by the words to ask with."""

_FORMS: Final = {
    "scores": "floating, of shape [examples, classes] with at least two classes",
    "maps": "floating, of shape [examples, classes, ...] with at least two classes",
    "values": "floating",
    "embedding": "floating, with examples on axis 0",
}


def output_kind(array: NDArray[Any], examples: int | None = None) -> OutputKind:
    """Tell what an output is from one batch of it.

    Class scores are floating, of rank 2 with at least two columns, one row per example (``examples``, where
    the number is known: a table of boxes has rows too). Other floating outputs are values; integers, booleans
    and text are discrete.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return "discrete"
    is_scores = array.ndim == 2 and array.shape[1] >= 2 and examples in (None, array.shape[0])
    return "class scores" if is_scores else "values"


def judged_kind(
    name: str,
    array: NDArray[Any],
    examples: int | None,
    asked: Mapping[str, str],
    targets: NDArray[Any] | None = None,
) -> OutputKind:
    """Tell what an output is judged as: what was asked for, else class maps where labels are maps that fit it.

    Args:
        name: the output.
        array: one batch of it.
        examples: the examples of the batch, where their number is known.
        asked: words of :data:`KINDS` by output.
        targets: labels that are no class indices, of the same batch.

    Raises:
        OptionError: if the output cannot be what was asked for.
    """
    word = asked.get(name)
    if word is None:
        kind = output_kind(array, examples)
        return "class maps" if kind == "values" and fitting_map(targets, array) is not None else kind
    rows = examples in (None, array.shape[0]) if array.ndim else False
    ranks = {"scores": array.ndim == 2, "maps": array.ndim >= 3, "values": True, "embedding": array.ndim >= 2}
    fits = np.issubdtype(array.dtype, np.floating) and ranks[word] and (rows or word == "values")
    if not fits or (word in ("scores", "maps") and array.shape[1] < 2):
        raise OptionError(
            f"output-kind {name}={word}: the output is {array.dtype} of shape {array.shape}; "
            f"{word} must be {_FORMS[word]}"
        )
    return KINDS[word]


def judged_scores(kinds: Mapping[str, OutputKind], asked: Mapping[str, str]) -> str | None:
    """Return the output whose decisions are judged: class scores that were asked for, else the first; None without."""
    scores = [name for name, kind in kinds.items() if kind == "class scores"]
    return next((name for name in scores if name in asked), next(iter(scores), None))


def check_asked(asked: Mapping[str, str], outputs: Iterable[str]) -> None:
    """Refuse a kind that is none, and a kind for an output that is not there.

    Raises:
        OptionError: naming what there is.
    """
    names = list(outputs)
    for name, word in asked.items():
        if word not in KINDS:
            raise OptionError(f"output-kind {name}={word}: there is no such kind; accepted are {', '.join(KINDS)}")
        if name not in names:
            raise OptionError(f"output-kind {name}={word}: there is no such output; there are {', '.join(names)}")


def are_probabilities(scores: NDArray[np.float64]) -> bool:
    """Tell whether all rows (shape [n, classes]) are probabilities: not negative, sums 1 within 1e-3."""
    if not scores.size:
        return True
    return bool((scores >= 0).all() and (abs(scores.sum(axis=1) - 1) <= PROBABILITY_SLACK).all())
