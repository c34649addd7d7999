"""The pass ``custom``: a function of the user's own that rewrites the model, in onnx_ir or in graphsurgeon."""

from __future__ import annotations

import contextlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, StepResult, Tap, check_options, option
from onnxprune.data.script import function_of, loaded
from onnxprune.errors import BackendError, DataError, ModelError, OptionError
from onnxprune.graph import io
from onnxprune.graph.cleanup import finish
from onnxprune.graph.gs import from_gs, to_gs
from onnxprune.graph.shapes import true_inputs

_EXAMPLE = "for example custom(my_script.py:rewrite)"
_WORDS = {
    "onnx_graphsurgeon.Graph": "gs", "gs.Graph": "gs", "onnx_ir.Model": "ir", "ir.Model": "ir",
}  # fmt: skip


@dataclass(frozen=True)
class Custom:
    """Hand the model to a function of a script: ``def rewrite(graph: onnx_graphsurgeon.Graph, context=None)``.

    The annotation of the first parameter says what it gets, an ``onnx_graphsurgeon.Graph`` or (also without one) an
    ``onnx_ir.Model``; a parameter named ``context`` gets the pass's Context. It edits what it gets, which is a copy,
    or returns another one. The result is checked and measured like that of any pass.
    """

    function: str | None = option(None, str, "script.py:function; the path counts from the working folder")
    interface: str = option(
        "keep",
        str,
        "inputs and outputs of the graph must keep names, types and shapes, or may change",
        choices=("keep", "change"),
    )

    name: ClassVar[str] = "custom"
    summary: ClassVar[str] = "runs a function of your own on the model (graphsurgeon or onnx_ir)"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    positional: ClassVar[str] = "function"
    example: ClassVar[str] = "custom(my_script.py:rewrite)"

    def __post_init__(self) -> None:
        check_options(self)
        path, function = self._script
        if not function.isidentifier() or not path:
            given = "is missing" if self.function is None else f"'{self.function}' is not of the form script.py:name"
            raise OptionError(f"custom: the function {given}; {_EXAMPLE}")
        if not Path(path).is_file():
            raise OptionError(f"custom: there is no script '{path}' for the function '{function}'")

    @property
    def _script(self) -> tuple[str, str]:
        path, _, function = (self.function or "").rpartition(":")
        return path, function

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Nothing: a function that needs statistics collects them by its context."""
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return what the function made of a copy of the model.

        Raises:
            OptionError: The function is not there or fails, or what it made is no valid model or changes the
                interface without leave.
        """
        result = finish(self._called(model, context))
        for key, value in model.metadata_props.items():
            result.metadata_props.setdefault(key, value)
        result.meta.update({key: value for key, value in model.meta.items() if key not in result.meta})
        try:
            io.check(result)
        except BackendError as error:
            raise OptionError(f"custom: what '{self.function}' made is not valid: {error}") from error
        if self.interface == "keep":
            self._compare(model, result)
        numbers = {"nodes_before": len(model.graph), "nodes_after": len(result.graph)}
        return StepResult(result, {}, numbers)

    def _called(self, model: ir.Model, context: Context) -> ir.Model:
        """Run the function; whatever a user's script raises is told as its failure."""
        path, function = self._script
        work = _copied(model)
        try:
            with loaded(path) as module, contextlib.redirect_stdout(sys.stderr):
                call = function_of(module, function, f"custom: {self.function}")
                kind, named = self._signature(call)
                given = to_gs(work) if kind == "gs" else work
                made = call(given, **({"context": context} if named else {}))
        except OptionError:
            raise
        except DataError as error:
            raise OptionError(str(error)) from error
        except (Exception, SystemExit) as error:
            reason = " ".join(str(error).split())
            raise OptionError(f"custom: {self.function} failed with {type(error).__name__}: {reason}") from error
        made = given if made is None else made
        if isinstance(made, ir.Model):
            return made
        try:
            return from_gs(made, work)
        except ModelError as error:
            wanted = "it must return an onnx_ir.Model, an onnx_graphsurgeon.Graph or nothing"
            raise OptionError(f"custom: {self.function} returned something else: {error}; {wanted}") from error

    def _signature(self, call: Callable[..., Any]) -> tuple[str, bool]:
        """Return what the first parameter wants, ``gs`` or ``ir``, and whether there is one named context."""
        try:
            parameters = list(inspect.signature(call).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        if not parameters or parameters[0].kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            raise OptionError(f"custom: {self.function} takes no parameter; the first one gets the model")
        first, *rest = parameters
        asked = [
            p.name for p in rest if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]  # fmt: skip
        if [name for name in asked if name != "context"]:
            raise OptionError(
                f"custom: {self.function} asks for {', '.join(asked)}; it gets the model, and a context if it names one"
            )
        return self._wanted(call, first), any(p.name == "context" for p in rest)

    def _wanted(self, call: Callable[..., Any], first: inspect.Parameter) -> str:
        if first.annotation is first.empty:
            return "ir"
        try:
            found = typing.get_type_hints(call).get(first.name, first.annotation)
        except Exception:  # an annotation may name what is imported for type checkers alone
            found = first.annotation
        if isinstance(found, type):
            for parent in found.__mro__:
                known = _WORDS.get(f"{parent.__module__.partition('.')[0]}.{parent.__name__}")
                if known:
                    return known
        text = found if isinstance(found, str) else getattr(found, "__name__", str(found))
        if text not in _WORDS:
            raise OptionError(
                f"custom: the first parameter of {self.function} is annotated {text}; "
                "annotate it onnx_graphsurgeon.Graph or onnx_ir.Model"
            )
        return _WORDS[text]

    def _compare(self, before: ir.Model, after: ir.Model) -> None:
        for word, old, new in (
            ("input", true_inputs(before), true_inputs(after)),
            ("output", list(before.graph.outputs), list(after.graph.outputs)),
        ):
            was, now = ([_described(value) for value in values] for values in (old, new))
            if was != now:
                raise OptionError(
                    f"custom: {self.function} changed the {word}s of the graph from {', '.join(was) or 'none'} to "
                    f"{', '.join(now) or 'none'}; give interface=change if that is meant"
                )


def _described(value: ir.Value) -> str:
    sizes = "?" if value.shape is None else ",".join(str(size) for size in value.shape)
    return f"{value.name} {value.dtype}[{sizes}]"


def _copied(model: ir.Model) -> ir.Model:
    """Return a clone whose weights the function may write into."""
    work = model.clone()
    work.meta.update(model.meta)
    for graph in work.graphs():
        for value in graph.initializers.values():
            value.const_value = _own(value.const_value)
        for node in graph:
            for name, tensor in list(_tensors(node)):
                node.attributes[name] = ir.AttrTensor(name, tensor)
    return work


def _tensors(node: ir.Node) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
            tensor = _own(attribute.as_tensor())
            if tensor is not None and tensor is not attribute.as_tensor():
                yield name, tensor


def _own(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Return a copy of a tensor that others could see change; files and bytes are read-only."""
    if tensor is None or tensor.dtype == ir.DataType.STRING or isinstance(tensor, ir.ExternalTensor):
        return tensor
    data = tensor.numpy()
    if not isinstance(data, np.ndarray) or not data.flags.writeable:
        return tensor
    return ir.Tensor(data.copy(), dtype=tensor.dtype, name=tensor.name)
