"""The search of passes without a size: what it finds, what it holds, and when it does not run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxprune
from onnxprune.api import Gates, Options, Result
from onnxprune.api.trials import limits
from onnxprune.contract import Context, Observer, Searcher, StepResult, Tap, check_options, option
from onnxprune.errors import OptionError
from onnxprune.evaluate.intervals import lower_bound
from onnxprune.passes.filters import Filters
from onnxprune.passes.id import Id
from onnxprune.passes.surp import Surp
from onnxprune.report.report import Report

Digits = dict[str, dict[str, np.ndarray]]
Net = Callable[..., onnx.ModelProto]
ONE = Options(threads=1)


def written(result: Result) -> bytes:
    return ir.serde.serialize_model(result.model).SerializeToString(deterministic=True)


def warned(report: Report, words: str) -> bool:
    return any(words in warning for warning in report.warnings)


def sizes(report: Report) -> list[dict[str, Any]]:
    return [dict(step.options) for step in report.steps]


@pytest.mark.parametrize(("recipe", "name"), [("surp", "sparsity"), ("filters", "flops"), ("id", "flops")])
def test_the_smallest_size_that_holds_is_taken(digits_net: Net, digits: Digits, recipe: str, name: str) -> None:
    result = onnxprune.compress(digits_net(), recipe, **digits, options=ONE)
    (step,) = result.report.steps
    size = step.options[name]
    trials = {trial["size"]: trial for trial in step.trials}
    assert len(trials) == len(step.trials) <= 8
    assert trials[size]["met"]
    assert trials[size]["low"] >= 0.99 == step.numbers["wanted_agreement"]
    smaller = round(size + (0.01 if name == "sparsity" else -0.01), 2)
    assert not trials[smaller]["met"]
    assert all(trial["met"] == (trial["low"] >= 0.99) for trial in step.trials)
    assert size > 0 if name == "sparsity" else size <= 0.51
    assert result.report.recipe == f"{recipe}({name}={size})"
    assert result.report.gates == ()  # nobody asked for that size
    assert result.report.data.choosing is not None
    assert result.report.data.choosing.examples == 437


@pytest.mark.parametrize("recipe", ["pca(rectify=0)", "pca(reconstruct=none)", "lrank(rectify=0)", "auto(rectify=0)"])
def test_low_rank_is_searched_too(digits_net: Net, digits: Digits, recipe: str) -> None:
    gates = Gates(min_agreement=0.8)
    result = onnxprune.compress(digits_net(), recipe, **digits, options=ONE, gates=gates)
    (step,) = result.report.steps
    size = step.options["flops"]
    trials = {trial["size"]: trial for trial in step.trials}
    assert trials[size]["met"] and not trials[round(size - 0.01, 2)]["met"]
    assert size < 0.9 and f"flops={size}" in result.report.recipe
    again = onnxprune.compress(digits_net(), result.report.recipe, **digits, options=ONE)
    assert written(again) == written(result)


@pytest.mark.parametrize("recipe", ["surp", "filters(norm=l1)", "surp,filters", "surp,id"])
def test_the_result_is_that_of_the_recipe_it_reports(digits_net: Net, digits: Digits, recipe: str) -> None:
    found = onnxprune.compress(digits_net(), recipe, **digits, options=ONE)
    assert found.report.recipe is not None
    again = onnxprune.compress(digits_net(), found.report.recipe, **digits, options=ONE)
    assert written(again) == written(found)
    assert again.report.recipe == found.report.recipe
    assert all(gate.met for gate in again.report.gates)


def test_the_same_search_gives_the_same_result(digits_net: Net, digits: Digits) -> None:
    one, two = (onnxprune.compress(digits_net(), "surp,filters", **digits, options=ONE) for _ in range(2))
    assert written(one) == written(two)
    assert [step.trials for step in one.report.steps] == [step.trials for step in two.report.steps]


def test_passes_share_the_loss_that_is_allowed(digits_net: Net, digits: Digits) -> None:
    gates = Gates(min_agreement=0.97)
    report = onnxprune.compress(digits_net(), "cleanup,surp,filters", **digits, gates=gates, options=ONE).report
    assert [step.numbers.get("wanted_agreement") for step in report.steps] == [None, 0.985, 0.97]
    assert sizes(report)[0] == {}
    for step in report.steps[1:]:
        taken = next(trial for trial in step.trials if trial["size"] in step.options.values())
        assert taken["met"]
        assert taken["low"] >= step.numbers["wanted_agreement"]
    assert [gate.name for gate in report.gates] == ["min_agreement"]
    alone = onnxprune.compress(digits_net(), "surp", **digits, gates=gates, options=ONE).report
    assert sizes(alone)[0]["sparsity"] >= sizes(report)[1]["sparsity"]


def test_a_milder_agreement_allows_a_smaller_model(digits_net: Net, digits: Digits) -> None:
    found = [
        sizes(onnxprune.compress(digits_net(), "surp", **digits, gates=Gates(min_agreement=a), options=ONE).report)[0]
        for a in (0.99, 0.9, 0.5, 0.0)
    ]
    values = [each["sparsity"] for each in found]
    assert values == sorted(values)
    assert values[-1] == 0.99


def test_limits_prove_their_share_where_the_examples_can() -> None:
    for limit, wanted in zip(limits(0.97, 3, 1000, 0.95), (0.99, 0.98, 0.97), strict=True):
        assert limit.agreement == pytest.approx(wanted)
        assert limit.proven
        assert lower_bound(1000 - limit.flips, 1000, 0.95) >= limit.agreement
        assert lower_bound(1000 - limit.flips - 1, 1000, 0.95) < limit.agreement
    assert [limit.agreement for limit in limits(0.97, 1, 1000, 0.95)] == [0.97]


def test_limits_leave_the_next_pass_what_it_must_hold() -> None:
    # 437 of 437 prove 0.99 but not 0.995: 2 flips are within 0.995 as observed, and would leave 0.99 unproved.
    first, second = limits(0.99, 2, 437, 0.95)
    assert (first.proven, second.proven) == (False, True)
    assert first.flips == second.flips == 0
    observed = limits(0.9, 2, 20, 0.95)
    assert [(limit.proven, limit.flips) for limit in observed] == [(False, 1), (False, 2)]
    assert [limit.flips for limit in limits(1.0, 2, 5000, 0.95)] == [0, 0]
    for agreement in (0.0, 0.5, 0.9, 0.97, 0.999, 1.0):
        for examples in (1, 7, 60, 300, 1000):
            flips = [limit.flips for limit in limits(agreement, 4, examples, 0.95)]
            assert flips == sorted(flips)


def test_too_few_choosing_examples_are_said(digits_net: Net, digits: Digits) -> None:
    few = {"calib": {"input": digits["calib"]["input"][:60]}, "eval": digits["eval"]}
    options = Options(threads=1, calib_examples=40)
    report = onnxprune.compress(digits_net(), "filters", **few, options=options).report
    assert warned(
        report,
        "20 choosing examples cannot prove an agreement of 0.99 even for an identical model (at least 299 would): "
        "the search for filters went by the observed agreement",
    )
    (step,) = report.steps
    assert step.trials
    assert all(trial["met"] == (trial["agreement"] >= 0.99) for trial in step.trials)
    certain = onnxprune.compress(digits_net(), "filters", **few, gates=Gates(min_agreement=1.0), options=options)
    assert warned(certain.report, "an agreement of 1 even for an identical model (no number of examples can)")
    assert not certain.met


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"data": "random"}, "random numbers show no decisions to keep"),
        ({}, "random numbers show no decisions to keep"),
        ({"calib": "few", "eval": "test.npz"}, "calibration takes all 60 examples of arrays in memory and leaves none"),
    ],
)
def test_without_examples_to_choose_by_the_fixed_sizes_stay(
    digits_net: Net, digits: Digits, tmp_path: Any, data: Mapping[str, Any], why: str
) -> None:
    np.savez(tmp_path / "test.npz", **digits["eval"])
    pool = digits["calib"]
    known = {"pool": pool, "few": {"input": pool["input"][:60]}, "test.npz": str(tmp_path / "test.npz")}
    given = {side: known.get(source, source) for side, source in data.items()}
    report = onnxprune.compress(digits_net(), "surp,filters", **given).report
    assert report.recipe == "surp(sparsity=0.5),filters(flops=0.9)"
    assert warned(report, f"fixed ones are used (surp sparsity=0.5 and filters flops=0.9): {why}")
    assert report.data.choosing is None
    assert all("search" not in step.numbers for step in report.steps)


def test_one_source_keeps_examples_back_to_choose_by(digits_net: Net, digits: Digits) -> None:
    pool = digits["calib"]
    report = onnxprune.compress(digits_net(), "filters", data=pool, options=ONE).report
    assert report.data.choosing is not None and report.data.eval is not None
    assert (report.data.choosing.examples, report.data.eval.examples) == (269, 809)  # 359 are for calibration
    assert report.steps[0].trials
    sized = onnxprune.compress(digits_net(), "filters(flops=0.9)", data=pool, options=ONE).report
    assert sized.data.choosing is None
    assert sized.data.eval is not None and sized.data.eval.examples == 1437 - 359
    everything = Options(threads=1, eval_examples=5000)
    judged = onnxprune.compress(digits_net(), "filters", data=pool, options=everything).report
    assert warned(judged, "calibration and evaluation leave no examples of arrays in memory to choose by")


def margins(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores = np.sort(session.run(None, {session.get_inputs()[0].name: images})[0], axis=1)
    return np.asarray(scores[:, -1] - scores[:, -2])


def test_a_choice_that_the_evaluation_does_not_bear_out_makes_way_for_a_milder_one(
    digits_net: Net, digits: Digits
) -> None:
    model = digits_net()
    images = np.concatenate([digits["calib"]["input"], digits["eval"]["input"]])
    order = np.argsort(margins(model, images), kind="stable")
    # What chooses is decided firmly, what judges is not: as with a network that was trained on the choosing examples.
    hard, easy = order[100:1100], order[1100:]
    mixed = np.concatenate([easy, order[:100]])
    given = {"calib": {"input": images[mixed]}, "eval": {"input": images[hard]}}
    options = Options(threads=1, calib_examples=200)
    gates = Gates(min_agreement=0.9)
    plain = onnxprune.compress(model, "surp", **given, options=options)
    result = onnxprune.compress(model, "surp", **given, options=options, gates=gates)
    said, *_ = [w for w in result.report.warnings if "was judged in its place" in w]
    first = onnxprune.compress(
        model, f"surp({said.split('(surp ')[1].split(')')[0]})", **given, options=options, gates=gates
    )
    assert not first.met
    assert result.met
    assert "at a confidence of 0.995" in said
    agreement = result.report.agreement
    assert agreement is not None
    (gate,) = result.report.gates
    assert gate.got == lower_bound(agreement.flips.kept, agreement.examples, 0.995) >= 0.9
    assert sizes(result.report)[0]["sparsity"] < sizes(first.report)[0]["sparsity"]
    assert not any("was judged in its place" in w for w in plain.report.warnings)  # nothing was asked for


def test_examples_left_over_from_one_source_are_chosen_by(digits_net: Net, digits: Digits) -> None:
    options = Options(threads=1, calib_examples=300, eval_examples=500)
    report = onnxprune.compress(digits_net(), "filters", data=digits["calib"], options=options).report
    assert report.data.choosing is not None
    assert report.data.choosing.examples == 1437 - 300 - 500
    assert report.steps[0].trials


def test_a_model_without_class_scores_is_not_searched(digits_net: Net, digits: Digits) -> None:
    values = {"calib": digits["calib"], "eval": {"input": digits["eval"]["input"]}}
    report = onnxprune.compress(digits_net(outputs=1), "surp", **values).report
    assert report.recipe == "surp(sparsity=0.5)"
    assert warned(report, "(surp sparsity=0.5): no output of the model holds class scores to decide by")


def test_a_target_decides_and_there_is_no_search(digits_net: Net, digits: Digits) -> None:
    gates = Gates(min_agreement=0.3)
    result = onnxprune.compress(digits_net(), "surp,filters", **digits, targets=["flops=0.6"], gates=gates)
    assert result.report.recipe == "surp(sparsity=0.5),filters(flops=0.6)"
    assert [gate.name for gate in result.report.gates] == ["flops", "min_agreement"]
    assert all("search" not in step.numbers for step in result.report.steps)
    assert result.report.data.choosing is None


def test_an_explicit_size_is_only_judged(digits_net: Net, digits: Digits) -> None:
    result = onnxprune.compress(digits_net(), "filters(flops=0.2)", **digits, gates=Gates(min_agreement=0.99))
    assert not result.met
    assert "search" not in result.report.steps[0].numbers


@pytest.mark.parametrize("asked", [None, 0.99])
def test_where_nothing_holds_the_mildest_is_taken(digits_net: Net, digits: Digits, asked: float | None) -> None:
    recipe = "surp(sparsity=0.97),filters"
    result = onnxprune.compress(digits_net(), recipe, **digits, gates=Gates(min_agreement=asked), options=ONE)
    report = result.report
    assert report.recipe == "surp(sparsity=0.97),filters(flops=1.0)"
    assert not any(trial["met"] for trial in report.steps[1].trials)
    assert report.steps[1].trials[-1]["size"] == 1.0
    assert warned(report, "filters: the search found no size that keeps a proven agreement of 0.99 on the 437 choosing")
    assert result.met is (asked is None)
    assert warned(report, "--min-agreement 0.99 would refuse this model") is (asked is None)


def test_a_pass_that_can_cut_nothing_says_so(digits_net: Net, digits: Digits) -> None:
    report = onnxprune.compress(digits_net(spare=0), "filters", **digits, options=ONE).report
    assert report.recipe == "filters(flops=1.0)"
    assert warned(report, "filters: no size below the whole keeps a proven agreement of 0.99; it cut nothing")
    assert report.cost.macs.ratio == 1.0


def test_sizes_out_of_reach_are_not_taken(conv_net: Net) -> None:
    images = np.random.default_rng(0).standard_normal((200, 1, 12, 12)).astype(np.float32)
    gates, options = Gates(min_agreement=0.0), Options(threads=1, calib_examples=50)
    given = {"calib": {"input": images}, "eval": {"input": images}, "options": options}
    result = onnxprune.compress(conv_net(0), "filters(only=fc1)", gates=gates, **given)
    size = sizes(result.report)[0]["flops"]
    assert 0.3 < size < 1
    ratio = result.report.cost.macs.ratio
    assert ratio is not None
    assert size - 0.01 < ratio <= size
    smaller = onnxprune.compress(conv_net(0), f"filters(only=fc1,flops={size - 0.01:.2f})", **given)
    assert not smaller.met
    assert all(trial["size"] >= size for trial in result.report.steps[0].trials)
    # The same examples on both sides: the report must not keep that to itself.
    assert warned(result.report, "150 of 150 choosing examples are evaluation examples too")


def test_a_model_that_cannot_run_is_not_searched(digits_net: Net, digits: Digits) -> None:
    recipe = "replace(pattern=Relu(x),by=trt.plugins::Rectify(x)),surp"
    report = onnxprune.compress(digits_net(), recipe, **digits).report
    assert sizes(report)[1] == {"sparsity": 0.5}
    assert warned(report, "ONNX Runtime cannot run the model that it gets (no operator trt.plugins::Rectify)")


@dataclass(frozen=True)
class Halved:
    """A pass with a size that cannot be tried at many."""

    sparsity: float | None = option(None, float, "a size", low=0.0, high=1.0)
    name: ClassVar[str] = "halved"
    summary: ClassVar[str] = "a pass of somebody else"
    lossless: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    default_size: ClassVar[tuple[str, float]] = ("sparsity", 0.5)

    def __post_init__(self) -> None:
        check_options(self)

    def wants(self, model: ir.Model) -> Mapping[Tap, Observer]:
        return {}

    def apply(self, model: ir.Model, context: Context) -> StepResult:
        return StepResult(model)


def test_a_pass_that_is_no_searcher_keeps_its_default(digits_net: Net, digits: Digits) -> None:
    assert not isinstance(Halved(), Searcher)
    assert all(isinstance(item, Searcher) for item in (Surp(), Filters(), Id()))
    report = onnxprune.compress(digits_net(), [Halved(), Filters()], **digits).report
    assert sizes(report)[0] == {"sparsity": 0.5}
    assert warned(report, "fixed ones are used (halved sparsity=0.5): it cannot be tried at many sizes")
    assert report.steps[1].numbers["wanted_agreement"] == 0.99  # it shares with nobody


def test_an_agreement_that_is_no_share_is_refused_at_once(digits_net: Net, digits: Digits) -> None:
    with pytest.raises(OptionError, match=r"min-agreement is 99; it must be in \[0, 1\]"):
        onnxprune.compress(digits_net(), "surp", **digits, gates=Gates(min_agreement=99))


def test_one_bar_at_a_time(digits_net: Net, digits: Digits) -> None:
    seen: list[str] = []
    depth = 0

    @contextlib.contextmanager
    def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
        nonlocal depth
        assert depth == 0, description
        depth += 1
        seen.append(description)
        yield lambda count: None
        depth -= 1

    onnxprune.compress(digits_net(), "surp,id", **digits, options=Options(progress=progress, threads=1))
    assert seen[0] == "the original's decisions"
    assert seen[-2:] == ["evaluation", "agreement after every step"]
    assert {"surp: searching", "id: searching"} <= set(seen)


def test_the_report_shows_the_search(digits_net: Net, digits: Digits) -> None:
    import importlib.resources

    import jsonschema

    report = onnxprune.compress(digits_net(), "filters", **digits, options=ONE).report
    schema = json.loads(importlib.resources.files("onnxprune.report").joinpath("schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report.to_dict())
    assert Report.from_json(report.to_json()).to_json() == report.to_json()
