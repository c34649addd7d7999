"""``--config FILE|NAME``: options of a verb from a YAML file, also one that comes along; the command line wins."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.errors import OptionError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["config_option"]

Function = TypeVar("Function", bound=Callable[..., Any])


def config_option(function: Function) -> Function:
    """Add ``--config``."""
    return click.option(
        "--config",
        metavar="FILE.yaml|NAME",
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="options by their names, without the dashes in front; the command line wins. NAME is a configuration of "
        "a paper, see docs/from-the-papers.md",
    )(function)


def _read(ctx: click.Context, param: click.Parameter, given: str | None) -> None:
    if given is None:
        return
    import yaml

    try:
        with _found(given).open(encoding="utf-8") as file:
            loaded = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OptionError(f"--config {given} cannot be read: {reason}") from error
    if not isinstance(loaded, dict):
        raise OptionError(
            f"--config {given} holds {type(loaded).__name__}; options by name are accepted, as 'epochs: 5'"
        )
    known = _names(ctx.command)
    found = {}
    for key, value in loaded.items():
        name = str(key)
        if name.replace("_", "-") not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise OptionError(f"--config {given}: no option '{name}'; {hint}")
        option = known[name.replace("_", "-")]
        found[option.name or name] = _plain(value, option, f"--config {given}: {name}")
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _found(given: str) -> Path:
    """Return the file of this name, or the configuration that comes with the package.

    Raises:
        OptionError: There is neither.
    """
    from importlib.resources import files
    from pathlib import Path

    if Path(given).suffix or Path(given).exists():
        return Path(given)
    folder = Path(str(files("onnxprune.models"))) / "configs"
    known = {path.stem: path for path in folder.glob("*.yaml")}
    if given not in known:
        close = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(sorted(known))}"
        raise OptionError(f"--config {given} is neither a file nor a configuration that comes along; {hint}")
    return known[given]


def _names(command: click.Command) -> dict[str, click.Parameter]:
    names: dict[str, click.Parameter] = {}
    for param in command.params:
        if isinstance(param, click.Argument):
            names["network" if param.name is None else param.name] = param
        elif param.name not in (None, "config", "listed"):
            long = [text[2:].replace("_", "-") for text in param.opts if text.startswith("--")]
            names |= dict.fromkeys(long, param)
    return names


def _plain(value: object, param: click.Parameter, title: str) -> object:
    """Turn YAML's lists into what the option reads: several values, or one with commas."""
    if isinstance(value, dict):
        raise OptionError(f"{title} holds entries of its own; a value or a list is accepted")
    if param.multiple:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    flag = isinstance(param, click.Option) and param.is_flag
    if flag and not isinstance(value, bool):
        raise OptionError(f"{title} {value!r}: true or false is accepted")
    return value if flag or value is None else str(value)
