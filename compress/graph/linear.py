"""Linear nodes seen as one form: output = features times matrix plus a constant, whatever operator computes it.

A convolution, a transposed one, Gemm and MatMul are a matrix between features and outputs; a following
BatchNormalization or an added vector belong to it, so that refitting treats exporters alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import float_attribute, int_attribute
from onnxprune.graph.shapes import Shapes

_SLIDING = ("Conv", "ConvTranspose")


@dataclass(frozen=True, eq=False)
class Unit:
    """One linear node: ``out = scale * (features @ matrix) + shift`` for every output channel.

    Attributes:
        node: the operator.
        value, axis: what it reads, and the axis of the features' channels.
        weight, in_axis, out_axis: its stored weight and that weight's axes.
        groups: blocks of channels that do not mix.
        out, out_channels: the value that holds its effect, and the axis of its output channels.
        scale, shift: float64 [O], what happens to the sums before ``out``.
        constant: the initialiser that ``shift`` is written to, None where there is none.
        factor: ``shift`` grows by ``factor`` times what is added to ``constant``.
        other, total: where ``out`` is added to another computed value and to nothing else: that value and the sum.
    """

    node: ir.Node
    value: ir.Value
    axis: int
    weight: ir.Value
    in_axis: int
    out_axis: int
    groups: int
    out: ir.Value
    out_channels: int
    scale: np.ndarray
    shift: np.ndarray
    constant: ir.Value | None
    factor: float
    other: ir.Value | None
    total: ir.Value | None

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def shiftable(self) -> bool:
        """Whether a constant per output can be written."""
        return self.constant is not None

    @property
    def slides(self) -> bool:
        """Whether it slides over positions (a convolution) rather than taking each row by itself."""
        return self.node.op_type in _SLIDING

    def matrix(self) -> np.ndarray:
        """Return the weight as float64 [groups, taps * channels of a group, outputs of a group], scaled to ``out``."""
        data = constants.array(self.weight)
        assert data is not None
        data = data.astype(np.float64)
        if not self.slides:
            rows = data if self.in_axis < self.out_axis else data.T
            return np.asarray(rows[None] * self.scale)
        groups, kernel = self.groups, math.prod(data.shape[2:])
        if self.node.op_type == "Conv":
            split = data.reshape(groups, len(data) // groups, data.shape[1], kernel).transpose(0, 3, 2, 1)
        else:
            split = data.reshape(groups, len(data) // groups, data.shape[1], kernel).transpose(0, 3, 1, 2)
        flat = split.reshape(groups, kernel * split.shape[2], split.shape[3])
        return np.asarray(flat * self.scale.reshape(groups, 1, -1))

    def set_matrix(self, matrix: np.ndarray) -> None:
        """Write a matrix as :meth:`matrix` gives it back into the weight; outputs of scale 0 keep theirs.

        What the weight's type cannot hold becomes the largest number that it can.
        """
        data = constants.array(self.weight)
        assert data is not None
        live = (self.scale != 0.0).reshape(matrix.shape[0], 1, -1)
        scale = np.where(live, self.scale.reshape(live.shape), 1.0)
        plain = matrix / scale
        if not self.slides:
            fresh = plain[0] if self.in_axis < self.out_axis else plain[0].T
            keep = live[0, 0] if self.in_axis < self.out_axis else live[0, 0][:, None]
        else:
            groups, kernel = self.groups, math.prod(data.shape[2:])
            split = plain.reshape(groups, kernel, -1, plain.shape[2])
            order = (0, 3, 2, 1) if self.node.op_type == "Conv" else (0, 2, 3, 1)
            fresh = split.transpose(order).reshape(data.shape)
            shape = (len(data), *[1] * (data.ndim - 1))
            if self.node.op_type == "Conv":
                keep = live.reshape(shape)
            else:
                keep = np.repeat(live, len(data) // groups, axis=1).reshape(len(data), -1, *[1] * (data.ndim - 2))
        constants.set_array(self.weight, _held(np.where(keep, fresh, data), self.weight))

    def add_shift(self, change: np.ndarray) -> None:
        """Add ``change`` [O] to the constant that ``out`` carries.

        Raises:
            ValueError: There is no constant to write to.
        """
        data = constants.array(self.constant)
        if self.constant is None or data is None:
            raise ValueError(f"'{self.name}' has no constant of its own")
        moved = data.astype(np.float64) + (change / self.factor).reshape(data.shape)
        constants.set_array(self.constant, _held(moved, self.constant))


def _held(data: np.ndarray, value: ir.Value) -> np.ndarray:
    """Return data within the range of a value's type (a tiny scale can ask for more than half precision holds)."""
    assert value.dtype is not None
    largest = float(value.dtype.max)
    return np.asarray(np.clip(data, -largest, largest))


