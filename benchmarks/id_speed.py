"""CPU seconds of interpolative decomposition on ImageNet-sized networks, beside plain forward runs of the same images.

    python benchmarks/id_speed.py vgg16                    id(keep=0.7) as published, 100 images of 224 x 224
    python benchmarks/id_speed.py vgg16 --recipe "id(keep=0.7)"
    python benchmarks/id_speed.py resnet50 --images 256 --recipe "id(flops=0.5)"

Needs the train extra. Weights are seeded, not trained: time does not depend on them. Every figure is of a process of
its own; evaluation is not counted.
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
    spent, passed = time.process_time() - start, time.perf_counter() - wall
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{spent:.1f} {passed:.1f} {memory:.2f} {share:.4f}")


def main() -> None:
    """Build the network and the images, then time every kind of work in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["vgg16", "resnet18", "resnet50", "mobilenet_v2"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--recipe", action="append", help=f"repeatable; default {PUBLISHED}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model.onnx", Path(folder) / "images.npy"
        subprocess.run([sys.executable, __file__, "--build", given.network, str(model)], check=True)
        np.save(data, images(given.images))
        print("| network | work | CPU s | wall s | peak memory, GB | FLOPs | CPU over forward |\n" + "|---" * 7 + "|")
        base = 0.0
        for recipe in ["forward", *(given.recipe or [PUBLISHED])]:
            kind = "forward" if recipe == "forward" else "pass"
            done = subprocess.run(
                [sys.executable, __file__, "--work", kind, str(model), str(data), recipe],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            spent, passed, memory, share = (float(part) for part in done.stdout.split())
            base = base or spent
            cells = [given.network, f"`{recipe}`", f"{spent:.1f}", f"{passed:.1f}", f"{memory:.2f}", f"{share:.4f}"]
            print("| " + " | ".join([*cells, f"{spent / base:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:6])
    elif sys.argv[1:2] == ["--build"]:
        build(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
