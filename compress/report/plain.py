"""Frozen dataclasses to plain JSON data and back, checked: keys, types, and no NaN on the way out."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from os import PathLike, fspath
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from onnxprune.errors import DataError

T = TypeVar("T")


def to_plain(value: object, where: str) -> Any:
    """Return a value as dicts, lists, strings, numbers and None; a figure that is not finite becomes None.

    Raises:
        TypeError: if something has no JSON form, naming the place.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist(), where)
    if isinstance(value, PathLike):
        return fspath(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {_key(each): to_plain(getattr(value, each.name), f"{where}.{each.name}") for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Set):
        # Sets have no order of their own; sorting keeps the same report the same bytes.
        value = sorted(value, key=str)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [to_plain(item, f"{where}[{place}]") for place, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}; a report holds only JSON data")


def from_plain(cls: type[T], plain: object, where: str) -> T:
    """Build a dataclass from plain data by its annotations.

    Raises:
        DataError: if a key is missing or unknown or a value of the wrong type, naming the place.
    """
    if not isinstance(plain, Mapping):
        raise DataError(f"{where}: found {_shown(plain)}; an object is wanted")
    hints = get_type_hints(cls)
    known = {_key(each): each for each in fields(cast("Any", cls))}
    for key in plain:
        if key not in known:
            raise DataError(f"{where}: key {key!r} is unknown; accepted are {', '.join(known)}")
    values = {}
    for key, each in known.items():
        if key in plain:
            values[each.name] = _read(hints[each.name], plain[key], f"{where}.{key}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise DataError(f"{where}: key {key!r} is missing; a complete report has it")
    return cls(**values)


def _key(each: Field[Any]) -> str:
    return cast("str", each.metadata.get("key", each.name))


def _read(hint: Any, plain: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return plain
    if origin in (Union, types.UnionType):  # only "X | None" is used
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if plain is None else _read(inner, plain, where)
    if is_dataclass(hint):
        return from_plain(cast("type[Any]", hint), plain, where)
    if origin is tuple:
        return _read_tuple(arguments, plain, where)
    if origin is Mapping:
        if not isinstance(plain, Mapping):
            raise DataError(f"{where}: found {_shown(plain)}; an object is wanted")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in plain.items()}
    if origin is Literal:
        if plain not in arguments:
            raise DataError(f"{where}: found {_shown(plain)}; accepted are {', '.join(map(repr, arguments))}")
        return plain
    return _read_scalar(hint, plain, where)


def _read_tuple(arguments: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, list | tuple):
        raise DataError(f"{where}: found {_shown(plain)}; a list is wanted")
    hints = [arguments[0]] * len(plain) if arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(plain):
        raise DataError(f"{where}: found {len(plain)} items; {len(hints)} are wanted")
    return tuple(
        _read(hint, item, f"{where}[{place}]") for place, (hint, item) in enumerate(zip(hints, plain, strict=True))
    )


def _read_scalar(hint: type, plain: Any, where: str) -> Any:
    words = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
    # bool is an int in Python but not in JSON; a whole number is a fine float in both.
    fits = type(plain) is hint or (hint is float and type(plain) is int)
    if not fits:
        raise DataError(f"{where}: found {_shown(plain)}; {words[hint]} is wanted")
    return float(plain) if hint is float else plain


def _shown(plain: object) -> str:
    text = repr(plain)
    return text if len(text) <= 60 else text[:57] + "..."
