"""CPU seconds of interpolative decomposition on ImageNet-sized networks, beside plain forward runs of the same images.

    python benchmarks/id_speed.py vgg16                    id(keep=0.7) as published, 100 images of 224 x 224
    python benchmarks/id_speed.py vgg16 --recipe "id(keep=0.7)"
    python benchmarks/id_speed.py vgg16 --peers            torch-pruning and onnxsim beside it
    python benchmarks/id_speed.py resnet50 --images 256 --recipe "id(flops=0.5)"

Needs the train extra; `--peers` the bench extra. Weights are seeded, not trained: time does not depend on them. Every
figure is of a process of its own; evaluation is not counted.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PUBLISHED = "id(keep=0.7,reconstruct=none,select=pivots)"
# What the peers drop of every layer's channels.
DROPPED = 0.3
# Seconds after which something is given up.
LIMIT = 1200
PEERS = ("torch-pruning, L1 norm, no data", "onnxsim, structured, L2 norm, no data", "onnxsim, structured Wanda")


def build(name: str, path: Path) -> None:
    """Export a seeded network."""
    import torch
    import torchvision

    from onnxprune.exporters.to_onnx import export

    torch.manual_seed(0)
    export(getattr(torchvision.models, name)(weights=None).eval(), (3, 224, 224), path, check=False)


def images(count: int) -> np.ndarray:
    """Return smooth random images, float32 [count, 3, 224, 224]."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((count, 3, 14, 14)).astype(np.float32).repeat(16, axis=2).repeat(16, axis=3)
    return coarse + 0.3 * rng.standard_normal((count, 3, 224, 224), dtype=np.float32)


def peer(name: str, network: str, model: str, data: str) -> None:
    """Let a peer drop 30 % of the channels in this process; print as :func:`work` does."""
    import onnx

    from onnxprune.graph import io
    from onnxprune.graph.cost import measure

    wall, start = time.perf_counter(), time.process_time()
    if name.startswith("torch-pruning"):
        import torch
        import torch_pruning
        import torchvision

        torch.manual_seed(0)
        module = getattr(torchvision.models, network)(weights=None).eval()
        sample = torch.zeros(1, 3, 224, 224)
        before, _ = torch_pruning.utils.count_ops_and_params(module, sample)
        wall, start = time.perf_counter(), time.process_time()
        last = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)][-1]
        torch_pruning.pruner.MagnitudePruner(
            module, sample, torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=DROPPED, ignored_layers=[last],
        ).step()  # fmt: skip
        spent, passed = time.process_time() - start, time.perf_counter() - wall
        share = torch_pruning.utils.count_ops_and_params(module, sample)[0] / before
    else:
        import onnxsim

        loaded = onnx.load(model)
        before = measure(io.load(model), {}).macs
        wall, start = time.perf_counter(), time.process_time()
        if "Wanda" in name:
            entry = loaded.graph.input[0].name
            samples = [{entry: image[None]} for image in np.load(data)]
            result = onnxsim.apply_structured_wanda_pruning_cpp(loaded, samples, sparsity=DROPPED)
        else:
            result = onnxsim.apply_structured_pruning_cpp(loaded, sparsity=DROPPED)
        spent, passed = time.process_time() - start, time.perf_counter() - wall
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(result, Path(folder) / "pruned.onnx")
            share = measure(io.load(Path(folder) / "pruned.onnx"), {}).macs / before
    _print(spent, passed, share)


def _print(spent: float, passed: float, share: float) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{spent:.1f} {passed:.1f} {memory:.2f} {share:.4f}")


def work(kind: str, model: str, data: str, recipe: str) -> None:
    """Do one thing in this process and print its CPU seconds and peak memory in GB."""
    from onnxprune import pipeline
    from onnxprune.api.opening import input_shapes
    from onnxprune.data import open_data
    from onnxprune.graph import io
    from onnxprune.recipe import parse
    from onnxprune.runtime.session import Settings, input_specs, open_session

    loaded = io.load(model)
    examples = open_data(data, input_specs(loaded))
    settings = Settings(batch_size=8)
    wall, start = time.perf_counter(), time.process_time()
    if kind == "forward":
        with open_session(loaded, settings) as session:
            for batch in examples.batches(8):
                session.run(batch.arrays)
        share = 1.0
    else:
        run = pipeline.Run(examples, settings, 0, input_shapes(examples))
        _, steps = pipeline.run(loaded, parse(recipe), run)
        from onnxprune.graph.cost import measure

        share = steps[-1].cost.macs / measure(loaded, run.inputs).macs
    _print(time.process_time() - start, time.perf_counter() - wall, share)


def main() -> None:
    """Build the network and the images, then time every kind of work in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["vgg16", "resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--recipe", action="append", help=f"repeatable; default {PUBLISHED}")
    parser.add_argument("--peers", action="store_true", help="torch-pruning and onnxsim, 30 %% of the channels")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model.onnx", Path(folder) / "images.npy"
        subprocess.run([sys.executable, __file__, "--build", given.network, str(model)], check=True)
        np.save(data, images(given.images))
        print("| network | work | CPU s | wall s | peak memory, GB | FLOPs | CPU over forward |\n" + "|---" * 7 + "|")
        base = 0.0
        files = [str(model), str(data)]
        tasks = [["--work", "forward", *files, "forward"]]
        tasks += [["--work", "pass", *files, recipe] for recipe in given.recipe or [PUBLISHED]]
        tasks += [["--peer", given.network, *files, name] for name in PEERS if given.peers]
        for task in tasks:
            recipe = task[-1]
            command = [sys.executable, __file__, *task]
            try:
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                print(f"| {given.network} | `{recipe}` | not done after {LIMIT} s of wall time | | | | |", flush=True)
                continue
            spent, passed, memory, share = (float(part) for part in done.stdout.split()[-4:])
            base = base or spent
            cells = [given.network, f"`{recipe}`", f"{spent:.1f}", f"{passed:.1f}", f"{memory:.2f}", f"{share:.4f}"]
            print("| " + " | ".join([*cells, f"{spent / base:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:6])
    elif sys.argv[1:2] == ["--peer"]:
        peer(sys.argv[5], *sys.argv[2:5])
    elif sys.argv[1:2] == ["--build"]:
        build(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
