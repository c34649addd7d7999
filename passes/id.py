"""The pass ``id``: interpolative decomposition of channels (Chee, Renz, Damle, De Sa, 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxprune.contract import Context, Observer, Plan, StepResult, Tap, check_options, option
from onnxprune.fit.fold import fold_consumer
from onnxprune.fit.sizing import Sizing, plan_spaces, reached
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.kept import record_kept
from onnxprune.graph.labels import Consumer
from onnxprune.graph.selection import Selection
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.linalg import interpolation, interpolation_error, pivoted_cholesky
from onnxprune.runtime.observers import Gram, GramResult

# Below this many rows per channel a Gram matrix says little about rank.
_ROWS_PER_CHANNEL = 10
_RIDGE = 1e-10


@dataclass(frozen=True)
class Id:
    """Keep k channels of every space and express the dropped ones by them, folded into the next layer.

    The channels are the first k pivots of a column-pivoted factorisation of the activations that the consumers
    read; T is folded into the consumers' weights, on the support of each row where earlier passes made zeros.
    """

    keep: float | None = option(None, float, "fraction of channels kept in every space", low=0.0, above=True, high=1.0)
    flops: float | None = option(
        None,
        float,
        "FLOPs after this pass over those of the source model; default 0.9",
        low=0.0,
        above=True,
        high=1.0,
    )
    params: float | None = option(
        None, float, "parameters after this pass over those of the source", low=0.0, above=True, high=1.0
    )
    align: str = option("1", str, "widths are multiples of this number; auto takes the processor's block")
    only: str | None = option(None, str, "cut only spaces with these nodes: names, globs, re:..., parted by ;")
    ignore: str | None = option(None, str, "never cut spaces with these nodes: names, globs, re:..., parted by ;")
    preserve_zeros: bool = option(True, bool, "weights that are zero before stay zero")

    name: ClassVar[str] = "id"
    summary: ClassVar[str] = "drops channels and folds them into the next layer (interpolative decomposition)"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"calibration"})
    default_size: ClassVar[tuple[str, float]] = ("flops", 0.9)

    def __post_init__(self) -> None:
        check_options(self)
        Sizing.of(self)
        Selection.parse(self.name, self.only, self.ignore)

    @property
    def _selection(self) -> Selection:
        return Selection.parse(self.name, self.only, self.ignore)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        """Return one Gram matrix per tensor that a consumer of a prunable space reads."""
        if self.keep == 1.0:
            return {}
        analysis = spaces.analyse(prepare(model))
        found: dict[Tap, Observer] = {}
        for space in _treatable(analysis, self._selection)[0]:
            for consumer in space.consumers:
                shape = surgery.layout(analysis, consumer)
                assert shape is not None
                tap = Tap(str(consumer.value.name), consumer.axis)
                found[tap] = Gram(consumer.axis, len(shape.channels), shape.outer, shape.inner)
        return found

    def plan(self, model: ir.Model, context: Context) -> Plan:
        """Return the widths that the size gives and the range that it could have."""
        analysis = spaces.analyse(prepare(model))
        return plan_spaces(self, analysis, *_treatable(analysis, self._selection), context)

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        """Return the model with narrower spaces; errors per space are in ``numbers["layers"]``."""
        work = prepare(model)
        analysis = spaces.analyse(work)
        chosen, skipped = _treatable(analysis, self._selection)
        sizing = Sizing.of(self)
        widths = sizing.widths(analysis, chosen, context)
        layers, kept = [], {}
        for space in chosen:
            if widths[space.name] >= space.width:
                continue
            indices, row = self._reduce(analysis, space, widths[space.name], context)
            kept[space.name] = indices
            layers.append(row)
        if kept:
            _fold(analysis, chosen, kept, context, self.preserve_zeros)
            surgery.cut(analysis, kept)
            record_kept(work, surgery.kept_outputs(analysis, kept))
        result = finish(work)
        warnings = () if chosen else ("id found no channels that it can cut; the reasons are listed with the step",)
        numbers = {"spaces": len(chosen), "layers": layers}
        notices = sizing.unaligned({name: len(indices) for name, indices in kept.items()})
        return StepResult(result, skipped, numbers, reached(self, result, context), (*warnings, *notices))

    def _reduce(
        self, analysis: Analysis, space: ChannelSpace, width: int, context: Context
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the kept channel indices of one space, ascending, and its row of the report."""
        grams = [_space_gram(analysis, space, consumer, context) for consumer in space.consumers]
        total = sum(gram / max(float(np.trace(gram)), np.finfo(float).tiny) for gram, _ in grams)
        rows = min(count for _, count in grams)
        factored = pivoted_cholesky(np.asarray(total), width)
        pivots = factored.pivots
        note = None
        if rows < _ROWS_PER_CHANNEL * space.width:
            pivots = _fill(pivots, space, analysis, width)
            note = f"only {rows} rows for {space.width} channels; give more calibration examples"
        elif len(pivots) < width:
            note = f"numerical rank {len(pivots)} is below {width}: the rest is redundant"
        kept = np.sort(pivots if len(pivots) else np.zeros(1, dtype=np.int64))
        errors = [interpolation_error(gram, kept, interpolation(gram, kept, _RIDGE)) for gram, _ in grams]
        row = {"space": space.name, "width": space.width, "kept": len(kept), "relative_error": max(errors)}
        return kept, row if note is None else {**row, "note": note}


