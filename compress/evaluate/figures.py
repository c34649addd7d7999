"""Which figures an output gets beside its errors, by its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from onnxprune.data.inputs import shape_text
from onnxprune.evaluate.embedding import EmbeddingSums
from onnxprune.evaluate.evidence import OutputKind
from onnxprune.evaluate.maps import MapSums, fitting_map
from onnxprune.evaluate.regression import ValueSums, fitting_values

Figures = MapSums | ValueSums | EmbeddingSums


def figures_of(name: str, kind: OutputKind, array: NDArray[Any]) -> Figures | None:
    """Return empty sums for an output of this kind, of which ``array`` is a batch; None where errors say it all."""
    match kind:
        case "class maps":
            return MapSums(name, array.shape[1])
        case "values":
            return ValueSums()
        case "embedding":
            return EmbeddingSums(name)
        case _:
            return None


def targeted(
    kinds: Mapping[str, OutputKind], targets: NDArray[Any] | None, outputs: Mapping[str, NDArray[Any]]
) -> tuple[str | None, str | None]:
    """Return the first output that labels are those of, or else a warning; None twice without such labels.

    Args:
        kinds: what every output is judged as.
        targets: labels that are no class indices, of one batch.
        outputs: the outputs of that batch.
    """
    if targets is None:
        return None, None
    for name, kind in kinds.items():
        if kind == "class maps" and fitting_map(targets, outputs[name]) is not None:
            return name, None
        if kind == "values" and fitting_values(targets, outputs[name]) is not None:
            return name, None
    told = f"{targets.dtype} of shape {shape_text(('n', *targets.shape[1:]))}"
    scores = (name for name, kind in kinds.items() if kind == "class scores")
    alike = next((name for name in scores if fitting_values(targets, outputs[name]) is not None), None)
    hint = "" if alike is None else f"; --output-kind {alike}=values judges that output as values"
    return None, f"labels 'y' ({told}) fit no output that holds class maps or values: they were not used{hint}"
