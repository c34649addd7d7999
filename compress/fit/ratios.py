"""A fraction of channels for every space by name, as ``layer1.*=0.4;layer4.*=1``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.fit.allocate import fraction_widths
from onnxprune.fit.sizing import Sizing
from onnxprune.graph.selection import compiled
from onnxprune.graph.spaces import ChannelSpace


@dataclass(frozen=True)
class Ratios:
    """Patterns in the order given, each with a fraction; the first one that names a producer of a space counts."""

    entries: tuple[tuple[str, re.Pattern[str], float], ...]

    @classmethod
    def parse(cls, owner: str, text: str) -> Ratios:
        """Read ``pattern=ratio;pattern=ratio``; patterns are names, globs or ``re:...``, ratios lie in (0, 1].

        Raises:
            OptionError: The text is of another form, or a pattern is not a regular expression.
        """
        entries = []
        for part in (part.strip() for part in text.split(";")):
            name, _, number = (piece.strip() for piece in part.rpartition("="))
            try:
                value = float(number)
            except ValueError:
                value = 0.0
            if not name or not 0.0 < value <= 1.0:
                raise OptionError(
                    f"{owner}: ratios: '{part}' is not accepted; give pattern=ratio parted by ;, ratios in (0, 1]"
                )
            entries.append((name, compiled(owner, "ratios", name), value))
        return cls(tuple(entries))

    def of(self, space: ChannelSpace) -> float | None:
        """Return the fraction of a space, None where no pattern names it."""
        names = [str(producer.node.name) for producer in space.producers]
        return next((v for _, pattern, v in self.entries if any(pattern.fullmatch(n) for n in names)), None)

    def idle(self, spaces: Sequence[ChannelSpace]) -> list[str]:
        """Return the patterns that name none of these spaces."""
        names = [str(producer.node.name) for space in spaces for producer in space.producers]
        return [text for text, pattern, _ in self.entries if not any(pattern.fullmatch(n) for n in names)]

    def widths(self, spaces: Sequence[ChannelSpace], sizing: Sizing) -> dict[str, int]:
        """Return how many channels every space keeps, rounded down (up to whole blocks); the unnamed keep all."""
        full = {space.name: space.width for space in spaces}
        blocks, found = sizing.blocks(full), dict[str, int]()
        for space in spaces:
            share = self.of(space)
            one = {space.name: space.width}
            found |= one if share is None else fraction_widths(one, share, blocks, up=True)
        return found
