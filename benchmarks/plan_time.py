"""Time to find what can be cut: our plan on the exported graph, torch-pruning's graph on the module, side by side.

python benchmarks/plan_time.py     (needs the train extra and torch-pruning)

CPU seconds of one process each, the faster of two runs; the network is built and exported beforehand.
"""

from __future__ import annotations

import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from onnxprune.api.planning import plan
from onnxprune.exporters.to_onnx import export

NETWORKS = ("resnet50", "mobilenet_v2", "vit_b_16", "swin_t")
LIMIT_S = 60


def best_of_two(work: Callable[[], object]) -> float:
    """Return the smaller CPU time of two runs, in seconds."""
    spent = []
    for _ in range(2):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def limited(work: Callable[[], object]) -> None:
    """Run something for a limited time.

    Raises:
        TimeoutError: It was not done by then.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    try:
        work()
    finally:
        signal.alarm(0)


def torch_pruning_graph(module: torch.nn.Module) -> None:
    """Build torch-pruning's dependency graph and enumerate its groups."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=torch.zeros(1, 3, 224, 224))
    for _ in graph.get_all_groups():
        pass


def run() -> None:
    """Print one row per network."""
    warnings.filterwarnings("ignore", module="torch_pruning")
    print("| network | plan, CPU s | torch-pruning graph and groups, CPU s | ratio |\n|---|---|---|---|")
    for name in NETWORKS:
        module = getattr(torchvision.models, name)(weights=None).eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(module, (3, 224, 224), path, check=False)
            ours = best_of_two(lambda path=path: plan(path, "filters(flops=0.5)"))
        try:
            theirs = best_of_two(lambda module=module: limited(lambda: torch_pruning_graph(module)))
        except Exception as error:  # whatever the other tool raises is a row of the table
            print(f"| {name} | {ours:.2f} | {type(error).__name__}: {error} | |", flush=True)
            continue
        print(f"| {name} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    run()
