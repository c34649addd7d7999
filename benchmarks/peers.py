r"""The peers and our passes on the same network, the same images and the same budget, in one run.

    python benchmarks/peers.py resnet20 --model resnet20.onnx --weights resnet20.th \
        --calib cifar10-train.zip --eval cifar10-val.zip
    python benchmarks/peers.py resnet56 ... --sizes 0.75 --peers "onnxsim, structured Wanda" --recipes "id" "auto"

Needs the train and bench extras (torch-pruning, onnxsim). Two tables: equal MACs, then equal parameters. Every peer is
asked for the mildest of its own settings that is within the budget (found by bisection, which costs it nothing here:
CPU seconds are those of the last setting). Torch-Pruning cuts the channels inside blocks, because it fails on this
network's padded shortcuts: as it leaves them, with BatchNormalization statistics taken anew from the calibration
images, and further trained on those images towards the original's outputs (no labels; Adam, cosine, flips and shifts).
Two of our rows are trained so as well, for as many epochs.
All are judged by `onnxprune compare` on the same images, which decide nothing. One seed draws the images.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import compress
from onnxprune.api import Options, compare
from onnxprune.api.opening import open_model, open_split
from onnxprune.graph import io
from onnxprune.graph.cost import measure
from onnxprune.report.figures import interval, percent
from onnxprune.report.report import Report

SHAPE = (3, 32, 32)
RECIPES = ("filters", "ispasp(importance=energy,reconstruct=asymmetric)", "id", "pca", "lrank", "cp", "auto")
DISTILLED = ("id,distill(epochs=40,batch_size=100)", "auto,distill(epochs=40,batch_size=100)")
PEERS = (
    "torch-pruning, L2",
    "torch-pruning, L2, statistics anew",
    "torch-pruning, L2, distilled",
    "onnxsim, structured L2",
    "onnxsim, structured Wanda",
)
STEPS, EPOCHS, BATCH = 10, 40, 100
HEAD = "| network | method | MACs | params | top-1 | agreement | 95 % interval | latency | CPU s |"


class Rivals:
    """Makes the peers' models of one network from the same calibration images."""

    def __init__(self, given: argparse.Namespace, images: np.ndarray, folder: Path) -> None:
        import torch

        from onnxprune.models import checkpoint, zoo

        self.module = zoo.build(given.network)
        checkpoint.load_weights(self.module, given.weights)
        self.module.eval()
        self.images, self.model, self.folder = torch.from_numpy(images), Path(given.model), folder
        self.before = measure(io.load(self.model), {})

    def made(self, name: str, currency: str, size: float) -> tuple[Path, float]:
        """Return a peer's mildest model within the budget, and the CPU seconds of making it."""
        ratio_of, make = (
            (self._sim_share, self._sim) if name.startswith("onnxsim") else (self._torch_share, self._torch)
        )
        low, high = 0.0, 0.95
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if ratio_of(middle, currency) <= size else (middle, high)
        path, start = self.folder / f"{len(list(self.folder.iterdir()))}.onnx", time.process_time()
        make(name, high, path)
        return path, time.process_time() - start

    def _sim_share(self, sparsity: float, currency: str) -> float:
        # Both rules drop the same number of every layer's channels.
        path = self.folder / "trial.onnx"
        self._sim("", sparsity, path)
        after = measure(io.load(path), {})
        return after.macs / self.before.macs if currency == "flops" else after.params / self.before.params

    def _sim(self, name: str, sparsity: float, path: Path) -> None:
        import onnxsim

        loaded = onnx.load(self.model)
        if "Wanda" in name:
            samples = [{loaded.graph.input[0].name: image[None].numpy()} for image in self.images]
            pruned = onnxsim.apply_structured_wanda_pruning_cpp(loaded, samples, sparsity=sparsity)
        else:
            pruned = onnxsim.apply_structured_pruning_cpp(loaded, sparsity=sparsity)
        onnx.save(pruned, path)

    def _torch_share(self, ratio: float, currency: str) -> float:
        before, after = (cost(module, self.images[:1]) for module in (self.module, self._cut(ratio)))
        return after[currency] / before[currency]

    def _cut(self, ratio: float) -> Any:
        import torch_pruning

        module = copy.deepcopy(self.module)
        outside = [layer for key, layer in module.named_modules() if key in ("conv1", "linear") or "conv2" in key]
        torch_pruning.pruner.MagnitudePruner(
            module, self.images[:1], torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=ratio, ignored_layers=outside,
        ).step()  # fmt: skip
        return module

    def _torch(self, name: str, ratio: float, path: Path) -> None:
        from onnxprune.exporters.to_onnx import export

        module = self._cut(ratio)
        if "statistics" in name or "distilled" in name:
            anew(module, self.images)
        if "distilled" in name:
            distil(module, self.module, self.images)
        export(module.eval(), SHAPE, path, check=False)


