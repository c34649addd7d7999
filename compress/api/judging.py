"""Which of the models of a run can be judged, and how each of them decides."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune import pipeline
from onnxprune.api.opening import output_kinds, task
from onnxprune.api.options import Options
from onnxprune.data import Examples
from onnxprune.evaluate.decisions import rate
from onnxprune.evaluate.evidence import Evidence, Rate
from onnxprune.evaluate.streaming import count_kept, decide_all
from onnxprune.runtime.session import Settings


def runnable(source: ir.Model, steps: Sequence[pipeline.Step]) -> tuple[ir.Model, tuple[str, ...]]:
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


def after_every_step(
    source: ir.Model,
    steps: Sequence[pipeline.Step],
    evidence: Evidence,
    examples: Examples,
    settings: Settings,
    options: Options,
) -> list[Rate | None]:
    """Return how often the model after each step decides as the source, on the evaluation examples.

    None for all in a run of one step, of which ``evidence`` says everything, and for models without class scores or
    that ONNX Runtime cannot run.

    Raises:
        ModelError: An output has another shape than the source's.
        BackendError: ONNX Runtime failed.
    """
    rates: list[Rate | None] = [None] * len(steps)
    if len(steps) == 1 or evidence.agreement is None:
        return rates
    if not steps[-1].foreign:
        rates[-1] = evidence.agreement.top1
    open_steps = [place for place, step in enumerate(steps[:-1]) if not step.foreign]
    if not open_steps:
        return rates
    with task(options, "agreement after every step", examples.count * (len(open_steps) + 1)) as advance:
        decided = decide_all(source, examples, settings, kinds=output_kinds(source, options), advance=advance)
        if decided is None:
            return rates
        for place in open_steps:
            kept = count_kept(decided, steps[place].result.model, settings)
            rates[place] = rate(kept, examples.count, options.confidence)
            advance(examples.count)
    return rates
