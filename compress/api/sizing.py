"""The size table: one model stored in the usual ways and as ``.surp``, each judged on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.api.archives import archives, file_pieces, output_axes
from onnxprune.api.opening import Loaded, ModelLike, open_model, open_runtime, open_split, output_kinds, task
from onnxprune.api.options import Options
from onnxprune.api.shortening import CodedFile, Coder, coarsest
from onnxprune.codec.law import Law, Stop
from onnxprune.data import DataLike
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate.decisions import rate
from onnxprune.evaluate.evidence import Rate
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.scores import checked_labels
from onnxprune.evaluate.streaming import Decided, count_kept, decide_all, decisions
from onnxprune.graph import skeleton
from onnxprune.graph.cleanup import lifted
from onnxprune.graph.selection import Selection
from onnxprune.graph.weights import weights
from onnxprune.report.figures import percent
from onnxprune.report.sizes import CODED, OWN, SizeRow, SizeTable
from onnxprune.runtime.session import Settings

POINTS = (0.9, 0.8, 0.7, 0.6, 0.5)
UNTIL = (0.97, 0.99)

# Sparsities with own values, in search of an agreement.
_SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def size_table(
    model: ModelLike,
    data: DataLike | None = None,
    *,
    calib: DataLike | None = None,
    eval: DataLike | None = None,
    points: Sequence[float] = POINTS,
    until: Sequence[float] = UNTIL,
    law: Law | None = None,
    normalize: bool = True,
    only: str | None = None,
    ignore: str | None = None,
    options: Options | None = None,
) -> SizeTable:
    """Store a model in the usual ways and as ``.surp``, and judge what each way does to its decisions.

    Rows: the file as it is; zstd (level 19) of it; weights in float16, and in symmetric 8-bit integers with a scale
    per output channel, packed by zstd with everything else; ``.surp`` at sparsities, and where an agreement is
    reached, with the code's own values and with the model's own in float16 (``values="fitted"``).

    Args:
        model: path of an .onnx file, or a model in memory (it is not touched).
        data: one source; a share of it chooses the points by agreement, the rest judges. Or ``calib`` to choose on
            and ``eval`` to judge on. Without any, there are sizes alone.
        calib: examples to choose points on; labels are never read.
        eval: examples to judge on; accuracy needs labels.
        points: sparsities.
        until: agreements; the smallest file that reaches each on the choosing examples.
        law: controls of the code; its alpha is not used with own values.
        normalize: divide every tensor by its L2 norm before pooling.
        only: code the weights of these nodes alone.
        ignore: keep the weights of these nodes as they are.
        options: where to run, confidence, seed of the split, progress.

    Raises:
        OptionError: A point is out of range, or an option cannot be used.
        ModelError: The model is unusable or has no weight that can be coded.
        DataError: The data is unusable.
        BackendError: ONNX Runtime failed.
    """
    chosen = options or Options()
    check_confidence(chosen.confidence)
    _check(points, until)
    loaded = open_model(model, chosen)
    work = lifted(loaded.model)
    found = weights(work, Selection.parse("size_table", only, ignore))
    if not found.values:
        raise ModelError(f"'{loaded.facts.path}' has no weight that can be coded")
    tensors, graph = skeleton.split(loaded.model, [str(value.name) for value in found.values])
    coder = Coder(tensors, graph, law or Law(), normalize)
    judged, warnings = _open_judge(loaded, chosen, data, calib, eval)
    targets = tuple(until) if judged is not None and judged.choosing is not None else ()
    rows: list[SizeRow] = []
    with task(chosen, "size table", 4 + 2 * len(points) + 2 * len(targets)) as advance:

        def add(row: SizeRow) -> None:
            rows.append(row)
            advance(1)

        size, count, alive = loaded.facts.bytes, found.count, found.nonzero
        stored = archives(file_pieces(model, loaded.model), size, tensors, graph, output_axes(work, tensors))
        for item in stored:
            back = item.tensors

            def model_of(back: dict[str, np.ndarray] | None = back) -> ir.Model:
                return loaded.model if back is None else skeleton.joined(graph, back)

            kept = alive if back is None else _alive(back)
            add(_row(item.name, item.kind, item.bytes, size, count, kept, None, judged, model_of))
        for kind, label in ((CODED, ".surp"), (OWN, ".surp+own")):
            if kind == OWN and coder.too_large:
                warnings += ("own values are left out: a weight is too large for float16",)
                continue
            for point in points:
                add(_coded_row(f"{label} {point:g}", kind, coder.at(kind, point), size, judged))
            for target in targets:
                assert judged is not None
                reached = _search(coder, kind, target, judged)
                if reached is not None:
                    add(_coded_row(f"{label} >= {percent(target)}", kind, reached, size, judged))
                else:
                    said = f"{label} does not reach an agreement of {percent(target)}"
                    warnings += (f"{said} on the examples that choose, as far as it was followed",)
    choosing = judged.choosing.examples if targets and judged is not None and judged.choosing is not None else None
    return SizeTable(
        loaded.facts.path, loaded.facts.sha256, count,
        None if judged is None else judged.decided.examples.source,
        0 if judged is None else judged.decided.examples.count,
        None if choosing is None else choosing.source,
        0 if choosing is None else choosing.count,
        None if judged is None else judged.accuracy(judged.decided.rows),
        chosen.seed, tuple(rows), warnings,
    )  # fmt: skip


def _check(points: Sequence[float], until: Sequence[float]) -> None:
    for point in points:
        if not 0 <= point < 1:
            raise OptionError(f"the point {point:g} is not accepted; give sparsities in [0, 1)")
    for target in until:
        if not 0 < target <= 1:
            raise OptionError(f"the agreement {target:g} is not accepted; give numbers in (0, 1]")


@dataclass(frozen=True, eq=False)
class _Judge:
    """The model's own decisions, on the examples that judge and on those that choose."""

    decided: Decided
    choosing: Decided | None
    settings: Settings
    confidence: float
    rates: dict[tuple[str, float], float] = field(default_factory=dict)

    def accuracy(self, rows: np.ndarray) -> float | None:
        """Return the share of right decisions; None without labels."""
        examples = self.decided.examples
        if examples.labels is None:
            return None
        labels = checked_labels(examples.labels, examples.count, self.decided.classes)
        return float((rows == labels).mean())

    def judge(self, model: ir.Model) -> tuple[Rate, float | None]:
        """Return a model's agreement and accuracy."""
        rows = decisions(self.decided, model, self.settings)
        kept, count = int((rows == self.decided.rows).sum()), len(rows)
        return rate(kept, count, self.confidence), self.accuracy(rows)

    def chosen(self, kind: str, point: float, make: Callable[[], ir.Model]) -> float:
        """Return the agreement of a point on the examples that choose; every point is judged once."""
        assert self.choosing is not None
        if (kind, point) not in self.rates:
            kept = count_kept(self.choosing, make(), self.settings)
            self.rates[kind, point] = kept / self.choosing.examples.count
        return self.rates[kind, point]


