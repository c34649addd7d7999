"""Modules and weights that users bring: ``file.py:function`` and ``checkpoint.pth``."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from onnxprune.errors import ModelError, OptionError

__all__ = ["load_weights", "module_from_script", "read_checkpoint", "trial_output"]

_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 3


def load_weights(module: nn.Module, path: str | os.PathLike[str], *, trust_pickle: bool = False) -> None:
    """Load a state dict into a module, in place.

    The file is read with ``weights_only=True``: it runs no code. A state dict may lie under ``state_dict``,
    ``model_state_dict`` or ``model``; the prefix ``module.`` of ``DataParallel`` is taken off.

    Args:
        module: The network to fill.
        path: A file written by ``torch.save``.
        trust_pickle: Also read whole pickled modules, which may run any code while they are read.

    Raises:
        ModelError: If the file is missing, damaged or no state dict, or does not fit the module.
    """
    source = Path(path)
    state = _state_dict(read_checkpoint(source, trust_pickle=trust_pickle), source)
    wanted = module.state_dict()
    # Old checkpoints lack BatchNorm's counter, which plays no part in evaluation.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        found = [f"{text} {_first(keys)}" for text, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise ModelError(f"{source} does not fit {type(module).__name__}: {' and '.join(found)}")
    for key, value in state.items():
        if value.shape != wanted[key].shape:
            raise ModelError(
                f"{source} does not fit {type(module).__name__}: {key} has shape {tuple(value.shape)}, "
                f"the network wants {tuple(wanted[key].shape)}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{source}: {key} holds NaN or infinite values")
    module.load_state_dict(state, strict=False)


def module_from_script(target: str) -> nn.Module:
    """Call ``function()`` of a Python file and return the module it makes.

    Args:
        target: ``file.py:function``; the function takes no arguments.

    Raises:
        OptionError: If the file or function is missing.
        ModelError: If the code fails or returns something else than a module.
    """
    file, _, name = target.rpartition(":")
    path = Path(file)
    if not name or path.suffix != ".py" or not path.is_file():
        raise OptionError(f"cannot build {target!r}: give an existing file and a function in it, as net.py:make")
    code = _users_code(target, lambda: _imported(path))
    function = getattr(code, name, None)
    if not callable(function):
        raise OptionError(f"cannot build {target!r}: {path} has no function {name!r}")
    module = _users_code(target, function)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{target} returned {type(module).__name__}: return a torch.nn.Module")
    return module


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> object:
    """Read a file written by ``torch.save``; of a pickled module its state dict, and only with ``trust_pickle``.

    Raises:
        ModelError: If the file is missing or damaged, or holds code that is not trusted.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelError(f"the weights file {source} does not exist")
    try:
        loaded: object = torch.load(source, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{source} holds more than tensors or is damaged: save the network's state_dict() with torch.save, "
            "or give --trust-pickle if you trust whoever wrote it with your machine"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, ImportError, BadZipFile) as error:
        raise ModelError(f"{source} is not a readable torch checkpoint") from error
    if isinstance(loaded, Mapping):
        return {name: _plain(value) for name, value in loaded.items()}
    return _plain(loaded)


def trial_output(module: nn.Module, shape: Sequence[int], title: str) -> tuple[int, ...]:
    """Run a module once on zeros, batch 2, and return the shape of its output.

    Raises:
        ModelError: If it fails on that input, or returns something else than one tensor per example.
    """
    module.eval()
    with torch.no_grad():
        output = _users_code(f"{title} on input {(2, *shape)}", lambda: module(torch.zeros(2, *shape)))
    if not isinstance(output, Tensor):
        raise ModelError(f"{title} returns {type(output).__name__}: export writes modules that return one tensor")
    if output.ndim < 2 or len(output) != 2:
        raise ModelError(f"{title} returns shape {tuple(output.shape)} for two examples: (2, classes) is expected")
    return tuple(output.shape)


def _imported(path: Path) -> ModuleType:
    """Import a file: registered, so that torch finds its classes, with its folder on the path meanwhile."""
    name = f"onnxprune_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    code = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = code
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(code)
    finally:
        sys.path.remove(folder)
    return code


def _users_code(target: str, call: Callable[[], object]) -> object:
    try:
        return call()
    except (Exception, SystemExit) as error:  # the code is the user's and may fail in any way
        raise ModelError(f"{target} failed: {type(error).__name__}: {error}") from error


def _plain(value: object) -> object:
    return value.state_dict() if isinstance(value, nn.Module) else value


def _state_dict(loaded: object, source: Path) -> dict[str, Tensor]:
    for name in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"{source} holds no state dict: save the network's state_dict() with torch.save")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ModelError(f"{source}: entry {key!r} is {type(value).__name__}; a state dict maps names to tensors")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _first(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
