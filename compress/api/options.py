"""What every command shares: where to run, what to feed, how sure to be, what must hold."""

from __future__ import annotations

import os
from dataclasses import dataclass

from onnxprune.contract import Progress
from onnxprune.data import Preprocess


@dataclass(frozen=True)
class Options:
    """What every command shares: where to run, what to feed, how sure to be.

    ``drop_classes`` (names or indices) are left out of calibration, to see what that does to their decisions;
    ``preprocess`` is a file or a :class:`~onnxprune.data.Preprocess`; without it the model's metadata says.
    """

    providers: str | None = None
    batch_size: int = 32
    threads: int | None = None
    seed: int = 0
    confidence: float = 0.95
    calib_examples: int | None = None
    eval_examples: int | None = None
    drop_classes: tuple[str, ...] = ()
    preprocess: str | os.PathLike[str] | Preprocess | None = None
    download: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Gates:
    """What must hold for the result to be kept; None asks nothing."""

    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
