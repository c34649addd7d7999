"""Metrics of a run on disk: a CSV file that is whole after every epoch, and TensorBoard."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from onnxprune.errors import OptionError
from onnxprune.graph.io import replaced

if TYPE_CHECKING:
    from onnxprune.models.train import Epoch

__all__ = ["csv_log", "tensorboard_log"]


def csv_log(path: str | os.PathLike[str]) -> Callable[[Epoch], None]:
    """Make a hook that writes all epochs so far: epoch, loss, penalty, lr, and the validation's figures."""
    rows: list[dict[str, float]] = []

    def write(epoch: Epoch) -> None:
        rows.append(figures(epoch))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replaced(path) as file:
            file.write(text.getvalue().encode())

    return write


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str]) -> Iterator[Callable[[Epoch], None]]:
    """Make a hook that writes every figure as a scalar, by epoch.

    Raises:
        OptionError: If tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise OptionError('--tensorboard needs tensorboard: pip install "onnxprune[train]"')
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(epoch: Epoch) -> None:
            for name, value in figures(epoch).items():
                if name != "epoch":
                    writer.add_scalar(name.replace("_", "/", 1), value, epoch.number)
            writer.flush()

        yield write


def figures(epoch: Epoch) -> dict[str, float]:
    """Return an epoch's figures by name."""
    measured = {f"validation_{name}": value for name, value in epoch.validation.known.items()}
    return {"epoch": epoch.number, "loss": epoch.loss, "penalty": epoch.penalty, "lr": epoch.lr, **measured}
