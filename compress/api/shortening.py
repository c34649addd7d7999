"""The shortest ``.surp`` file of a model that is good enough, by whatever says so."""

from __future__ import annotations

import io as streams
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.api.packing import Packed, pack
from onnxprune.codec import container
from onnxprune.codec.law import Law, Stop
from onnxprune.errors import ModelError
from onnxprune.graph import skeleton
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import weights
from onnxprune.report.sizes import CODED

# How far the stream is followed: relative L1 errors.
_DEPTHS = (0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625)
_HALVINGS = 6
# Binary digits behind the leading one that own values may be told by; float16 has 10.
_BITS = (1, 2, 3, 4, 5, 7)
# From here on float16 rounds to infinity.
_LARGEST_HALF = 65519.0


def coarsest(
    holds: Callable[[float, float], bool], steps: Sequence[float] = _DEPTHS, *, geometric: bool = True
) -> float | None:
    """Return the largest point found that is good enough: the first of ``steps`` that holds, then by halving.

    Args:
        holds: says of a point whether it does, and from which step's file it may be read.
        steps: falling points, such as relative L1 errors.
        geometric: halve distances by ratio, else by difference.

    Returns:
        None where no step holds.
    """
    place = next((place for place, depth in enumerate(steps) if holds(depth, depth)), None)
    if place is None:
        return None
    depth, good, bad = steps[place], steps[place], steps[place - 1] if place else 1.0
    for _ in range(_HALVINGS):
        middle = math.sqrt(good * bad) if geometric else (good + bad) / 2
        good, bad = (middle, bad) if holds(middle, depth) else (good, middle)
    return good


def shortest(model: ir.Model, good: Callable[[ir.Model], bool]) -> CodedFile:
    """Return the shortest ``.surp`` file found whose model is good enough.

    A stream of the code's own values ends as early as ``good`` allows. A network with many zeros may rather have a file
    of the weights' own values in float16, rounded to as few bits as ``good`` allows; that is taken where it is shorter,
    and in full where nothing else is good enough.

    Args:
        model: the model, which stays as it is.
        good: whether a decoded model is.

    Raises:
        ModelError: It has no weight that can be coded.
        CodecError: A weight is not finite; or none of the streams does, and a weight is too large for float16.
    """
    found = weights(lifted(model), Selection.parse("shortest", None, None))
    if not found.values:
        raise ModelError("the model has no weight that can be coded")
    # The threshold falls at every level: few weights are left, and each decay skips empty levels.
    coder = Coder(*skeleton.split(model, [str(value.name) for value in found.values]), Law(patience=1))
    point = coarsest(lambda point, depth: good(coder.to_depth(depth).model(Stop(relative_l1=point))))
    files = [] if point is None else [coder.coded(Stop(relative_l1=point))]
    if not coder.too_large:
        files += itertools.islice((file for file in map(coder.fitted, _BITS) if good(file.model())), 1)
    return min(files or [coder.fitted()], key=lambda file: len(file.data))


@dataclass(frozen=True, eq=False)
class CodedFile:
    """A .surp file in memory."""

    data: bytes
    packed: Packed

    def model(self, stop: Stop | None = None) -> ir.Model:
        """Return the model that the file decodes to."""
        found = container.decode(streams.BytesIO(self.data), stop)
        return skeleton.joined(found.skeleton, found.tensors)


@dataclass(frozen=True, eq=False)
class Coder:
    """Writes the model as .surp files in memory."""

    tensors: dict[str, np.ndarray]
    graph: bytes
    law: Law
    normalize: bool = True
    deep: dict[float, CodedFile] = field(default_factory=dict)

    @property
    def too_large(self) -> bool:
        """A weight cannot be told in float16."""
        return any(np.abs(array).max(initial=0) > _LARGEST_HALF for array in self.tensors.values())

    def at(self, kind: str, sparsity: float) -> CodedFile:
        """Return the file at a sparsity."""
        return self.coded(Stop(sparsity=sparsity)) if kind == CODED else self.own(sparsity)

    def coded(self, stop: Stop) -> CodedFile:
        """Return the file that ends at ``stop``."""
        return self._packed(self.tensors, self.law, stop, fitted=False)

    def own(self, sparsity: float) -> CodedFile:
        """Return the file of the weights that the code finds first, with their own values in float16."""
        stream = container.code(self.tensors, self.law, Stop(sparsity=sparsity), normalize=self.normalize).stream
        kept = np.zeros(stream.shape.count, dtype=bool)
        kept[stream.support] = True
        pruned, begin = {}, 0
        for name, array in self.tensors.items():
            own = kept[begin : begin + array.size].reshape(array.shape)
            pruned[name] = np.where(own, array, np.zeros((), array.dtype))
            begin += array.size
        return replace(self, tensors=pruned).fitted()

    def fitted(self, bits: int | None = None) -> CodedFile:
        """Return the file of all weights that are not zero, with their own values in float16.

        Fewer ``bits`` behind the leading one (float16 has 10) leave zeros behind, which zstd packs.
        """
        tensors = self.tensors
        if bits is not None:
            tensors = {name: _rounded(array, bits) for name, array in tensors.items()}
        return self._packed(tensors, replace(self.law, alpha=None), Stop(), fitted=True)

    def to_depth(self, error: float) -> CodedFile:
        """Return the file that ends at a relative L1 error, written once."""
        if error not in self.deep:
            self.deep[error] = self.coded(Stop(relative_l1=error))
        return self.deep[error]

    def _packed(self, tensors: dict[str, np.ndarray], law: Law, stop: Stop, *, fitted: bool) -> CodedFile:
        file = streams.BytesIO()
        packed = pack(file, tensors, self.graph, law, stop, fitted=fitted, normalize=self.normalize)
        return CodedFile(file.getvalue(), packed)


def _rounded(array: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers of as many binary digits behind the leading one, to nearest."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    step = 2.0 ** (bits + 1)  # the leading digit is the first behind the point
    rounded = np.ldexp(np.round(mantissa * step) / step, exponent)
    return np.clip(rounded, -_LARGEST_HALF, _LARGEST_HALF).astype(array.dtype)
