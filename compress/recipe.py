"""Recipes: ``surp(sparsity=0.8),id(flops=0.5)`` or a YAML file, turned into pass objects.

Passes are reached through a table of strings, so that naming one loads only its own file.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from onnxprune.budget import Target
from onnxprune.contract import OptionSpec, Pass, options_of
from onnxprune.errors import OptionError
from onnxprune.recipe_text import (
    LISTS,
    QUOTES,
    SIZES,
    canonical,
    deciders,
    joined,
    options,
    read_yaml,
    to_yaml,
    written,
)

__all__ = [
    "PASSES", "SIZES", "bare", "canonical", "nearest", "options", "parse", "pass_class", "sized", "to_yaml", "written",
]  # fmt: skip

PASSES: dict[str, str] = {
    "surp": "onnxprune.passes.surp:Surp",
    "id": "onnxprune.passes.id:Id",
    "magnitude": "onnxprune.passes.magnitude:Magnitude",
    "filters": "onnxprune.passes.filters:Filters",
    "pca": "onnxprune.passes.pca:Pca",
    "lrank": "onnxprune.passes.lrank:LRank",
    "cp": "onnxprune.passes.cp:Cp",
    "auto": "onnxprune.passes.auto:Auto",
    "ispasp": "onnxprune.passes.ispasp:Ispasp",
    "fold_bn": "onnxprune.passes.fold_bn:FoldBn",
    "cleanup": "onnxprune.passes.cleanup:Cleanup",
    "extract": "onnxprune.passes.extract:Extract",
    "replace": "onnxprune.passes.replace:Replace",
    "zero_groups": "onnxprune.passes.zero_groups:ZeroGroups",
    "int8": "onnxprune.passes.int8:Int8",
    "dequantize": "onnxprune.passes.dequantize:Dequantize",
    "custom": "onnxprune.passes.custom:Custom",
    "distill": "onnxprune.models.distill:Distill",
}
_STEP = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def pass_class(name: str) -> Any:
    """Return the class of a pass.

    Raises:
        OptionError: There is no such pass; the nearest name is suggested.
    """
    known = name.replace("-", "_")
    if known not in PASSES:
        raise OptionError(f"unknown pass '{name}'{nearest(name, PASSES)}; there are {', '.join(sorted(PASSES))}")
    module, _, attribute = PASSES[known].partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``: did you mean 'x'?`` for a close name, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


def parse(recipe: str, targets: Sequence[Target] = ()) -> list[Pass]:
    """Return the passes of a recipe in order, sizes filled from targets; a pass without one stays bare.

    Raises:
        OptionError: The text is not a recipe; a pass or option is unknown; a value is out of range; a target
            fits no pass.
    """
    try:
        steps = [(name, _typed(name, options)) for name, options in _steps(recipe)]
    except RecursionError:
        raise OptionError("the recipe has recipes inside recipes, too many to read") from None
    if not steps:
        raise OptionError("the recipe is empty; name at least one pass, for example surp,id")
    _fill_targets(steps, targets)
    return [pass_class(name)(**options) for name, options in steps]


def _inner(owner: str, spec: OptionSpec, given: Any) -> tuple[Pass, ...]:
    """Return the passes of a recipe within a recipe: text (in parentheses or quotes), or a list in YAML."""
    where = f"{owner}: {spec.name}"
    if isinstance(given, str):
        text = given.strip()
        enclosed = text.startswith("(") and text.endswith(")")
        steps = [_step(part) for part in _split(text[1:-1] if enclosed else text)]
    elif isinstance(given, list | Mapping):
        steps = [_from_entry(where, entry) for entry in (given if isinstance(given, list) else [given])]
    else:
        raise OptionError(f"{where}={given} is not accepted; give {spec.accepted}")
    return tuple(pass_class(name)(**_typed(name, options)) for name, options in steps)


def _steps(recipe: str) -> list[tuple[str, dict[str, Any]]]:
    if recipe.endswith((".yaml", ".yml")):
        return [_from_entry(f"recipe file '{recipe}'", entry) for entry in read_yaml(Path(recipe))]
    return [_step(part) for part in _split(recipe)]


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses and quotes; a quote opens only right after an equals sign.

    Two quotes within quotes are one that belongs to the value.
    """
    parts, depth, start, quote, before, paired = [], 0, 0, "", "", False
    for position, letter in enumerate(text):
        if quote:
            closes = letter == quote and not paired
            paired = closes and text[position + 1 : position + 2] == quote
            quote = "" if closes and not paired else quote
        elif letter in QUOTES and before == "=":
            quote = letter
        else:
            depth += (letter == "(") - (letter == ")")
            if depth < 0:
                raise OptionError(f"recipe '{text}': ')' at position {position + 1} closes nothing")
            if letter == "," and depth == 0:
                parts.append(text[start:position])
                start = position + 1
        before = before if letter.isspace() else letter
    if quote or depth:
        raise OptionError(f"recipe '{text}': a {quote or '('!r} is never closed")
    parts.append(text[start:])
    if any(not part.strip() for part in parts) and len(parts) > 1:
        raise OptionError(f"recipe '{text}': there is nothing between two commas or after the last one")
    return [part for part in parts if part.strip()]


