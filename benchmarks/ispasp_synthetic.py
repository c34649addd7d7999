"""i-SpaSP on two-layer networks: how the error falls with the width, and greedy forward selection beside it.

    python benchmarks/ispasp_synthetic.py
    python benchmarks/ispasp_synthetic.py --train mnist-train.zip --test mnist-test.zip

Random networks first: hidden activations that are not negative and whose neurons fall off like i^(-1/p), so that they
are the more compressible the smaller p is; the residual |V| / |U| of the output (Frobenius) at several widths s, and
its slope over log s beside 1/2 - 1/p, the rate of the best s terms of such a sequence. Greedy forward selection, the
provable baseline, takes up the neuron that leaves the least residual, one at a time; it is timed as it is stated
(every candidate tried on the data) and from a Gram matrix. With digits, a network with one hidden layer follows:
trained with torch where that is installed, else random features with least squares behind them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.data import InputSpec, open_data
from onnxprune.data.preprocess import Preprocess
from onnxprune.fit.recovery import Energy, Evidence, FirstMoments, recover

POWERS = (0.3, 0.5, 0.7, 0.9)
WIDTHS = (100, 200)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
INPUTS, OUTPUTS, EXAMPLES = 50, 20, 500

Chooser = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def synthetic(rng: np.random.Generator, width: int, power: float) -> tuple[np.ndarray, np.ndarray]:
    """Return hidden activations [examples, width], neurons scaled to norms i^(-1/p), and weights [width, outputs]."""
    hidden = np.maximum(rng.standard_normal((EXAMPLES, INPUTS)) @ rng.standard_normal((INPUTS, width)), 0)
    hidden /= np.linalg.norm(hidden, axis=0)
    hidden *= rng.permutation(np.arange(1, width + 1) ** (-1 / power))
    return hidden, rng.standard_normal((width, OUTPUTS)) / np.sqrt(width)


def sums(hidden: np.ndarray, weight: np.ndarray) -> Evidence:
    mass = hidden.sum(axis=0)
    return FirstMoments(weight, np.zeros(weight.shape[1]), mass[:, None, None], np.ones(1), np.arange(len(mass)), mass)


def ispasp(hidden: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    return recover(sums(hidden, weight), count).kept


def by_energy(hidden: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    return recover(Energy((hidden.T @ hidden) * (weight @ weight.T)), count).kept


def greedy(hidden: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Greedy forward selection as it is stated: every neuron that is left is tried on the data."""
    kept: list[int] = []
    residual = hidden @ weight
    for _ in range(count):
        left = [c for c in range(len(weight)) if c not in kept]
        best = min(left, key=lambda c: float(np.square(residual - np.outer(hidden[:, c], weight[c])).sum()))
        kept.append(best)
        residual = residual - np.outer(hidden[:, best], weight[best])
    return np.sort(np.array(kept))


