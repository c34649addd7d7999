"""Compressing a model: recipe, data, pipeline, judgement, gates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune import pipeline, recipe
from onnxprune.api import provenance
from onnxprune.api.gating import judge_file, judge_gates, judged_anew, judges_file
from onnxprune.api.judging import after_every_step, runnable
from onnxprune.api.opening import ModelLike, output_kinds, task
from onnxprune.api.options import Gates, Options
from onnxprune.api.ordering import undone
from onnxprune.api.provenance import Record, Repeated
from onnxprune.api.reporting import build_report, cost_between, data_used, size_gates, step
from onnxprune.api.searching import LOOKS, open_search, searches
from onnxprune.api.sources import Opened, Sources, open_run
from onnxprune.budget import Gate, Target, parse_target
from onnxprune.contract import Pass
from onnxprune.data import DataLike
from onnxprune.evaluate.evidence import Rate
from onnxprune.evaluate.streaming import Decided, Judged, Recorded, judge
from onnxprune.graph import io, sparse
from onnxprune.graph.cost import measure
from onnxprune.report import report as schema
from onnxprune.report.figures import amount
from onnxprune.report.pictures import Pictures


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of :func:`compress`: a model in memory and the report on it.

    ``made`` is the file that a replay should give again, ``pictures`` where the evaluation examples can be looked at.
    """

    model: ir.Model
    report: schema.Report
    made: io.FileFacts | None = None
    pictures: Pictures | None = None

    @property
    def met(self) -> bool:
        """Whether every target and gate was met."""
        return self.report.met

    @property
    def same_as_made(self) -> bool:
        """Whether this is a replay, and the file written is the one that was to be made again."""
        written = self.report.result
        return self.made is not None and written is not None and written.sha256 == self.made.sha256

    def to_graphsurgeon(self) -> Any:
        """Return the model as an ``onnx_graphsurgeon.Graph`` (see ``onnxprune.graph.gs.from_gs`` for the way back)."""
        from onnxprune.graph.gs import to_gs

        return to_gs(self.model)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        sparse_storage: bool = False,
        keep_failed: bool = True,
    ) -> Result:
        """Write the model (checked, then renamed into place); return a result whose report names the file.

        A gate on bytes is judged anew, on this file, before it is renamed. With ``keep_failed=False`` the file is
        renamed only where every target and gate is met; else the report returned names none. With
        ``sparse_storage``, weights that take fewer bytes so are kept as sparse initialisers.

        Raises:
            OptionError: ``path`` exists already (without ``force``) or cannot be written to.
            BackendError: Writing failed; nothing is left behind.
        """
        out = io.check_output(path, source=self.report.source.path, force=force)
        if not (keep_failed or self.met or judges_file(self.report.gates)):
            return self
        with io.staged(self.model, out, sparse_storage=sparse_storage) as written:
            facts = written.facts
            report = replace(self.report, gates=judged_anew(self.report.gates, facts.bytes))
            if not (keep_failed or report.met):
                return replace(self, report=report)
            written.keep()
        report = replace(report, result=schema.Result(facts.path, facts.sha256, facts.bytes))
        if sparse_storage:
            report = replace(report, warnings=(*report.warnings, _stored_sparse(self.model)))
        saved = replace(self, report=report)
        if self.made is None or saved.same_as_made:
            return saved
        remark = _not_the_same(facts.path, self.made.path)
        return replace(saved, report=replace(report, warnings=(*report.warnings, remark)))


def _stored_sparse(model: ir.Model) -> str:
    count = len(sparse.smaller(model))
    if not count:
        return "no weight is stored sparse: with places in int64, none would take fewer bytes"
    return f"{amount(count, 'weight tensor')} stored sparse: a smaller file, not a faster model"


def _not_the_same(path: str, made: str) -> str:
    return (
        f"'{path}' is not '{made}' byte for byte: that file was changed since, or made with other versions, providers "
        "or threads, a size in latency, --sparse-storage, or external data under another name"
    )


def compress(
    model: ModelLike,
    passes: str | Sequence[Pass],
    *,
    data: DataLike | None = None,
    calib: DataLike | None = None,
    eval: DataLike | None = None,
    targets: Sequence[str | Target] = (),
    gates: Gates | None = None,
    options: Options | None = None,
) -> Result:
    """Run a recipe on a model and judge the outcome against the original.

    Args:
        model: path of an .onnx file, or a model in memory, an ``onnx_graphsurgeon.Graph`` too (it is not touched).
        passes: a recipe such as ``"surp,id(flops=0.5)"``, a YAML file, or pass objects.
        data: one source, split into calibration and evaluation; or give ``calib`` and ``eval``.
        calib: source of calibration examples; labels are never read.
        eval: source of evaluation examples; accuracy needs labels.
        targets: sizes such as ``"flops=0.5"`` for passes that name none.
        gates: what must hold; see ``Result.met``. A pass without a size (and no ``targets``) goes as far as
            ``min_agreement``, or 0.99, allows on examples that calibration left; see ``docs/contract.md``.
        options: where to run, seeds, sizes of the splits.

    Raises:
        OptionError, ModelError, DataError, BackendError: as their docstrings say.
    """
    wanted = [parse_target(t) if isinstance(t, str) else t for t in targets]
    items = recipe.parse(passes, wanted) if isinstance(passes, str) else list(passes)
    return run(
        model, items, Sources(data, calib, eval), gates or Gates(), options or Options(), targeted=bool(targets)
    )  # fmt: skip


