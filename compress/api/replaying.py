"""Making a model again from what its own metadata says: same recipe, same examples, same bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from onnxprune import recipe
from onnxprune.api import provenance
from onnxprune.api.compressing import Result, run
from onnxprune.api.opening import ModelLike
from onnxprune.api.options import Gates, Options
from onnxprune.api.sources import Sources
from onnxprune.contract import Pass
from onnxprune.data import DataLike
from onnxprune.errors import ModelError, OptionError
from onnxprune.graph import io

# A file from elsewhere must not get a script of its choice run.
_SCRIPTED = "custom"


def replay(
    made: str | os.PathLike[str],
    model: ModelLike,
    *,
    data: DataLike | None = None,
    calib: DataLike | None = None,
    eval: DataLike | None = None,
    gates: Gates | None = None,
    options: Options | None = None,
) -> Result:
    """Run the recipe that made a model on its source again.

    Recipe, seed, numbers of examples, classes left out and batch size come from the metadata of ``made`` and take the
    place of those in ``options``. ``result.save`` warns where the file written is not ``made`` byte for byte.

    Args:
        made: path of the model to make again.
        model: the source model; its hash must be the one that was recorded.
        data: as in :func:`~onnxprune.api.compress`; the calibration examples must have the hash recorded.
        calib: as there. Alone, where calibration had a source of its own, it judges too.
        eval: as there.
        gates: what must hold of the decisions; sizes are not judged again.
        options: where to run, preprocessing, confidence.

    Raises:
        ModelError: ``made`` does not say how it was made, or ``model`` is not its source.
        DataError: The calibration examples are not those that were used.
        OptionError, BackendError: as their docstrings say.
    """
    facts = io.facts(made)
    record = provenance.read(io.load(made).metadata_props, facts.path)
    try:
        items = recipe.parse(record.recipe)
    except OptionError as error:
        raise ModelError(f"'{facts.path}': the recipe in its metadata is not usable here: {error}") from error
    if _runs_script(items):
        raise ModelError(
            f"'{facts.path}' was made with a script of the user, which is never run from metadata; "
            f"run the recipe itself: {record.recipe}"
        )
    chosen, sources = replace(options or Options(), seed=record.seed), Sources(data, calib, eval)
    used = record.calibration
    if used is not None:
        draw = used.draw
        chosen = replace(
            chosen, calib_examples=draw.examples, drop_classes=draw.drop_classes, batch_size=draw.batch_size
        )
        given = data if data is not None else calib
        if draw.sources > 1 and eval is None and given is not None:
            sources = Sources(None, given, given)
    return run(model, items, sources, gates or Gates(), chosen, again=provenance.Repeated(record, facts))


def _runs_script(items: Sequence[Pass]) -> bool:
    return any(item.name == _SCRIPTED or _runs_script(getattr(item, "recipe", ())) for item in items)
