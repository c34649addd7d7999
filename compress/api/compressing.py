"""Compressing a model: recipe, data, pipeline, judgement, gates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnxprune import pipeline, recipe
from onnxprune.api.opening import ModelLike, input_shapes, open_model, open_runtime, open_split, task
from onnxprune.api.options import Gates, Options
from onnxprune.api.reporting import build_report, cost_between, data_used, judge_gates, size_gates, step
from onnxprune.api.searching import LOOKS, open_search, searches
from onnxprune.budget import Target, parse_target
from onnxprune.contract import Pass, takes_calibration
from onnxprune.data import DataLike
from onnxprune.errors import DataError
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.streaming import judge
from onnxprune.graph import io, sparse
from onnxprune.graph.cost import measure
from onnxprune.report import report as schema
from onnxprune.report.figures import amount


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of :func:`compress`: a model in memory and the report on it."""

    model: ir.Model
    report: schema.Report

    @property
    def met(self) -> bool:
        """Whether every target and gate was met."""
        return self.report.met

    def to_graphsurgeon(self) -> Any:
        """Return the model as an ``onnx_graphsurgeon.Graph`` (see ``onnxprune.graph.gs.from_gs`` for the way back)."""
        from onnxprune.graph.gs import to_gs

        return to_gs(self.model)

    def save(self, path: str | os.PathLike[str], *, force: bool = False, sparse_storage: bool = False) -> Result:
        """Write the model (checked, then renamed into place); return a result whose report names the file.

        With ``sparse_storage``, weights that take fewer bytes so are kept as sparse initialisers.

        Raises:
            OptionError: ``path`` exists already (without ``force``) or cannot be written to.
            BackendError: Writing failed; nothing is left behind.
        """
        out = io.check_output(path, source=self.report.source.path, force=force)
        facts = io.save(self.model, out, sparse_storage=sparse_storage)
        report = replace(self.report, result=schema.Result(facts.path, facts.sha256, facts.bytes))
        if sparse_storage:
            report = replace(report, warnings=(*report.warnings, _stored_sparse(self.model)))
        return replace(self, report=report)


def _stored_sparse(model: ir.Model) -> str:
    count = len(sparse.smaller(model))
    if not count:
        return "no weight is stored sparse: with places in int64, none would take fewer bytes"
    return f"{amount(count, 'weight tensor')} stored sparse: a smaller file, not a faster model"


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
    chosen, asked = options or Options(), gates or Gates()
    check_confidence(chosen.confidence)
    wanted = [parse_target(t) if isinstance(t, str) else t for t in targets]
    items = recipe.parse(passes, wanted) if isinstance(passes, str) else list(passes)
    loaded = open_model(model, chosen)
    settings, notices = open_runtime(chosen)
    split = open_split(loaded, chosen, data, calib, eval, choosing=searches(items, targeted=bool(targets)))
    calibration = split.calibration if any(takes_calibration(item) for item in items) else None
    shapes = input_shapes(calibration or split.evaluation)
    if split.evaluation is None:
        raise DataError("there are no examples to evaluate on; give --data or --eval")
    search = open_search(items, loaded.model, split, settings, chosen, asked, targeted=bool(targets))
    run = pipeline.Run(calibration, settings, chosen.seed, shapes, search.progress)
    looks: list[str] = []
    for look in range(len(LOOKS)):
        search.begin(look)
        result, steps = pipeline.run(loaded.model, items, run, search.treat)
        runnable, unjudged = _runnable(loaded.model, steps)
        with task(chosen, "evaluation", split.evaluation.count) as advance:
            judged = judge(
                loaded.model, runnable, split.evaluation, settings,
                confidence=chosen.confidence, classes=loaded.classes, advance=advance,
            )  # fmt: skip
        why = search.another(asked, judged.evidence)
        if why is None:
            break
        looks.append(why)
    sides, overlap = data_used(calibration, split.evaluation, judged.fingerprint, search.decided)
    verdicts = (*size_gates(steps), *judge_gates(asked, judged.evidence, search.risk_confidence))
    warnings = (
        *unjudged,
        *notices,
        *split.warnings,
        *search.warnings,
        *looks,
        *(w for s in steps for w in s.result.warnings),
        *search.shortfall(asked, judged.evidence),
        *overlap,
        *judged.evidence.warnings,
    )
    report = build_report(
        loaded, judged, chosen, warnings,
        recipe=recipe.canonical(s.item for s in steps), steps=tuple(step(s) for s in steps), gates=verdicts, data=sides,
        cost=cost_between(measure(loaded.model, shapes), steps[-1].cost),
    )  # fmt: skip
    return Result(result, report)


def _runnable(source: ir.Model, steps: Sequence[pipeline.Step]) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the last model that ONNX Runtime can run, and a warning where that is not the result."""
    place = next((place for place, step in enumerate(reversed(steps)) if not step.foreign), len(steps))
    last = len(steps) - place
    model = steps[last - 1].result.model if last else source
    if not place:
        return model, ()
    foreign, first = ", ".join(steps[-1].foreign), steps[last].item.name
    before = f"the model before {first} (step {last + 1})" if last else "the source model itself"
    return model, (
        f"the result itself was not evaluated, because ONNX Runtime has no operator {foreign}: "
        f"all figures on decisions, outputs and latency are those of {before}",
    )