def _open_judge(
    loaded: Loaded, chosen: Options, data: DataLike | None, calib: DataLike | None, judged: DataLike | None
) -> tuple[_Judge | None, tuple[str, ...]]:
    if data is None and calib is None and judged is None:
        return None, ()
    settings, notices = open_runtime(chosen)
    split = open_split(loaded, chosen, data, calib, judged)
    if split.evaluation is None:
        raise DataError("there are no examples to judge on; give --data or --eval")
    kinds = output_kinds(loaded.model, chosen)
    decided = decide_all(loaded.model, split.evaluation, settings, kinds=kinds)
    if decided is None:
        return None, (*notices, *split.warnings, "no output holds class scores, so that no agreement is told")
    choosing = None if split.calibration is None else decide_all(loaded.model, split.calibration, settings, kinds=kinds)
    return _Judge(decided, choosing, settings, chosen.confidence), (*notices, *split.warnings)


def _search(coder: Coder, kind: str, target: float, judge: _Judge) -> CodedFile | None:
    """Return the smallest file found whose agreement on the choosing examples is at least ``target``.

    A point is a relative L1 error, or a sparsity where own values are stored: the larger, the smaller the file.
    """

    def holds(point: float, depth: float) -> bool:
        def model() -> ir.Model:
            stop = Stop(relative_l1=point)
            return coder.to_depth(depth).model(stop) if kind == CODED else coder.own(point).model()

        return judge.chosen(kind, point, model) >= target

    if kind == CODED:
        point = coarsest(holds)
        return None if point is None else coder.coded(Stop(relative_l1=point))
    point = coarsest(holds, _SHARES, geometric=False)
    return None if point is None else coder.own(point)


def _coded_row(name: str, kind: str, file: CodedFile, raw: int, judge: _Judge | None) -> SizeRow:
    header = file.packed.header
    return _row(
        name, kind, len(file.data), raw, header.shape.count, header.nonzeros, file.packed.relative_l1, judge, file.model
    )


def _row(
    name: str,
    kind: str,
    size: int,
    raw: int,
    weights: int,
    nonzeros: int,
    relative_l1: float | None,
    judge: _Judge | None,
    model: Callable[[], ir.Model],
) -> SizeRow:
    rate, accuracy = (None, None) if judge is None else judge.judge(model())
    return SizeRow(
        name, kind, size, size / raw, nonzeros, 8 * size / weights, 8 * size / nonzeros if nonzeros else None,
        relative_l1, rate, accuracy,
    )  # fmt: skip


def _alive(tensors: dict[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(array)) for array in tensors.values())
