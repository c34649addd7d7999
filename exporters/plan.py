"""Turns a graph into steps for torch: what runs in which order, what is trained, what stays on the host.

Sizes, axes and positions are computed on the host, where torch needs them as numbers; a device would have to be
waited for at each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.errors import ModelError
from onnxprune.exporters.ops import HOST_INPUTS, OPERATORS, Call, Mode
from onnxprune.exporters.tensors import from_onnx
from onnxprune.exporters.trainables import choose
from onnxprune.graph import constants
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.names import free_name, node_names, value_names
from onnxprune.graph.shapes import true_inputs

__all__ = ["STATISTICS", "Copy", "Plan", "Read", "Step", "fingerprint", "plan"]

STATISTICS = {"BatchNormalization": (3, 4)}
"""Inputs that hold running statistics."""

# A folded tensor may exceed its inputs by this many bytes.
_GROWTH_LIMIT = 1 << 16
_NEVER_FOLDED = frozenset({"Constant", "Dropout"})
_TENSORS = (ir.AttributeType.TENSOR,)
_BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_PLAIN = ("", "ai.onnx")
# What an operator's function may raise for inputs that it cannot treat.
RUN_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Read:
    """A value that a step reads, on the host or on the module's device."""

    name: str
    host: bool


@dataclass(frozen=True)
class Step:
    """One node: its call, what it reads and gives, where it runs, and what nobody reads after it."""

    call: Call
    inputs: tuple[Read | None, ...]
    outputs: tuple[str | None, ...]
    host: bool
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copy:
    """A parameter or statistic that one reader of a shared initialiser has for itself.

    Attributes:
        name: Name of the copy.
        source: The shared initialiser.
        output: First output of the reading node.
        place: Which of the node's inputs it is.
    """

    name: str
    source: str
    output: str
    place: int


