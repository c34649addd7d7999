"""What an operator's function gets to know of its node besides the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from onnxprune.errors import ModelError

Result = Tensor | tuple[Tensor | None, ...]
Operator = Callable[..., Result]
"""``function(call, *inputs)``: absent optional inputs are None, or missing at the end."""


@dataclass
class Mode:
    """What differs between training and evaluation; one object for all nodes of a module.

    Attributes:
        training: Whether the module is in training mode.
        batch_statistics: BatchNormalization uses and updates batch statistics in training.
        dropout: Dropout drops in training.
    """

    training: bool = False
    batch_statistics: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Call:
    """One node: its name, operator, version of the operator set, attributes as Python values.

    Attributes:
        name: The node's name, for messages.
        op: The operator.
        version: Version of the default operator set.
        attributes: Numbers, strings, lists of them, tensors.
        outputs: Number of outputs that are named or come before one that is.
        readers: Operators that read the outputs; ``""`` stands for the graph's own outputs.
        mode: Training or evaluation.
    """

    name: str
    op: str
    version: int
    attributes: Mapping[str, Any]
    outputs: int = 1
    readers: frozenset[str] = frozenset()
    mode: Mode = field(default_factory=Mode)

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute or its default."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """Return a float attribute or its default."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Return a string attribute or its default."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """Return an attribute of integers, or None where the node lacks it."""
        found = self.attributes.get(name)
        return None if found is None else [int(item) for item in found]

    def refuse(self, reason: str) -> NoReturn:
        """Raise a ModelError that names the node.

        Raises:
            ModelError: Always.
        """
        raise ModelError(f"node '{self.name}' ({self.op}): {reason}")


def whole(tensor: Tensor) -> list[int]:
    """Return a tensor of sizes, axes or positions as Python integers."""
    return [int(item) for item in tensor.flatten().tolist()]


def axes_of(call: Call, given: Tensor | None, name: str = "axes") -> list[int] | None:
    """Return axes that newer versions of an operator take as an input and older ones as an attribute."""
    return call.integers(name) if given is None else whole(given)


def alike(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Return floating tensors in one type, the widest; under autocast, which does so itself, as they are."""
    kinds = {t.dtype for t in tensors if t is not None and t.is_floating_point()}
    if len(kinds) < 2:
        return tensors
    device = next(t.device.type for t in tensors if t is not None)
    if torch.is_autocast_enabled(device):
        return tensors
    wide = None
    for kind in sorted(kinds, key=str):
        wide = kind if wide is None else torch.promote_types(wide, kind)
    return tuple(t.to(wide) if t is not None and t.is_floating_point() else t for t in tensors)
