"""Latency beside MACs: widths that are whole blocks of the processor, and widths that are not.

    python benchmarks/align.py                    a VGG-like net built here, ResNet-18 where torchvision is installed
    python benchmarks/align.py --seconds 12 --threads 1 --align 16 32 64

Every recipe halves the FLOPs with the same fraction of every layer; `filters` chooses the channels, which time does
not depend on. Weights are seeded, not trained. The first row of a network is the model beside itself, which shows
what the machine's noise alone does; the intervals are over eight openings of both models (see docs/bench.md).
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune import compress
from onnxprune.api import Options, bench
from onnxprune.api.planning import plan
from onnxprune.report.bench import ratio_text

RECIPE = "filters(flops={flops},align={align})"
# Widths of the convolutions, 3 x 3 each; None halves the picture.
VGG = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512)
HEAD = "| network | recipe | widths | threads | MACs | latency (95 % interval) | off the MACs |"


def vgg(path: Path) -> None:
    """Write a VGG-11 with a pooled head (1.9 GMACs at 112 x 112): seeded weights, no batch normalisation."""
    size, classes, rng = 112, 100, np.random.default_rng(0)
    nodes, stored, channels, last = [], [], 3, "input"

    def weight(name: str, *shape: int) -> str:
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        stored.append(numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    for place, width in enumerate(VGG):
        if width is None:
            nodes.append(
                helper.make_node("MaxPool", [last], [f"p{place}"], f"pool{place}", kernel_shape=[2, 2], strides=[2, 2])
            )
            last = f"p{place}"
            continue
        name = f"conv{place}"
        given = [last, weight(f"{name}.w", width, channels, 3, 3)]
        nodes.append(helper.make_node("Conv", given, [name], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [name], [f"r{place}"], f"relu{place}"))
        last, channels = f"r{place}", width
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", weight("fc.w", classes, channels)], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "vgg",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        stored,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def resnet18(path: Path) -> None:
    """Export a seeded ResNet-18 (1.8 GMACs at 224 x 224)."""
    import torch
    import torchvision

    from onnxprune.exporters.to_onnx import export

    torch.manual_seed(0)
    export(torchvision.models.resnet18(weights=None).eval(), (3, 224, 224), path, check=False)


def rows(name: str, model: Path, given: argparse.Namespace) -> None:
    """Cut one network in every way, time all results beside it and print a row for each."""
    recipes, paths, widths = ["the same model"], [model, model], ["as they are"]
    for align in given.align:
        recipe = RECIPE.format(flops=given.flops, align=align)
        planned = sorted({int(row["planned"]) for row in plan(str(model), recipe)[0].rows})
        if align == 1:
            assert any(width % 16 for width in planned), f"{recipe} happens to give whole blocks: {planned}"
        out = model.with_name(f"{model.stem}-{align}.onnx")
        compress(model, recipe, data="random", options=Options(eval_examples=4)).save(out)
        recipes.append(f"`{recipe}`")
        widths.append(", ".join(map(str, planned)))
        paths.append(out)
    # One pair at a time, so that no model waits for two others before its turn comes.
    for recipe, width, path in zip(recipes, widths, paths[1:], strict=True):
        found = bench([model, path], threads=given.threads, seconds=given.seconds, memory=False)
        for row in found.rows[1::2]:
            ratio, macs = row.latency.ratio, found.models[1].macs_ratio
            assert ratio is not None
            assert macs
            off = f"{100 * (ratio.value / macs - 1):+.1f} %"
            cells = [name, recipe, width, str(row.threads), f"{macs:.3f}", ratio_text(ratio), off]
            print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Build the networks and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=6.0, help="per pair and number of threads")
    parser.add_argument("--align", type=int, nargs="+", default=[1, 16], help="widths are multiples of these")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    networks: dict[str, Callable[[Path], None]] = {"VGG-11, 112 x 112": vgg}
    if importlib.util.find_spec("torchvision") is not None:
        networks["ResNet-18, 224 x 224"] = resnet18
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for place, (name, build) in enumerate(networks.items()):
            models[name] = Path(folder) / f"{place}.onnx"
            build(models[name])
        print(HEAD + "\n|---|---|---|---:|---:|---:|---:|")
        for name, model in models.items():
            rows(name, model, given)


if __name__ == "__main__":
    main()
