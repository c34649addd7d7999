"""From a tensor that a linear node reads to the rows of its least-squares problem, at sampled positions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.errors import BackendError
from onnxprune.graph.attributes import ints_attribute, string_attribute
from onnxprune.graph.linear import Unit


@dataclass(eq=False)
class Design:
    """How one linear node reads its input: rows of features, ordered (tap, channel of the group).

    Every position of the output is a row; ``positions`` of every example are taken (0: all), drawn without
    replacement from a stream of random numbers that depends on the node's name, the seed and the example alone,
    so that batches do not matter. ``batch`` is the axis of the examples where the node does not slide; where other
    axes are folded into it, the example counts most.
    """

    unit: Unit
    positions: int
    seed: int
    batch: int = 0
    _tables: dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    # The last draw: inputs, targets and skips of a batch are read at the same positions.
    _drawn: tuple[np.ndarray, int, np.ndarray] | None = None

    def rows(self, value: np.ndarray, out_shape: Sequence[int], examples: np.ndarray) -> np.ndarray:
        """Return the features of one batch, [groups, rows, taps * channels], in the value's own dtype."""
        unit = self.unit
        if not unit.slides:
            flat = self._flat(value, unit.axis)
            chosen = self._chosen(len(flat), examples)
            return np.ascontiguousarray(flat if chosen is None else flat[chosen])[None]
        inside, outside = value.shape[2:], tuple(out_shape[2:])
        table = self._tables.get((inside, outside))
        if table is None:
            table = self._tables[(inside, outside)] = self._table(inside, outside)
        count, channels = value.shape[:2]
        places = math.prod(inside)
        last = np.zeros((count, places + 1, channels), dtype=value.dtype)
        last[:, :places] = value.reshape(count, channels, places).transpose(0, 2, 1)
        chosen = self._chosen(count * len(table), examples)
        if chosen is None:
            chosen = np.arange(count * len(table))
        image, position = np.divmod(chosen, len(table))
        index = table[position] + (image * (places + 1))[:, None]
        taken = last.reshape(-1, channels)[index]  # [rows, taps, channels]
        groups = unit.groups
        split = taken.reshape(len(chosen), -1, groups, channels // groups)
        return np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(groups, len(chosen), -1)

    def outputs(self, out: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Return the same rows of an output-shaped tensor, [rows, O]."""
        flat = self._flat(out, self.unit.out_channels)
        chosen = self._chosen(len(flat), examples)
        return flat if chosen is None else flat[chosen]

    def _flat(self, array: np.ndarray, channels: int) -> np.ndarray:
        """Return an array as rows over channels, the examples' axis first."""
        batch = 0 if self.unit.slides else self.batch
        moved = np.moveaxis(array, (batch, channels), (0, -1))
        return moved.reshape(-1, moved.shape[-1])

    def _chosen(self, rows: int, examples: np.ndarray) -> np.ndarray | None:
        """Return which rows of a batch are taken, or None for all of them."""
        count = len(examples)
        if not self.positions or not count or rows % count or rows // count <= self.positions:
            return None
        if self._drawn is not None and self._drawn[0] is examples and self._drawn[1] == rows:
            return self._drawn[2]
        each = rows // count
        drawn = _draws(self.seed, zlib.crc32(self.unit.name.encode()), examples, each)
        found = np.sort(np.argpartition(drawn, self.positions, axis=1)[:, : self.positions], axis=1)
        chosen = np.asarray(found + np.arange(count)[:, None] * each).ravel()
        self._drawn = (examples, rows, chosen)
        return chosen

    def _table(self, inside: tuple[int, ...], outside: tuple[int, ...]) -> np.ndarray:
        """Return, per output position and tap, the flat input position; the one past the last where it is padding."""
        node, stored = self.unit.node, self.unit.weight.const_value
        assert stored is not None
        kernel = tuple(int(s) for s in stored.shape.numpy()[2:])
        rank = len(kernel)
        if len(inside) != rank or len(outside) != rank:
            raise BackendError(
                f"'{node.name}' turns {len(inside)} spatial axes into {len(outside)}, but its weight has {rank}"
            )
        strides, dilations = ints_attribute(node, "strides", [1] * rank), ints_attribute(node, "dilations", [1] * rank)
        pads = begin_pads(node, inside, outside, kernel, strides, dilations)
        transposed = node.op_type == "ConvTranspose"
        position = np.zeros((math.prod(outside), math.prod(kernel)), dtype=np.int64)
        valid = np.ones(position.shape, dtype=bool)
        outs = np.unravel_index(np.arange(math.prod(outside)), outside)
        taps = np.unravel_index(np.arange(math.prod(kernel)), kernel)
        for axis in range(rank):
            if transposed:
                raw = outs[axis][:, None] + pads[axis] - taps[axis][None, :] * dilations[axis]
                valid &= raw % strides[axis] == 0
                raw = raw // strides[axis]
            else:
                raw = outs[axis][:, None] * strides[axis] - pads[axis] + taps[axis][None, :] * dilations[axis]
            valid &= (raw >= 0) & (raw < inside[axis])
            position = position * inside[axis] + np.clip(raw, 0, inside[axis] - 1)
        return np.where(valid, position, math.prod(inside))


def _draws(seed: int, name: int, examples: np.ndarray, each: int) -> np.ndarray:
    """Return 64 random bits per example and position, [examples, each]: splitmix64 (Steele, Lea, Flood, 2014)."""
    start = (seed * 0x9E3779B97F4A7C15 + name * 0xD1B54A32D192ED03) % 2**64
    with np.errstate(over="ignore"):
        counter = examples.astype(np.uint64)[:, None] * np.uint64(each) + np.arange(each, dtype=np.uint64)
        bits: np.ndarray = np.uint64(start) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(bits ^ (bits >> np.uint64(31)))


def begin_pads(
    node: ir.Node,
    inside: Sequence[int],
    outside: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Return the padding in front of every spatial axis, resolved from the shapes where the node leaves it open."""
    rank = len(kernel)
    auto = string_attribute(node, "auto_pad", "NOTSET")
    transposed = node.op_type == "ConvTranspose"
    computed = auto in ("SAME_UPPER", "SAME_LOWER") or (transposed and "output_shape" in node.attributes)
    if auto == "VALID":
        return [0] * rank
    if not computed:
        return ints_attribute(node, "pads", [0] * (2 * rank))[:rank]
    extra = ints_attribute(node, "output_padding", [0] * rank) if transposed else [0] * rank
    pads = []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        if transposed:
            total = strides[axis] * (inside[axis] - 1) + extra[axis] + reach - outside[axis]
        else:
            total = (outside[axis] - 1) * strides[axis] + reach - inside[axis]
        total = max(0, total)
        upper = auto == "SAME_UPPER"
        pads.append(total // 2 if upper else total - total // 2)
    return pads
