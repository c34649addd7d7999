"""Refitting front to back on small networks of every kind, with ONNX Runtime as oracle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import DataError
from onnxprune.fit.reconstruct import Batches, Outcome
from onnxprune.fit.survey import survey
from onnxprune.graph import constants, surgery
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.linear import drop_zero_constants
from onnxprune.runtime.session import open_session

NAMES = ("residual", "mlp", "separable", "transformer", "unet")
EVERY = pytest.mark.parametrize("name", NAMES)


def fixed(made: Any, chosen: Any, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Choose channels of spaces whose readers are refitted one after another, as the pass does."""
    chosen = [space for space in chosen if widths[space.name] < space.width]
    groups = [{link.unit.node for link in group} for group in made.run.order(chosen, widths)]
    spread = [s for s in chosen if not any({c.node for c in s.consumers} <= group for group in groups)]
    curves = survey(made.run, spread, made.context, measure=False).curves
    return {s.name: curves[s.name].elimination.kept(widths[s.name]) for s in spread}


def refitted(made: Any, share: float = 0.6, only: str | None = None, **options: Any) -> tuple[Outcome, dict[str, int]]:
    chosen, widths = made.spaces_to(share)
    if only is not None:
        widths = {s.name: widths[s.name] if s.name == only else s.width for s in chosen}
    return made.run.run(chosen, widths, fixed(made, chosen, widths), **options), widths


def outputs(model: ir.Model, made: Any) -> np.ndarray:
    examples = made.context.examples
    found = []
    with open_session(model, made.context.settings) as session:
        for batch in examples.batches(session.fixed_batch or 16):
            found.append(next(iter(session.run(batch.arrays).values())))
    return np.concatenate(found).astype(np.float64)


def truncated(made: Any, kept: Mapping[str, np.ndarray]) -> ir.Model:
    """Return the original with what reads dropped channels at zero, nothing refitted."""
    model = prepare(made.original)
    keep = made.analysis.keep_mask(kept)
    for link in made.run.links:
        weight = model.graph.initializers[str(link.unit.weight.name)]
        mask = link.keeps(keep)
        data = constants.array(weight)
        assert data is not None
        if link.unit.slides:
            split = mask.reshape(link.unit.groups, link.taps, -1)[:, 0]
            if link.unit.node.op_type == "Conv":
                per = len(data) // link.unit.groups
                shape = (len(data), data.shape[1], *[1] * (data.ndim - 2))
                constants.set_array(weight, data * split.repeat(per, axis=0).reshape(shape))
            else:
                constants.set_array(weight, data * split.reshape(-1, *[1] * (data.ndim - 1)))
        else:
            shape = (-1, 1) if link.unit.in_axis == 0 else (1, -1)
            constants.set_array(weight, data * mask[0].reshape(shape))
    return model


def loss(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.square(found - want).sum() / np.square(want - want.mean(axis=0)).sum())


@EVERY
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("select", ["output", "pivots"])
def test_refitting_beats_none(networks: Any, bench: Any, name: str, asymmetric: bool, select: str) -> None:
    made = bench(networks[name](), asymmetric=asymmetric, select=select)
    before = ir.serde.serialize_model(made.original).SerializeToString(deterministic=True)
    want = outputs(made.original, made)
    found, widths = refitted(made)
    assert found.rows and all(row["error_fitted"] <= row["error_folded"] + 1e-9 for row in found.rows)
    assert {space: len(kept) for space, kept in found.kept.items()} == widths
    assert loss(outputs(made.analysis.model, made), want) < loss(outputs(truncated(made, found.kept), made), want)
    assert ir.serde.serialize_model(made.original).SerializeToString(deterministic=True) == before


@EVERY
def test_the_cut_model_is_the_masked_one(networks: Any, bench: Any, name: str) -> None:
    made = bench(networks[name]())
    found, _ = refitted(made)
    masked = outputs(made.analysis.model, made)
    surgery.cut(made.analysis, found.kept)
    finish(made.analysis.model)
    drop_zero_constants(made.analysis.model, made.added)
    onnx.checker.check_model(ir.serde.serialize_model(made.analysis.model), full_check=True)
    cut = outputs(made.analysis.model, made)
    np.testing.assert_allclose(cut, masked, rtol=1e-4, atol=1e-4 * float(np.abs(masked).max()))


@EVERY
def test_every_layer_is_no_worse_than_truncated_on_its_own_problem(networks: Any, bench: Any, name: str) -> None:
    made = bench(networks[name]())
    rows: list[tuple[str, float, float]] = []
    plain = made.run.solve

    def noted(link: Any, sums: Any, keep: np.ndarray, pair: Any = None) -> Any:
        mask = link.keeps(keep)
        shift = link.unit.shift if link.unit.shiftable else 0 * link.unit.shift
        groups, _, outs = link.unit.matrix().shape
        start = np.concatenate(
            [np.where(mask[:, :, None], link.unit.matrix(), 0.0), shift.reshape(groups, 1, outs)], axis=1
        )
        row = plain(link, sums, keep, pair)
        rows.append((link.unit.name, row["error_fitted"] ** 2 * (sums.spread() or 1.0), sums.error(start)))
        return row

    made.run.solve = noted
    refitted(made)
    assert rows and all(after <= before * (1 + 1e-9) for _, after, before in rows)


