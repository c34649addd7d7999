"""Names of a model's classes, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def class_names(names: Sequence[str] | None, classes: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return one name per class (its index where none is known), and warnings about names that do not fit."""
    numbers = tuple(str(index) for index in range(classes))
    if names is None:
        return numbers, ()
    if len(names) != classes:
        return numbers, (
            f"{len(names)} class names are known for an output of {classes} classes; classes are numbered",
        )
    times = Counter(names)
    # Two classes may bear one name (ImageNet has two cranes): the index tells them apart.
    unique = (name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(names))
    return tuple(unique), ()
