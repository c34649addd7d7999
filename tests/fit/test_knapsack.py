"""Widths under one budget against trying all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from onnxprune.fit import knapsack as module
from onnxprune.fit.knapsack import allocate, knapsack

Widths = Mapping[str, int]


def least(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float) -> float | None:
    places = [range(len(cost)) for cost in costs]
    return min(
        (
            float(sum(loss[i] for loss, i in zip(losses, choice, strict=True)))
            for choice in itertools.product(*places)
            if sum(cost[i] for cost, i in zip(costs, choice, strict=True)) <= limit
        ),
        default=None,
    )


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("binned", [False, True])
def test_knapsack_finds_the_best(whole: bool, binned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if binned:
        monkeypatch.setattr(module, "_CHOICES", 0)
    rng = np.random.default_rng(0)
    for _ in range(150):
        sizes = rng.integers(1, 6, rng.integers(1, 5))
        costs = [rng.integers(1, 40, size).astype(float) if whole else 40 * rng.random(size) for size in sizes]
        losses = [rng.random(size) for size in sizes]
        limit = float(rng.integers(1, 120))
        want, got = least(costs, losses, limit), knapsack(costs, losses, limit)
        if want is None:
            assert got is None
            continue
        assert got is not None
        assert sum(cost[i] for cost, i in zip(costs, got, strict=True)) <= limit
        loss = sum(item[i] for item, i in zip(losses, got, strict=True))
        if whole or not binned:
            assert loss == pytest.approx(want, abs=1e-12)
        else:  # costs rounded up may miss what only just fits
            best = least([cost * 1.002 for cost in costs], losses, limit)
            assert best is None or loss <= best + 1e-12


def test_knapsack_takes_the_cheaper_of_equal_options(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, losses = [np.array([9.0, 3.0, 5.0])] * 2, [np.array([1.0, 1.0, 1.0])] * 2
    assert knapsack(costs, losses, 100) == [1, 1]
    monkeypatch.setattr(module, "_CHOICES", 0)
    assert knapsack(costs, losses, 100) == [1, 1]


def test_knapsack_at_the_very_limit() -> None:
    costs = [np.array([1.0, 3.0]), np.array([2.0, 4.0])]
    losses = [np.array([1.0, 0.0]), np.array([1.0, 0.0])]
    assert knapsack(costs, losses, 7) == [1, 1]
    assert knapsack(costs, losses, 3) == [0, 0]
    assert knapsack(costs, losses, 2.999) is None


def test_large_knapsacks_keep_within_the_limit() -> None:
    rng = np.random.default_rng(1)
    costs = [np.sort(rng.integers(1, 10**9, 64)).astype(float) for _ in range(30)]
    losses = [np.sort(rng.exponential(1, 64))[::-1] for _ in range(30)]
    limit = 0.4 * sum(cost.max() for cost in costs)
    got = knapsack(costs, losses, limit)
    assert got is not None
    assert 0.98 * limit <= sum(cost[i] for cost, i in zip(costs, got, strict=True)) <= limit


class Chain:
    """A chain of layers: the cost of each is the product of its two widths and a factor."""

    def __init__(self, seed: int, *, additive: bool = False) -> None:
        rng = np.random.default_rng(seed)
        count = int(rng.integers(2, 5))
        self.names = [f"s{i}" for i in range(count)]
        self.factors, self.additive = rng.integers(1, 30, count + 1), additive
        self.full = {name: int(rng.integers(3, 9)) for name in self.names}
        falling = {name: np.sort(rng.exponential(1, width - 1) ** 3)[::-1] for name, width in self.full.items()}
        self.losses = {name: np.concatenate([[1e9], loss, [0.0]]) for name, loss in falling.items()}
        self.options: dict[str, list[int]] = {name: list(range(1, width + 1)) for name, width in self.full.items()}
        ends = [None, *self.names, None]
        self.conflicts: dict[str, set[str]] = {
            name: set() if additive else {n for n in (ends[i], ends[i + 2]) if n is not None}
            for i, name in enumerate(self.names)
        }
        self.limit = float(rng.uniform(0.2, 0.95)) * self.cost(self.full)

    def cost(self, widths: Widths) -> int:
        if self.additive:
            return sum(int(f) * widths[name] for f, name in zip(self.factors, self.names, strict=False))
        sizes = [3, *(widths[name] for name in self.names), 5]
        return sum(int(f) * a * b for f, a, b in zip(self.factors, sizes, sizes[1:], strict=False))

    def loss(self, widths: Widths) -> float:
        return float(sum(self.losses[name][width] for name, width in widths.items()))

    def best(self) -> float | None:
        tried = (dict(zip(self.names, w, strict=True)) for w in itertools.product(*self.options.values()))
        return min((self.loss(widths) for widths in tried if self.cost(widths) <= self.limit), default=None)

    def allocated(self, cost: Callable[[Widths], int] | None = None) -> dict[str, int]:
        return allocate(self.losses, self.options, cost or self.cost, self.conflicts, self.limit)


@pytest.mark.parametrize("additive", [True, False])
def test_allocation_is_the_best_or_close_to_it(additive: bool) -> None:
    for seed in range(60):
        chain = Chain(seed, additive=additive)
        best, got = chain.best(), chain.allocated()
        if best is None:
            assert got == {name: 1 for name in chain.names}  # as far as widths allow
            continue
        assert chain.cost(got) <= chain.limit
        assert chain.loss(got) <= (1 + 1e-9 if additive else 1.05) * best + 1e-12


def test_allocation_takes_offered_widths_only() -> None:
    for seed in range(30):
        chain = Chain(seed)
        chain.options = {name: sorted({min(4, w), min(8, w), w}) for name, w in chain.full.items()}
        got = chain.allocated()
        assert all(got[name] in chain.options[name] for name in chain.names)
        best = chain.best()
        assert best is None or (chain.cost(got) <= chain.limit and chain.loss(got) <= 1.05 * best + 1e-12)


def test_everything_stays_where_the_budget_allows() -> None:
    chain = Chain(0)
    chain.limit = chain.cost(chain.full)
    assert chain.allocated() == chain.full


def test_costs_that_are_no_products_never_pass_the_limit() -> None:
    for seed in range(40):
        chain = Chain(seed)

        def squared(widths: Widths, chain: Chain = chain) -> int:
            return sum(int(f) * widths[name] ** 2 for f, name in zip(chain.factors, chain.names, strict=False))

        chain.limit = 0.5 * squared(chain.full)
        got = chain.allocated(squared)
        assert squared(got) <= max(chain.limit, squared(dict.fromkeys(chain.names, 1)))


def test_flat_losses_and_one_space() -> None:
    losses = {"a": np.zeros(9)}
    got = allocate(losses, {"a": list(range(1, 9))}, lambda widths: 10 * widths["a"], {"a": set()}, 45.0)
    assert got["a"] <= 4


def test_many_spaces() -> None:
    rng = np.random.default_rng(2)
    names = [f"s{i:02d}" for i in range(25)]
    losses = {name: np.concatenate([np.sort(rng.exponential(1, 64))[::-1], [0.0]]) for name in names}
    options = {name: list(range(8, 65, 8)) for name in names}
    conflicts = {name: set(names[max(0, i - 1) : i + 2]) - {name} for i, name in enumerate(names)}

    def cost(widths: Widths) -> int:
        sizes = [3, *(widths[name] for name in names), 10]
        return sum(a * b for a, b in itertools.pairwise(sizes))

    limit = 0.5 * cost(dict.fromkeys(names, 64))
    got = allocate(losses, options, cost, conflicts, limit)
    even = {name: 40 for name in names}
    assert 0.95 * limit <= cost(got) <= limit
    assert cost(even) <= limit and sum(losses[n][got[n]] for n in names) < sum(losses[n][even[n]] for n in names)


class Pairs(Chain):
    """A chain of layers of which some could be replaced: options at any costs, between the layer's two widths."""

    def __init__(self, seed: int, *, additive: bool = False) -> None:
        super().__init__(seed, additive=additive)
        rng = np.random.default_rng(1000 + seed)
        self.nodes: dict[str, tuple[int, list[float]]] = {}
        for layer in range(int(rng.integers(1, 4))):
            node, count = f"n{layer}", int(rng.integers(2, 5))
            # A share of the layer's cost for every option, the layer as it is last.
            self.nodes[node] = (layer, [*np.sort(rng.uniform(0.05, 0.95, count - 1)), 1.0])
            self.losses[node] = np.concatenate([np.sort(rng.exponential(0.5, count - 1))[::-1], [0.0]])
            self.options[node] = list(range(count))
            ends = [] if additive else [name for name in self.names[max(0, layer - 1) : layer + 1]]
            self.conflicts[node] = set(ends)
            for name in ends:
                self.conflicts[name] = {*self.conflicts[name], node}
        self.names = [*self.names, *self.nodes]
        self.full |= {node: len(shares) - 1 for node, (_, shares) in self.nodes.items()}
        self.limit = float(rng.uniform(0.2, 0.95)) * self.cost(self.full)

    def cost(self, widths: Widths) -> int:
        nodes = getattr(self, "nodes", {})
        spaces = sorted(name for name in widths if name not in nodes)
        sizes = [3, *(widths[name] for name in spaces), 5]
        total = 0.0
        for layer, factor in enumerate(self.factors):
            own = 4.0 if self.additive else sizes[layer] * sizes[layer + 1]
            share = next((shares[widths[node]] for node, (at, shares) in nodes.items() if at == layer), 1.0)
            more = widths[spaces[layer]] if self.additive and layer < len(spaces) else 0
            total += float(factor) * (own * share + more)
        return round(100 * total)

    def allocated(self, cost: Callable[[Widths], int] | None = None) -> dict[str, int]:
        return allocate(
            self.losses, self.options, cost or self.cost, self.conflicts, self.limit, curved=set(self.nodes)
        )


