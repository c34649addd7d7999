"""Every network of the zoo trains one epoch on a handful of examples, exports, and matches in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from onnxprune.models.checkpoint import load_weights
from onnxprune.models.options import options_for
from onnxprune.models.produce import ExportSource, load_and_export, train_and_export
from onnxprune.models.zoo import NETWORKS, build, find

SMALL = ("lenet300", "lenet5", "mlp2", "vgg_small", "resnet20", "vgg16", "vgg16_bn", "cnn3d")


def _examples(folder: Path, name: str) -> str:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, *find(name).input_shape)).astype(np.float32)
    answers = rng.standard_normal(12).astype(np.float32) if find(name).regression else np.arange(12) % 2
    np.savez(folder / "x.npz", x=images, y=answers)
    return str(folder / "x.npz")


@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_trains_exports_and_matches(name: str, tmp_path: Path) -> None:
    import onnxruntime

    options = options_for(name, {"epochs": 1, "batch_size": 4, "lr": 1e-4, "augment": "none", "device": "cpu"})
    produced = train_and_export(name, _examples(tmp_path, name), tmp_path / "m.onnx", options)
    assert produced.file is not None and produced.trained is not None and produced.data is not None
    assert produced.file.error is not None and produced.file.error < 1e-4
    module = build(name, produced.data.outputs).eval()
    load_weights(module, tmp_path / "m.best.pth")
    images = np.random.default_rng(1).standard_normal((2, *find(name).input_shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": images})
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(np.abs(wanted).max()))
    assert session.get_outputs()[0].name == ("value" if find(name).regression else "logits")
    exported = load_and_export(ExportSource(str(tmp_path / "m.best.pth")), tmp_path / "again.onnx")
    assert exported.file is not None
    first, again = (onnx.load(tmp_path / each) for each in ("m.onnx", "again.onnx"))
    assert first.graph == again.graph
