"""The ways to make one linear node several smaller ones; pairs of them, ``<node>/enc`` and ``<node>/dec``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph import constants
from onnxprune.graph.attributes import ints_attribute, string_attribute
from onnxprune.graph.linear import Unit
from onnxprune.graph.names import free_name, take_over, value_names
from onnxprune.graph.shapes import Shapes

# The four ways to part a kernel, in the order of LRank's schemes 0 to 3.
OUTPUT, SPATIAL, TURNED, INPUT = "output", "spatial", "turned", "input"
KINDS = (OUTPUT, SPATIAL, TURNED, INPUT)
# Three nodes in place of one.
POLYADIC = "cp"
# ONNX Runtime runs channel-wise convolutions of other numbers of channels three times slower (no blocked layout).
_STEP = 4
# Ranks below so many steps may be any: a step is too much of them.
_SMALL = 4
# Entries of a matrix up to which its singular values are worked out as such.
_LARGE = 1 << 22
# The opset from which a Gemm may stand without a constant.
_FREE_GEMM = 11


@dataclass(frozen=True)
class Pair:
    """Smaller nodes in place of one, mostly a pair: how the kernel is parted, and the channels between them.

    ``output``: the whole kernel to ``rank`` channels, then 1 x 1 (Zhang, Zou, He, Sun, 2016; scheme 0).
    ``spatial``: 1 x k, then k x 1 (Jaderberg, Vedaldi, Zisserman, 2014; scheme 1); ``turned``: k x 1, then 1 x k.
    ``input``: 1 x 1, then the whole kernel (scheme 3). What does not slide knows ``output`` alone.
    ``cp``: 1 x 1, the whole kernel on every channel by itself, 1 x 1 (Lebedev et al., 2015); it is put in place by
    :mod:`onnxprune.graph.polyadic`.
    """

    kind: str
    rank: int


@dataclass(frozen=True, eq=False)
class Parting:
    """How one kind parts a unit's matrix, and what a channel between the nodes costs.

    ``height`` x ``width`` is the matrix whose rank counts; ``macs`` and ``params`` are per rank, of which the share
    of every input channel is ``reads`` (MACs), and of neither side's channels ``spare_macs`` and ``spare_params``;
    ``whole`` are the MACs of the node as it is, ``full`` the rank at which nothing is lost; ranks that are not small
    are multiples of ``step`` where they are chosen by cost.
    """

    kind: str
    height: int
    width: int
    macs: int
    params: int
    reads: int
    whole: int
    full: int
    spare_macs: int = 0
    spare_params: int = 0
    step: int = 1

    def floor(self, rank: int) -> int:
        """Return the highest rank up to this one that runs well."""
        return rank if rank < _SMALL * self.step else rank // self.step * self.step

    def params_at(self, rank: int, reads: float, writes: float) -> float:
        """Return the parameters at a rank, when such shares of input and output channels are left."""
        last = self.params - self.height - self.spare_params
        return rank * (self.height * reads + self.spare_params + last * writes)

    def macs_at(self, rank: int, inputs: int, reads: float, writes: float) -> float:
        """Return the MACs at a rank, when such shares of the ``inputs`` and of the output channels are left."""
        first = self.reads * inputs
        return rank * (first * reads + self.spare_macs + (self.macs - first - self.spare_macs) * writes)


def partings(unit: Unit, shapes: Shapes) -> dict[str, Parting]:
    """Return the ways in which a unit can be parted, by kind; none where its groups or its shapes forbid it."""
    given, out = shapes.get(str(unit.value.name)), shapes.get(str(unit.node.outputs[0].name))
    if unit.groups != 1 or given is None or out is None or None in given or None in out:
        return {}
    kernel, inputs, outputs = _sizes(unit)
    taps = math.prod(kernel)
    inside, outside = _places(given, unit.axis), _places(out, unit.out_channels)
    if not unit.slides:
        both = inputs + outputs
        whole = inputs * outputs * outside
        full = min(inputs, outputs)
        return {OUTPUT: Parting(OUTPUT, inputs, outputs, both * outside, both, outside, whole, full)}
    transposed = unit.node.op_type == "ConvTranspose"
    middle = taps * (inside if transposed else outside)
    whole = inputs * outputs * middle

    def parting(kind: str, first: int, second: int, reads: int, writes: int) -> Parting:
        """A pair whose nodes have so many taps, and so many MACs per rank and input or output channel."""
        high, low = inputs * first, outputs * second
        return Parting(kind, high, low, inputs * reads + outputs * writes, high + low, reads, whole, min(high, low))

    found = [parting(OUTPUT, taps, 1, middle, outside), parting(INPUT, 1, taps, inside, middle)]
    if taps == 1:
        found = found[:1]
    elif not transposed:
        spare = taps * outside
        each, params = inputs * inside + spare + outputs * outside, inputs + taps + outputs
        full = inputs * min(taps, outputs)  # every channel's own kernels
        wide = taps * outputs
        found.append(Parting(POLYADIC, inputs, wide, each, params, inside, whole, full, spare, taps, _STEP))
    if len(kernel) == 2 and min(kernel) > 1 and not transposed:
        # The first node runs over one axis and leaves the other as it is.
        batch, (high, wide), (low, narrow) = int(given[0] or 1), _grid(given), _grid(out)
        for kind, first, second, between in (
            (SPATIAL, kernel[1], kernel[0], high * narrow),
            (TURNED, kernel[0], kernel[1], low * wide),
        ):
            found.append(parting(kind, first, second, batch * first * between, batch * second * low * narrow))
    return {one.kind: one for one in found}


def split(model: ir.Model, unit: Unit, pair: Pair) -> tuple[ir.Node, ir.Node]:
    """Put a pair in a node's place, in place, and return both.

    The weight at hand is parted at its ``rank`` largest singular values: exact where it has no more than that.
    Constants stay where they are, behind the second node.
    """
    kernel, inputs, outputs = _sizes(unit)
    data = constants.array(unit.weight)
    assert data is not None
    # As a BatchNormalization behind it shows it: outputs that it makes small must not drown the others, those that it
    # multiplies by zero take no rank.
    first, second = factors(unfold(unit.matrix()[0], pair.kind, kernel), pair.rank)
    scale = np.where(unit.scale == 0.0, 1.0, unit.scale)
    second = (second.reshape(len(second), -1, outputs) / scale).reshape(second.shape)
    node, taken = unit.node, value_names(model.graph)
    dtype = unit.weight.dtype
    assert dtype is not None
    enc_kernel, dec_kernel = _kernels(pair.kind, kernel)
    kinds = _operators(unit, pair.kind, model.opset_imports.get("", 1))
    stored = [
        _stored(unit, first.reshape(math.prod(enc_kernel), inputs, -1), enc_kernel, kinds[0]),
        _stored(
            unit, second.reshape(len(second), math.prod(dec_kernel), outputs).transpose(1, 0, 2), dec_kernel, kinds[1]
        ),
    ]
    weights = [
        constants.add_array(model.graph, f"{unit.weight.name}/{end}", array.astype(data.dtype), dtype, taken)
        for end, array in zip(("enc", "dec"), stored, strict=True)
    ]
    given, old = node.inputs[0], node.outputs[0]
    enc = ir.Node(
        "", kinds[0], [given, weights[0]], _attributes(unit, pair.kind, kinds[0], enc_kernel, first=True),
        num_outputs=1, name=f"{unit.name}/enc",
    )  # fmt: skip
    enc.outputs[0].name = free_name(f"{unit.name}/enc", taken)
    enc.outputs[0].type = old.type
    rest = list(node.inputs[2:])
    dec = ir.Node(
        "", kinds[1], [enc.outputs[0], weights[1], *rest],
        _attributes(unit, pair.kind, kinds[1], dec_kernel, first=False), num_outputs=1, name=f"{unit.name}/dec",
    )  # fmt: skip
    stand_in(model, unit, [enc, dec])
    return enc, dec


def stand_in(model: ir.Model, unit: Unit, made: Sequence[ir.Node]) -> None:
    """Put nodes in a unit's place, in place: the last gives what it gave; its weight goes where nothing reads it."""
    model.graph.insert_before(unit.node, made)
    take_over(unit.node.outputs[0], made[-1].outputs[0])
    model.graph.remove(unit.node, safe=True)
    if not unit.weight.uses():
        model.graph.initializers.pop(str(unit.weight.name), None)


