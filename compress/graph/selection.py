"""Choosing nodes by name: exact names, globs and ``re:`` patterns, as ``only=`` and ``ignore=`` of every pass."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.graph.spaces import Analysis, ChannelSpace


def _patterns(owner: str, option: str, text: str | None) -> tuple[re.Pattern[str], ...] | None:
    if text is None:
        return None
    found = []
    for part in (part.strip() for part in text.split(";")):
        if not part:
            raise OptionError(
                f"{owner}: {option}='{text}' has an empty pattern; give names, globs or re:..., parted by ;"
            )
        found.append(compiled(owner, option, part))
    return tuple(found)


def compiled(owner: str, option: str, part: str) -> re.Pattern[str]:
    """Return one name, glob or ``re:`` pattern, to be matched against whole names.

    Raises:
        OptionError: It is not a regular expression.
    """
    try:
        return re.compile(part[3:] if part.startswith("re:") else fnmatch.translate(part))
    except re.error as error:
        raise OptionError(f"{owner}: {option}='{part}' is not a regular expression: {error}") from error


@dataclass(frozen=True)
class Selection:
    """Which nodes a pass may treat: those that ``only`` names (all, when absent) without those of ``ignore``."""

    only: tuple[re.Pattern[str], ...] | None = None
    ignore: tuple[re.Pattern[str], ...] | None = None

    @classmethod
    def parse(cls, owner: str, only: str | None, ignore: str | None) -> Selection:
        """Read the two options; patterns are parted by ``;``.

        Raises:
            OptionError: A pattern is empty or not a regular expression.
        """
        return cls(_patterns(owner, "only", only), _patterns(owner, "ignore", ignore))

    def reason(self, names: Iterable[str]) -> str | None:
        """Return why nodes of these names are left out, or None when they may be treated."""
        listed = list(names)
        if self.ignore and any(p.fullmatch(n) for p in self.ignore for n in listed):
            return "ignore= names it"
        if self.only is not None and not any(p.fullmatch(n) for p in self.only for n in listed):
            return "only= does not name it"
        return None

    def spaces(self, analysis: Analysis) -> tuple[list[ChannelSpace], dict[str, str]]:
        """Return the prunable spaces that may be treated, and why the others are left alone."""
        skipped, chosen = dict(analysis.refused), []
        for space in analysis.prunable:
            reason = self.reason(str(producer.node.name) for producer in space.producers)
            if reason is None:
                chosen.append(space)
            else:
                skipped[space.name] = reason
        return chosen, skipped
