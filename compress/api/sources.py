"""What a run works on, opened once: the model, where it runs, the examples of every side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.api.opening import Loaded, ModelLike, input_shapes, open_model, open_runtime, open_split
from onnxprune.api.options import Options
from onnxprune.api.provenance import Calibration, Draw, Repeated
from onnxprune.contract import Pass, takes_calibration
from onnxprune.data import DataLike, Examples, Fingerprint, Split
from onnxprune.errors import DataError
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.streaming import fingerprint_of
from onnxprune.runtime.session import Settings


@dataclass(frozen=True)
class Sources:
    """Where the examples come from."""

    data: DataLike | None = None
    calib: DataLike | None = None
    eval: DataLike | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """A model and its examples; ``calibrated`` is None where no pass makes use of calibration.

    ``inputs`` maps the model's inputs to the shapes of one batch, ``notices`` are warnings about where it runs.
    """

    loaded: Loaded
    settings: Settings
    notices: tuple[str, ...]
    split: Split
    evaluation: Examples
    calibrated: tuple[Examples, Fingerprint] | None
    inputs: dict[str, tuple[int, ...]]

    @property
    def calibration(self) -> Examples | None:
        """The calibration examples, where a pass makes use of them."""
        return None if self.calibrated is None else self.calibrated[0]

    def calibration_record(self, options: Options) -> Calibration | None:
        """Return what a model's metadata keeps of the calibration examples."""
        if self.calibrated is None:
            return None
        examples, fingerprint = self.calibrated
        sources, drawn = (2, examples.count) if self.split.drawn is None else (1, self.split.drawn)
        draw = Draw(sources, drawn, tuple(options.drop_classes), options.batch_size)
        return Calibration(fingerprint.hexdigest(), examples.count, draw)


def open_run(
    model: ModelLike,
    items: Iterable[Pass],
    sources: Sources,
    chosen: Options,
    *,
    choosing: bool,
    again: Repeated | None = None,
) -> Opened:
    """Open a model and the examples that ``items`` and the judgement need; ``choosing`` keeps some for a search.

    Raises:
        OptionError, ModelError, DataError, BackendError: as their docstrings say.
    """
    check_confidence(chosen.confidence)
    loaded = open_model(model, chosen)
    if again is not None:
        again.check_source(loaded.facts)
    settings, notices = open_runtime(chosen)
    split = open_split(loaded, chosen, sources.data, sources.calib, sources.eval, choosing=choosing)
    calibration = split.calibration if any(takes_calibration(item) for item in items) else None
    inputs = input_shapes(calibration or split.evaluation)
    if split.evaluation is None:
        raise DataError("there are no examples to evaluate on; give --data or --eval")
    calibrated = None if calibration is None else (calibration, fingerprint_of(calibration))
    if again is not None:
        again.check_calibration(calibrated)
    return Opened(loaded, settings, notices, split, split.evaluation, calibrated, inputs)
