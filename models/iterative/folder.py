"""A run's folder: what was asked for, the state after every round, figures as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxprune.errors import BackendError, ModelError, OptionError
from onnxprune.graph import io as models
from onnxprune.graph.io import replaced
from onnxprune.models.checkpoint import read_checkpoint
from onnxprune.models.iterative.choosing import Mask
from onnxprune.models.iterative.weights import Snapshot

__all__ = ["RunFolder"]

_RUN, _ROUNDS, _TABLE = "run.json", "rounds.json", "rounds.csv"
# What a run that goes on may have otherwise than before: nothing of it changes a weight.
_FREE = ("device", "workers", "rounds")


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    ``run.json`` says what was asked for, ``rounds.json`` and ``rounds.csv`` what came out, ``rewind.pth`` is where
    every round starts; ``round-00`` holds the dense network, ``round-01`` the first that was pruned: ``model.onnx``,
    ``state.pth`` (weights and statistics) and ``masks.npz``.
    """

    path: Path

    def begin(self, asked: Mapping[str, Any], *, resume: bool) -> list[dict[str, Any]]:
        """Make the folder, or open it again, and return the rounds that are done.

        Raises:
            OptionError: It holds another run, or a run without ``resume``.
            BackendError: It cannot be written.
        """
        plain = json.loads(json.dumps(dict(asked)))
        if (self.path / _RUN).is_file():
            if not resume:
                raise OptionError(f"'{self.path}' holds a run already: go on with --resume, or give another --out")
            before = self._read(_RUN)
            for name, value in plain.items():
                if name not in _FREE and before.get(name) != value:
                    raise OptionError(
                        f"'{self.path}' holds a run with {name} {before.get(name)}, not {value}: "
                        "go on with the options of that run, or give another --out"
                    )
            self._write(_RUN, plain)
            done = self._read(_ROUNDS) if (self.path / _ROUNDS).is_file() else []
            return list(done)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BackendError(f"cannot make '{self.path}': {error.strerror or error}") from error
        self._write(_RUN, plain)
        return []

    def round_path(self, number: int) -> Path:
        """Return a round's folder."""
        return self.path / f"round-{number:02d}"

    def store(
        self, number: int, rounds: list[dict[str, Any]], weights: Snapshot, masks: Mapping[str, Mask], model: ir.Model
    ) -> None:
        """Write a round, its figures last: a round without figures is done again.

        Raises:
            BackendError: The disk fails, or the checker refuses the model.
        """
        place = self.round_path(number)
        place.mkdir(exist_ok=True)
        self.save_weights(place / "state.pth", weights)
        with replaced(place / "masks.npz") as file:
            np.savez_compressed(file, allow_pickle=False, **masks)
        models.save(model, place / "model.onnx")
        self._write(_ROUNDS, rounds)
        text = io.StringIO()
        rows = [{name: value for name, value in row.items() if not isinstance(value, list | dict)} for row in rounds]
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replaced(self.path / _TABLE) as file:
            file.write(text.getvalue().encode())

    def load(self, number: int) -> tuple[Snapshot, dict[str, Mask]]:
        """Return a round's weights and masks.

        Raises:
            ModelError: They cannot be read.
        """
        place = self.round_path(number)
        try:
            with np.load(place / "masks.npz") as stored:
                masks = {name: np.asarray(stored[name]) for name in stored.files}
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"'{place / 'masks.npz'}' cannot be read: {error}") from error
        return self.load_weights(place / "state.pth"), masks

    def save_weights(self, file: Path, weights: Snapshot) -> None:
        """Write tensors by name."""
        with replaced(file) as stream:
            torch.save(weights, stream)

    def load_weights(self, file: Path) -> Snapshot:
        """Read tensors by name.

        Raises:
            ModelError: The file cannot be read.
        """
        found = read_checkpoint(file)
        if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
            raise ModelError(f"'{file}' holds no weights of a round")
        return dict(found)

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays as ``name``."""
        with replaced(self.path / name) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return what :meth:`save_arrays` wrote; empty where nothing is."""
        if not (self.path / name).is_file():
            return {}
        with np.load(self.path / name) as stored:
            return {key: np.asarray(stored[key]) for key in stored.files}

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        with replaced(self.path / name) as file:
            file.write(text.encode())

    def _write(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"'{self.path / name}' cannot be read: {error}") from error
