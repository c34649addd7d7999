"""How a model was made, in its own metadata: the recipe, hashes of what it was made from, and the runs before.

Nothing here names a path or a time, so that the same input and seed give the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import onnx_ir as ir

from onnxprune import __version__
from onnxprune.data import Examples, Fingerprint
from onnxprune.errors import DataError, ModelError
from onnxprune.graph.io import FileFacts

RECIPE: Final = "onnxprune.recipe"
SOURCE: Final = "onnxprune.source_sha256"
CALIB: Final = "onnxprune.calib_sha256"
EXAMPLES: Final = "onnxprune.calib_examples"
DRAW: Final = "onnxprune.calib_draw"
SEED: Final = "onnxprune.seed"
VERSION: Final = "onnxprune.version"
HISTORY: Final = "onnxprune.history"
TUNING: Final = "onnxprune.finetune"
_RUN: Final = (RECIPE, SOURCE, CALIB, EXAMPLES, DRAW, SEED, VERSION, TUNING)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Draw:
    """How calibration examples were drawn and fed.

    ``sources`` is 1 where one source was shared out to calibration and evaluation, 2 where calibration had its own;
    ``examples`` were drawn, before those of ``drop_classes`` were left out of one source.
    """

    sources: int
    examples: int
    drop_classes: tuple[str, ...]
    batch_size: int


@dataclass(frozen=True)
class Calibration:
    """The calibration examples of a run: their hash (as in the report), how many, how they were drawn."""

    sha256: str
    examples: int
    draw: Draw


@dataclass(frozen=True)
class Record:
    """One run of a recipe, as the metadata of its result tells it; ``calibration`` is None where none was used."""

    recipe: str
    source_sha256: str
    seed: int
    calibration: Calibration | None = None
    version: str = __version__


@dataclass(frozen=True)
class Repeated:
    """An earlier run that is to be repeated, and the file that it made."""

    record: Record
    made: FileFacts

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return a warning where another version made the file."""
        version = self.record.version
        if version == __version__:
            return ()
        return (
            f"'{self.made.path}' was made by onnxprune {version or '(no version named)'}, this is {__version__}: "
            "the bytes may differ",
        )

    def check_source(self, found: FileFacts) -> None:
        """Refuse another source model than the one that the file was made from.

        Raises:
            ModelError: Its hash is another.
        """
        wanted = self.record.source_sha256
        if found.sha256 != wanted:
            raise ModelError(
                f"source model '{found.path}' has sha256 {found.sha256[:12]}, '{self.made.path}' was made from the one "
                f"with {wanted[:12]}: give that model with --in"
            )

    def check_calibration(self, used: tuple[Examples, Fingerprint] | None) -> None:
        """Refuse other calibration examples than those that were used.

        Raises:
            DataError: Their hash is another.
        """
        wanted = self.record.calibration
        if used is None or wanted is None:
            return
        examples, found = used[0], used[1].hexdigest()
        if found != wanted.sha256:
            raise DataError(
                f"calibration data of {examples.source} ({examples.count} examples) has sha256 {found[:12]}, "
                f"'{self.made.path}' was made with {wanted.examples} that have {wanted.sha256[:12]}: "
                "give the same --data, or --calib and --eval, and --preprocess"
            )


def write(model: ir.Model, source: Mapping[str, str], record: Record) -> None:
    """Write a run into the metadata of its result, in place; the run that made the source goes to the history.

    Args:
        model: the result.
        source: metadata of the model that the run began with.
        record: the run.
    """
    metadata = model.metadata_props
    _shelve(metadata, source)
    metadata[RECIPE], metadata[SOURCE] = record.recipe, record.source_sha256
    metadata[SEED], metadata[VERSION] = str(record.seed), record.version
    used = record.calibration
    if used is not None:
        metadata[CALIB], metadata[EXAMPLES], metadata[DRAW] = used.sha256, str(used.examples), _json(asdict(used.draw))


