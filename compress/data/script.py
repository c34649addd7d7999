"""A user's own Python script: importing it for a while, and finding a function in it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxprune.errors import DataError

_MODULE = "onnxprune_user_script"


@contextmanager
def loaded(path: str) -> Iterator[ModuleType]:
    """Import a script for the time of the block, with its folder importable as when it is run itself.

    Raises:
        DataError: It is no Python script; what the script itself raises goes through.
    """
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path} cannot be imported as a Python script")
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[_MODULE] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.modules.pop(_MODULE, None)
        if folder in sys.path:
            sys.path.remove(folder)


def function_of(module: ModuleType, function: str, source: str) -> Callable[..., Any]:
    """Return a function of a script.

    Raises:
        DataError: There is none of that name; the sentence names those that there are.
    """
    found = getattr(module, function, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    raise DataError(f"{source}: the script has no function {function!r}; it has {', '.join(there) or 'none'}")
