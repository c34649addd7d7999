"""Judging without rewriting: one model against another, or one model alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.api.gating import judge_file, judge_gates
from onnxprune.api.opening import ModelLike, input_shapes, open_examples, open_model, open_runtime, output_kinds, task
from onnxprune.api.options import Gates, Options
from onnxprune.api.reporting import build_report, cost_between, data_used
from onnxprune.data import DataLike
from onnxprune.errors import ModelError
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.evaluate.streaming import Scored, judge, score
from onnxprune.graph import io
from onnxprune.graph.cost import Cost, measure
from onnxprune.graph.shapes import true_inputs
from onnxprune.report import report as schema
from onnxprune.report.pictures import Pictures


def compare(
    original: ModelLike,
    compressed: ModelLike,
    data: DataLike | None = None,
    *,
    gates: Gates | None = None,
    options: Options | None = None,
) -> schema.Report:
    """Judge one model against another on all of ``data`` (or on what the original's metadata names)."""
    return compare_with_pictures(original, compressed, data, gates=gates, options=options)[0]


def compare_with_pictures(
    original: ModelLike,
    compressed: ModelLike,
    data: DataLike | None = None,
    *,
    gates: Gates | None = None,
    options: Options | None = None,
) -> tuple[schema.Report, Pictures]:
    """Compare as :func:`compare` does, and return where the examples can be looked at, too."""
    chosen, asked = options or Options(), gates or Gates()
    check_confidence(chosen.confidence)
    first, second = open_model(original, chosen), open_model(compressed, chosen)
    _same_interface(first.model, second.model)
    settings, notices = open_runtime(chosen)
    examples, warnings = open_examples(first, chosen, data)
    with task(chosen, "comparison", examples.count) as advance:
        judged = judge(
            first.model, second.model, examples, settings,
            confidence=chosen.confidence, classes=first.classes, advance=advance, keep=False,
            kinds=output_kinds(first.model, chosen),
        )  # fmt: skip
    shapes = input_shapes(examples)
    sides, _ = data_used(None, examples, judged.fingerprint)
    facts = second.facts
    gates_on = judge_gates(asked, judged.evidence, chosen.confidence, judged.latency[1].ratio)
    report = build_report(
        first, judged, chosen, (*notices, *warnings, *judged.evidence.warnings),
        recipe=None, steps=(), gates=(*gates_on, *judge_file(asked, facts.bytes)), data=sides,
        cost=cost_between(measure(first.model, shapes), measure(second.model, shapes)),
    )  # fmt: skip
    report = replace(report, result=schema.Result(facts.path, facts.sha256, facts.bytes))
    return report, Pictures(examples, first.preprocess)


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found out about one model."""

    model: io.FileFacts
    source: str
    scored: Scored
    cost: Cost
    warnings: tuple[str, ...]


def evaluate(model: ModelLike, data: DataLike | None = None, *, options: Options | None = None) -> Evaluation:
    """Measure one model's accuracy, loss, per-class accuracy and latency on all of ``data``."""
    chosen = options or Options()
    check_confidence(chosen.confidence)
    loaded = open_model(model, chosen)
    settings, notices = open_runtime(chosen)
    examples, warnings = open_examples(loaded, chosen, data)
    with task(chosen, "evaluation", examples.count) as advance:
        found = score(
            loaded.model, examples, settings,
            confidence=chosen.confidence, classes=loaded.classes, advance=advance,
            kinds=output_kinds(loaded.model, chosen),
        )  # fmt: skip
    cost = measure(loaded.model, input_shapes(examples))
    return Evaluation(loaded.facts, examples.source, found, cost, (*notices, *warnings, *found.performance.warnings))


def _same_interface(first: ir.Model, second: ir.Model) -> None:
    """Refuse two models that cannot be fed and read alike."""
    for what, names in (
        ("inputs", [[str(v.name) for v in true_inputs(m)] for m in (first, second)]),
        ("outputs", [[str(v.name) for v in m.graph.outputs] for m in (first, second)]),
    ):
        if names[0] != names[1]:
            left, right = (", ".join(n) for n in names)
            raise ModelError(f"the models have different {what}: {left} against {right}; they must have the same names")