@EVERY
def test_full_widths_change_nothing(networks: Any, bench: Any, name: str) -> None:
    made = bench(networks[name]())
    before = ir.serde.serialize_model(made.analysis.model).SerializeToString(deterministic=True)
    chosen, _ = made.spaces_to(1.0)
    found = made.run.run(chosen, {space.name: space.width for space in chosen}, {})
    assert found.rows == []
    assert ir.serde.serialize_model(made.analysis.model).SerializeToString(deterministic=True) == before
    found = made.run.run(chosen, {space.name: space.width for space in chosen}, {}, everything=True)
    assert len(found.rows) == len(made.run.links)
    want = outputs(made.original, made)
    np.testing.assert_allclose(outputs(made.analysis.model, made), want, atol=1e-4 * float(np.abs(want).max()))


@EVERY
def test_the_first_reader_has_the_same_problem_either_way(networks: Any, bench: Any, name: str) -> None:
    names = [space.name for space in bench(networks[name]()).spaces_to(0.6)[0]]
    for only in names:
        both = []
        for asymmetric in (True, False):
            made = bench(networks[name](), asymmetric=asymmetric, rounds=0)
            found, _ = refitted(made, only=only)
            first = next(link for link in made.run.links if link.unit.name == found.rows[0]["node"])
            both.append((found.rows[0]["node"], found.kept[only], first.unit.matrix()))
        assert both[0][0] == both[1][0]
        np.testing.assert_array_equal(both[0][1], both[1][1])
        scale = float(np.abs(both[1][2]).max())
        np.testing.assert_allclose(both[0][2], both[1][2], rtol=1e-6, atol=1e-5 * scale)


@EVERY
def test_threads_and_batches_do_not_matter(networks: Any, bench: Any, name: str) -> None:
    want, _ = refitted(bench(networks[name](), threads=1, batch=16))
    for kinds in ({"threads": 2, "batch": 16}, {"threads": 1, "batch": 7}):
        got, _ = refitted(bench(networks[name](), **kinds))
        assert want.kept.keys() == got.kept.keys()
        for space, kept in want.kept.items():
            np.testing.assert_array_equal(got.kept[space], kept)
        for a, b in zip(got.rows, want.rows, strict=True):
            assert a["node"] == b["node"] and a["error_fitted"] == pytest.approx(b["error_fitted"], rel=1e-3, abs=1e-5)


@EVERY
@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batches(networks: Any, bench: Any, name: str, batch: int) -> None:
    want, _ = refitted(bench(networks[name](), count=10, batch=1))
    made = bench(networks[name](batch=batch), count=10)
    assert [len(rows) for rows in made.run.batches.rows] == [min(batch, 10 - i) for i in range(0, 10, batch)]
    got, _ = refitted(made)
    for space, kept in want.kept.items():
        np.testing.assert_array_equal(got.kept[space], kept)
    for a, b in zip(got.rows, want.rows, strict=True):
        assert a["error_fitted"] == pytest.approx(b["error_fitted"], rel=1e-2, abs=1e-4)


@EVERY
def test_half_precision(networks: Any, bench: Any, name: str) -> None:
    made = bench(networks[name](dtype=np.float16))
    want = outputs(made.original, made)
    found, _ = refitted(made)
    assert all(np.isfinite(row["error_fitted"]) for row in found.rows)
    for value in made.analysis.model.graph.initializers.values():
        data = constants.array(value)
        assert data is not None and (data.dtype.kind != "f" or data.dtype == np.float16)
    assert loss(outputs(made.analysis.model, made), want) < loss(outputs(truncated(made, found.kept), made), want)


def test_zeros_survive(networks: Any, bench: Any) -> None:
    proto = networks["residual"]()
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor)
        if data.ndim == 4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(data * (rng.random(data.shape) < 0.5), tensor.name))
    zeros = {t.name: onnx.numpy_helper.to_array(t) == 0.0 for t in proto.graph.initializer}
    for preserve in (True, False):
        made = bench(proto, preserve_zeros=preserve)
        refitted(made)
        filled = 0
        for name, mask in zeros.items():
            filled += int(np.count_nonzero(constants.array(made.analysis.model.graph.initializers[name])[mask]))  # type: ignore[index]
        assert (filled == 0) == preserve


