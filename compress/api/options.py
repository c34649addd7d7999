"""What every command shares: where to run, what to feed, how sure to be, what must hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.budget import check_ratio, check_share, parse_bytes
from onnxprune.contract import Progress
from onnxprune.data import Preprocess


@dataclass(frozen=True)
class Options:
    """What every command shares: where to run, what to feed, how sure to be.

    ``drop_classes`` (names or indices) are left out of calibration, to see what that does to their decisions;
    ``preprocess`` is a file or a :class:`~onnxprune.data.Preprocess`; without it the model's metadata says.
    ``output_kinds`` says what outputs are judged as, by name: ``scores``, ``maps``, ``values`` or ``embedding``.
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
    output_kinds: Mapping[str, str] = field(default_factory=dict)
    download: bool = False
    progress: Progress | None = None


@dataclass(frozen=True)
class Gates:
    """What must hold for the result to be kept; None asks nothing.

    ``min_agreement`` and ``min_class_agreement`` (every class of the original's decisions) are judged by lower
    bounds, ``max_latency_ratio`` by the upper end of its interval, the drops of accuracy as measured, ``max_bytes``
    by the size of the file written, external data included.

    Raises:
        OptionError: A figure is one that nothing can have.
    """

    min_agreement: float | None = None
    max_accuracy_drop: float | None = None
    min_class_agreement: float | None = None
    max_class_accuracy_drop: float | None = None
    max_latency_ratio: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for option, share, example in (
            ("min-agreement", self.min_agreement, 0.99),
            ("max-accuracy-drop", self.max_accuracy_drop, 0.01),
            ("min-class-agreement", self.min_class_agreement, 0.9),
            ("max-class-accuracy-drop", self.max_class_accuracy_drop, 0.05),
        ):
            if share is not None:
                check_share(option, share, example=example)
        if self.max_latency_ratio is not None:
            check_ratio("max-latency-ratio", self.max_latency_ratio)
        if self.max_bytes is not None:
            parse_bytes(str(self.max_bytes))