@pytest.mark.parametrize("additive", [True, False])
def test_allocation_with_pairs_is_the_best_or_close_to_it(additive: bool) -> None:
    lost = []
    for seed in range(30):
        chain = Pairs(seed, additive=additive)
        if np.prod([len(choice) for choice in chain.options.values()]) > 20_000:
            continue
        best, got = chain.best(), chain.allocated()
        if best is None:
            assert got == {name: chain.options[name][0] for name in chain.names}
            continue
        assert chain.cost(got) <= chain.limit
        lost.append(chain.loss(got) - best)
        assert lost[-1] >= -1e-9 and (not additive or lost[-1] <= 1e-9)
    assert np.mean(np.array(lost) <= 1e-9) >= 0.9


def test_neither_pairs_alone_nor_widths_alone_do_better() -> None:
    for seed in (*range(12), 201, 269, 533, 1055):
        chain = Pairs(seed)
        joint = chain.loss(chain.allocated())
        whole = dict(chain.options)
        for held in (set(chain.nodes), set(chain.names) - set(chain.nodes)):
            chain.options = {name: choice[-1:] if name in held else choice for name, choice in whole.items()}
            alone = chain.allocated()
            assert chain.cost(alone) > chain.limit or joint <= chain.loss(alone) + 1e-12
        chain.options = whole


def test_the_cost_of_curved_options_is_never_read_off_their_ends() -> None:
    table = np.array([[10.0, 11.0, 90.0, 100.0], [5.0, 60.0, 61.0, 62.0]])
    losses = {"a": np.array([3.0, 2.0, 1.0, 0.0]), "b": np.array([9.0, 4.0, 2.0, 0.0])}
    options = {"a": [0, 1, 2, 3], "b": [0, 1, 2, 3]}

    def cost(widths: Widths) -> float:
        return float(table[0][widths["a"]] + table[1][widths["b"]])

    got = allocate(losses, options, cost, {"a": set(), "b": set()}, 75.0, curved={"a", "b"})
    assert got == {"a": 1, "b": 3}