def unfold(matrix: np.ndarray, kind: str, kernel: Sequence[int]) -> np.ndarray:
    """Return a matrix [taps * channels, O] as the one whose rank counts, [height, width of a :class:`Parting`]."""
    if kind == OUTPUT:
        return matrix
    taps, outputs = math.prod(kernel), matrix.shape[1]
    if kind == INPUT:
        split = matrix.reshape(taps, -1, outputs)
        return np.asarray(split.transpose(1, 0, 2).reshape(split.shape[1], -1))
    grid = matrix.reshape(kernel[0], kernel[1], -1, outputs)
    order = (1, 2, 0, 3) if kind == SPATIAL else (0, 2, 1, 3)
    moved = grid.transpose(order)
    return np.asarray(moved.reshape(moved.shape[0] * moved.shape[1], -1))


def refolded(unfolded: np.ndarray, kind: str, kernel: Sequence[int], outputs: int) -> np.ndarray:
    """Return the matrix [taps * channels, O] of which :func:`unfold` made ``unfolded``."""
    if kind == OUTPUT:
        return unfolded
    taps = math.prod(kernel)
    if kind == INPUT:
        return np.asarray(unfolded.reshape(-1, taps, outputs).transpose(1, 0, 2).reshape(-1, outputs))
    first, second = (kernel[1], kernel[0]) if kind == SPATIAL else (kernel[0], kernel[1])
    grid = unfolded.reshape(first, -1, second, outputs)
    order = (2, 0, 1, 3) if kind == SPATIAL else (0, 2, 1, 3)
    return np.asarray(grid.transpose(order).reshape(-1, outputs))


