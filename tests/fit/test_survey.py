"""Curves of spaces: their order, their errors, and what measuring adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.fit import probe as probing
from onnxprune.fit.links import stages
from onnxprune.fit.survey import Survey, _scaled, survey
from onnxprune.runtime.staged import Staged


def surveyed(bench: Any, proto: Any, *, measure: bool = True, **kinds: Any) -> tuple[Any, Survey]:
    made = bench(proto, **kinds)
    chosen, _ = made.spaces_to(0.5)
    return made, survey(made.run, chosen, made.context, measure=measure)


@pytest.mark.parametrize("name", ["residual", "mlp", "separable", "transformer", "unet"])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_curves_of_every_space(networks: Any, bench: Any, name: str, asymmetric: bool) -> None:
    made, found = surveyed(bench, networks[name](), asymmetric=asymmetric, count=40)
    before = ir.serde.serialize_model(bench(networks[name]()).analysis.model).SerializeToString(deterministic=True)
    after = ir.serde.serialize_model(made.analysis.model).SerializeToString(deterministic=True)
    assert after == before  # measuring leaves the model as it was
    chosen, _ = made.spaces_to(0.5)
    assert set(found.curves) == {space.name for space in chosen}
    for space in chosen:
        curve = found.curves[space.name]
        assert sorted(curve.elimination.order) == list(range(space.width))
        for values in (curve.loss, curve.elimination.error):
            assert values.shape == (space.width + 1,) and np.isfinite(values).all()
            assert (np.diff(values) <= 0).all() and values[-1] == 0.0
        assert curve.measured and all(0 < m.place < space.width and m.loss >= 0 for m in curve.measured)
    assert found.slope >= 0
    full = {space.name: space.width for space in chosen}
    assert found.decides == (name != "unet")
    assert found.agreement(found.loss(full)) == (1.0 if found.decides else None)
    assert 0.0 <= (found.agreement(found.loss({space.name: 1 for space in chosen})) or 0.0) <= 1.0


def test_without_measuring_the_loss_is_the_error(networks: Any, bench: Any) -> None:
    _, found = surveyed(bench, networks["residual"](), measure=False)
    for curve in found.curves.values():
        assert curve.measured == ()
        np.testing.assert_array_equal(curve.loss, curve.elimination.error)


def test_orders_are_those_of_all_readers_at_once(networks: Any, bench: Any) -> None:
    made, found = surveyed(bench, networks["residual"](), measure=False)
    stem = next(space for space in made.analysis.prunable if space.name == "stem")
    links = [link for link in made.run.links if link.unit.node in {c.node for c in stem.consumers}]
    assert len(links) == 3
    with Staged(made.original, made.context.settings) as source:
        moments = [made.run.own_moments(stage, source)[0] for stage in ([link] for link in links)]
    np.testing.assert_array_equal(made.run.choose(stem, links, moments).order, found.curves["stem"].elimination.order)
    assert stages(made.run.flow, []) == []


def test_curves_do_not_depend_on_batches_or_threads(networks: Any, bench: Any) -> None:
    want = surveyed(bench, networks["unet"](), measure=False, batch=16)[1]
    for kinds in ({"batch": 5}, {"threads": 2}):
        got = surveyed(bench, networks["unet"](), measure=False, **kinds)[1]
        for name, curve in want.curves.items():
            np.testing.assert_array_equal(got.curves[name].elimination.order, curve.elimination.order)
            np.testing.assert_allclose(got.curves[name].loss, curve.loss, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_hardly_any_examples(networks: Any, bench: Any, count: int) -> None:
    _, found = surveyed(bench, networks["mlp"](), count=count)
    assert all(np.isfinite(curve.loss).all() for curve in found.curves.values())


def test_what_costs_too_much_is_measured_with_its_readers_alone(
    networks: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_MACS", 0.0)
    monkeypatch.setattr(probing, "_TIMES", 0.0)
    made, found = surveyed(bench, networks["residual"]())
    before = ir.serde.serialize_model(bench(networks["residual"]()).analysis.model).SerializeToString(
        deterministic=True
    )
    assert ir.serde.serialize_model(made.analysis.model).SerializeToString(deterministic=True) == before
    assert all(curve.measured for curve in found.curves.values())


def test_a_loss_passes_through_what_was_measured() -> None:
    error = np.array([8.0, 4.0, 2.0, 1.0, 0.0])
    loss = _scaled(error, [4.0, 1.0], [0.4, 0.2])
    np.testing.assert_allclose(loss[[1, 3]], [0.4, 0.2], rtol=1e-9)
    assert (np.diff(loss) <= 0).all() and loss[-1] == 0.0
    np.testing.assert_array_equal(_scaled(error, (), ()), error)
    flat = _scaled(np.zeros(5), [4.0, 1.0], [0.4, 0.2])
    assert np.isfinite(flat).all()
