"""What nodes are offered: errors that pairs really leave, and no offer that another one beats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.fit.links import Link
from onnxprune.fit.lowrank import Metric, error, project
from onnxprune.fit.offers import dense, offers, ranks
from onnxprune.fit.wide import Wide
from onnxprune.graph.factorise import KINDS, OUTPUT, SPATIAL, Parting, kernel_of, partings
from onnxprune.runtime.staged import Staged


def seen(bench: Any, proto: Any, name: str) -> tuple[Link, Any, dict[str, Parting]]:
    """Return a node with its second moments, and the ways to part it."""
    made = bench(proto)
    link = next(link for link in made.run.links if link.unit.name == name)
    with Staged(made.original, made.context.settings) as source:
        (sums,) = made.run.own_moments([link], source)
    return link, sums, partings(link.unit, made.run.shapes)


def test_ranks_are_those_that_save() -> None:
    way = Parting(OUTPUT, 18, 10, macs=280, params=28, reads=18, whole=1800, full=10)
    assert ranks(way, way.whole) == [1, 2, 3, 4, 5, 6]
    assert ranks(way, way.whole, by="params") == [1, 2, 3, 4, 5, 6]
    assert ranks(Parting(OUTPUT, 2, 1, 30, 3, 1, 20, 1), 20) == []
    assert ranks(Parting(OUTPUT, 3, 2, 1, 1, 1, 100, 2), 100) == [1]  # below full rank


@pytest.mark.parametrize("kinds", [KINDS, (OUTPUT,), (SPATIAL, OUTPUT)])
def test_offers_rise_in_cost_and_fall_in_error(networks: Any, bench: Any, kinds: tuple[str, ...]) -> None:
    link, sums, ways = seen(bench, networks["residual"](), "a2")
    chosen = {kind: ways[kind] for kind in kinds}
    found, errors = offers(link, sums, chosen)
    macs = [option.macs for option in found]
    assert macs == sorted(set(macs)) and (np.diff(errors) < 0).all()
    assert found[-1].pair is None and errors[-1] == 0.0 and found[-1] == dense(chosen)
    for option in found[:-1]:
        assert option.pair is not None
        way = chosen[option.pair.kind]
        assert option.macs == option.pair.rank * way.macs < way.whole
        assert option.params == option.pair.rank * way.params


def test_errors_of_output_are_exact_and_others_close(networks: Any, bench: Any) -> None:
    link, sums, ways = seen(bench, networks["residual"](), "a2")
    unit = link.unit
    metric = Metric.of(sums, shiftable=unit.shiftable)
    matrix, spread = unit.matrix()[0], sums.spread()
    for kind in KINDS:
        found, errors = offers(link, sums, {kind: ways[kind]})
        assert len(found) > 1
        for option, said in zip(found[:-1], errors[:-1], strict=True):
            assert option.pair is not None
            real = error(matrix, project(matrix, metric, option.pair, kernel_of(unit)), metric) / spread
            if kind == OUTPUT:
                assert said == pytest.approx(real, rel=1e-9, abs=1e-12)
            else:
                assert 0.6 * real <= said <= 1.7 * real


def test_a_node_of_low_rank_is_offered_it_for_nothing(networks: Any, bench: Any) -> None:
    made = bench(networks["mlp"]())
    link = next(link for link in made.run.links if link.unit.name == "two")
    left, values, right = np.linalg.svd(link.unit.matrix()[0], full_matrices=False)
    link.unit.set_matrix(((left[:, :2] * values[:2]) @ right[:2])[None])
    with Staged(made.analysis.model, made.context.settings) as source:
        (sums,) = made.run.own_moments([link], source)
    found, errors = offers(link, sums, partings(link.unit, made.run.shapes))
    best = next(option for option, left in zip(found, errors, strict=True) if left < 1e-6)
    assert best.pair is not None and best.pair.rank == 2


def test_wide_nodes_are_offered_their_outputs_components(networks: Any, bench: Any) -> None:
    link, sums, ways = seen(bench, networks["mlp"](), "two")
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 12)).astype(np.float32)
    wide = Wide(12, 10)
    wide.update(rows[None], rows @ link.unit.matrix()[0] + link.unit.shift)
    found, errors = offers(link, wide, ways)
    assert found[-1].pair is None and len(found) > 1
    outputs = rows.astype(np.float64) @ link.unit.matrix()[0]
    values = np.linalg.eigvalsh(np.cov(outputs.T, bias=True))[::-1]
    for option, said in zip(found[:-1], errors[:-1], strict=True):
        assert option.pair is not None
        assert said == pytest.approx(values[option.pair.rank :].sum() / values.sum(), rel=1e-4)
    assert sums.rows > 0
    conv, _, kinds = seen(bench, networks["residual"](), "a2")
    features = len(conv.unit.matrix()[0])
    wide = Wide(features, 6)
    wide.update(rng.standard_normal((1, 80, features)).astype(np.float32), rng.standard_normal((80, 6)))
    assert {option.pair.kind for option in offers(conv, wide, kinds)[0] if option.pair} == {OUTPUT}


def test_large_nodes_get_a_grid_of_ranks(net: Any, bench: Any) -> None:
    n = net(60)
    proto = n.model(n.dense(n.relu(n.dense("x", 60, 80, name="one")), 80, 60, name="two"))
    link, sums, ways = seen(bench, proto, "two")
    found, _ = offers(link, sums, ways)
    assert len(found) == 24 + 1
    assert found[0].pair is not None and found[0].pair.rank == 1
    assert found[-2].pair is not None and found[-2].pair.rank == ranks(ways[OUTPUT], ways[OUTPUT].whole)[-1]


def test_offers_of_a_strided_kernel_are_ranked_in_the_currency_asked_for(networks: Any, bench: Any) -> None:
    link, sums, ways = seen(bench, networks["residual"](), "b1")
    orders = {}
    for by in ("macs", "params"):
        found, errors = offers(link, sums, ways, by)
        costs = [option.cost(by) for option in found]
        assert costs == sorted(set(costs))
        assert (np.diff(errors) < 0).all()
        orders[by] = [option.pair for option in found]
    assert orders["macs"] != orders["params"]


def test_ranks_of_products_are_such_as_run_well(networks: Any, bench: Any) -> None:
    way = Parting("cp", 64, 576, 137, 137, 64, 36864, 576, 9, 9, step=4)
    assert ranks(way, way.whole) == [*range(1, 16), *range(16, 264, 4)]
    assert [way.floor(rank) for rank in (1, 15, 16, 19, 20)] == [1, 15, 16, 16, 20]
    link, sums, ways = seen(bench, networks["residual"](), "a2")
    found, errors = offers(link, sums, {"cp": ways["cp"]})
    assert len(found) > 2 and (np.diff(errors) < 0).all()
    assert all(option.pair.kind == "cp" for option in found[:-1] if option.pair)