def _step(text: str) -> tuple[str, dict[str, Any]]:
    found = _STEP.fullmatch(text)
    if found is None:
        raise OptionError(f"recipe step '{text.strip()}' is not of the form name or name(option=value, ...)")
    name, inside = found.group(1).replace("-", "_"), found.group(2) or ""
    options: dict[str, Any] = {}
    for item in _split(inside) if inside.strip() else []:
        key, equals, value = item.partition("=")
        if not equals and not options and (plain := _positional(name)):
            key, equals, value = plain, "=", item
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise OptionError(f"recipe step '{text.strip()}': '{item.strip()}' is not of the form option=value")
        if key in options:
            raise OptionError(f"recipe step '{text.strip()}': option '{key}' is given twice")
        options[key] = _unquoted(value.strip())
    return name, options


def _positional(name: str) -> str:
    """Return the option that a pass takes without its name, as the first one; empty where there is none."""
    return str(getattr(pass_class(name), "positional", "")) if name in PASSES else ""


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]
    return value[1:-1].replace(2 * value[0], value[0]) if quoted else value


def _from_entry(where: str, entry: object) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return _step(entry)
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        if isinstance(options, str) and _positional(str(name)):
            options = {_positional(str(name)): options}
        if options is None or isinstance(options, Mapping):
            return str(name).replace("-", "_"), {str(k).replace("-", "_"): v for k, v in (options or {}).items()}
    raise OptionError(f"{where}: {entry!r} is not a pass name or {{name: {{option: value}}}}")


def _typed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn option texts into values of the declared kinds."""
    specs = {spec.name: spec for spec in options_of(pass_class(name))}
    for key in options:
        if key not in specs:
            known = ", ".join(specs) or "none"
            raise OptionError(f"{name}: unknown option '{key}'{nearest(key, specs)}; it takes {known}")
    return {key: _value(name, specs[key], value) for key, value in options.items()}


def _value(owner: str, spec: OptionSpec, given: Any) -> Any:
    refusal = OptionError(f"{owner}: {spec.name}={given} is not accepted; give {spec.accepted}")
    if spec.kind is tuple:
        return _inner(owner, spec, given)
    if isinstance(given, list) and spec.kind is str and spec.name in LISTS:
        return joined(f"{owner}: {spec.name}", given)
    if spec.kind is bool:
        word = str(given).lower()
        if word not in _TRUE + _FALSE:
            raise refusal
        return word in _TRUE
    broken = isinstance(given, float) and spec.kind is int and not given.is_integer()
    if broken or isinstance(given, bool) or not isinstance(given, str | int | float):
        raise refusal
    try:
        return spec.kind(given)
    except ValueError as error:
        raise refusal from error


def _fill_targets(steps: list[tuple[str, dict[str, Any]]], targets: Sequence[Target]) -> None:
    """Give each target to the last pass that takes it and names no size of its own, in place."""
    for target in targets:
        takers = [
            options for name, options in steps if _takes(name, target) and not deciders(pass_class(name)) & set(options)
        ]
        if not takers:
            able = [name for name, _ in steps if _takes(name, target)]
            why = f"{', '.join(able)} names a size already" if able else "no pass of the recipe takes it"
            raise OptionError(f"--target {target.name}={target.value:g}: {why}; add a pass for it or drop the target")
        takers[-1][target.name] = target.value


def _takes(name: str, target: Target) -> bool:
    """Return whether a pass has this size; an option of that name which is no share is another thing."""
    return any(spec.name == target.name and spec.kind is float for spec in options_of(pass_class(name)))


def bare(item: Pass) -> bool:
    """Tell whether a pass takes a size and nothing says how far it goes."""
    return hasattr(item, "default_size") and not any(getattr(item, name, None) is not None for name in deciders(item))


def sized(item: Pass, value: float) -> Pass:
    """Return a bare pass with a size in the currency of its default."""
    changed: Pass = dataclasses.replace(cast("Any", item), **{cast("Any", item).default_size[0]: value})
    return changed