def run(
    model: ModelLike,
    items: Sequence[Pass],
    sources: Sources,
    asked: Gates,
    chosen: Options,
    *,
    targeted: bool = False,
    again: Repeated | None = None,
) -> Result:
    """Run passes as :func:`compress` does; with ``again``, as an earlier run that is to be repeated.

    Sizes of a repeated run were asked for once already: no gate judges them again.

    Raises:
        OptionError, ModelError, DataError, BackendError: as their docstrings say.
    """
    opened = open_run(model, items, sources, chosen, choosing=searches(items, targeted=targeted), again=again)
    loaded, settings = opened.loaded, opened.settings
    search = open_search(items, loaded.model, opened.split, settings, chosen, asked, targeted=targeted)
    way = pipeline.Run(opened.calibration, settings, chosen.seed, opened.inputs, search.progress)
    looks: list[str] = []
    for look in range(len(LOOKS)):
        search.begin(look)
        _, steps = pipeline.run(loaded.model, items, way, search.treat)
        judged, unjudged = judged_last(opened, steps, chosen)
        why = search.another(asked, judged.evidence)
        if why is None:
            break
        looks.append(why)
    rates = after_every_step(loaded.model, steps, judged.evidence, opened.evaluation, settings, chosen)
    found = judge_gates(asked, judged.evidence, search.risk_confidence, judged.latency[1].ratio)
    verdicts = (*([] if again else size_gates(steps)), *found)
    before = (*unjudged, *(again.remarks if again else ()))
    after = (*undone(measure(loaded.model, opened.inputs), steps, rates), *search.shortfall(asked, judged.evidence))
    result = finished(
        opened, steps, judged, chosen, rates=rates, gates=verdicts, decided=search.decided,
        before=before, between=(*search.warnings, *looks), after=after,
    )  # fmt: skip
    if asked.max_bytes is not None:
        gates = (*verdicts, *judge_file(asked, io.size(result.model)))
        result = replace(result, report=replace(result.report, gates=gates))
    return result if again is None else replace(result, made=again.made)


def judged_last(
    opened: Opened, steps: Sequence[pipeline.Step], chosen: Options, recorded: Recorded | None = None
) -> tuple[Judged, tuple[str, ...]]:
    """Judge the last model that ONNX Runtime can run; return warnings where that is not the last of all besides."""
    last, unjudged = runnable(opened.loaded.model, steps)
    with task(chosen, "evaluation", opened.evaluation.count) as advance:
        judged = judge(
            opened.loaded.model, last, opened.evaluation, opened.settings, confidence=chosen.confidence,
            classes=opened.loaded.classes, advance=advance, recorded=recorded,
            kinds=output_kinds(opened.loaded.model, chosen),
        )  # fmt: skip
    return judged, unjudged


def finished(
    opened: Opened,
    steps: Sequence[pipeline.Step],
    judged: Judged,
    chosen: Options,
    *,
    rates: Sequence[Rate | None],
    gates: Sequence[Gate] = (),
    decided: Decided | None = None,
    before: Sequence[str] = (),
    between: Sequence[str] = (),
    after: Sequence[str] = (),
) -> Result:
    """Return the model of the last step with its provenance, and the report on it.

    Args:
        opened: what the run worked on.
        steps: the passes that ran.
        judged: what the examples showed of the last model.
        chosen: the options of the run.
        rates: the agreement after every step, where it is told.
        gates: what had to hold, judged.
        decided: what a search went by.
        before: warnings that stand first.
        between: warnings about a search, in front of those of the passes.
        after: warnings behind those of the passes.
    """
    loaded, result = opened.loaded, steps[-1].result.model
    sides, overlap = data_used(opened.calibrated, opened.evaluation, judged.fingerprint, decided)
    warnings = (
        *before,
        *opened.notices,
        *opened.split.warnings,
        *between,
        *(w for s in steps for w in s.result.warnings),
        *after,
        *overlap,
        *judged.evidence.warnings,
    )
    text = recipe.canonical(done.item for done in steps)
    report = build_report(
        loaded, judged, chosen, warnings,
        recipe=text, steps=tuple(step(*each) for each in zip(steps, rates, strict=True)), gates=tuple(gates),
        data=sides, cost=cost_between(measure(loaded.model, opened.inputs), steps[-1].cost),
    )  # fmt: skip
    record = Record(text, loaded.facts.sha256, chosen.seed, opened.calibration_record(chosen))
    provenance.write(result, loaded.model.metadata_props, record)
    return Result(result, report, None, Pictures(opened.evaluation, loaded.preprocess))
