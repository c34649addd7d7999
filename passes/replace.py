"""The pass ``replace``: every place of a pattern becomes one operator, standard, contributed or TensorRT plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.graph import cleanup
from onnxprune.graph.cost import MACS
from onnxprune.graph.gs import from_gs, to_gs
from onnxprune.graph.matching import Match, Matcher
from onnxprune.graph.pattern import Call, Variable, parse_operator, parse_pattern
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import refresh_shapes
from onnxprune.report.figures import amount
from onnxprune.runtime.operators import is_known


@dataclass(frozen=True)
class Replace:
    """Put one operator in the place of every match of a pattern, such as Mul(x, Sigmoid(x)) by trt.plugins::Swish(x).

    Swappable inputs match in any order, numbers match stored tensors. That both compute the same is for you to know:
    an operator that ONNX Runtime does not have cannot be evaluated, and the model before this pass is judged instead.
    """

    pattern: str | None = option(None, str, "what to look for, such as Mul(x, Sigmoid(x)); see docs/graphsurgeon.md")
    by: str | None = option(None, str, "the operator instead, such as Gelu(x) or trt.plugins::Swish(x, beta=1.0)")
    version: int | None = option(
        None, int, "opset version of its domain where the model imports none yet; default 1", low=1, high=2**31 - 1
    )
    only: str | None = option(None, str, "replace only matches with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never replace matches with these nodes: names, globs, re:..., parted by ;")

    name: ClassVar[str] = "replace"
    example: ClassVar[str] = "replace(pattern='Mul(x, Sigmoid(x))',by='trt.plugins::Swish(x)')"
    summary: ClassVar[str] = "puts one operator or TensorRT plugin in the place of a pattern of operators"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)
        for missing in [name for name in ("pattern", "by") if getattr(self, name) is None]:
            raise OptionError(
                f"replace: {missing}= is missing; for example "
                'replace(pattern="Mul(x, Sigmoid(x))",by="trt.plugins::Swish(x)")'
            )
        _ = self._calls
        Selection.parse(self.name, self.only, self.ignore)

    @property
    def _calls(self) -> tuple[Call, Call]:
        pattern = parse_pattern(self.pattern or "", self.name)
        return pattern, parse_operator(self.by or "", pattern, self.name)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: the graph alone says where the pattern is."""
        return {}

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return where the pattern stands."""
        work, by = cleanup.lifted(model), self._calls[1]
        self._check_operator(work, by)
        matches, skipped = self._find(work, to_gs(work))
        notes = [f"{by.title} would stand in {amount(len(matches), 'place')}"]
        if not is_known(work, by.domain, by.op):
            notes.append(f"ONNX Runtime has no operator {by.title}: the model before this pass is what gets evaluated")
        return Plan(tuple(_row(match) for match in matches), tuple(notes), skipped)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with every match replaced; those left alone are listed with the reason.

        Raises:
            OptionError: The model's opset does not have the operator, or not with these inputs or attributes.
        """
        work, by = cleanup.lifted(model), self._calls[1]
        attributes = self._check_operator(work, by)
        # Nobody can infer what a plugin returns, so the shapes found now are what stays known of it.
        refresh_shapes(work)
        graph = to_gs(work)
        matches, skipped = self._find(work, graph)
        numbers = {"replaced": len(matches), "layers": [_row(match) for match in matches]}
        if not matches:
            warning = f"replace found no place for {self.pattern}" if not skipped else "replace left every match alone"
            return StepResult(cleanup.finish(work), skipped, numbers, warnings=(warning,))
        warnings = _uncounted(matches, by)
        for match in matches:
            _rewrite(graph, match, by, attributes)
        gone = {id(node) for match in matches for node in match.nodes}
        graph.nodes = [node for node in graph.nodes if id(node) not in gone]
        result = from_gs(graph, work)
        if by.domain not in work.opset_imports:
            result.opset_imports[by.domain] = self.version or 1
        return StepResult(cleanup.finish(result), skipped, numbers, warnings=warnings)

    def _find(self, work: ir.Model, graph: Any) -> tuple[list[Match], dict[str, str]]:
        """Return the matches to replace, in the graph's order, and why others are left alone."""
        selection = Selection.parse(self.name, self.only, self.ignore)
        fed = frozenset(str(value.name) for value in work.graph.inputs if value.is_initializer())
        matcher = Matcher(graph, self._calls[0], fed)
        matches: list[Match] = []
        taken: dict[int, Match] = {}
        skipped: dict[str, str] = {}
        for root in graph.nodes:
            reasons: list[str] = []
            for match in matcher.ways(root):
                reason = selection.reason(match.names) or matcher.barred(match) or _overlap(match, taken)
                if reason is None:
                    matches.append(match)
                    taken |= {id(node): match for node in match.nodes}
                    reasons = []
                    break
                reasons.append(reason)
            if reasons:
                skipped[str(root.name)] = reasons[0]
        return matches, skipped

    def _check_operator(self, model: ir.Model, by: Call) -> dict[str, Any]:
        """Return the operator's attributes in the types that its definition asks for, where there is one."""
        imported = model.opset_imports.get(by.domain)
        if self.version is not None and imported not in (None, self.version):
            raise OptionError(
                f"replace: version={self.version}, but the model imports version {imported} of "
                f"domain '{by.domain or 'ai.onnx'}'; leave version= out"
            )
        attributes = {name: list(value) if isinstance(value, tuple) else value for name, value in by.attributes}
        version = imported or self.version or 1
        try:
            schema = onnx.defs.get_schema(by.op, version, by.domain)
        except onnx.defs.SchemaError:
            if by.domain == "":
                raise OptionError(_not_there(by, version)) from None
            return attributes
        if not schema.min_input <= len(by.inputs) <= schema.max_input or schema.deprecated:
            raise OptionError(
                f"replace: {by.title} of opset {version} takes {schema.min_input} to {schema.max_input} inputs"
                f"{' and is deprecated' if schema.deprecated else ''}; by='{self.by}' gives {len(by.inputs)}"
            )
        unknown = [name for name in attributes if name not in schema.attributes]
        missing = [name for name, found in schema.attributes.items() if found.required and name not in attributes]
        if unknown or missing:
            word, listed = ("no", unknown) if unknown else ("to be given", missing)
            raise OptionError(f"replace: {by.title} of opset {version} has {word} attribute {', '.join(listed)}")
        return {name: _typed(value, schema.attributes[name].type) for name, value in attributes.items()}