def test_asymmetric_makes_up_for_what_came_before(networks: Any, bench: Any) -> None:
    losses = {}
    for asymmetric in (True, False):
        total = 0.0
        for seed in range(4):
            made = bench(networks["residual"](seed=seed), asymmetric=asymmetric, count=200, batch=50)
            want = outputs(made.original, made)
            refitted(made, 0.5)
            total += loss(outputs(made.analysis.model, made), want)
        losses[asymmetric] = total
    assert losses[True] < losses[False]


def test_duplicate_channels_go_without_loss(net: Any, bench: Any) -> None:
    n = net(3, 6, 6)
    x = n.conv("x", 3, 8, name="first")
    for tensor in n.stored[:2]:
        data = onnx.numpy_helper.to_array(tensor).copy()
        data[4:] = 2 * data[:4]
        tensor.CopyFrom(onnx.numpy_helper.from_array(data, tensor.name))
    x = n.relu(n.conv(n.relu(x), 8, 5, name="second"))
    made = bench(n.model(n.pooled(x, 5)))
    want = outputs(made.original, made)
    found, _ = refitted(made, 0.5, only="first")
    assert sorted(found.kept["first"] % 4) == [0, 1, 2, 3]
    np.testing.assert_allclose(outputs(made.analysis.model, made), want, atol=1e-3 * float(np.abs(want).max()))


def test_sampled_positions_do_not_depend_on_batches(networks: Any, bench: Any) -> None:
    kept = [refitted(bench(networks["residual"](), rows=200, batch=batch))[0] for batch in (48, 5)]
    for space, indices in kept[0].kept.items():
        np.testing.assert_array_equal(kept[1].kept[space], indices)
    for a, b in zip(kept[0].rows, kept[1].rows, strict=True):
        assert a["error_fitted"] == pytest.approx(b["error_fitted"], rel=1e-3)


def test_sequences_before_the_batch_are_sampled_by_example(net: Any, bench: Any) -> None:
    def sequence() -> onnx.ModelProto:
        n = net(40, 6)
        x = n.op("Transpose", "x", perm=[1, 0, 2])
        x = n.relu(n.op("Add", n.op("MatMul", x, n.weight(6, 9), name="one"), n.weight(9)))
        x = n.relu(n.op("Add", n.op("MatMul", x, n.weight(9, 7), name="two"), n.weight(7)))
        mean = n.op("ReduceMean", x, n.const(np.array([0])), keepdims=0)
        return n.model(n.dense(mean, 7, 3, name="last"))

    found = [refitted(bench(sequence(), rows=300, batch=batch))[0] for batch in (48, 7, 1)]
    for other in found[1:]:
        for space, indices in found[0].kept.items():
            np.testing.assert_array_equal(other.kept[space], indices)
        for a, b in zip(found[0].rows, other.rows, strict=True):
            assert a["error_fitted"] == pytest.approx(b["error_fitted"], rel=1e-3)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_few_examples(networks: Any, bench: Any, name: str) -> None:
    for count in (1, 3, 32):
        made = bench(networks[name](), count=count)
        refitted(made)
        assert np.isfinite(outputs(made.analysis.model, made)).all()


def test_a_spread_space_must_be_fixed(networks: Any, bench: Any) -> None:
    made = bench(networks["residual"]())
    chosen, widths = made.spaces_to(0.5)
    with pytest.raises(ValueError, match="the readers of stem are not refitted at once"):
        made.run.run(chosen, widths, {})


def test_numbers_that_are_not_finite_are_named(networks: Any, bench: Any) -> None:
    proto = networks["mlp"]()
    held = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    held[0, 0] = np.inf
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(held, proto.graph.initializer[0].name))
    made = bench(proto)
    with pytest.raises(DataError, match="holds NaN or infinity on 'test'"):
        refitted(made)


def test_inputs_are_fetched_when_they_are_read(networks: Any, bench: Any) -> None:
    made = bench(networks["residual"](), count=20, batch=8)
    fetched: list[int] = []
    plain = made.context.examples.fetch

    def counted(rows: np.ndarray) -> dict[str, np.ndarray]:
        fetched.append(len(rows))
        return dict(plain(rows))

    made.run.batches = Batches(replace(made.context.examples, fetch=counted), 8)
    refitted(made, only="b1")
    assert sum(fetched) == 20  # once, although both networks run in pieces


def test_a_second_output_and_other_inputs(net: Any, bench: Any) -> None:
    n = net(3, 6, 6)
    x = n.relu(n.conv("x", 3, 6, name="first"))
    side = n.relu(n.conv(x, 6, 5, name="side"))
    pooled = n.op("Flatten", n.op("GlobalAveragePool", side))
    made = bench(n.model(n.pooled(n.relu(n.conv(x, 6, 7, name="main")), 7), n.dense(pooled, 5, 2, name="other")))
    found, widths = refitted(made)
    assert {"first", "side", "main"} == set(widths) == set(found.kept)