def write_tuning(model: ir.Model, source: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Write a fine-tuning into the metadata of its result, in place; the run before goes to the history.

    Args:
        model: the result.
        source: metadata of the model that was trained.
        facts: what can be said of the training, as JSON; ``source_sha256`` and ``seed`` among it.
    """
    metadata = model.metadata_props
    _shelve(metadata, source)
    told = dict(facts)
    metadata[SOURCE], metadata[SEED] = str(told.pop("source_sha256")), str(told.pop("seed"))
    metadata[TUNING], metadata[VERSION] = _json(told), __version__


def _shelve(metadata: MutableMapping[str, str], source: Mapping[str, str]) -> None:
    """Move the run that made the source into the history of its result."""
    # Before anything is written: the result may be the source itself.
    earlier = [*history(source), run_facts(source)] if is_told(source) else []
    for key in (*_RUN, HISTORY):
        metadata.pop(key, None)
    if earlier:
        metadata[HISTORY] = _json(earlier)


def read(metadata: Mapping[str, str], path: str) -> Record:
    """Read back the run that made a model.

    Raises:
        ModelError: The metadata tells of none, or does not hold what this program writes.
    """
    if TUNING in metadata:
        raise ModelError(f"'{path}' was fine-tuned, which --replay cannot repeat: run finetune again")
    if RECIPE not in metadata:
        raise ModelError(f"'{path}' does not say how it was made: its metadata has no '{RECIPE}'")
    recipe = metadata[RECIPE]
    if not recipe.strip() or recipe.endswith((".yaml", ".yml")):
        raise _unusable(path, RECIPE, recipe)
    calibration = None
    if CALIB in metadata:
        calibration = Calibration(
            _sha256(metadata, CALIB, path), _count(metadata, EXAMPLES, path), _draw(metadata, path)
        )
    version = metadata.get(VERSION, "")
    return Record(recipe, _sha256(metadata, SOURCE, path), _count(metadata, SEED, path), calibration, version)


def is_told(metadata: Mapping[str, str]) -> bool:
    """Return whether metadata tells of a run, of a recipe or a fine-tuning."""
    return RECIPE in metadata or TUNING in metadata


def run_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a run as its metadata tells it, whatever version wrote that."""
    return {key.removeprefix("onnxprune."): metadata[key] for key in _RUN if key in metadata}


def history(metadata: Mapping[str, str]) -> list[Any]:
    """Return the runs before, oldest first; what cannot be read is kept as it stands."""
    text = metadata.get(HISTORY)
    if text is None:
        return []
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return [text]
    return found if isinstance(found, list) else [found]


def _sha256(metadata: Mapping[str, str], key: str, path: str) -> str:
    text = metadata.get(key, "")
    if _SHA256.fullmatch(text) is None:
        raise _unusable(path, key, text)
    return text


def _count(metadata: Mapping[str, str], key: str, path: str) -> int:
    text = metadata.get(key, "")
    # A longer number is no number of examples, and no seed that the command line takes.
    if re.fullmatch(r"[0-9]{1,18}", text) is None:
        raise _unusable(path, key, text)
    return int(text)


def _draw(metadata: Mapping[str, str], path: str) -> Draw:
    text = metadata.get(DRAW, "")
    try:
        found = json.loads(text)
        draw = Draw(found["sources"], found["examples"], tuple(found["drop_classes"]), found["batch_size"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _unusable(path, DRAW, text) from error
    numbers = (draw.sources, draw.examples, draw.batch_size)
    fits = all(type(each) is int and each > 0 for each in numbers) and draw.sources <= 2
    if not fits or not all(isinstance(name, str) for name in draw.drop_classes):
        raise _unusable(path, DRAW, text)
    return draw


def _unusable(path: str, key: str, text: str) -> ModelError:
    found = repr(text) if len(text) <= 60 else repr(text[:57] + "...")
    return ModelError(f"'{path}': metadata '{key}' is {found}, which cannot be replayed")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
