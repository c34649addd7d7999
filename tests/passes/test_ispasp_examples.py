"""The recipes of examples/ for i-SpaSP fit torchvision's networks as they are exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.graph import io
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.recipe import parse

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STAGES = {"layer1": (64, [1]), "layer2": (128, [1, 2]), "layer3": (256, [1, 2, 3, 4])}
WANTED = {
    "resnet34": {f"{name}.{i}.conv1": int(0.4 * width) for name, (width, these) in STAGES.items() for i in these},
    "mobilenetv2": {
        f"features.{i}.conv.{part}": int(0.3 * width)
        for i, width in {6: 192, 9: 384, 10: 384, 12: 576, 13: 576}.items()
        for part in ("0.0",)
    },
}


@pytest.mark.parametrize("name", sorted(WANTED))
def test_they_are_recipes(name: str) -> None:
    (item,) = parse(str(EXAMPLES / f"ispasp_{name}.yaml"))
    assert item.name == "ispasp"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WANTED))
def test_they_cut_what_the_authors_cut(name: str, tmp_path: Path, apply: Any, run_model: Any) -> None:
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    from onnxprune.exporters.to_onnx import export

    torch.manual_seed(0)
    build = {"resnet34": torchvision.models.resnet34, "mobilenetv2": torchvision.models.mobilenet_v2}[name]
    export(build(weights=None).eval(), (3, 64, 64), tmp_path / "model.onnx", check=False)
    model = io.load(tmp_path / "model.onnx")
    data = {model.graph.inputs[0].name: np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)}
    result, step = apply(model, str(EXAMPLES / f"ispasp_{name}.yaml"), data)
    assert {node: len(kept) for node, kept in read_kept(result).items()} == WANTED[name]
    assert not [said for said in step.result.warnings if "ratios" in said]
    assert measure(result).macs < measure(model).macs
    (logits,) = run_model(result, data).values()
    assert np.isfinite(logits).all()
