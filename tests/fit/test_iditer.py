"""The iterative rule: targets, order, statistics, agreement, parity of the narrowed model with the cut one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import scipy.linalg
from onnx import TensorProto, helper, numpy_helper

from onnxprune.contract import Context, Observer, Tap
from onnxprune.data import open_data
from onnxprune.errors import DataError, OptionError
from onnxprune.fit.iditer import Step, Trail, decisions
from onnxprune.fit.interpolate import foldable, observer, tap_of
from onnxprune.fit.sizing import tally_of
from onnxprune.graph import spaces, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import measure
from onnxprune.graph.spaces import Analysis, ChannelSpace
from onnxprune.graph.tally import Tally
from onnxprune.runtime.collect import collect
from onnxprune.runtime.session import Settings, input_specs


def written(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString(deterministic=True)


@dataclass
class Case:
    """A prepared model with its context; ``seen`` lists the tensors of every run of the data."""

    proto: onnx.ModelProto
    data: Mapping[str, np.ndarray]
    settings: Settings = field(default_factory=Settings)
    seen: list[set[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        source = ir.serde.deserialize_model(self.proto)
        self.model = prepare(source)
        self.analysis: Analysis = spaces.analyse(self.model)
        self.spaces: list[ChannelSpace] = [
            space
            for space in self.analysis.prunable
            if space.consumers
            and self.analysis.opaque(space) is None
            and all(foldable(self.analysis, space, consumer) for consumer in space.consumers)
        ]
        examples = open_data(dict(self.data), input_specs(source))

        def gather(model: ir.Model, observers: Mapping[Tap, Observer]) -> Mapping[Tap, Any]:
            self.seen.append({tap.value for tap in observers})
            return collect(model, observers, examples, self.settings)

        self.full = measure(source)
        self.context = Context(source, self.full, {}, 0, collect=gather, examples=examples, settings=self.settings)
        self.tally: Tally = tally_of(self.analysis, self.context)

    def run(self, **options: Any) -> tuple[dict[str, np.ndarray], list[Step]]:
        chosen = {"limit": ("macs", 0.5 * self.full.macs), "step": 0.9, **options}
        limit, cost = chosen.pop("limit"), chosen.pop("cost", None)
        return Trail(self.model, self.analysis, self.spaces, self.tally, self.context, **chosen).to(limit, cost)

    def cut(self, kept: Mapping[str, np.ndarray]) -> ir.Model:
        surgery.cut(self.analysis, kept)
        return finish(self.model)


def finished(nodes: Any, stored: Any, shape: Sequence[int], classes: int) -> onnx.ModelProto:
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", classes])
    graph = helper.make_graph(nodes, "net", [given], [result], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def mlp(seed: int = 0, widths: Sequence[int] = (20, 64, 128, 64, 6), *, zeros: float = 0.0) -> onnx.ModelProto:
    """Gemm-Relu chain; channels 1 and 3 of the first hidden layer are twice channel 0 and dead."""
    rng = np.random.default_rng(seed)
    nodes, stored, name = [], [], "input"
    for i, (given, width) in enumerate(itertools.pairwise(widths), 1):
        weight, bias = rng.standard_normal((width, given)) * np.sqrt(2 / given), 0.1 * rng.standard_normal(width)
        if i == 1:
            weight[1], bias[1], weight[3], bias[3] = 2 * weight[0], 2 * bias[0], 0.0, -1.0
        weight[rng.random(weight.shape) < zeros] = 0.0
        stored += [numpy_helper.from_array(d.astype(np.float32), f"{n}{i}") for n, d in (("w", weight), ("b", bias))]
        last = i == len(widths) - 1
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], ["y" if last else f"g{i}"], f"fc{i}", transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"], f"relu{i}"))
        name = f"r{i}"
    return finished(nodes, stored, [widths[0]], widths[-1])


def residual(seed: int = 0) -> onnx.ModelProto:
    """A stem, two residual blocks, and a head that joins the stream with the last block's inner channels."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []

    def conv(name: str, given: str, channels: int, width: int, kernel: int = 3) -> str:
        weight = rng.standard_normal((width, channels, kernel, kernel)) * np.sqrt(2 / (channels * kernel**2))
        stored.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        nodes.append(helper.make_node("Conv", [given, f"{name}.w"], [name], name, pads=[kernel // 2] * 4))
        return name

    def op(kind: str, *given: str, **attributes: int) -> str:
        nodes.append(helper.make_node(kind, list(given), [f"{kind}{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    stream = op("Relu", conv("stem", "input", 3, 12))
    inner = ""
    for block in (1, 2):
        inner = op("Relu", conv(f"in{block}", stream, 12, 10))
        stream = op("Relu", op("Add", stream, conv(f"out{block}", inner, 10, 12)))
    joined = op("Concat", stream, inner, axis=1)
    features = op("Flatten", op("GlobalAveragePool", op("Relu", conv("join", joined, 22, 16, 1))))
    stored.append(numpy_helper.from_array(rng.standard_normal((5, 16)).astype(np.float32), "head.w"))
    nodes.append(helper.make_node("Gemm", [features, "head.w"], ["y"], "head", transB=1))
    return finished(nodes, stored, [3, 8, 8], 5)


def tapped(case: Case, names: Sequence[str], run_model: Any) -> dict[str, np.ndarray]:
    probe = onnx.ModelProto.FromString(case.proto.SerializeToString())
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    found = run_model(probe, case.data)
    return {name: found[name].astype(np.float64) for name in names}


def draws(*shape: int, seed: int = 7) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@pytest.fixture
def cnn(conv_net: Callable[..., onnx.ModelProto]) -> Callable[..., Case]:
    return lambda count=60: Case(conv_net(0, channels=(16, 24), hidden=64), draws(count, 1, 12, 12))


def dense(count: int = 1500, **options: Any) -> Case:
    return Case(mlp(**options), draws(count, 20))


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
@pytest.mark.parametrize("currency", ["macs", "params", "bytes"])
def test_reaches_the_target_from_below_and_nearly_uses_it(
    cnn: Callable[..., Case], currency: str, share: float
) -> None:
    for case, fine in ((cnn(), False), (dense(), True)):
        most = share * getattr(case.full, currency)
        kept, path = case.run(limit=(currency, most), refresh="none", step=0.8)
        cost = measure(case.cut(kept))
        assert (cost.macs, cost.params) == (path[-1].macs, path[-1].params)
        assert getattr(cost, currency) <= most
        if getattr(cost, currency) < 0.98 * most:  # a channel of the small convolution is worth more than 2 %
            assert not fine
            kept[path[-1].space] = np.arange(path[-1].kept + 1)
            assert getattr(measure(cnn().cut(kept)), currency) > most


def test_a_limit_may_be_a_function_or_a_cost_and_the_last_cut_goes_no_further_than_needed() -> None:
    case = dense()
    most = 0.6 * case.full.macs
    results = [
        dense().run(limit=("macs", most), step=0.6),
        dense().run(limit=most, step=0.6),
        dense().run(limit=most, step=0.6, cost=lambda widths: float(case.tally.macs(widths))),
        dense().run(limit=lambda widths: case.tally.macs(widths) <= most, step=0.6),
    ]
    for kept, path in results:
        assert [(s.space, s.kept) for s in path] == [(s.space, s.kept) for s in results[0][1]]
        widths = {name: len(indices) for name, indices in kept.items()}
        last = path[-1].space
        assert case.tally.macs(widths) <= most < case.tally.macs({**widths, last: widths[last] + 1})
        assert path[-1].error > 0
    loose = dense().run(limit=("macs", results[0][1][0].macs * 1.01), step=0.6)[1]
    assert loose[-1].kept == results[0][1][0].kept  # 1 % past the limit is not worth a width of its own
    assert case.run(limit=("macs", case.full.macs)) == ({}, [])
    assert written(case.model) == written(dense().model)


@pytest.mark.parametrize("refresh", ["exact", "lazy", "none"])
def test_the_path_only_goes_down(cnn: Callable[..., Case], refresh: str) -> None:
    case = cnn()
    kept, path = case.run(refresh=refresh, step=0.85)
    assert [step.number for step in path] == list(range(1, len(path) + 1))
    width = {space.name: space.width for space in case.spaces}
    macs = params = float("inf")
    for step in path:
        assert 1 <= step.kept < width[step.space]
        assert step.kept >= int(0.85 * width[step.space])
        width[step.space] = step.kept
        assert step.macs < macs
        assert step.params < params
        macs, params = step.macs, step.params
        assert 0 <= step.error <= 1
    assert {n: len(i) for n, i in kept.items()} == {n: w for n, w in width.items() if n in kept}
    for space in case.spaces:
        indices = kept.get(space.name, np.arange(space.width))
        assert np.array_equal(indices, np.unique(indices))


@pytest.mark.parametrize(
    "options",
    [
        {"step": 1.0}, {"step": 0.0}, {"step": -0.5}, {"step": float("nan")}, {"refresh": "often"},
        {"lazy_every": 0}, {"score": "trace"}, {"readers": "all"}, {"limit": ("hours", 3.0)},
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"iditer: .* is not accepted; give "):
        dense(50).run(**options)


@pytest.mark.parametrize("score", ["diagonal", "frobenius", "spectral"])
def test_the_first_step_is_the_published_score_worked_out_by_hand(
    cnn: Callable[..., Case], run_model: Any, score: str
) -> None:
    case = cnn()
    taps = [tap_of(space.consumers[0]).value for space in case.spaces]
    values = tapped(case, taps, run_model)
    wanted = []
    for space, tap in zip(case.spaces, taps, strict=True):
        k, seen = int(0.9 * space.width), values[tap]
        rows = np.moveaxis(seen.reshape(len(seen), space.width, -1), 1, 2).reshape(-1, space.width)
        upper = scipy.linalg.qr(rows, mode="r", pivoting=True)[0]
        singular = np.linalg.svd(rows, compute_uv=False)
        error = {
            "diagonal": abs(upper[k, k] / upper[0, 0]),
            "frobenius": np.linalg.norm(upper[k:, k:]) / np.linalg.norm(upper),
            "spectral": singular[k] / singular[0],
        }[score]
        saved = case.full.macs - case.tally.macs({space.name: k})
        wanted.append((error / saved, space.name, k, error))
    _, path = case.run(max_steps=1, score=score)
    best = min(wanted)
    assert (path[0].space, path[0].kept) == best[1:3]
    assert path[0].score == pytest.approx(best[0], rel=1e-5)
    assert path[0].error == pytest.approx(best[3], rel=1e-5)


def test_exact_looks_again_at_what_lies_behind_a_cut_and_none_at_nothing(cnn: Callable[..., Case]) -> None:
    runs = {refresh: cnn() for refresh in ("exact", "lazy", "none")}
    paths = {name: case.run(refresh=name, step=0.85, lazy_every=3)[1] for name, case in runs.items()}
    behind = {"conv1": {"r2", "f", "r3"}, "conv2": {"r3"}, "fc1": set()}
    everything = {tap_of(c).value for s in runs["exact"].spaces for c in s.consumers}
    expected = [behind[step.space] & everything for step in paths["exact"][:-1]]
    assert runs["exact"].seen == [everything, *(taps for taps in expected if taps)]
    assert len({len(case.seen) for case in runs.values()}) == 3
    assert runs["none"].seen == [everything]
    assert 1 < len(runs["lazy"].seen) <= 1 + len(paths["lazy"]) // 3
    assert len({(path[0].space, path[0].kept, path[0].error) for path in paths.values()}) == 1


def test_statistics_at_hand_are_used_and_missing_ones_are_asked_for(cnn: Callable[..., Case]) -> None:
    case = cnn()
    wanted = {tap_of(c): observer(case.analysis, c, "gram") for s in case.spaces for c in s.consumers}
    case.context = replace(case.context, statistics=case.context.collect(case.model, wanted))
    case.seen.clear()
    kept, _ = case.run(refresh="none")
    assert case.seen == []
    assert {n: i.tolist() for n, i in kept.items()} == {n: i.tolist() for n, i in cnn().run(refresh="none")[0].items()}
    case = cnn()
    case.context = replace(case.context, collect=None)
    with pytest.raises(DataError, match="iditer needs calibration data"):
        case.run()


@pytest.mark.parametrize("refresh", ["exact", "none"])
@pytest.mark.parametrize("build", [residual, mlp])
def test_the_narrowed_model_computes_what_the_cut_one_does(
    build: Callable[[], onnx.ModelProto], refresh: str, run_model: Any
) -> None:
    case = Case(build(), draws(40, 3, 8, 8) if build is residual else draws(400, 20))
    source = written(case.context.original)
    kept, _ = case.run(refresh=refresh)
    masked = run_model(case.model, case.data)["y"]
    assert measure(case.model).params == case.full.params
    narrow = case.cut(kept)
    assert measure(narrow).params < case.full.params
    assert np.allclose(run_model(narrow, case.data)["y"], masked, rtol=1e-4, atol=1e-4)
    assert written(case.context.original) == source


def test_refreshed_statistics_lose_less_than_those_of_the_start(run_model: Any) -> None:
    errors = {}
    for refresh in ("exact", "none"):
        case = dense()
        before = run_model(case.model, case.data)["y"]
        _, path = case.run(refresh=refresh, step=0.95, limit=("macs", 0.45 * case.full.macs))
        errors[refresh] = np.linalg.norm(run_model(case.model, case.data)["y"] - before)
        assert path[-1].macs <= 0.45 * case.full.macs
    assert errors["exact"] <= 1.05 * errors["none"]


def test_the_same_run_gives_the_same_bytes_and_batches_or_threads_the_same_channels() -> None:
    runs = []
    for settings in (Settings(threads=1), Settings(threads=1), Settings(threads=2), Settings(batch_size=7)):
        case = Case(residual(), draws(60, 3, 8, 8), settings)
        kept, path = case.run()
        runs.append(({n: i.tolist() for n, i in kept.items()}, written(case.model), path))
    assert runs[0] == runs[1]
    assert runs[0][0] == runs[2][0] == runs[3][0]


@pytest.mark.parametrize("preserve", [True, False])
def test_zeros_survive_unless_they_may_go(preserve: bool) -> None:
    case = dense(zeros=0.5)
    names = [f"w{i}" for i in (2, 3, 4)]
    before = {n: case.model.graph.initializers[n].const_value.numpy() == 0 for n in names}
    kept, _ = case.run(preserve_zeros=preserve)
    filled = 0
    for name in names:
        after = case.model.graph.initializers[name].const_value.numpy()
        filled += int((after[before[name]] != 0).sum())
        columns = kept.get(f"fc{int(name[1]) - 1}")
        assert columns is None or not np.delete(after, columns, axis=1).any()
    assert (filled == 0) is preserve


def test_agreement_is_logged_and_true(run_model: Any) -> None:
    case = dense()
    wanted = run_model(case.context.original, case.data)["y"].argmax(axis=1)
    assert np.array_equal(decisions(case.context.original, case.context), wanted)
    _, path = case.run(log_interval=4, step=0.85)
    assert len(path) % 4  # the last step is one by itself
    assert [s.number for s in path if s.agreement is not None] == [*range(4, len(path), 4), len(path)]
    now = run_model(case.model, case.data)["y"].argmax(axis=1)
    assert path[-1].agreement == float(np.mean(now == wanted))
    assert 0.3 < path[-1].agreement <= path[3].agreement <= 1
    end = dense().run(log_interval=0, step=0.85)[1]
    assert [s.agreement for s in end] == [None] * (len(end) - 1) + [path[-1].agreement]
    given = dense().run(log_interval=0, step=0.85, original=1 - wanted)[1]
    assert given[-1].agreement != path[-1].agreement


def test_without_class_scores_or_examples_there_is_no_agreement() -> None:
    case = Case(mlp(widths=(20, 30, 1)), draws(100, 20))
    assert case.run()[1][-1].agreement is None
    case = Case(mlp(widths=(20, 30, 4)), draws(100, 20))
    case.context = replace(case.context, examples=None)
    assert case.run()[1][-1].agreement is None


@pytest.mark.parametrize("step", [0.01, 0.5, 0.97])
def test_a_target_out_of_reach_ends_at_one_channel_each(cnn: Callable[..., Case], step: float) -> None:
    for case in (cnn(20), Case(residual(), draws(20, 3, 8, 8))):
        kept, path = case.run(limit=("macs", 1.0), step=step, refresh="none")
        assert {name: len(indices) for name, indices in kept.items()} == {s.name: 1 for s in case.spaces}
        assert path[-1].macs == case.tally.macs({s.name: 1 for s in case.spaces}) > 1
        assert measure(case.cut(kept)).macs == path[-1].macs


def test_repeated_and_dead_channels_go_first_and_cost_nothing(run_model: Any) -> None:
    case = dense()
    before = run_model(case.model, case.data)["y"]
    kept, path = case.run(max_steps=1, step=62 / 64)
    assert (path[0].space, path[0].kept) == ("fc1", 62)
    assert path[0].error < 1e-6
    assert {0, 3} == set(range(64)) - set(kept["fc1"].tolist())  # of the twins the larger one stays
    assert path[0].agreement == 1.0
    assert np.allclose(run_model(case.model, case.data)["y"], before, rtol=1e-4, atol=1e-4)


def test_too_few_examples_do_not_make_a_layer_free() -> None:
    case = Case(mlp(), draws(30, 20))
    _, path = case.run(step=0.5, refresh="none", limit=("macs", 0.3 * case.full.macs))
    assert all(step.error > 0 for step in path)
    assert len({step.space for step in path[:3]}) > 1


def test_a_space_with_several_readers_gets_its_own_least_squares_in_each(run_model: Any) -> None:
    case = Case(residual(), draws(60, 3, 8, 8))
    stream = next(space for space in case.spaces if len(space.consumers) > 1)
    case.spaces = [stream]
    taps = {tap_of(c).value: c for c in stream.consumers}
    values = tapped(case, list(taps), run_model)
    kept, path = case.run(max_steps=1, refresh="none", step=0.7)
    stacked = [np.moveaxis(values[tap][:, :12], 1, -1).reshape(-1, 12) for tap in taps]
    order = scipy.linalg.qr(np.concatenate([z / np.linalg.norm(z) for z in stacked]), mode="r", pivoting=True)[1]
    assert kept[stream.name].tolist() == sorted(order[:8].tolist())
    for tap, consumer in taps.items():
        old = next(numpy_helper.to_array(t) for t in case.proto.graph.initializer if t.name == consumer.weight.name)
        new = case.model.graph.initializers[str(consumer.weight.name)].const_value.numpy()
        seen = np.moveaxis(values[tap], 1, -1).reshape(-1, old.shape[1])
        staying = np.array([c for c in range(old.shape[1]) if c >= 12 or c in kept[stream.name]])
        for at in np.ndindex(*old.shape[2:]):
            rows = old[(slice(None), slice(None), *at)].astype(np.float64)
            best = np.linalg.lstsq(seen[:, staying], seen @ rows.T, rcond=None)[0].T
            assert np.allclose(new[(slice(None), staying, *at)], best, rtol=1e-3, atol=1e-4)
            assert not np.delete(new[(slice(None), slice(None), *at)], staying, axis=1).any()
    again = Case(residual(), draws(60, 3, 8, 8))
    again.spaces = [space for space in again.spaces if space.name == stream.name]
    _, counted = again.run(max_steps=1, refresh="none", step=0.7, readers="each")
    assert len(stream.consumers) == 3
    assert (counted[0].error, counted[0].score) == (path[0].error, pytest.approx(3 * path[0].score))


@pytest.mark.parametrize("refresh", ["exact", "lazy", "none"])
@pytest.mark.parametrize("step", [0.9, 0.55])
def test_a_trail_goes_on_to_smaller_limits_as_if_from_the_start(
    cnn: Callable[..., Case], refresh: str, step: float
) -> None:
    options: dict[str, Any] = {"step": step, "refresh": refresh, "lazy_every": 3, "log_interval": 4}
    case = cnn()
    trail = Trail(case.model, case.analysis, case.spaces, case.tally, case.context, **options)
    alone = 0
    for share in (0.95, 0.7, 0.7, 0.35):
        assert not trail.past(("macs", share * case.full.macs))
        kept, steps = trail.to(("macs", share * case.full.macs))
        single = cnn()
        expected, wanted = single.run(limit=("macs", share * single.full.macs), **options)
        assert steps == wanted
        assert kept.keys() == expected.keys()
        assert all(np.array_equal(kept[name], expected[name]) for name in kept)
        assert written(case.model) == written(single.model)
        alone = len(single.seen)
    assert trail.past(("macs", 0.7 * case.full.macs))
    assert len(case.seen) <= alone