@dataclass(frozen=True)
class Plan:
    """A graph as steps.

    Attributes:
        steps: In topological order.
        inputs: Names of what a caller must feed.
        outputs: Names of the results.
        parameters: Trained initialisers (and copies of shared ones) by name.
        statistics: Running statistics of BatchNormalization by name.
        constants: Every other tensor that a step reads, by name.
        copies: Parameters and statistics that come from shared initialisers.
        mode: Shared by all steps: training or evaluation.
        fingerprint: Digest of the graph without its weights.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: dict[str, Tensor]
    statistics: dict[str, Tensor]
    constants: dict[str, Tensor]
    copies: tuple[Copy, ...]
    mode: Mode
    fingerprint: str


def fingerprint(model: ir.Model) -> str:
    """Return a digest of nodes, names, attributes and types: of everything but the values of initialisers."""
    digest = hashlib.sha256()
    graph = model.graph
    listed = [f"{kind} {v.name} {v.dtype}" for kind in ("inputs", "outputs") for v in getattr(graph, kind)]
    listed += [
        f"{v.name} {v.dtype} {v.const_value.shape}" for v in graph.initializers.values() if v.const_value is not None
    ]
    digest.update("\n".join([*listed, str(sorted(model.opset_imports.items()))]).encode())
    for node in graph:
        digest.update(ir.serde.serialize_node(node).SerializeToString(deterministic=True))
    return digest.hexdigest()


def check_supported(model: ir.Model) -> None:
    """Check that every node has a function.

    Raises:
        ModelError: One has none; it is named with its operator.
    """
    for node, name in zip(model.graph, node_names(model.graph), strict=True):
        if node.domain not in _PLAIN:
            raise ModelError(
                f"node '{name}' ({node.domain}.{node.op_type}): operators of domain '{node.domain}' cannot run in torch"
            )
        if node.op_type not in OPERATORS:
            raise ModelError(f"node '{name}' ({node.op_type}): this operator cannot run in torch")
        if any(attribute.type in _BODIES for attribute in node.attributes.values()):
            raise ModelError(f"node '{name}' ({node.op_type}): operators with bodies cannot run in torch")


def plan(model: ir.Model, trainable: Iterable[str] | str | None, *, untie: bool) -> Plan:
    """Return the steps of a model, which stays as it is.

    Args:
        model: Any model whose operators are all in ``OPERATORS``.
        trainable: Names, globs or ``re:`` patterns of initialisers; None for all that look like weights.
        untie: Give every reader of a shared initialiser a parameter of its own.

    Raises:
        ModelError: A node cannot run in torch, or a tensor is of a type that torch lacks.
        OptionError: A pattern of ``trainable`` names no initialiser that can be trained.
    """
    check_supported(model)
    work = lifted(model)
    return _Planner(work, choose(work, set(model.graph.initializers), trainable), untie).plan(fingerprint(model))


class _Planner:
    """What is known while the steps are made: ``known`` holds constants, ``host`` names what runs on the host."""

    def __init__(self, work: ir.Model, trained: set[str], untie: bool) -> None:
        self.graph, self.version, self.untie = work.graph, work.opset_imports.get("", 1), untie
        self.inputs = tuple(str(value.name) for value in true_inputs(work))
        self.mode = Mode()
        self.parameters: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}
        self.known: dict[str, Tensor] = {}
        self.host: set[str] = set()
        self.copies: list[Copy] = []
        self.uses: dict[str, int] = {}
        self.taken = value_names(work.graph)
        self.alias: dict[str, str] = {}
        stored = {
            str(node.inputs[place].name)  # type: ignore[union-attr]  # BatchNormalization has all of its inputs
            for node in work.graph
            for place in STATISTICS.get(node.op_type, ())
        }
        for name, value in work.graph.initializers.items():
            if not value.uses() and not value.is_graph_output():
                continue
            tensor = _tensor(value)
            home = self.parameters if name in trained else self.statistics if name in stored else self.known
            home[name] = tensor

    def plan(self, digest: str) -> Plan:
        """Return the plan."""
        steps = [step for node in self.graph if (step := self._step(node)) is not None]
        outputs = tuple(str(value.name) for value in self.graph.outputs)
        wanted = {read.name for step in steps for read in step.inputs if read is not None} | set(outputs)
        kept = {name: tensor for name, tensor in self.known.items() if name in wanted}
        return Plan(
            _freeing(steps, outputs),
            self.inputs,
            outputs,
            {name: tensor for name, tensor in self.parameters.items() if name in wanted},
            self.statistics,
            kept,
            tuple(self.copies),
            self.mode,
            digest,
        )

    def _step(self, node: ir.Node) -> Step | None:
        call = _call(node, self.version, self.mode)
        names = [None if value is None or not value.name else str(value.name) for value in node.inputs]
        if node.op_type == "Identity" and names[0] is not None and not node.outputs[0].is_graph_output():
            source = self.alias.get(names[0], names[0])
            if source in self.parameters:
                self.alias[str(node.outputs[0].name)] = source
                return None
        outputs = [str(out.name) if out.name else None for out in node.outputs]
        if self._fold(call, names, outputs):
            return None
        host = self._runs_on_host(node, call, names)
        pinned = HOST_INPUTS.get(call.op, frozenset())
        reads = tuple(
            None
            if name is None
            else Read(self._own(name, outputs, i), self._is_host_read(call, host, name) or i in pinned)
            for i, name in enumerate(names)
        )
        if host:
            self.host |= {name for name in outputs if name}
        return Step(call, reads, tuple(outputs), host)

    def _is_host_read(self, call: Call, host: bool, name: str) -> bool:
        """Return whether a step reads a value on the host; data whose size alone is asked for stays where it is."""
        return host and (call.op not in ("Shape", "Size") or name in self.host)

    def _own(self, name: str, outputs: list[str | None], place: int) -> str:
        """Return the name of the value that an input reads: a copy of its own where readers are untied.

        Statistics always are: exporters merge those that are equal before training, each follows its own batches.
        """
        name = self.alias.get(name, name)
        home = self.parameters if name in self.parameters else self.statistics
        if name not in home:
            return name
        self.uses[name] = self.uses.get(name, 0) + 1
        if self.uses[name] == 1 or (home is self.parameters and not self.untie):
            return name
        copy = free_name(f"{name}/{self.uses[name] - 1}", self.taken)
        home[copy] = home[name].clone()
        self.copies.append(Copy(copy, name, str(outputs[0]), place))
        return copy

    def _fold(self, call: Call, names: list[str | None], outputs: list[str | None]) -> bool:
        """Compute a node of constants now, unless its result is large; return whether that was done."""
        given = [name for name in names if name is not None]
        if call.op in _NEVER_FOLDED or not given or any(name not in self.known for name in given):
            return False
        tensors = [None if name is None else self.known[name] for name in names]
        try:
            with torch.no_grad():
                found = OPERATORS[call.op](call, *tensors)
        except RUN_ERRORS:
            return False  # it says why when it runs
        results = found if isinstance(found, tuple) else (found,)
        size = sum(t.nbytes for t in tensors if t is not None)
        if sum(t.nbytes for t in results if t is not None) > size + _GROWTH_LIMIT:
            return False
        pairs = zip(outputs, results, strict=False)
        self.known.update({name: t.contiguous() for name, t in pairs if name is not None and t is not None})
        return True

    def _runs_on_host(self, node: ir.Node, call: Call, names: list[str | None]) -> bool:
        """Return whether a node computes sizes: it reads what is on the host, and no data."""
        if call.op in ("Shape", "Size", "Constant"):
            return True
        pinned = HOST_INPUTS.get(call.op, frozenset())
        data = [name for i, name in enumerate(names) if name is not None and i not in pinned]
        small = node.outputs[0].dtype is None or not node.outputs[0].dtype.is_floating_point()
        if not data:
            value = call.attributes.get("value")
            floating = call.op == "ConstantOfShape" and (value is None or value.is_floating_point())
            return small and not floating
        if all(name in self.known for name in data):
            return small
        return all(name in self.known or name in self.host for name in data)


def _freeing(steps: list[Step], outputs: tuple[str, ...]) -> tuple[Step, ...]:
    """Note with every step which values nobody reads after it."""
    made = {name for step in steps for name in step.outputs if name} - set(outputs)
    found: list[Step] = []
    for step in reversed(steps):
        names = {read.name for read in step.inputs if read is not None} | {name for name in step.outputs if name}
        last = tuple(sorted(names & made))
        made -= names
        found.append(replace(step, free=last))
    return tuple(reversed(found))


def _call(node: ir.Node, version: int, mode: Mode) -> Call:
    attributes: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            raise ModelError(f"node '{node.name}' ({node.op_type}): attribute '{name}' refers to a function's own")
        attributes[name] = _attribute(node, attribute)
    if node.op_type == "Constant":
        tensor = constants.stored(node.outputs[0])
        found = None if tensor is None else from_onnx(tensor)
        if found is None:
            raise ModelError(f"node '{node.name}' (Constant): torch has no tensors of this type")
        attributes = {"value": found}
    readers = {use.node.op_type for out in node.outputs for use in out.uses()}
    readers |= {"" for out in node.outputs if out.is_graph_output()}
    named = [i for i, out in enumerate(node.outputs) if out.name]
    count = max(named, default=-1) + 1
    return Call(str(node.name), node.op_type, version, attributes, count, frozenset(readers), mode)


def _attribute(node: ir.Node, attribute: ir.Attr) -> Any:
    if attribute.type not in _TENSORS:
        return attribute.value
    found = from_onnx(attribute.as_tensor())
    if found is None:
        raise ModelError(f"node '{node.name}' ({node.op_type}): torch has no tensors of attribute '{attribute.name}'")
    return found


def _tensor(value: ir.Value) -> Tensor:
    tensor = value.const_value
    found = None if tensor is None else from_onnx(tensor)
    if tensor is None or found is None:
        raise ModelError(f"initialiser '{value.name}' is of type {value.dtype}, which torch lacks")
    constants.release(tensor)
    return found