def greedy_gram(hidden: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """The same from inner products of what neurons add to the output."""
    gram = (hidden.T @ hidden) * (weight @ weight.T)
    kept = np.zeros(len(gram), dtype=bool)
    for _ in range(count):
        gain = 2 * gram @ ~kept - gram.diagonal()
        kept[int(np.argmax(np.where(kept, -np.inf, gain)))] = True
    return np.flatnonzero(kept)


def left(hidden: np.ndarray, weight: np.ndarray, kept: np.ndarray) -> float:
    """Return the residual's norm over the output's."""
    gone = np.setdiff1d(np.arange(len(weight)), kept)
    return float(np.linalg.norm(hidden[:, gone] @ weight[gone]) / np.linalg.norm(hidden @ weight))


def timed(choose: Chooser, hidden: np.ndarray, weight: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    start = time.process_time()
    kept = choose(hidden, weight, count)
    return kept, time.process_time() - start


def line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def typical(drawn: Sequence[tuple[np.ndarray, np.ndarray]], choose: Chooser, count: int) -> float:
    """Return the geometric mean of the residuals of several networks."""
    return float(np.exp(np.mean([np.log(left(*net, choose(*net, count)) + 1e-300) for net in drawn])))


def random_networks(seeds: int) -> None:
    print(
        f"Random networks: residual over output (Frobenius), geometric means of {seeds} seeds; slopes up to s = C / 2\n"
    )
    print(line(["width", "p", "choice", *[f"s = {share:g} C" for share in SHARES], "slope", "1/2 - 1/p"]))
    print("|---" * (len(SHARES) + 5) + "|")
    choosers: dict[str, Chooser] = {"sum": ispasp, "energy": by_energy, "greedy": greedy_gram}
    for width in WIDTHS:
        for power in POWERS:
            drawn = [synthetic(np.random.default_rng(seed), width, power) for seed in range(seeds)]
            for name, choose in choosers.items():
                points = np.unique(np.geomspace(2, width // 2, 12).astype(int))
                slope = np.polyfit(np.log(points), np.log([typical(drawn, choose, count) for count in points]), 1)[0]
                cells = [f"{typical(drawn, choose, int(share * width)):.1e}" for share in SHARES]
                print(line([width, power, name, *cells, f"{slope:.2f}", f"{0.5 - 1 / power:.2f}"]))


def times(hidden: np.ndarray, weight: np.ndarray, title: str) -> None:
    print(f"\n{title}\n")
    print(
        line(["s", "sum, ms", "energy, ms", "greedy, ms", "greedy from Gram, ms", "greedy over sum"])
        + "\n"
        + "|---" * 6
        + "|"
    )
    for share in (0.1, 0.3, 0.5):
        count = int(share * len(weight))
        found = [timed(choose, hidden, weight, count)[1] for choose in (ispasp, by_energy, greedy, greedy_gram)]
        print(line([count, *[f"{1e3 * seconds:.1f}" for seconds in found], f"{found[2] / max(found[0], 1e-5):.0f}"]))


def digits(path: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return images as rows of pixels in [0, 1] less their usual mean, and labels."""
    scaled = Preprocess(scale=1 / 255, mean=(0.1307,), std=(0.3081,), channels="L")
    found = open_data(path, [InputSpec("x", np.dtype(np.float32), ("N", 1, 28, 28))], preprocess=scaled, examples=count)
    batch = next(found.batches(found.count))
    assert batch.labels is not None
    return batch.arrays["x"].reshape(found.count, -1).astype(np.float64), batch.labels


def trained(x: np.ndarray, y: np.ndarray, width: int) -> tuple[str, list[np.ndarray]]:
    """Return how the network was made and its arrays: first weights and biases, second weights and biases."""
    try:
        import torch
    except ImportError:
        rng = np.random.default_rng(0)
        first, bias = rng.standard_normal((x.shape[1], width)) / np.sqrt(x.shape[1]), np.zeros(width)
        rows = np.hstack([np.maximum(x @ first + bias, 0), np.ones((len(x), 1))])
        second = np.linalg.solve(rows.T @ rows + len(x) * 1e-4 * np.eye(width + 1), rows.T @ np.eye(10)[y])
        return "random features, least squares", [first, bias, second[:-1], second[-1]]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], width), torch.nn.ReLU(), torch.nn.Linear(width, 10))
    steps = torch.optim.Adam(net.parameters(), lr=1e-3)
    images, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(128):
            steps.zero_grad()
            torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            steps.step()
    return "trained", [p.detach().double().numpy().T for p in net.parameters()]


def of_digits(train: str, test: str | None, width: int) -> None:
    x, y = digits(train)
    fresh, labels = digits(test) if test else (x, y)
    how, (first, bias, second, shift) = trained(x, y, width)
    calibration = np.random.default_rng(0).permutation(len(x))[:1280]
    hidden, held = (np.maximum(part @ first + bias, 0) for part in (x[calibration], fresh))
    whole = held @ second + shift
    right = 100 * float((whole.argmax(1) == labels).mean())
    print(f"\nDigits, {width} hidden neurons ({how}), {right:.1f} % right; choice from 1,280 training images\n")
    print(line(["choice", "kept", "residual", "agreement", "top-1", "ms"]) + "\n" + "|---" * 6 + "|")
    choosers: dict[str, Chooser] = {"sum": ispasp, "energy": by_energy, "greedy": greedy}
    for share in (0.5, 0.3, 0.2, 0.1):
        for name, choose in choosers.items():
            kept, seconds = timed(choose, hidden, second, int(share * width))
            got = (held[:, kept] @ second[kept] + shift).argmax(1)
            agrees, hits = (100 * float((got == other).mean()) for other in (whole.argmax(1), labels))
            error = left(hidden, second, kept)
            print(line([name, len(kept), f"{error:.3f}", f"{agrees:.1f} %", f"{hits:.1f} %", f"{1e3 * seconds:.1f}"]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="images of digits in class folders, a zip for example")
    parser.add_argument("--test", help="others to judge on")
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    random_networks(given.seeds)
    times(*synthetic(np.random.default_rng(0), 200, 0.5), "CPU time, 200 neurons, 500 examples")
    if given.train:
        of_digits(given.train, given.test, given.hidden)


if __name__ == "__main__":
    main()
