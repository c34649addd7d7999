"""Which width every space gets under one budget: exact where costs add up, coordinate descent where they multiply."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Widths = Mapping[str, int]
_BINS = 6000
# Sums looked at per item before dynamic programming takes over.
_CHOICES = 1 << 18
_SWEEPS = 6
_HALVINGS = 40
_ROUNDS = 4
# Options in all up to which another start is tried, and entries of tables up to which any two spaces are paired.
_SMALL = 400
_TABLES = 4_000_000


def knapsack(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float) -> list[int] | None:
    """Choose one option per item so that the losses' sum is least and the costs' sum at most ``limit``.

    The exact multiple-choice knapsack (Dudzinski and Walukiewicz, 1987): choices that no other one beats in both
    sums are carried on from item to item. Where they grow too many, dynamic programming over costs rounded up to
    one part in 6,000 of the span, so that the limit is never passed. Ties go to the cheaper option.

    Returns:
        The index of every item's option, or None where even the cheapest options cost too much.
    """
    if sum(float(cost.min()) for cost in costs) > limit:
        return None
    found = _undominated(costs, losses, limit)
    return _binned(costs, losses, limit) if found is None else found


def _undominated(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float) -> list[int] | None:
    """Return the best choice by way of all undominated ones, or None where those are too many."""
    left = np.cumsum([float(cost.min()) for cost in costs][::-1])[::-1]
    spent, lost = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for index, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        if len(spent) * len(cost) > _CHOICES:
            return None
        total, sums = np.add.outer(spent, cost).ravel(), np.add.outer(lost, loss).ravel()
        rest = left[index + 1] if index + 1 < len(left) else 0.0
        order = np.lexsort((sums, total))
        order = order[total[order] + rest <= limit]
        if not len(order):
            return None  # rounding of the sums alone
        best = np.minimum.accumulate(sums[order])
        order = order[np.concatenate([[True], best[1:] < best[:-1]])]
        spent, lost = total[order], sums[order]
        steps.append((order // len(cost), order % len(cost)))
    picked: list[int] = []
    at = len(spent) - 1
    for before, option in reversed(steps):
        picked.append(int(option[at]))
        at = int(before[at])
    return picked[::-1]


def _binned(costs: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: float) -> list[int]:
    """Return a choice by dynamic programming over costs rounded up to whole bins."""
    floors = [float(cost.min()) for cost in costs]
    room = limit - sum(floors)
    unit = max(room / _BINS, 1e-12)
    if all((cost == np.round(cost)).all() for cost in costs):
        unit = max(1.0, np.ceil(room / _BINS))  # whole numbers stay exact
    bins = int(room / unit)
    best = np.zeros(bins + 1)
    choices: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for cost, loss, floor in zip(costs, losses, floors, strict=True):
        steps = np.ceil((cost - floor) / unit).astype(np.int64)
        fresh = np.full(bins + 1, np.inf)
        chosen = np.zeros(bins + 1, dtype=np.int64)
        for option in np.argsort(steps, kind="stable"):
            step = int(steps[option])
            if step > bins:
                continue
            total = np.full(bins + 1, np.inf)
            total[step:] = best[: bins + 1 - step] + loss[option]
            better = total < fresh
            fresh[better] = total[better]
            chosen[better] = option
        # Where a smaller budget does as well, its choice holds here too: remember at which budget.
        source = _running_best(fresh)
        choices.append((chosen, source, steps))
        best = fresh[source]
    picked: list[int] = []
    budget = bins
    for chosen, source, steps in reversed(choices):
        budget = int(source[budget])
        option = int(chosen[budget])
        picked.append(option)
        budget -= int(steps[option])
    return picked[::-1]


def _running_best(values: np.ndarray) -> np.ndarray:
    """Return, per index, where the least value up to it stands (the first one on ties)."""
    best = np.minimum.accumulate(values)
    fresh = np.concatenate([[True], values[1:] < best[:-1]])
    return np.asarray(np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0)))


def allocate(
    losses: Mapping[str, np.ndarray],
    options: Mapping[str, Sequence[int]],
    cost: Callable[[Widths], float],
    conflicts: Mapping[str, set[str]],
    limit: float,
    curved: Collection[str] = (),
    along: Callable[[str, Widths], np.ndarray] | None = None,
) -> dict[str, int]:
    """Return widths whose summed loss is small and whose cost is at most ``limit``, as far as options allow.

    Costs of spaces that share a node multiply. A price per unit of cost is bisected, every space taking its best
    width at that price in turn until none moves; then groups of spaces whose costs add up are solved exactly by
    :func:`knapsack`, and every two spaces together, each with the others held, as long as the loss falls. The best
    of a few starts counts; among them are the best choices of what is ``curved`` alone and of the rest alone: no
    exchange of two leads from one of them to the other.

    Args:
        losses: per space, the loss at every width (index = width), not rising with it.
        options: per space, the widths it may have, ascending.
        cost: of any widths.
        conflicts: per space, the ones its cost is not independent of.
        limit: what the cost may be.
        curved: the ones whose cost is not linear in the width.
        along: the cost of one of those at every width (index = width) with the others held, where that is quicker than
            one by one.
    """
    names = sorted(losses)
    problem = _Problem(names, losses, options, cost, conflicts, limit, frozenset(curved), along)
    full = {name: options[name][-1] for name in names}
    least = {name: options[name][0] for name in names}
    if cost(full) <= limit:
        return full
    if cost(least) > limit:
        return least
    best = least
    low, high = 0.0, problem.high_price(full)
    start = full
    for _ in range(_HALVINGS):
        price = (low * high) ** 0.5 if low > 0 else high * 1e-6
        found = problem.at_price(start, price)
        if cost(found) <= limit:
            high = price
            if problem.loss(found) < problem.loss(best) or best is least:
                best = found
        else:
            low = price
        if low > 0 and high / low < 1.001:
            break
    starts = [best, problem.even(), *problem.one_sided()]
    if sum(len(choice) for choice in options.values()) <= _SMALL:
        starts.append(problem.fill(least))
    ends = [problem.refined(start) for start in starts]
    return min(ends, key=problem.loss)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What :func:`allocate` was asked, and the moves that it is searched with."""

    names: Sequence[str]
    losses: Mapping[str, np.ndarray]
    options: Mapping[str, Sequence[int]]
    cost: Callable[[Widths], float]
    conflicts: Mapping[str, set[str]]
    limit: float
    curved: frozenset[str]
    along: Callable[[str, Widths], np.ndarray] | None = None

    def even(self) -> dict[str, int]:
        """Return the same share of every space's options, the largest that the limit allows."""
        best = {name: choice[0] for name, choice in self.options.items()}
        low, high = 0.0, 1.0
        for _ in range(12):
            share = (low + high) / 2
            widths = {name: choice[int(share * (len(choice) - 1))] for name, choice in self.options.items()}
            if self.cost(widths) <= self.limit:
                best, low = widths, share
            else:
                high = share
        return best

    def one_sided(self) -> list[dict[str, int]]:
        """Return the best choices that change only what is curved and only the rest, where there is both."""
        free = {name for name, choice in self.options.items() if len(choice) > 1}
        parts = [free & self.curved, free - self.curved]
        if not all(parts):
            return []
        found = []
        for part in parts:
            own = {name: choice if name in part else choice[-1:] for name, choice in self.options.items()}
            found.append(allocate(self.losses, own, self.cost, self.conflicts, self.limit, self.curved, self.along))
        return [one for one in found if self.cost(one) <= self.limit]

    def refined(self, start: Widths) -> dict[str, int]:
        """Return widths that no change of one group or of two spaces betters, as far as a few rounds get."""
        best = dict(start)
        pairs = list(itertools.combinations(self.names, 2))
        if sum(len(self.options[a]) * len(self.options[b]) for a, b in pairs) > _TABLES:  # knapsacks see to the others
            pairs = [(a, b) for a, b in pairs if b in self.conflicts.get(a, set())]
        for _ in range(_ROUNDS):
            before = self.loss(best)
            for group in _independent(self.names, self.conflicts):
                best = self.exact(group, best)
            for pair in pairs:
                best = self.pair(pair, best)
            best = self.fill(best)
            if self.loss(best) >= before * (1 - 1e-9):
                break
        return best

    def loss(self, widths: Widths) -> float:
        return float(sum(self.losses[name][width] for name, width in widths.items()))

    def high_price(self, full: Widths) -> float:
        """Return a price at which every space takes its least width."""
        worst = max(float(self.losses[name][self.options[name][0]]) for name in self.names) or 1e-9
        saved = [self.cost(full) - self.cost({**full, name: self.options[name][0]}) for name in self.names]
        return 1e3 * worst / max(1e-9, min((s for s in saved if s > 0), default=1.0))

    def at_price(self, start: Widths, price: float) -> dict[str, int]:
        widths = dict(start)
        for _ in range(_SWEEPS):
            moved = False
            for name in self.names:
                choice = self.options[name]
                spent = self.costs(name, widths)
                values = [self.losses[name][width] + price * each for width, each in zip(choice, spent, strict=True)]
                found = choice[int(np.argmin(values))]
                moved |= found != widths[name]
                widths[name] = found
            if not moved:
                break
        return widths

    def costs(self, name: str, widths: Widths) -> np.ndarray:
        """Return the cost of every option of one, the others held."""
        choice = np.array(self.options[name])
        if name in self.curved and self.along is not None:
            return np.asarray(self.along(name, widths)[choice])
        if name in self.curved:
            return np.array([self.cost({**widths, name: int(width)}) for width in choice], dtype=float)
        ends = [self.cost({**widths, name: int(choice[0])}), self.cost({**widths, name: int(choice[-1])})]
        return np.asarray(ends[0] + (ends[1] - ends[0]) * (choice - choice[0]) / max(1, choice[-1] - choice[0]))

    def exact(self, group: Sequence[str], widths: Widths) -> dict[str, int]:
        base = self.cost(widths)
        tables = [self.costs(name, widths) - base for name in group]
        found = knapsack(tables, [self.losses[name][list(self.options[name])] for name in group], self.limit - base)
        if found is None:
            return dict(widths)
        changed = {**widths, **{name: self.options[name][i] for name, i in zip(group, found, strict=True)}}
        fits = self.cost(changed) <= self.limit
        return changed if fits and self.loss(changed) <= self.loss(widths) else dict(widths)

    def pair(self, pair: tuple[str, str], widths: Widths) -> dict[str, int]:
        """Return the best widths of two with the others held; two costs that multiply are read off three sides."""
        first, second = (np.array(self.options[name]) for name in pair)
        low = {**widths, pair[0]: int(first[0]), pair[1]: int(second[0])}
        rows, columns = self.costs(pair[0], low), self.costs(pair[1], low)
        table = np.add.outer(rows, columns - columns[0])
        if pair[1] in self.conflicts.get(pair[0], set()):
            # What widening both adds beyond the sum is linear in one that is not curved.
            if pair[1] in self.curved:
                far = self.costs(pair[1], {**low, pair[0]: int(first[-1])})
                table += np.outer(
                    (first - first[0]) / max(1, first[-1] - first[0]), far - columns - far[0] + columns[0]
                )
            else:
                far = self.costs(pair[0], {**low, pair[1]: int(second[-1])})
                share = (second - second[0]) / max(1, second[-1] - second[0])
                table += np.outer(far - rows - far[0] + rows[0], share)
        loss = np.add.outer(self.losses[pair[0]][first], self.losses[pair[1]][second])
        loss = np.where(table <= self.limit + 1e-9 * abs(self.limit), loss, np.inf)
        i, j = np.unravel_index(int(np.argmin(loss)), loss.shape)
        changed = {**widths, pair[0]: int(first[i]), pair[1]: int(second[j])}
        better = self.loss(changed) < self.loss(widths)
        return changed if better and self.cost(changed) <= self.limit else dict(widths)

    def fill(self, widths: Widths) -> dict[str, int]:
        """Spend what is left: widen the space whose loss falls most per unit of cost, as long as one fits."""
        found = dict(widths)
        while True:
            base, best, gain = self.cost(found), None, 0.0
            for name in self.names:
                place = list(self.options[name]).index(found[name])
                if place + 1 == len(self.options[name]):
                    continue
                wider = {**found, name: self.options[name][place + 1]}
                extra = self.cost(wider) - base
                if base + extra > self.limit:
                    continue
                fall = float(self.losses[name][found[name]] - self.losses[name][wider[name]]) / max(extra, 1e-9)
                if best is None or fall > gain:
                    best, gain = wider, fall
            if best is None:
                return found
            found = best


def _independent(names: Sequence[str], conflicts: Mapping[str, set[str]]) -> list[list[str]]:
    """Part the spaces into groups within which costs add up (greedy colouring, fewest conflicts first)."""
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda n: (len(conflicts.get(n, set())), n)):
        home = next((g for g in groups if not conflicts.get(name, set()) & set(g)), None)
        if home is None:
            groups.append([name])
        else:
            home.append(name)
    return groups
