"""What a pass is: a name, options, wishes about tensors, and a function from a model to a rewritten model."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import onnx_ir as ir

from onnxprune.data import Examples
from onnxprune.errors import OptionError
from onnxprune.graph.cost import Cost
from onnxprune.runtime.session import Settings


class Tap(NamedTuple):
    """A tensor of the model and the axis that carries channels."""

    value: str
    axis: int


class Observer(Protocol):
    """Accumulates something about one tensor over the batches of calibration data."""

    def update(self, array: Any) -> None:
        """Add one batch."""

    def finite(self) -> bool:
        """Return whether every value seen so far was finite."""

    def result(self) -> Any:
        """Return what was accumulated."""


Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@contextlib.contextmanager
def silent(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show no progress."""
    yield lambda count: None


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model.

    ``statistics`` holds the results of the pass's own observers, taken on its input model; ``original`` is the
    source model with its cost; ``inputs`` are the concrete input shapes at which costs are counted; ``collect``
    runs the calibration data through another model; ``examples`` are that data, for a pass that goes through a
    model piece by piece (None without data), and ``settings`` say where to run.
    """

    original: ir.Model
    original_cost: Cost
    inputs: Mapping[str, tuple[int, ...]]
    seed: int
    statistics: Mapping[Tap, Any] = field(default_factory=dict)
    collect: Callable[[ir.Model, Mapping[Tap, Observer]], Mapping[Tap, Any]] | None = None
    examples: Examples | None = None
    settings: Settings = field(default_factory=Settings)
    progress: Progress = silent


@dataclass(frozen=True)
class StepResult:
    """What a pass did: the rewritten model, what it left alone and why, and figures for the report.

    ``reached`` maps a size the pass was asked for to (wanted, got), so that a missed one fails the run honestly.
    """

    model: ir.Model
    skipped: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    reached: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Pass(Protocol):
    """A rewrite of a model; concrete passes are frozen dataclasses whose fields are their options.

    ``needs`` names what a pass cannot do without (calibration, labels, training); one that makes use of calibration
    where there is some, and does without otherwise, has a class variable ``uses`` besides.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    lossless: ClassVar[bool]
    needs: ClassVar[frozenset[str]]

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Return the observers to fill from calibration data run through ``model``."""

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the rewritten model; the given one is not touched."""


@dataclass(frozen=True)
class Plan:
    """What a pass would do, without doing it: rows of a table, remarks, and reasons for what it would leave alone.

    ``curve`` says, where examples were at hand, what several sizes would give.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    curve: tuple[Mapping[str, Any], ...] = ()


def takes_calibration(item: Pass) -> bool:
    """Return whether a pass makes use of calibration examples."""
    return "calibration" in item.needs | getattr(item, "uses", frozenset())


@runtime_checkable
class Planner(Protocol):
    """A pass that can say beforehand what it would do; it needs no data for that, but may say more with examples."""

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return what :meth:`Pass.apply` would treat and how far it could go."""


@runtime_checkable
class Searcher(Protocol):
    """A pass that can be tried at many sizes: what all of them share is worked out once."""

    def prepared(self, model: ir.Model, context: Context) -> Callable[[Any], StepResult]:
        """Return a function from this pass with any size, all else the same, to what that one would do."""


@dataclass(frozen=True)
class OptionSpec:
    """One option of a pass, for the recipe parser, the help and the range check.

    ``low`` and ``high`` are inclusive unless ``above`` or ``below`` say so; ``choices`` lists the words accepted.
    An option of kind ``tuple`` holds passes, which a recipe writes as a recipe.
    """

    name: str
    kind: type
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """What the option accepts, in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.low is None and self.high is None:
            words = {bool: "true or false", str: "text", int: "a whole number", float: "a number", tuple: "passes"}
            return words[self.kind]
        left = "(" if self.above or self.low is None else "["
        right = ")" if self.below or self.high is None else "]"
        low = "-inf" if self.low is None else f"{self.low:.15g}"
        high = "inf" if self.high is None else f"{self.high:.15g}"
        kind = "a whole number" if self.kind is int else "a number"
        return f"{kind} in {left}{low}, {high}{right}"

    def check(self, owner: str, value: Any) -> None:
        """Raise OptionError unless ``value`` is acceptable (None is, where it is the default)."""
        if value is None and self.default is None:
            return
        kind = {int: numbers.Integral, float: numbers.Real}.get(self.kind, self.kind)
        wrong = isinstance(value, bool) != (self.kind is bool) or not isinstance(value, kind)
        if not wrong and self.choices:
            wrong = value not in self.choices
        if not wrong and self.kind in (int, float):
            wrong = not self._in_range(float(value))
        if wrong:
            raise OptionError(f"{owner}: {self.name}={value} is not accepted; give {self.accepted}")

    def _in_range(self, value: float) -> bool:
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return False
        if self.high is not None and (value > self.high or (self.below and value == self.high)):
            return False
        return value == value and abs(value) != float("inf")


def option(default: Any, kind: type, help: str, **limits: Any) -> Any:
    """Declare an option of a pass: a dataclass field that knows its help and its range."""
    return field(default=default, metadata={"kind": kind, "help": help, **limits})


def options_of(cls: type) -> Iterator[OptionSpec]:
    """Yield the options of a pass class, in the order of its fields."""
    for item in dataclasses.fields(cls):
        limits = dict(item.metadata)
        yield OptionSpec(item.name, limits.pop("kind"), item.default, limits.pop("help"), **limits)


def check_options(instance: Any) -> None:
    """Check every option of a pass against its range; call it in ``__post_init__``.

    Raises:
        OptionError: An option's value is not accepted; the sentence says what is.
    """
    for spec in options_of(type(instance)):
        spec.check(str(instance.name), getattr(instance, spec.name))
