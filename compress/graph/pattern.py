"""Patterns of operators as text: ``Mul(x, Sigmoid(x))``, and what replaces them: ``trt.plugins::Swish(x, beta=1.0)``.

A pattern is a call of an operator. Its arguments are calls, variables (any tensor, the same one wherever the name
stands), numbers or lists of numbers (a stored tensor with these values), ``none`` (an input left out) and, by name,
attributes; attributes that are not named may have any value. A part may get a name first: ``d = Sub(x, m); Mul(d, d)``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OptionError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|(?P<text>'[^'\\]*'|\"[^\"\\]*\")"
    r"|(?P<name>[A-Za-z_]\w*(?:[.\-]\w+)*)|(?P<mark>::|[()\[\],=;]))"
)
# A larger pattern than any fused operator needs; names within names could spell out an endless one.
_MOST_OPERATORS = 64


@dataclass(frozen=True)
class Variable:
    """Any tensor; the same one wherever the name stands."""

    name: str


@dataclass(frozen=True)
class Stored:
    """A stored tensor of these values: one entry for a number, one axis for a list."""

    values: tuple[float, ...]
    is_list: bool


@dataclass(frozen=True)
class Absent:
    """An optional input that is left out."""


@dataclass(frozen=True)
class Call:
    """An operator with its inputs, and the attributes that matter."""

    op: str
    domain: str
    inputs: tuple[Call | Variable | Stored | Absent, ...]
    attributes: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """The operator as a pattern writes it."""
        return f"{self.domain}::{self.op}" if self.domain else self.op

    def variables(self) -> list[str]:
        """Return the names of the variables in order of first appearance."""
        found: dict[str, None] = {}
        for term in self.inputs:
            names = term.variables() if isinstance(term, Call) else [term.name] if isinstance(term, Variable) else []
            found.update(dict.fromkeys(names))
        return list(found)

    def size(self) -> int:
        """Return how many operators the call spells out."""
        return 1 + sum(term.size() for term in self.inputs if isinstance(term, Call))


Term = Call | Variable | Stored | Absent


def parse_pattern(text: str, owner: str) -> Call:
    """Read a pattern.

    Raises:
        OptionError: The text is not a pattern; the sentence says where.
    """
    return _Reader(text, f"{owner}: pattern='{text}'").pattern()


def parse_operator(text: str, pattern: Call, owner: str) -> Call:
    """Read what replaces a pattern: one operator on its variables; a bare name takes all of them in order.

    Raises:
        OptionError: The text is not an operator, or takes something that is no variable of the pattern.
    """
    reader = _Reader(text, f"{owner}: by='{text}'")
    call = reader.operator()
    known = pattern.variables()
    if call is None:
        return reader.bare(tuple(Variable(name) for name in known))
    for term in call.inputs:
        if isinstance(term, Variable) and term.name not in known:
            raise OptionError(
                f"{reader.where} takes '{term.name}'; the pattern has {', '.join(known) or 'no variable'}"
            )
        if not isinstance(term, Variable | Absent):
            raise OptionError(
                f"{reader.where} must take variables of the pattern only; "
                "give a stored number or an inner part a name there"
            )
    return call


class _Reader:
    """Reads one text from left to right."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.tokens = list(self._split(text))
        self.place = 0
        self.named: dict[str, Call] = {}

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        start = 0
        while text[start:].strip():
            found = _TOKEN.match(text, start)
            if found is None:
                raise OptionError(f"{self.where}: '{text[start:].strip()[:12]}' cannot be read")
            yield str(found.lastgroup), found.group(str(found.lastgroup))
            start = found.end()
        yield "end", ""

    def _next(self, mark: str = "") -> tuple[str, str]:
        """Return the next token and step over it; with ``mark`` it must be that one."""
        kind, word = self.tokens[self.place]
        if mark and word != mark:
            raise self._refusal(f"'{mark}'")
        self.place += kind != "end"
        return kind, word

    def _sees(self, *words: str) -> bool:
        """Return whether these marks come next."""
        upcoming = self.tokens[self.place : self.place + len(words)]
        return [word if kind == "mark" else kind for kind, word in upcoming] == list(words)

    def _refusal(self, wanted: str) -> OptionError:
        kind, word = self.tokens[self.place]
        found = "the end" if kind == "end" else f"'{word}'"
        return OptionError(f"{self.where}: {wanted} is expected where {found} stands (argument {self.place + 1})")

    def pattern(self) -> Call:
        """Read named parts and the pattern itself."""
        while self._sees("name", "="):
            name = self._next()[1]
            self._next("=")
            self.named[name] = self._call()
            self._next(";")
        call = self._call()
        self._check_end()
        return call

    def operator(self) -> Call | None:
        """Read one operator; None where it is a bare name."""
        if self._sees("name", "end") or self._sees("name", "::", "name", "end"):
            return None
        call = self._call()
        self._check_end()
        return call

    def bare(self, inputs: tuple[Term, ...]) -> Call:
        """Return the operator of a bare name on the given inputs."""
        words = [word for kind, word in self.tokens if kind == "name"]
        return Call(words[-1], plain_domain(words[0]) if len(words) > 1 else "", inputs)

    def _check_end(self) -> None:
        if not self._sees("end"):
            raise self._refusal("nothing more")

    def _call(self) -> Call:
        if not self._sees("name"):
            raise self._refusal("an operator such as Relu(x)")
        op, domain = self._next()[1], ""
        if self._sees("::"):
            self._next()
            domain = plain_domain(op)
            if not self._sees("name"):
                raise self._refusal("the name of an operator")
            op = self._next()[1]
        self._next("(")
        inputs: list[Term] = []
        attributes: dict[str, Any] = {}
        while not self._sees(")"):
            if self._sees("name", "="):
                name = self._next()[1]
                self._next("=")
                attributes[name] = self._literal()
            else:
                inputs.append(self._term())
            if not self._sees(")"):
                self._next(",")
        self._next(")")
        call = Call(op, domain, tuple(inputs), tuple(attributes.items()))
        if call.size() > _MOST_OPERATORS:
            raise OptionError(f"{self.where} spells out more than {_MOST_OPERATORS} operators")
        return call

    def _term(self) -> Term:
        if self._sees("name", "(") or self._sees("name", "::"):
            return self._call()
        if self._sees("name"):
            name = self._next()[1]
            if name == "none":
                return Absent()
            return self.named.get(name, Variable(name))
        value = self._literal()
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(each, str) for each in values):
            raise OptionError(f"{self.where}: text stands for an attribute only, as in Op(x, mode='linear')")
        return Stored(tuple(float(each) for each in values), isinstance(value, tuple))

    def _literal(self) -> Any:
        if self._sees("["):
            self._next()
            values = []
            while not self._sees("]"):
                values.append(self._literal())
                if not self._sees("]"):
                    self._next(",")
            self._next("]")
            if any(isinstance(value, tuple) for value in values):
                raise OptionError(
                    f"{self.where}: a list within a list is no attribute and no stored tensor of one axis"
                )
            return tuple(values)
        kind, word = self.tokens[self.place]
        if kind not in ("number", "text"):
            raise self._refusal("a number, 'text' or a [list]")
        self._next()
        return ast.literal_eval(word.lstrip("+")) if kind == "text" or not word.lstrip("+-").isdigit() else int(word)


def plain_domain(domain: str | None) -> str:
    """Return a domain as the engine writes it: the standard operators' one is empty."""
    return "" if domain in (None, "ai.onnx") else str(domain)
