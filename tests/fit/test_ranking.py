"""One threshold over the spectra of all layers: golden cases, and all thresholds tried."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.contract import Context
from onnxprune.fit.pairing import partable
from onnxprune.fit.ranking import Spectrum, costs, ranked, ranks_within, sensitivities
from onnxprune.fit.sizing import Sizing
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import finish, prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.factorise import OUTPUT, SPATIAL, split
from onnxprune.graph.linear import linear_units
from onnxprune.graph.selection import Selection
from onnxprune.graph.shapes import concrete_shapes


def tails_of(squares: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cumsum(squares[::-1])[::-1], [0.0]])


def drawn(seed: int, *, weighed: bool) -> dict[str, Spectrum]:
    """Draw a few layers; ``weighed`` ones can stay as they are where losing is not worth it."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer in range(rng.integers(1, 5)):
        count = int(rng.integers(1, 6))
        squares = np.sort(rng.exponential(1, count) ** 2)[::-1]
        each = float(rng.integers(1, 9))
        # Full rank costs more than the layer as it is, or as much; some layers gain nothing even by rank 1.
        whole = float(rng.integers(1, max(2, math.floor(count * each))))
        found[f"l{layer}"] = Spectrum(squares, tails_of(squares) if weighed else None, each, whole)
    return found


def spent(spectra: Mapping[str, Spectrum], ranks: Mapping[str, int | None]) -> float:
    return sum(spectra[name].cost(rank) for name, rank in ranks.items())


def prices(spectra: Mapping[str, Spectrum]) -> np.ndarray:
    """Return a price between any two at which some layer's choice changes, and beyond."""
    edges = [0.0]
    for one in spectra.values():
        edges.extend(one.scores / one.each)
        if one.tails is not None:
            for rank in range(1, one.highest + 1):
                edges.append(one.tails[rank] / (one.whole - one.each * rank))
    ordered = np.unique(edges)
    return np.concatenate([(ordered[1:] + ordered[:-1]) / 2, [2 * ordered[-1] + 1.0]])


def test_lrank_golden() -> None:
    squares = np.array([9.0, 4.0, 1.0])
    one = Spectrum(squares, tails_of(squares), 2.0, 7.0)
    objective = [2.0 * rank + one.tails[rank] for rank in range(4)] if one.tails is not None else []
    assert objective == [14.0, 7.0, 5.0, 6.0]
    assert one.rank(1.0) == 2
    assert one.highest == 3
    assert one.cost(2) == 4.0 and one.cost(None) == 7.0


