"""Building the report: costs, steps, data, gates on sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from onnxprune import pipeline, recipe
from onnxprune.api.opening import Loaded
from onnxprune.api.options import Options
from onnxprune.budget import Gate, Target, size_gate
from onnxprune.data import Examples, Fingerprint, shared_examples
from onnxprune.evaluate.evidence import Rate
from onnxprune.evaluate.streaming import Decided, Judged, latency_figures
from onnxprune.graph.cost import Cost
from onnxprune.report import report as schema
from onnxprune.runtime.doctor import versions


def figures(cost: Cost) -> schema.Figures:
    """Return a cost as the report writes it; MACs are unknown where a node's sizes are."""
    return schema.Figures(cost.params, cost.nonzero, None if cost.unknown else cost.macs, cost.bytes)


def cost_between(before: Cost, after: Cost) -> schema.Cost:
    """Return what changed between two costs."""
    return schema.Cost.between(figures(before), figures(after))


def step(done: pipeline.Step, agreement: Rate | None = None) -> schema.Step:
    """Return a pipeline step as the report writes it; ``agreement`` is that of the model after it."""
    skipped = tuple(schema.Skipped(node, reason) for node, reason in done.result.skipped.items())
    item, numbers = done.item, dict(done.result.numbers)
    return schema.Step(
        item.name, recipe.options(item), done.seconds, skipped, numbers, figures(done.cost),
        recipe.written(item), agreement,
    )  # fmt: skip


def data_used(
    calibration: tuple[Examples, Fingerprint] | None,
    evaluation: Examples,
    judged: Fingerprint,
    decided: Decided | None = None,
) -> tuple[schema.DataUsed, tuple[str, ...]]:
    """Return the data section, and warnings when evaluation examples served before (``decided``: to choose by)."""
    used = {"calibration": calibration}
    used["choosing"] = None if decided is None else (decided.examples, decided.fingerprint)
    sides: dict[str, schema.DataSide | None] = {}
    warnings = []
    for purpose, found in used.items():
        sides[purpose] = None if found is None else _side(*found)
        common = 0 if found is None else shared_examples(found[1], judged)
        if found is not None and common:
            warnings.append(
                f"{common} of {found[0].count} {purpose} examples are evaluation examples too: "
                "the agreement measured here flatters the result"
            )
    synthetic = evaluation.synthetic or (calibration is not None and calibration[0].synthetic)
    data = schema.DataUsed(sides["calibration"], _side(evaluation, judged), synthetic, sides["choosing"])
    return data, tuple(warnings)


def _side(examples: Examples, fingerprint: Fingerprint) -> schema.DataSide:
    return schema.DataSide(examples.source, examples.count, fingerprint.hexdigest())


def size_gates(steps: Sequence[pipeline.Step]) -> list[Gate]:
    """Return one gate per size that a pass was asked for; a pass with a recipe of its own speaks of its part."""
    gates = []
    for done in steps:
        for name, (wanted, got) in done.result.reached.items():
            gate = size_gate(Target(name, wanted), got) if wanted > 0 else None
            if gate is not None and hasattr(done.item, "recipe"):
                gate = replace(gate, message=f"{done.item.name}, of its part: {gate.message}")
            gates += [gate] if gate is not None else []
    return gates


def build_report(
    loaded: Loaded, judged: Judged, options: Options, warnings: Sequence[str], **rest: Any
) -> schema.Report:
    """Return the report of a run; ``rest`` holds recipe, steps, gates, data and cost."""
    evidence = judged.evidence
    opset = int(loaded.model.opset_imports.get("", 0) or 0)
    return schema.Report(
        source=schema.Source(loaded.facts.path, loaded.facts.sha256, opset),
        result=None,
        agreement=evidence.agreement,
        accuracy=evidence.accuracy,
        output_error=evidence.output_error,
        outputs=evidence.outputs,
        latency=latency_figures(*judged.latency),
        warnings=tuple(dict.fromkeys(warnings)),
        providers=judged.providers,
        seed=options.seed,
        versions=versions(),
        **rest,
    )
