"""Passes written out as recipes: the canonical text and YAML, both read back by :mod:`onnxprune.recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxprune.contract import Pass, options_of
from onnxprune.errors import OptionError

SIZES = ("keep", "flops", "params", "bytes", "latency", "sparsity")
QUOTES = "'\""
LISTS = frozenset({"only", "ignore", "inputs", "outputs"})
"""Options of several names parted by ``;``, which YAML may give as a list."""
_CUTTING = frozenset({*",()=;", *QUOTES})


def deciders(item: Any) -> frozenset[str]:
    """Return the options that say how far a pass goes: sizes, and the ones of its class variable ``stops``."""
    return frozenset(SIZES) | getattr(item, "stops", frozenset())


def options(item: Pass) -> dict[str, Any]:
    """Return the options of a pass that differ from their defaults, and the size that a bare pass uses.

    Passes within a pass are given as the text of their recipe, in parentheses.
    """
    return {name: f"({canonical(value)})" if name in _nested(item) else value for name, value in _given(item).items()}


def canonical(passes: Iterable[Pass]) -> str:
    """Return the recipe that gives these passes: every option that is no default, and the size of a bare pass.

    Values are quoted where they hold anything but a plain word or number: spaces, ``;``, commas, parentheses, equals
    signs, quotes, ``re:`` patterns. A quote within quotes is doubled.
    """
    return ",".join(written(item) for item in passes)


def written(item: Pass) -> str:
    """Return one pass as a step of a canonical recipe."""
    given, nested = options(item), _nested(item)
    texts = {name: value if name in nested else quoted(value) for name, value in given.items()}
    positional = texts.get(getattr(item, "positional", ""), "'")
    bare = [] if positional[:1] in QUOTES else [positional]
    named = [f"{name}={text}" for name, text in texts.items() if not (bare and name == getattr(item, "positional", ""))]
    return f"{item.name}({','.join(bare + named)})" if texts else item.name


def quoted(value: Any) -> str:
    """Write a value as the parser reads it: in quotes where it holds something that the parser would cut at."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    special = any(letter in _CUTTING or letter.isspace() for letter in text)
    if text and not special and not text.startswith("re:"):
        return text
    quote = next((quote for quote in QUOTES if quote not in text), QUOTES[0])
    return f"{quote}{text.replace(quote, 2 * quote)}{quote}"


def to_yaml(passes: Iterable[Pass]) -> str:
    """Return the same recipe as YAML: one entry per pass under ``passes``, names given as lists, recipes too."""
    import yaml

    content = {"passes": [_entry(item) for item in passes]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=2**20)


def read_yaml(path: Path) -> list[Any]:
    """Return the entries of a recipe file.

    Raises:
        OptionError: The file is missing, is not YAML, gives a key twice, or holds no list of passes.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, of which YAML would keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    if not path.is_file():
        raise OptionError(f"recipe file '{path}' does not exist")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise OptionError(f"recipe file '{path}' cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"recipe file '{path}' is not YAML: {_fault(error)}") from error
    passes = content.get("passes") if isinstance(content, Mapping) else content
    if not isinstance(passes, list):
        raise OptionError(
            f"recipe file '{path}' needs a list under 'passes', for example passes: [surp, {{id: {{flops: 0.5}}}}]"
        )
    unknown = [key for key in content if key != "passes"] if isinstance(content, Mapping) else []
    if unknown:
        raise OptionError(f"recipe file '{path}': unknown key '{unknown[0]}'; only 'passes' is read")
    return passes


def joined(where: str, names: list[Any]) -> str:
    """Return a YAML list of names as an option takes it, parted by ``;``.

    Raises:
        OptionError: The list is empty, or holds something else than names, or a name with a ``;``.
    """
    if not names:
        raise OptionError(f"{where}=[] is not accepted; give at least one name, or leave the option out")
    for name in names:
        if not isinstance(name, str) or ";" in name or not name.strip():
            raise OptionError(f"{where}: {name!r} in the list is not accepted; give names, without ;")
    return ";".join(names)


def _given(item: Pass) -> dict[str, Any]:
    pairs = [(spec, getattr(item, spec.name)) for spec in options_of(type(item))]
    given = {spec.name: value for spec, value in pairs if value != spec.default}
    default = getattr(item, "default_size", None)
    if default is not None and not deciders(item) & set(given):
        return {default[0]: default[1], **given}
    return given


def _nested(item: Pass) -> frozenset[str]:
    return frozenset(spec.name for spec in options_of(type(item)) if spec.kind is tuple)


def _entry(item: Pass) -> Any:
    kinds = {spec.name: spec.kind for spec in options_of(type(item))}
    given = {name: _plain(name, kinds[name], value) for name, value in _given(item).items()}
    return {item.name: given} if given else item.name


def _plain(name: str, kind: type, value: Any) -> Any:
    if kind is tuple:
        return [_entry(inner) for inner in value]
    parts = str(value).split(";") if name in LISTS else []
    if len(parts) > 1 and all(part.strip() for part in parts):
        return parts
    return kind(value)


def _fault(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    return f"{problem} (line {mark.line + 1})" if problem and mark else str(error).splitlines()[0]