def test_pca_golden() -> None:
    np.testing.assert_allclose(sensitivities(np.array([6.0, 3.0, 1.0])), [1.0, 1 / 3, 0.1])
    np.testing.assert_array_equal(sensitivities(np.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("weighed", [True, False])
def test_a_rank_is_the_least_of_price_times_cost_and_loss(weighed: bool) -> None:
    for seed in range(80):
        for one in drawn(seed, weighed=weighed).values():
            last = np.inf
            for price in prices({"l": one}):
                rank = one.rank(price)
                assert rank is None or 1 <= rank <= one.highest
                assert one.cost(rank) <= min(one.whole, last)  # rises with no price, and is never above the layer
                last = one.cost(rank)
                if one.tails is None:
                    continue
                tried = [price * one.each * r + one.tails[r] for r in range(1, one.highest + 1)]
                best = min([*tried, price * one.whole])
                got = price * one.whole if rank is None else tried[rank - 1]
                assert got == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("weighed", [True, False])
def test_ranks_are_those_of_the_best_price_and_what_is_left_is_spent(weighed: bool) -> None:
    for seed in range(200):
        spectra = drawn(seed, weighed=weighed)
        rng = np.random.default_rng(seed)
        room = float(rng.uniform(0.0, 1.1)) * sum(one.whole for one in spectra.values())
        got = ranks_within(spectra, room)
        least: dict[str, int | None] = {name: 1 if one.highest >= 1 else None for name, one in spectra.items()}
        if spent(spectra, least) > room:
            assert got == least
            continue
        assert spent(spectra, got) <= room
        tried = [{name: one.rank(price) for name, one in spectra.items()} for price in prices(spectra)]
        tried = [dict.fromkeys(spectra), *tried]
        best = next(ranks for ranks in tried if spent(spectra, ranks) <= room)  # prices rise, costs fall
        for name, rank in best.items():
            found = got[name]
            assert (rank is None) == (found is None)
            assert rank is None or (found is not None and rank <= found <= spectra[name].highest)
        left = room - spent(spectra, got)
        for name, rank in got.items():
            one = spectra[name]
            assert rank is None or rank == one.highest or one.each > left


def test_where_nothing_is_dear_all_layers_stay() -> None:
    spectra = drawn(3, weighed=True)
    assert set(ranks_within(spectra, sum(one.whole for one in spectra.values())).values()) == {None}


def test_a_dead_layer_goes_first() -> None:
    dead = Spectrum(np.zeros(4), np.zeros(5), 2.0, 8.0)
    live = Spectrum(np.array([9.0, 8.0, 7.0, 6.0]), tails_of(np.array([9.0, 8.0, 7.0, 6.0])), 2.0, 8.0)
    assert ranks_within({"dead": dead, "live": live}, 10.0) == {"dead": 1, "live": None}


def parted(networks: Any, name: str, kind: str, **kinds: Any) -> tuple[ir.Model, Any, Any, Context]:
    proto = networks[name](**kinds)
    source = ir.serde.deserialize_model(proto)
    work = prepare(source)
    sizes = [dim.dim_value or 1 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    context = Context(source, measure(source), {"x": tuple(sizes)}, 0)
    shapes = concrete_shapes(work, example_shapes(work))
    units, _ = partable(work, shapes, Selection.parse("test", None, None), (kind, OUTPUT), one=True)
    return work, units, spaces.analyse(work), context


def by_values(name: str, unit: Any, kind: str) -> tuple[np.ndarray, np.ndarray]:
    data = unit.weight.const_value.numpy()
    squares = np.sort(np.abs(data).ravel())[::-1][: 4 * max(data.shape)].astype(float) ** 2
    return squares, tails_of(squares)


@pytest.mark.parametrize("network", ["residual", "mlp", "transformer", "unet"])
@pytest.mark.parametrize("currency", ["flops", "params", "bytes"])
@pytest.mark.parametrize("value", [1.0, 0.8, 0.5])
def test_budgets_are_those_of_the_model_that_comes_out(
    networks: Any, network: str, currency: str, value: float
) -> None:
    work, units, analysis, context = parted(networks, network, SPATIAL)
    pairs = ranked(units, Sizing(currency, value, 1), analysis, context, by_values)
    assert not pairs if value == 1.0 else pairs
    shapes = concrete_shapes(work, example_shapes(work))
    for unit in linear_units(work, shapes):
        if unit.name in pairs:
            way = units[unit.name][1][pairs[unit.name].kind]
            each, whole = costs(way, unit, currency)
            assert pairs[unit.name].rank * each < whole
            split(work, unit, pairs[unit.name])
    after, before = measure(finish(work)), context.original_cost
    figures = {"flops": (after.macs, before.macs), "params": (after.params, before.params)}
    got, whole = figures.get(currency, (after.bytes, before.bytes))
    assert got <= value * whole


def test_keep_is_a_share_of_every_full_rank(networks: Any) -> None:
    _, units, analysis, context = parted(networks, "residual", OUTPUT)
    for value in (1.0, 0.5, 0.01):
        pairs = ranked(units, Sizing("keep", value, 1), analysis, context, by_values)
        for name, (_, ways) in units.items():
            way = ways[OUTPUT]
            rank = max(1, int(value * way.full + 1e-9))
            if rank < way.full and rank * way.macs < way.whole:
                assert pairs[name].rank == rank
            else:
                assert name not in pairs
