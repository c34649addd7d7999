"""The pass ``extract``: a recipe of its own for the part of the model between named tensors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.budget import Target, size_gate
from onnxprune.contract import (
    Context,
    Observer,
    Pass,
    Plan,
    Planner,
    StepResult,
    Tap,
    check_options,
    option,
)
from onnxprune.data import Examples
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph import cleanup
from onnxprune.graph.cost import Cost, example_shapes, measure
from onnxprune.graph.part import Part, cut
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.runtime.operators import require_runnable
from onnxprune.runtime.session import Session, open_session


@dataclass(frozen=True)
class Extract:
    """Cut out the part between named tensors, run a recipe on it, and sew the result back in.

    The part's inputs and outputs keep name, shape and type. Its sizes (flops=0.5) refer to the part as it was cut
    out, and statistics come from the whole model run on the calibration data, the rewritten part in its place.
    """

    recipe: tuple[Pass, ...] = option(
        (), tuple, "the passes for the part, in parentheses; sizes are the part's own, --target does not reach inside"
    )
    inputs: str | None = option(
        None, str, "tensors where the part begins, such as a;b; default: the inputs of the model"
    )
    outputs: str | None = option(None, str, "tensors where it ends, such as c;d; default: the outputs of the model")

    name: ClassVar[str] = "extract"
    example: ClassVar[str] = "extract(recipe=(id(flops=0.5)),inputs=a,outputs=b)"
    summary: ClassVar[str] = "runs a recipe on the part of the model between named tensors"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)
        if not self.recipe or not all(callable(getattr(item, "apply", None)) for item in self.recipe):
            raise OptionError(
                "extract: recipe= must give the passes for the part, "
                "for example extract(recipe=(fold_bn,filters(flops=0.5)),outputs=features)"
            )
        for option_name in ("inputs", "outputs"):
            _names(option_name, getattr(self, option_name))
        # What the part needs, the whole needs: the class itself knows of no recipe yet.
        object.__setattr__(self, "needs", frozenset().union(*(item.needs for item in self.recipe)))
        object.__setattr__(self, "uses", frozenset().union(*(getattr(item, "uses", ()) for item in self.recipe)))

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: what the inner passes want is collected when their turn comes."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the plans of the inner passes, each on the part as it is."""
        part = self._cut(model)
        inner = _Inner.of(part, context)
        rows: list[dict[str, Any]] = []
        notes = [f"the part: {_size(part, inner.cost)}"]
        skipped: dict[str, str] = {}
        for item in self.recipe:
            found = item.plan(part.model, inner.context()) if isinstance(item, Planner) else Plan(notes=(item.summary,))
            rows += [{"pass": item.name, **row} for row in found.rows]
            notes += [f"{item.name}: {note}" for note in found.notes]
            _add_reasons(skipped, item.name, found.skipped)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        filled = tuple({column: row.get(column, "-") for column in columns} for row in rows)
        return Plan(filled, tuple(notes), skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the whole with the part rewritten; what every inner pass did is in ``numbers["steps"]``.

        Raises:
            ModelError: The tensors do not bound a part (see ``graph.part.cut``), or its shapes are not known.
        """
        part = self._cut(model)
        inner = _Inner.of(part, context)
        current, done = part.model, list[tuple[Pass, StepResult]]()
        for item in self.recipe:
            with inner.running(item, current) as given:
                result = item.apply(current, given)
            current = result.model
            done.append((item, result))
        whole = cleanup.finish(part.sew(current)[0])
        after = measure(current, inner.shapes)
        numbers: dict[str, Any] = {
            "part": {"nodes": len(part.nodes), "macs": [inner.cost.macs, after.macs]},
            "steps": [{"pass": item.name, **_apart(result)} for item, result in done],
        }
        numbers["part"]["params"] = [inner.cost.params, after.params]
        if any("layers" in result.numbers for _, result in done):
            rows = ((item, row) for item, result in done for row in result.numbers.get("layers", ()))
            numbers["layers"] = [{"pass": item.name, **row} for item, row in rows]
        skipped: dict[str, str] = {}
        for item, result in done:
            _add_reasons(skipped, item.name, result.skipped)
        warnings = tuple(f"extract: {warning}" for _, result in done for warning in result.warnings)
        return StepResult(whole, skipped, numbers, _reached(done), warnings)

    def _cut(self, model: ir.Model) -> Part:
        return cut(model, _names("inputs", self.inputs), _names("outputs", self.outputs))


@dataclass(frozen=True)
class _Inner:
    """What the inner passes may use: the part as their source model, statistics from the whole."""

    part: Part
    outer: Context
    shapes: Mapping[str, tuple[int, ...]]
    cost: Cost

    @classmethod
    def of(cls, part: Part, outer: Context) -> _Inner:
        known = concrete_shapes(part.whole, example_shapes(part.whole, outer.inputs))
        shapes: dict[str, tuple[int, ...]] = {}
        for value in part.model.graph.inputs:
            name = str(value.name)
            sizes = known.get(name, (None,))
            shapes[name] = tuple(size for size in sizes if size is not None)
            if None in sizes:
                raise ModelError(f"the size of tensor '{name}' is not known from the inputs, so the part has no cost")
        return cls(part, outer, shapes, measure(part.model, shapes))

    def context(self, **known: Any) -> Context:
        """Return the context of an inner pass."""
        fields = {"examples": None, "collect": None, "statistics": {}, **known}
        return dataclasses.replace(
            self.outer, original=self.part.model, original_cost=self.cost, inputs=self.shapes, **fields
        )

    @contextlib.contextmanager
    def running(self, item: Pass, current: ir.Model) -> Iterator[Context]:
        """Collect what a pass wants on its input and yield its context."""
        if "calibration" in item.needs:
            require_runnable("extract", current)
        statistics = self.collect(current, item.wants(current))
        with contextlib.ExitStack() as stack:
            examples = self._examples(current, stack) if self.outer.examples is not None else None
            yield self.context(statistics=statistics, collect=self.collect, examples=examples)

    def collect(self, model: ir.Model, observers: Mapping[Tap, Observer]) -> Mapping[Tap, Any]:
        """Fill observers of the part's tensors with a run of the whole model, ``model`` in the part's place."""
        if not observers:
            return {}
        if self.outer.collect is None:
            raise DataError("extract needs calibration data for its recipe; give --data or --calib")
        whole, renamed = self.part.sew(model)
        taps = {tap: Tap(renamed.get(tap.value, tap.value), tap.axis) for tap in observers}
        found = self.outer.collect(whole, {taps[tap]: observer for tap, observer in observers.items()})
        return {tap: found[taps[tap]] for tap in observers}

    def _examples(self, current: ir.Model, stack: contextlib.ExitStack) -> Examples:
        """Return the calibration examples as the part sees them: what the whole computes at the part's inputs."""
        outer = self.outer.examples
        assert outer is not None
        names = [str(value.name) for value in self.part.model.graph.inputs]
        opened: list[Session] = []

        def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
            if not opened:
                whole, _ = self.part.sew(current)
                opened.append(stack.enter_context(open_session(whole, self.outer.settings, taps=names)))
            return opened[0].run(outer.fetch(rows), names)

        return dataclasses.replace(outer, fetch=fetch)


def _names(option_name: str, text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(";")]
    if not all(names) or len(set(names)) < len(names):
        raise OptionError(f"extract: {option_name}='{text}' must name tensors, each once, parted by ;")
    return names


def _add_reasons(skipped: dict[str, str], name: str, found: Mapping[str, str]) -> None:
    """Add what one inner pass left alone, in place; a node that several left alone has all their reasons."""
    for node, reason in found.items():
        before = f"{skipped[node]}; " if node in skipped else ""
        skipped[node] = f"{before}{name}: {reason}"


def _apart(result: StepResult) -> dict[str, Any]:
    return {key: value for key, value in result.numbers.items() if key != "layers"}


def _reached(done: list[tuple[Pass, StepResult]]) -> dict[str, tuple[float, float]]:
    """Return the sizes asked for, each by its last pass, or by the last that missed it where one did."""
    found: dict[str, tuple[float, float]] = {}
    for _, result in done:
        for name, (wanted, got) in result.reached.items():
            missed = name in found and not _met(name, *found[name])
            if not missed or not _met(name, wanted, got):
                found[name] = (wanted, got)
    return found


def _met(name: str, wanted: float, got: float) -> bool:
    return wanted <= 0 or size_gate(Target(name, wanted), got).met


def _size(part: Part, cost: Cost) -> str:
    ends = (part.model.graph.inputs, part.model.graph.outputs)
    start, end = (", ".join(str(value.name) for value in values) for values in ends)
    return f"{len(part.nodes)} nodes from {start} to {end}, {cost.params:,} parameters, {cost.macs:,} MACs"
