"""What the model wants to be fed, and whether a named array fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InputSpec:
    """One graph input: its name, element type and shape (a str or None is a symbolic dimension).

    Axis 0 is the batch: examples are stacked along it, even where the model fixes its length.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))

    @property
    def floating(self) -> bool:
        """Tell whether the elements are real numbers (bfloat16 and the 8-bit floats included)."""
        return self.dtype.kind == "f" or "float" in self.dtype.name

    def describe(self) -> str:
        """Return the shape as text, such as ``(batch,1,28,28)``; ``?`` is a nameless dimension."""
        return shape_text(self.shape)


def shape_text(shape: Sequence[int | str | None]) -> str:
    """Return a shape as text without spaces, ``?`` for a dimension that has neither size nor name."""
    return "(" + ",".join("?" if side is None else str(side) for side in shape) + ")"


def check_inputs(inputs: Sequence[InputSpec]) -> None:
    """Refuse models that cannot be fed by examples stacked on axis 0.

    Raises:
        DataError: the model has no inputs, or one of them is a scalar.
    """
    if not inputs:
        raise DataError("the model has no inputs, so no data can be fed to it")
    for want in inputs:
        if not want.shape:
            raise DataError(f"input {want.name!r} is a scalar without a batch axis, so no examples can be fed to it")


def only_input(inputs: Sequence[InputSpec], source: str, what: str) -> InputSpec:
    """Return the model's only input.

    Raises:
        DataError: the model has several inputs and ``what`` can fill just one.
    """
    if len(inputs) == 1:
        return inputs[0]
    names = ", ".join(repr(want.name) for want in inputs)
    raise DataError(
        f"{source}: {what} fills one input, but the model has {len(inputs)} ({names}); "
        "give an .npz with one array per input"
    )


def check_shape(array: Array, want: InputSpec, name: str, source: str) -> None:
    """Check rank and static sizes of stacked examples; axis 0 is free.

    Raises:
        DataError: the shapes disagree.
    """
    sides = zip(array.shape[1:], want.shape[1:], strict=False)
    fits = array.ndim == len(want.shape) and all(not isinstance(wanted, int) or got == wanted for got, wanted in sides)
    if not fits:
        got = shape_text(("n", *array.shape[1:])) if array.ndim else "()"
        raise DataError(f"{name!r} in {source} has shape {got}; input {want.name!r} wants {want.describe()}")


def check_symbols(arrays: Mapping[str, Array], inputs: Sequence[InputSpec], source: str) -> None:
    """Check that a symbolic dimension has one size wherever its name appears (axis 0 aside).

    Raises:
        DataError: two arrays give the same symbol different sizes.
    """
    seen: dict[str, tuple[int, str]] = {}
    for want in inputs:
        for got, symbol in zip(arrays[want.name].shape[1:], want.shape[1:], strict=True):
            if not isinstance(symbol, str):
                continue
            size, owner = seen.setdefault(symbol, (got, want.name))
            if size != got:
                raise DataError(
                    f"{source}: dimension {symbol!r} is {size} in {owner!r} but {got} in {want.name!r}; "
                    "they must be equal"
                )


def check_kind(array: Array, want: InputSpec, name: str, source: str) -> None:
    """Check that the elements can become what the input wants without changing their meaning.

    Raises:
        DataError: the kinds differ, or whole numbers do not fit the narrower type.
    """
    have, target = array.dtype, want.dtype
    if want.floating:
        good = have.kind == "f" or "float" in have.name
    elif target.kind in "iu":
        good = have.kind in "iub"
    elif target.kind in "OUST":
        good = have.kind in "UST"
    else:
        good = have.kind == target.kind
    if not good:
        hint = ""
        if want.floating and have.kind in "iu":
            hint = (
                "; save the numbers as floats, or give uint8 images (n,H,W), (n,H,W,C) or (n,C,H,W)"
                " together with --preprocess"
            )
        raise DataError(f"{name!r} in {source} holds {have}; input {want.name!r} wants {target}{hint}")
    if target.kind in "iu" and array.size and not np.can_cast(have, target, "safe"):
        low, high, room = int(array.min()), int(array.max()), np.iinfo(target)
        if low < room.min or high > room.max:
            raise DataError(
                f"{name!r} in {source} holds values from {low} to {high}, which do not fit {target} "
                f"of input {want.name!r}"
            )


def cast(array: Array, want: InputSpec) -> Array:
    """Return the array in the input's element type; what overflows becomes infinite and is caught later."""
    if want.dtype.kind in "OUST":
        return array.astype(object)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(want.dtype, copy=False)
