"""The report as data: one frozen dataclass per object of the schema ``onnxprune.report/1``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from onnxprune.budget import Gate
from onnxprune.errors import DataError
from onnxprune.evaluate.evidence import Accuracy, Agreement, OutputError, OutputEvidence, Rate
from onnxprune.report.plain import from_plain, to_plain

SCHEMA: Final = "onnxprune.report/1"
_TRIAL: Final = frozenset({"size", "agreement", "low", "met"})


@dataclass(frozen=True)
class Source:
    """The model that was read, or the file of its outputs, which has no opset."""

    path: str
    sha256: str
    opset: int | None


@dataclass(frozen=True)
class Result:
    """The model that was written, or the file of its outputs."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Figures:
    """A model's cost: weights, nonzero ones, MACs per example, weight bytes; None where unknown."""

    params: int | None
    nonzero: int | None
    macs: int | None
    bytes: int | None


@dataclass(frozen=True)
class Change:
    """One figure before and after; ``ratio`` is after / before; None where unknown or before is 0."""

    before: int | None
    after: int | None
    ratio: float | None

    @classmethod
    def of(cls, before: int | None, after: int | None) -> Change:
        """Build a change, working out its ratio."""
        known = before is not None and after is not None and before != 0
        return cls(before, after, after / before if known else None)  # type: ignore[operator]  # known: both ints


@dataclass(frozen=True)
class Cost:
    """What the whole recipe did to the model's cost."""

    params: Change
    nonzero: Change
    macs: Change
    bytes: Change

    @classmethod
    def between(cls, before: Figures, after: Figures) -> Cost:
        """Build the four changes from the figures of the source and the result."""
        return cls(
            Change.of(before.params, after.params),
            Change.of(before.nonzero, after.nonzero),
            Change.of(before.macs, after.macs),
            Change.of(before.bytes, after.bytes),
        )


@dataclass(frozen=True)
class Skipped:
    """A node a pass left as it was, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Step:
    """One pass of the recipe: ``cost`` is the model's after the step, ``numbers`` what the pass has to tell.

    ``numbers["layers"]``, where a pass gives it, is a list of mappings, one per layer; views print a table. So is
    ``numbers["search"]``, one per size that was tried: ``size``, ``agreement``, ``low``, ``met``.

    ``recipe`` is the step in canonical form, ``agreement`` how often the model after it decides as the source does
    on the evaluation examples; None in a recipe of one step, and where it cannot be judged.
    """

    pass_name: str = field(metadata={"key": "pass"})
    options: Mapping[str, Any]
    seconds: float
    skipped: tuple[Skipped, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    cost: Figures | None = None
    recipe: str | None = None
    agreement: Rate | None = None

    @property
    def trials(self) -> tuple[Mapping[str, Any], ...]:
        """The sizes that a search tried, in order; empty where nothing was searched for."""
        rows = self.numbers.get("search")
        if not isinstance(rows, list | tuple):
            return ()
        whole = all(isinstance(each, Mapping) and each.keys() >= _TRIAL for each in rows)
        return tuple(rows) if whole else ()


@dataclass(frozen=True)
class DataSide:
    """The examples of one side: the spec as written, how many, and a hash over their contents."""

    source: str
    examples: int
    sha256: str | None


@dataclass(frozen=True)
class DataUsed:
    """The examples a run calibrated and was judged on; ``synthetic`` ones are made up.

    ``choosing`` are those that a search went by; None where nothing was searched for.
    """

    calib: DataSide | None = None
    eval: DataSide | None = None
    synthetic: bool = False
    choosing: DataSide | None = None


@dataclass(frozen=True)
class Report:
    """What was done to a model and to its decisions.

    ``recipe`` is None for a plain comparison, ``cost`` where outputs were compared, with no models at hand.
    """

    source: Source
    result: Result | None
    recipe: str | None
    steps: tuple[Step, ...]
    cost: Cost | None
    data: DataUsed
    agreement: Agreement | None = None
    accuracy: Accuracy | None = None
    output_error: OutputError | None = None
    outputs: tuple[OutputEvidence, ...] = ()
    latency: Mapping[str, Any] | None = None
    gates: tuple[Gate, ...] = ()
    warnings: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every gate was met (true when there are none)."""
        return all(gate.met for gate in self.gates)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data in the schema's order; figures that are not finite become None."""
        plain: dict[str, Any] = {"schema": SCHEMA}
        for each in fields(self):
            plain[each.name] = to_plain(getattr(self, each.name), each.name)
            if each.name == "gates":
                plain["met"] = self.met
        return plain

    def to_json(self) -> str:
        """Return the report as indented JSON text, the same bytes for the same report."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Report:
        """Read a report back.

        Raises:
            DataError: if the data is not a report of this schema, naming the key that does not fit.
        """
        if not isinstance(plain, Mapping) or "schema" not in plain:
            raise DataError(f"report: there is no key 'schema'; a report says {SCHEMA!r} there")
        if plain["schema"] != SCHEMA:
            raise DataError(f"report: its schema is {plain['schema']!r}; this version reads {SCHEMA!r}")
        content = {key: value for key, value in plain.items() if key not in ("schema", "met")}
        report = from_plain(cls, content, "report")
        if plain.get("met") is not report.met:
            raise DataError(f"report.met: found {plain.get('met')!r}; its gates say {report.met!r}")
        return report

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report from JSON text.

        Raises:
            DataError: if the text is not JSON or not a report of this schema.
        """
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"report: not JSON ({error}); a file written by --report is wanted") from error
        return cls.from_dict(plain)