def _not_there(by: Call, version: int) -> str:
    since = min((s.since_version for s in onnx.defs.get_all_schemas_with_history() if _is(s, by)), default=None)
    if since is None:
        return f"replace: ONNX has no operator {by.op}; name the domain of another one, as in trt.plugins::{by.op}(x)"
    return f"replace: {by.op} is there from opset {since} on; the model has opset {version}"


def _is(schema: Any, by: Call) -> bool:
    return bool(schema.name == by.op and schema.domain == by.domain)


def _typed(value: Any, kind: Any) -> Any:
    """Return an attribute's value as a float where a whole number was written for one."""
    kinds = onnx.defs.OpSchema.AttrType
    if kind == kinds.FLOAT:
        return float(value) if isinstance(value, int) else value
    return [float(each) for each in value] if kind == kinds.FLOATS and isinstance(value, list) else value


def _overlap(match: Match, taken: Mapping[int, Match]) -> str | None:
    other = next((taken[id(node)] for node in match.nodes if id(node) in taken), None)
    return None if other is None else f"it overlaps the match that ends at '{other.root.name}'"


def _rewrite(graph: Any, match: Match, by: Call, attributes: Mapping[str, Any]) -> None:
    """Write the new node in place of the match's root; the other nodes of the match lose their tensors."""
    import onnx_graphsurgeon as gs

    given = [match.variables[term.name] if isinstance(term, Variable) else gs.Variable.empty() for term in by.inputs]
    output = match.root.outputs[0]
    place = next(i for i, node in enumerate(graph.nodes) if node is match.root)
    for node in match.nodes:
        node.inputs.clear()
        node.outputs.clear()
    new = gs.Node(by.op, match.root.name, dict(attributes), given, [output], by.domain or None)
    graph.nodes.insert(place, new)


def _row(match: Match) -> dict[str, Any]:
    inputs = ", ".join(f"{name}={tensor.name}" for name, tensor in match.variables.items())
    return {"node": match.root.name, "operators": ", ".join(node.op for node in match.nodes), "variables": inputs}


def _uncounted(matches: list[Match], by: Call) -> tuple[str, ...]:
    """Return a warning where multiplications go into an operator whose own are not counted."""
    lost = sum(node.op in MACS for match in matches for node in match.nodes)
    if not lost or (by.domain == "" and by.op in MACS):
        return ()
    return (f"the FLOPs of {lost} replaced nodes are missing from the cost: those of {by.title} are not counted",)
