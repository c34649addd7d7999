"""What every command shares: where to run, what to feed, how sure to be, what must hold."""

from __future__ import annotations

import os
from dataclasses import dataclass

from onnxprune.contract import Progress
from onnxprune.data import Preprocess


@dataclass(frozen=True)
class Options:
    """What every command shares: where to run, what to feed, how sure to be.

    ``preprocess`` is a file or a :class:`~onnxprune.data.Preprocess`; without it the model's metadata says.
    """

    providers: str | None = None
    batch_size: int = 32
    threads: int | None = None
    seed: int = 0
    confidence: float = 0.95
    calib_examples: int | None = None
    eval_examples: int | None = None
    preprocess: str | os.PathLike[str] | Preprocess | None = None
    download: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Gates:
    """What must hold for the result to be kept; None asks nothing."""

    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
