"""CPU seconds of i-SpaSP's selection in closed form, beside the authors' way with automatic differentiation.

    OMP_NUM_THREADS=1 python benchmarks/ispasp_speed.py --model resnet20.onnx --data cifar10-train.zip

Prints a plain forward run of the images, the run that sums the hidden activations, the choice for all spaces, and one
whole `apply`; medians of several repetitions on images that are decoded beforehand. The authors' way is written after
the paper: every round runs a block on five mini-batches, dense and cut, and differentiates the squared residual with
respect to the hidden activations. It is timed on one block of every shape and multiplied (needs torch).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import onnx_ir as ir

from onnxprune.api.opening import input_shapes
from onnxprune.contract import Context
from onnxprune.data import Examples, open_data
from onnxprune.fit.reader import Reader, readers
from onnxprune.fit.recovery import recover
from onnxprune.graph import io, spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.graph.shapes import concrete_shapes
from onnxprune.passes.ispasp import Ispasp
from onnxprune.runtime.collect import collect
from onnxprune.runtime.session import Settings, input_specs, open_session

BATCHES = 5


def spent(work: Callable[[], object], times: int) -> float:
    """Return the median CPU seconds of some repetitions."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return median(found)


def forward(model: ir.Model, examples: Examples, settings: Settings) -> None:
    with open_session(model, settings) as session:
        for batch in examples.batches(settings.batch_size):
            session.run(batch.arrays)


def tapped(model: ir.Model, names: Sequence[str], examples: Examples) -> dict[str, np.ndarray]:
    with open_session(model, Settings(threads=1), taps=names) as session:
        parts = [session.run(batch.arrays, list(names)) for batch in examples.batches(32)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def authors(reader: Reader, model: ir.Model, examples: Examples, keep: float, rounds: int) -> tuple[float, list[int]]:
    """Choose the hidden channels of one two-convolution block as the authors do; return CPU seconds and channels."""
    import torch
    from torch.nn.functional import conv2d

    torch.set_num_threads(1)
    (producer,), second = reader.space.producers, reader.link.unit.node
    first = producer.node

    def stored(node: ir.Node) -> list[torch.Tensor]:
        return [torch.from_numpy(np.array(v.const_value.numpy())) for v in node.inputs[1:] if v is not None]  # type: ignore[union-attr]

    def slides(node: ir.Node) -> dict[str, int]:
        ints = {name: list(node.attributes[name].as_ints()) for name in ("strides", "pads") if name in node.attributes}
        return {"stride": ints.get("strides", [1])[0], "padding": ints.get("pads", [0])[0]}

    name = str(first.inputs[0].name)  # type: ignore[union-attr]
    batches = [torch.from_numpy(part) for part in np.array_split(tapped(model, [name], examples)[name], BATCHES)]
    one, two, s1, s2 = stored(first), stored(second), slides(first), slides(second)
    width = len(one[0])
    count = max(1, int(keep * width))
    start = time.process_time()
    kept: list[int] = []
    for _ in range(rounds):
        importance, mass = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        for x in batches:
            hidden = conv2d(x, *one, **s1).relu().detach().requires_grad_(True)
            residual = conv2d(hidden, *two, **s2)
            if kept:
                with torch.no_grad():
                    narrow = conv2d(x, one[0][kept], one[1][kept], **s1).relu()
                    cut = conv2d(narrow, two[0][:, kept], two[1], **s2)
                residual = residual - cut
            residual.square().sum().div(2).backward()
            assert hidden.grad is not None
            importance += hidden.grad.sum((0, 2, 3))
            mass += hidden.detach().sum((0, 2, 3))
        joined = sorted({*importance.topk(min(2 * count, width)).indices.tolist(), *kept})
        kept = sorted(joined[i] for i in mass[joined].topk(count).indices.tolist())
    return time.process_time() - start, kept


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--every", action="store_true", help="the first and the last block too")
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    model, settings = io.load(given.model), Settings(threads=1)
    source = open_data(given.data, input_specs(model))
    rows = np.sort(np.random.default_rng(0).permutation(source.count)[: given.images])
    examples = open_data(dict(next(source.take(rows).batches(given.images)).arrays), input_specs(model))
    inputs = input_shapes(examples)

    analysis = spaces.analyse(prepare(model))
    shapes = concrete_shapes(analysis.model, example_shapes(analysis.model, inputs))
    found, _ = readers(analysis, analysis.prunable, shapes, dense=False)
    chosen = found if given.every else found[1:-1]
    names = ";".join(reader.space.name for reader in chosen)
    item = Ispasp(keep=given.keep, rounds=given.rounds, only=names)
    wants = item.wants(model)
    statistics = collect(model, wants, examples, settings)
    context = Context(model, measure(model, inputs), inputs, 0, statistics, examples=examples, settings=settings)

    def choose() -> list[list[int]]:
        found = (reader.first_moments(statistics[reader.tap]) for reader in chosen)
        return [recover(e, max(1, int(given.keep * e.width)), rounds=given.rounds).kept.tolist() for e in found]

    plain = spent(lambda: forward(model, examples, settings), given.repeat)
    summed = spent(lambda: collect(model, item.wants(model), examples, settings), given.repeat)
    selection, whole = spent(choose, given.repeat), spent(lambda: item.apply(model, context), given.repeat)
    print(f"{len(chosen)} spaces, {given.images} images, {given.rounds} rounds at most, {given.keep:g} kept\n")
    print("| work | CPU s |\n|---|---|")
    print(f"| plain forward run | {plain:.2f} |\n| run with sums | {summed:.2f} |\n| choice | {selection:.3f} |")
    print(f"| sums and choice, beyond the plain run | {summed + selection - plain:.2f} |")
    print(f"| `apply` after the run: analysis, choice, cut | {whole:.2f} |")
    try:
        import torch  # noqa: F401
    except ImportError:
        print("| the authors' way | torch is not here |")
        return
    known: dict[tuple[int, ...], float] = {}
    same, total = [], 0.0
    for reader, mine in zip(chosen, choose(), strict=True):
        weight = reader.link.unit.weight.const_value
        assert weight is not None
        shape = (*weight.shape.numpy(), *statistics[reader.tap].total.shape)
        if shape not in known:
            known[shape], theirs = authors(reader, model, examples, given.keep, given.rounds)
            same.append(theirs == mine)
        total += known[shape]
    print(f"| the authors' way, from {len(known)} blocks | {total:.1f} |")
    print(f"\nThe same channels in {sum(same)} of {len(same)} blocks.")


if __name__ == "__main__":
    main()
