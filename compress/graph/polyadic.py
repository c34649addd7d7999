"""Turning one convolution into three smaller ones, ``<node>/enc``, ``<node>/mid`` and ``<node>/dec``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.factorise import kernel_of, stand_in
from onnxprune.graph.linear import Unit
from onnxprune.graph.names import free_name, value_names

# What says how a convolution slides; the node in the middle takes it all.
_SLIDES = ("strides", "dilations", "pads", "auto_pad")


@dataclass(frozen=True, eq=False)
class Factors:
    """A kernel as a sum of products: ``W[t, c, o] = sum_r taps[t, r] * first[c, r] * last[r, o]``.

    ``first`` [C, r] and ``last`` [r, O] become 1 x 1 convolutions, ``taps`` [T, r] one with a kernel for every
    channel of its own.
    """

    first: np.ndarray
    taps: np.ndarray
    last: np.ndarray

    @property
    def rank(self) -> int:
        """How many products there are."""
        return int(self.first.shape[1])

    def matrix(self) -> np.ndarray:
        """Return the sum as a unit's matrix [T * C, O]."""
        return np.asarray(self.left() @ self.last)

    def left(self) -> np.ndarray:
        """Return the products of taps and channels, [T * C, r]."""
        return np.asarray((self.taps[:, None, :] * self.first[None]).reshape(-1, self.rank))

    def balanced(self) -> Factors:
        """Return the same sum, the three parts of every product of equal norm."""
        parts = ((self.first, 0), (self.taps, 0), (self.last, 1))
        norms = [np.linalg.norm(part, axis=axis) for part, axis in parts]
        live = np.prod(norms, axis=0) > 0.0
        mean = np.where(live, np.prod(norms, axis=0) ** (1 / 3), 0.0)
        ratios = [mean / np.where(live, norm, 1.0) for norm in norms]
        return Factors(self.first * ratios[0], self.taps * ratios[1], self.last * ratios[2][:, None])


def split(model: ir.Model, unit: Unit, factors: Factors) -> tuple[ir.Node, ir.Node, ir.Node]:
    """Put three convolutions in a node's place, in place, and return them.

    The constant stays where it is, behind the last one. ``factors`` are those of the unit's matrix.
    """
    kernel = kernel_of(unit)
    data, dtype = constants.array(unit.weight), unit.weight.dtype
    assert data is not None and dtype is not None
    node, taken, ones = unit.node, value_names(model.graph), (1,) * len(kernel)
    scale = np.where(unit.scale == 0.0, 1.0, unit.scale)
    stored = (
        factors.first.T.reshape(factors.rank, -1, *ones),
        factors.taps.T.reshape(factors.rank, 1, *kernel),
        (factors.last / scale).T.reshape(-1, factors.rank, *ones),
    )
    plain = [ir.AttrInt64s("kernel_shape", ones)]
    sliding = [
        ir.AttrInt64s("kernel_shape", kernel),
        ir.AttrInt64("group", factors.rank),
        *(node.attributes[name] for name in _SLIDES if name in node.attributes),
    ]
    made: list[ir.Node] = []
    given, old = node.inputs[0], node.outputs[0]
    for end, array, attributes in zip(("enc", "mid", "dec"), stored, (plain, sliding, plain), strict=True):
        weight = constants.add_array(model.graph, f"{unit.weight.name}/{end}", array.astype(data.dtype), dtype, taken)
        rest = list(node.inputs[2:]) if end == "dec" else []
        fresh = ir.Node("", "Conv", [given, weight, *rest], attributes, num_outputs=1, name=f"{unit.name}/{end}")
        if end != "dec":
            fresh.outputs[0].name = free_name(f"{unit.name}/{end}", taken)
            fresh.outputs[0].type = old.type
        made.append(fresh)
        given = fresh.outputs[0]
    stand_in(model, unit, made)
    return made[0], made[1], made[2]
