"""What the report says of the order of a recipe: figures after every step, and what a later step undoes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune.api import Options, Result
from onnxprune.contract import Context, StepResult, check_options
from onnxprune.passes.cleanup import Cleanup
from onnxprune.passes.filters import Filters
from onnxprune.passes.surp import Surp

ONE = Options(threads=1)


@dataclass(frozen=True)
class Restore:
    """Put the source model back: what was cut and zeroed is there again."""

    name: ClassVar[str] = "restore"
    summary: ClassVar[str] = "puts the source model back"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_options(self)

    def wants(self, model: ir.Model) -> Mapping[Any, Any]:
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        return StepResult(context.original.clone())


@pytest.fixture
def run(conv_net: Callable[..., onnx.ModelProto], examples_path: Path) -> Callable[..., Result]:
    return lambda recipe: onnxprune.compress(conv_net(0), recipe, data=examples_path, options=ONE)


def order_warnings(result: Result) -> list[str]:
    return [text for text in result.report.warnings if "(step " in text]


def test_agreement_after_every_step_of_several(run: Callable[..., Result], examples_path: Path) -> None:
    report = run("surp(sparsity=0.6),filters(flops=0.8),cleanup").report
    assert report.agreement is not None
    rates = [step.agreement for step in report.steps]
    assert None not in rates
    assert rates[-1] == report.agreement.top1
    assert rates[1] == rates[2]  # cleanup changes no decision
    alone = run("surp(sparsity=0.6)").report
    assert alone.agreement is not None
    assert rates[0] == alone.agreement.top1
    assert alone.steps[0].agreement is None  # the report says it already
    assert [step.recipe for step in report.steps] == ["surp(sparsity=0.6)", "filters(flops=0.8)", "cleanup"]
    assert report.recipe == "surp(sparsity=0.6),filters(flops=0.8),cleanup"


def test_zeros_that_are_filled_again(run: Callable[..., Result]) -> None:
    (said,) = order_warnings(run("surp(sparsity=0.6),id(flops=0.8,preserve_zeros=false)"))
    assert said.startswith("id (step 2) fills zeros that surp (step 1) made: ")
    assert said.endswith("; they stay in the better recipe, surp(sparsity=0.6),id(flops=0.8)")
    assert "\n" not in said


@pytest.mark.parametrize(
    "recipe",
    [
        "surp(sparsity=0.6),id(flops=0.8)",
        "surp(sparsity=0.6),filters(flops=0.5)",
        "id(flops=0.8,preserve_zeros=false),surp(sparsity=0.01)",
        "id(flops=0.8),magnitude(sparsity=0.8,values=refit)",
        "id(flops=0.8,reconstruct=none),surp(sparsity=0.8)",
        "filters(flops=0.8),surp(sparsity=0.8)",
        "fold_bn,magnitude(sparsity=0.5),cleanup",
        "magnitude(sparsity=0.3),surp(sparsity=0.6)",
    ],
)
def test_an_order_that_costs_nothing_is_not_warned_of(run: Callable[..., Result], recipe: str) -> None:
    assert order_warnings(run(recipe)) == []


def test_zeros_behind_a_refit_that_would_make_up_for_them(run: Callable[..., Result]) -> None:
    worse = run("fold_bn,id(flops=0.8,preserve_zeros=false),surp(sparsity=0.8)")
    (said,) = order_warnings(worse)
    better = "fold_bn,surp(sparsity=0.8),id(flops=0.8)"
    assert said.startswith("surp (step 3) cost agreement (")
    assert said.endswith(f" after) that id (step 2) would make up for in the better order, {better}")
    first, second = worse.report.agreement, run(better).report.agreement
    assert first is not None
    assert second is not None
    assert second.top1.rate > first.top1.rate


def test_sizes_that_rise_again(run: Callable[..., Result]) -> None:
    (said,) = order_warnings(run([Filters(flops=0.5), Cleanup(), Restore()]))
    assert said.startswith("restore (step 3) raises again what filters (step 1) lowered: parameters from ")
    assert "MACs from " in said
    assert "weight bytes from " in said


def test_zeros_and_sizes_are_told_apart(run: Callable[..., Result]) -> None:
    (said,) = order_warnings(run([Surp(sparsity=0.5), Restore()]))
    assert said.startswith("restore (step 2) fills zeros that surp (step 1) made: ")
    assert said.endswith("; they stay in the better recipe, restore,surp(sparsity=0.5)")
    first, second = order_warnings(run([Surp(sparsity=0.5), Filters(flops=0.5), Restore()]))
    assert first.startswith("restore (step 3) fills zeros that surp (step 1) made: ")
    assert second.startswith("restore (step 3) raises again what filters (step 2) lowered: ")


def test_a_step_without_class_scores_has_no_agreement() -> None:
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], "fc")
    rng = np.random.default_rng(0)
    graph = onnx.helper.make_graph(
        [node], "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 1])],
        [onnx.numpy_helper.from_array(rng.standard_normal((6, 1)).astype(np.float32), "w")],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    data = {"x": rng.standard_normal((40, 6)).astype(np.float32)}
    report = onnxprune.compress(proto, "surp(sparsity=0.3),cleanup", data=data, options=ONE).report
    assert [step.agreement for step in report.steps] == [None, None]