def add_constants(model: ir.Model) -> list[str]:
    """Give linear nodes without a constant one of zeros, in place, and return the initialisers' names.

    A BatchNormalization behind a node has a constant already; MatMul takes none.
    """
    added = []
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in (*_SLIDING, "Gemm"):
            continue
        weight = node.inputs[1]
        following = _only_use(node.outputs[0])
        if (
            (len(node.inputs) > 2 and node.inputs[2] is not None)
            or not _own(weight)
            or weight is None
            or (following is not None and following.op_type == "BatchNormalization")
        ):
            continue
        data, dtype = constants.array(weight), weight.dtype
        assert data is not None and dtype is not None
        groups = int_attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1
        axis = 1 if node.op_type == "ConvTranspose" else 0
        if node.op_type == "Gemm":
            axis = 0 if int_attribute(node, "transB", 0) else 1
        zeros = np.zeros(data.shape[axis] * groups, dtype=data.dtype)
        value = constants.add_array(model.graph, f"{weight.name}/constant", zeros, dtype)
        node.resize_inputs(3)
        node.replace_input_with(2, value)
        added.append(str(value.name))
    return added


def drop_zero_constants(model: ir.Model, names: Sequence[str]) -> None:
    """Take the constants of :func:`add_constants` that are still zero away, in place."""
    for name in names:
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or value.const_value.numpy().any():
            continue
        for use in list(value.uses()):
            use.node.resize_inputs(2)
        if value.is_graph_input():  # as every initialiser is before IR version 4
            model.graph.inputs.remove(value)
        model.graph.initializers.pop(name)


def linear_units(model: ir.Model, shapes: Shapes) -> list[Unit]:
    """Return the linear nodes of a prepared model's main graph whose weights are its own, in execution order."""
    return [unit for node in model.graph if (unit := _unit(model, node, shapes)) is not None]


def _own(value: ir.Value | None) -> bool:
    """Return whether a value is a floating initialiser that one node alone reads."""
    return (
        value is not None
        and constants.constant(value) is not None
        and value.dtype is not None
        and value.dtype.is_floating_point()
        and not value.is_graph_output()
        and len(value.uses()) == 1
    )


def _unit(model: ir.Model, node: ir.Node, shapes: Shapes) -> Unit | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    value, weight = node.inputs[0], node.inputs[1]
    in_axis, out_axis, groups, scale, factor = 1, 0, 1, 1.0, 1.0
    given = shapes.get(str(value.name)) if value is not None else None
    axis, out_channels = 1, 1
    if node.op_type == "ConvTranspose":
        in_axis, out_axis = 0, 1
    elif node.op_type == "Gemm":
        if int_attribute(node, "transA", 0):
            return None
        in_axis, out_axis = (1, 0) if int_attribute(node, "transB", 0) else (0, 1)
        scale, factor = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    elif node.op_type == "MatMul":
        if given is None or len(given) < 2:
            return None
        in_axis, out_axis, axis = 0, 1, len(given) - 1
        out_channels = axis
        if not _own(weight):
            return None  # a stored matrix on the left mixes rows: not refitted
    if node.op_type in _SLIDING:
        groups = int_attribute(node, "group", 1)
    if value is None or given is None or not _own(weight) or weight is None or constants.constant(value) is not None:
        return None
    size = shapes.get(str(weight.name))
    if size is None or any(s is None for s in size) or scale == 0.0 or factor == 0.0:
        return None
    sizes = [int(s) for s in size if s is not None]
    if node.op_type == "MatMul" and len(sizes) != 2:
        return None
    outputs = sizes[out_axis] * (groups if node.op_type == "ConvTranspose" else 1)
    if groups < 1 or outputs % groups or (node.op_type == "ConvTranspose" and sizes[0] % groups):
        return None
    return _followed(
        Unit(
            node, value, axis, weight, in_axis, out_axis, groups, node.outputs[0], out_channels,
            np.full(outputs, scale), np.zeros(outputs), None, factor, None, None,
        ),
        shapes,
    )  # fmt: skip