def cost(module: Any, image: Any) -> dict[str, float]:
    """Return MACs of a module's convolutions and linear layers on one image, and its parameters without norms."""
    import torch

    found = {"flops": 0.0, "params": 0.0}

    def seen(layer: Any, _: Any, out: Any) -> None:
        found["flops"] += layer.weight[0].numel() * out[0].numel()
        found["params"] += layer.weight.numel() + layer.weight.shape[0]

    layers = [each for each in module.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    with torch.no_grad():
        module(image)
    for hook in hooks:
        hook.remove()
    return found


def anew(module: Any, images: Any) -> None:
    """Take BatchNormalization statistics from the images, cumulative means over batches."""
    import torch

    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            module(images[start : start + BATCH])
    module.eval()


def distil(module: Any, teacher: Any, images: Any) -> None:
    """Train a module towards the teacher's class probabilities on unlabelled images."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    steps = EPOCHS * -(-len(images) // BATCH)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    module.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            batch = images[rows]
            batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
            down, right = (int(s) for s in torch.randint(0, 9, (2,)))
            batch = functional.pad(batch, (4, 4, 4, 4))[:, :, down : down + SHAPE[1], right : right + SHAPE[2]]
            with torch.no_grad():
                wanted = teacher(batch).softmax(1)
            loss = functional.kl_div(module(batch).log_softmax(1), wanted, reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    module.eval()


def row(network: str, name: str, report: Report, seconds: float) -> None:
    """Print one row."""
    assert report.agreement is not None
    top, right, latency = report.agreement.top1, report.accuracy, report.latency or {}
    cells = [
        network,
        name,
        f"{report.cost.macs.ratio:.4f}",
        f"{report.cost.params.ratio:.4f}",
        percent(right.compressed) if right is not None else "-",
        percent(top.rate),
        interval(top.low, top.high),
        f"{latency.get('ratio') or 0:.2f}",
        f"{seconds:.1f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)


def table(given: argparse.Namespace, rivals: Rivals, options: Options, currency: str, size: float) -> None:
    """Print what everyone keeps within one budget."""
    print(f"\n{'MACs' if currency == 'flops' else 'parameters'} at most {size:g}\n\n{HEAD}")
    print(f"|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    for name in given.peers:
        path, seconds = rivals.made(name, currency, size)
        row(given.network, name, compare(given.model, path, given.eval, options=options), seconds)
    for recipe in given.recipes:
        start = time.process_time()
        done = compress(
            given.model, recipe, calib=given.calib, eval=given.eval, targets=[f"{currency}={size}"], options=options
        )
        row(given.network, f"`{recipe}`", done.report, time.process_time() - start)


def run() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["resnet20", "resnet56"])
    parser.add_argument("--model", required=True, help="the network as .onnx, with its preprocessing in the metadata")
    parser.add_argument("--weights", required=True, help="the same as a checkpoint, for the peers that take modules")
    parser.add_argument("--calib", required=True, help="calibration images, labels unread")
    parser.add_argument("--eval", required=True, help="evaluation images")
    parser.add_argument("--calib-examples", type=int, default=1000)
    parser.add_argument("--sizes", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--currencies", nargs="+", choices=["flops", "params"], default=["flops", "params"])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--recipes", nargs="*", default=[*RECIPES, *DISTILLED])
    given = parser.parse_args()
    options = Options(calib_examples=given.calib_examples)
    loaded = open_model(given.model, options)
    examples = open_split(loaded, options, None, given.calib, given.eval).calibration
    assert examples is not None
    images = next(iter(examples.fetch(np.arange(examples.count)).values()))
    with tempfile.TemporaryDirectory() as folder:
        rivals = Rivals(given, images, Path(folder))
        for currency in given.currencies:
            for size in given.sizes:
                table(given, rivals, options, currency, size)


if __name__ == "__main__":
    sys.exit(run())
