"""Passes in order: what is recorded, what is refused, what the caller's model keeps."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Context, Observer, StepResult, Tap
from onnxprune.data import Examples, open_data
from onnxprune.errors import BackendError, DataError
from onnxprune.graph.cost import measure
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.id import Id
from onnxprune.passes.surp import Surp
from onnxprune.pipeline import Run, run
from onnxprune.runtime.observers import Gram, GramResult
from onnxprune.runtime.session import Settings, input_specs


@pytest.fixture
def model(conv_net: Callable[..., onnx.ModelProto]) -> ir.Model:
    return ir.serde.deserialize_model(conv_net(0))


@pytest.fixture
def examples(model: ir.Model) -> Examples:
    images = np.random.default_rng(1).standard_normal((60, 1, 12, 12)).astype(np.float32)
    return open_data({"input": images}, input_specs(model))


@dataclass(frozen=True)
class Probe:
    """A pass that asks for a tensor and lets a function do the rest."""

    rewrite: Callable[[ir.Model, Context], StepResult]
    tap: Tap | None = None
    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "a probe"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        return {} if self.tap is None else {self.tap: Gram(self.tap.axis, 8)}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        return self.rewrite(model, context)


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


def test_steps_are_recorded_in_order(model: ir.Model, examples: Examples) -> None:
    result, steps = run(model, [Cleanup(), Surp(sparsity=0.5), Id(flops=0.6)], Run(examples, Settings()))
    assert [step.item.name for step in steps] == ["cleanup", "surp", "id"]
    assert result is steps[-1].result.model
    assert all(step.seconds >= 0 for step in steps)
    costs = [step.cost for step in steps]
    assert costs == [measure(step.result.model) for step in steps]
    original = measure(model)
    assert costs[0].macs == costs[1].macs == original.macs
    assert costs[1].nonzero < costs[0].nonzero <= original.nonzero
    assert costs[2].macs <= 0.6 * original.macs
    assert costs[2].params < original.params
    assert steps[2].result.reached["flops"] == (0.6, costs[2].macs / original.macs)


def test_no_passes_give_the_model_itself(model: ir.Model) -> None:
    result, steps = run(model, [], Run(None, Settings()))
    assert result is model
    assert steps == []


def test_the_callers_model_is_not_touched(model: ir.Model, examples: Examples) -> None:
    before = written(model)
    run(model, [Surp(), Id(keep=0.5), Cleanup()], Run(examples, Settings()))
    assert written(model) == before


def test_no_file_stays_behind(
    model: ir.Model, examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(model, [Surp(), Id(keep=0.5)], Run(examples, Settings()))
    assert not list(tmp_path.iterdir())


def test_same_seed_same_bytes(model: ir.Model, examples: Examples) -> None:
    passes = [Surp(sparsity=0.7), Id(flops=0.5)]
    first, _ = run(model, passes, Run(examples, Settings(threads=1), seed=4))
    again, _ = run(model, passes, Run(examples, Settings(threads=1), seed=4))
    assert written(first) == written(again)


def test_statistics_are_taken_on_the_passs_own_input(model: ir.Model, examples: Examples) -> None:
    seen: list[np.ndarray] = []

    def look(current: ir.Model, context: Context) -> StepResult:
        found = context.statistics[Tap("r1", 1)]
        assert isinstance(found, GramResult)
        seen.append(found.gram)
        return StepResult(current)

    probe = Probe(look, Tap("r1", 1))
    run(model, [probe, Surp(sparsity=0.95), probe], Run(examples, Settings()))
    assert not np.allclose(seen[0], seen[1])


def test_the_context_holds_the_source_model_its_cost_and_the_seed(model: ir.Model) -> None:
    def look(current: ir.Model, context: Context) -> StepResult:
        assert context.original is model
        assert current is not model
        assert context.original_cost == measure(model, {"input": (3, 1, 12, 12)})
        assert context.inputs == {"input": (3, 1, 12, 12)}
        assert context.seed == 17
        return StepResult(current)

    settings = Run(None, Settings(), seed=17, inputs={"input": (3, 1, 12, 12)})
    run(model, [Surp(), Probe(look)], settings)


def test_a_pass_may_collect_from_another_model(model: ir.Model, examples: Examples) -> None:
    def look(current: ir.Model, context: Context) -> StepResult:
        assert context.collect is not None
        found = context.collect(context.original, {Tap("r1", 1): Gram(1, 8)})
        assert np.allclose(found[Tap("r1", 1)].gram, context.statistics[Tap("r1", 1)].gram)
        return StepResult(current)

    run(model, [Probe(look, Tap("r1", 1))], Run(examples, Settings()))


def test_missing_calibration_is_a_data_error(model: ir.Model) -> None:
    with pytest.raises(DataError) as caught:
        run(model, [Surp(), Id()], Run(None, Settings()))
    assert str(caught.value) == "id needs calibration data; give --data or --calib"


def test_a_pass_that_wants_nothing_runs_without_data(model: ir.Model) -> None:
    run(model, [Surp(), Id(keep=1.0)], Run(None, Settings()))


def test_a_broken_rewrite_is_a_backend_error(model: ir.Model) -> None:
    def misspell(current: ir.Model, context: Context) -> StepResult:
        work = current.clone()
        next(node for node in work.graph if node.name == "relu1").op_type = "Rely"
        return StepResult(work)

    def unsort(current: ir.Model, context: Context) -> StepResult:
        work = current.clone()
        last = next(node for node in work.graph if node.name == "fc2")
        work.graph.remove(last)
        work.graph.insert_before(next(iter(work.graph)), last)
        return StepResult(work)

    for rewrite in (misspell, unsort):
        with pytest.raises(BackendError) as caught:
            run(model, [Probe(rewrite)], Run(None, Settings()))
        assert str(caught.value).startswith("the rewritten model fails onnx.checker: ")
        assert "\n" not in str(caught.value)


def test_progress_is_told_per_pass_and_batch(model: ir.Model, examples: Examples) -> None:
    told: list[Any] = []

    @contextlib.contextmanager
    def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        told.append((description, total))
        yield told.append
        told.append("done")

    settings = Run(examples, Settings(batch_size=25), progress=progress)
    run(model, [Surp(), Id(keep=0.5, reconstruct="none")], settings)
    assert told == [("id: statistics", 60), 25, 25, 10, "done"]
    told.clear()
    run(model, [Surp()], settings)
    assert told == []


def test_calibration_that_breaks_the_model_names_the_tensor(model: ir.Model, examples: Examples) -> None:
    broken = model.clone()
    weight = broken.graph.initializers["c1.b"]
    weight.const_value = ir.tensor(np.full(8, 3e38, dtype=np.float32))
    scale = broken.graph.initializers["bn.s"]
    scale.const_value = ir.tensor(np.full(8, 3e38, dtype=np.float32))
    with pytest.raises(DataError, match=r"tensor '\w+' holds NaN or infinity on 'arrays in memory'"):
        run(broken, [Id(keep=0.5)], Run(examples, Settings()))
    nan = replace(examples, fetch=lambda rows: {"input": np.full((len(rows), 1, 12, 12), np.nan, np.float32)})
    with pytest.raises(DataError, match="NaN in example 0"):
        run(model, [Id(keep=0.5)], Run(nan, Settings()))