def factors(unfolded: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``U sqrt(S)`` [A, r] and ``sqrt(S) V^T`` [r, B] of the ``rank`` largest singular values (Eckart-Young)."""
    if unfolded.size > _LARGE and unfolded.shape[0] < unfolded.shape[1]:
        second, first = factors(unfolded.T, rank)
        return first.T, second.T
    if unfolded.size > _LARGE:  # the eigenvectors of the smaller side cost much less, and lose what is 1e-8 of the rest
        squares, vectors = np.linalg.eigh(unfolded.T @ unfolded)
        right = vectors.T[::-1][:rank]
        roots = np.maximum(squares[::-1][:rank], np.finfo(float).tiny) ** 0.25
        first, second = (unfolded @ right.T) / roots, roots[:, None] * right
    else:
        left, values, right = np.linalg.svd(unfolded, full_matrices=False)
        roots = np.sqrt(values[:rank])
        first, second = left[:, :rank] * roots, roots[:, None] * right[:rank]
    if len(roots) < rank:  # wider than it need be
        first = np.pad(first, ((0, 0), (0, rank - len(roots))))
        second = np.pad(second, ((0, rank - len(roots)), (0, 0)))
    return first, second


def spectrum(unfolded: np.ndarray) -> np.ndarray:
    """Return the squared singular values of a matrix, descending."""
    if unfolded.size <= _LARGE:
        return np.asarray(np.linalg.svd(unfolded, compute_uv=False) ** 2)
    # As in factors: a third of the time, and the small ones end at 1e-16 of the largest.
    small = unfolded if unfolded.shape[0] <= unfolded.shape[1] else unfolded.T
    return np.asarray(np.maximum(np.linalg.eigvalsh(small @ small.T)[::-1], 0.0))


def _sizes(unit: Unit) -> tuple[tuple[int, ...], int, int]:
    """Return a unit's kernel (empty where it does not slide), its input channels and its outputs."""
    stored = unit.weight.const_value
    assert stored is not None
    shape = [int(s) for s in stored.shape.numpy()]
    return tuple(shape[2:]) if unit.slides else (), shape[unit.in_axis], shape[unit.out_axis]


def kernel_of(unit: Unit) -> tuple[int, ...]:
    """Return the sizes of a unit's kernel, none where it does not slide."""
    return _sizes(unit)[0]


def _places(shape: Sequence[int | None], axis: int) -> int:
    return math.prod(int(size or 1) for at, size in enumerate(shape) if at != axis % len(shape))


def _grid(shape: Sequence[int | None]) -> tuple[int, int]:
    return int(shape[2] or 1), int(shape[3] or 1)


def _kernels(kind: str, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    ones = (1,) * len(kernel)
    if kind == OUTPUT:
        return kernel, ones
    if kind == INPUT:
        return ones, kernel
    across, down = (1, kernel[1]), (kernel[0], 1)
    return (across, down) if kind == SPATIAL else (down, across)


def _operators(unit: Unit, kind: str, opset: int) -> tuple[str, str]:
    """Return the operators of the pair; a 1 x 1 transposed convolution of stride 1 is a plain one."""
    name = unit.node.op_type
    if name == "Gemm" and opset < _FREE_GEMM:
        return "MatMul", name
    if name != "ConvTranspose":
        return name, name
    return (name, "Conv") if kind == OUTPUT else ("Conv", name)


def _stored(unit: Unit, data: np.ndarray, kernel: tuple[int, ...], operator: str) -> np.ndarray:
    """Return a factor [taps, in, out] in the layout of its operator."""
    if not unit.slides:
        return np.asarray(data[0] if unit.in_axis < unit.out_axis or operator == "MatMul" else data[0].T)
    moved = data.transpose((2, 1, 0) if operator == "Conv" else (1, 2, 0))
    return np.ascontiguousarray(moved.reshape(*moved.shape[:2], *kernel))


def _attributes(unit: Unit, kind: str, operator: str, kernel: tuple[int, ...], *, first: bool) -> list[ir.Attr]:
    """Return the attributes of one of the two: strides, pads and dilations go with the axes that it slides over."""
    node = unit.node
    if operator == "MatMul":
        return []
    if node.op_type == "Gemm":
        turned = [ir.AttrInt64("transB", 1)] if unit.in_axis > unit.out_axis else []
        scales = [node.attributes[name] for name in ("alpha", "beta") if name in node.attributes]
        return turned if first else [*turned, *scales]
    rank = len(kernel)
    slides = [(kind == OUTPUT) == first] * rank
    if kind in (SPATIAL, TURNED):
        slides = [(axis == 1) == first for axis in range(rank)]
        if kind == TURNED:
            slides = [not own for own in slides]
    found = [ir.AttrInt64s("kernel_shape", kernel)]
    for name in ("strides", "dilations"):
        sizes = ints_attribute(node, name, [1] * rank)
        found.append(ir.AttrInt64s(name, [size if own else 1 for size, own in zip(sizes, slides, strict=True)]))
    if operator == "ConvTranspose" or all(slides):
        names = ("auto_pad", "pads", "output_padding", "output_shape")
        return [*found, *(node.attributes[name] for name in names if name in node.attributes)]
    auto = string_attribute(node, "auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = ints_attribute(node, "pads", [0] * (2 * rank))
        found.append(ir.AttrInt64s("pads", [size if own else 0 for size, own in zip(pads, 2 * slides, strict=True)]))
    elif any(slides):  # an axis with a kernel of 1 and a stride of 1 needs no padding, whatever the rule
        found.append(ir.AttrString("auto_pad", auto))
    return found