def _treatable(analysis: Analysis, selection: Selection) -> tuple[list[ChannelSpace], dict[str, str]]:
    """Return the spaces whose consumers can all take a folded matrix, and why the others are left alone."""
    candidates, skipped = selection.spaces(analysis)
    chosen = []
    for space in candidates:
        odd = next((c for c in space.consumers if not _foldable(analysis, space, c)), None)
        opaque = analysis.opaque(space)
        if odd is not None:
            skipped[space.name] = f"'{odd.node.name}' reads its channels in groups or in an irregular order"
        elif opaque is not None:
            skipped[space.name] = opaque
        elif not space.consumers:
            skipped[space.name] = "no linear node reads its channels, so nothing can make up for dropped ones"
        else:
            chosen.append(space)
    return chosen, skipped


def _foldable(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> bool:
    regular = consumer.groups == 1 and surgery.layout(analysis, consumer) is not None
    return regular and _positions(analysis, space, consumer) is not None


def _gram(consumer: Consumer, context: Context) -> GramResult:
    found = context.statistics[Tap(str(consumer.value.name), consumer.axis)]
    assert isinstance(found, GramResult)
    return found


def _positions(analysis: Analysis, space: ChannelSpace, consumer: Consumer) -> np.ndarray | None:
    """Return where the space's channels stand among the channels that the consumer reads, int64 [width, times].

    A row or column of a grid (an attention head, a place of every group) stands there several times, in the same
    order for all; None where the consumer does not read all of them equally often.
    """
    shape = surgery.layout(analysis, consumer)
    assert shape is not None
    owner = analysis.owners(space)[shape.channels]
    times = np.bincount(owner[owner >= 0], minlength=space.width)
    if times.min() != times.max():
        return None
    return np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :].reshape(space.width, -1)


def _space_gram(
    analysis: Analysis, space: ChannelSpace, consumer: Consumer, context: Context
) -> tuple[np.ndarray, int]:
    """Return the space's Gram matrix, summed over all places where its channels stand, and its number of rows."""
    found = _gram(consumer, context)
    where = _positions(analysis, space, consumer)
    assert where is not None
    return sum((found.gram[np.ix_(at, at)] for at in where.T), np.zeros((space.width, space.width))), found.rows


def _fill(pivots: np.ndarray, space: ChannelSpace, analysis: Analysis, width: int) -> np.ndarray:
    """Extend pivots to ``width`` channels by the norm of their producers' weights (too few rows for a rank)."""
    norms = np.zeros(space.width)
    for producer in space.producers:
        channels = analysis.positions(space, analysis.tracer.labels[producer.weight][producer.axis])
        data = surgery.axis_norms(producer.weight, producer.axis)
        np.add.at(norms, channels[channels >= 0], data[channels >= 0])
    rest = [int(i) for i in np.argsort(-norms, kind="stable") if i not in set(pivots.tolist())]
    return np.concatenate([pivots, np.array(rest[: width - len(pivots)], dtype=np.int64)])


def _fold(
    analysis: Analysis,
    chosen: list[ChannelSpace],
    kept: Mapping[str, np.ndarray],
    context: Context,
    preserve_zeros: bool,
) -> None:
    """Fold what is about to be dropped into every consumer of a space that is cut, each consumer once."""
    keep = analysis.keep_mask(kept)
    consumers = {id(c): c for space in chosen if space.name in kept for c in space.consumers}
    for consumer in consumers.values():
        shape = surgery.layout(analysis, consumer)
        assert shape is not None
        rows = surgery.weight_rows(consumer, shape)
        staying = np.flatnonzero(keep[shape.channels])
        folded = fold_consumer(rows, _gram(consumer, context).gram, staying, preserve_zeros=preserve_zeros)
        surgery.set_weight_rows(consumer, shape, folded)