def _followed(unit: Unit, shapes: Shapes) -> Unit | None:
    """Take the unit's own constant, an added vector, a BatchNormalization and a residual sum into the unit."""
    bias = unit.node.inputs[2] if len(unit.node.inputs) > 2 else None
    if bias is not None:
        data = constants.array(bias)
        if data is None or data.size not in (1, len(unit.scale)) or (data.size > 1 and data.shape[-1] != data.size):
            return None  # a constant that is computed, or one per row
        if data.size != len(unit.scale):
            shift = np.broadcast_to(data.astype(np.float64).ravel(), unit.shift.shape)
            unit = replace(unit, shift=unit.factor * shift)
        else:
            shift = unit.factor * data.astype(np.float64).ravel()
            unit = replace(unit, shift=shift, constant=bias if _own(bias) else None)
    following = _only_use(unit.out)
    if following is not None and following.op_type == "Add" and bias is None:
        added = next((v for v in following.inputs if v is not unit.out), None)
        data = constants.array(added)
        wide = len(unit.scale)
        rank = len(shapes.get(str(unit.out.name)) or ())
        fits = data is not None and data.size == wide and 0 < data.ndim <= rank and data.shape[-1] == wide
        if data is not None and fits and unit.out_channels == rank - 1:
            unit = replace(
                unit, out=following.outputs[0], shift=data.astype(np.float64).ravel(), factor=1.0,
                constant=added if _own(added) else None,
            )  # fmt: skip
            following = _only_use(unit.out)
    if following is not None and following.op_type == "BatchNormalization" and unit.out_channels == 1:
        unit = _normalised(unit, following)
        following = _only_use(unit.out)
    if following is not None and following.op_type == "Add":
        other = next((v for v in following.inputs if v is not unit.out), None)
        own, theirs = shapes.get(str(unit.out.name)), None if other is None else shapes.get(str(other.name))
        known = own is not None and None not in own and own == theirs
        if other is not None and constants.constant(other) is None and known:
            unit = replace(unit, other=other, total=following.outputs[0])
    return unit


def _only_use(value: ir.Value) -> ir.Node | None:
    """Return the one standard node of the same graph that reads a value, or None where there are others or none."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.graph is value.graph and node.domain in ("", "ai.onnx") else None


def _normalised(unit: Unit, node: ir.Node) -> Unit:
    """Return the unit with an inference-time BatchNormalization after it taken in."""
    stored = [constants.array(value) for value in node.inputs[1:5]]
    if len(stored) != 4 or any(data is None for data in stored) or int_attribute(node, "training_mode", 0):
        return unit
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return unit
    gamma, beta, mean, variance = (np.asarray(data, dtype=np.float64) for data in stored)
    if len(gamma) != len(unit.scale) or node.inputs[0] is not unit.out:
        return unit
    gain = gamma / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
    holder = node.inputs[2] if _own(node.inputs[2]) else None
    return replace(
        unit, out=node.outputs[0], scale=unit.scale * gain, shift=gain * (unit.shift - mean) + beta,
        constant=holder, factor=1.0,
    )  # fmt: skip
