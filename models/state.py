"""What a run leaves on disk: the last state, to go on from after a kill, and the best weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.graph.io import replaced
from onnxprune.models.checkpoint import read_checkpoint
from onnxprune.models.options import TrainOptions

__all__ = ["Checkpoints", "read_state", "write_checkpoint"]

FORMAT = 1
# What a resumed run may have otherwise than the run before: nothing of it changes a weight.
_FREE = ("device", "workers")


@dataclass(frozen=True)
class Checkpoints:
    """Where a run leaves its checkpoints.

    Attributes:
        last: Written after every epoch; ``resume`` of a later run.
        best: Written when an epoch is the best by validation.
        resume: A ``last`` file to go on from.
        about: Entries both files carry: ``network``, ``classes`` and what else a reader needs.
    """

    last: Path
    best: Path
    resume: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(path: str | os.PathLike[str], module: nn.Module, about: Mapping[str, Any]) -> None:
    """Write weights and facts in one go: the file is the old one or the whole new one.

    Raises:
        BackendError: If the disk fails.
    """
    state = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    with replaced(path) as file:
        torch.save({"onnxprune": FORMAT, **about, "model": state}, file)


def read_state(path: Path, options: TrainOptions, about: Mapping[str, Any]) -> dict[str, Any]:
    """Read a ``last`` file for a run with these options.

    Raises:
        ModelError: If the file is no such state.
        OptionError: If it comes from a run with other options, of which the first is named.
    """
    loaded = read_checkpoint(path)
    if not isinstance(loaded, dict) or loaded.get("onnxprune") != FORMAT or "optimizer" not in loaded:
        raise ModelError(f"{path} is no state to resume from: give the last checkpoint of an earlier run, or --from")
    wanted: dict[str, Any] = {**about, **recorded(options)["options"]}
    stored = {name: loaded.get(name) for name in about} | loaded["options"]
    for name, value in wanted.items():
        before = stored.get(name)
        if name not in _FREE and (list(before) if isinstance(before, tuple) else before) != (
            list(value) if isinstance(value, tuple) else value
        ):
            raise OptionError(
                f"{path} comes from a run with {name.replace('_', '-')} {before}, not {value}: "
                "resume with the options of that run"
            )
    return loaded


def recorded(options: TrainOptions) -> dict[str, Any]:
    """Return the options as a checkpoint carries them."""
    return {"options": asdict(options)}
