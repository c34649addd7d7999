"""Gradients of an interpreted export against those of the module that was exported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from onnxprune.exporters.to_torch import to_torch
from onnxprune.graph import io

TOLERANCE = 1e-4  # largest difference, relative to the largest gradient of a parameter


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.inner(x)[0][:, -1])
        return found


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.first(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        found: Tensor = x + self.mlp(self.second(x))
        return found


class Gpt(nn.Module):
    """A language model whose output weights are those of its embedding."""

    def __init__(self, width: int = 24, tokens: int = 50, length: int = 9) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(tokens, width), nn.Parameter(torch.randn(length, width) / 5)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(ids) + self.place)) @ self.embed.weight.t()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        found: Tensor = self.head(x + self.depth(x))
        return found


def converted(module: nn.Module, example: Tensor, folder: Path, script: bool) -> ir.Model:
    path = folder / "m.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if script:
            torch.onnx.export(
                module,
                (example,),
                str(path),
                dynamo=False,
                opset_version=17,
                input_names=["input"],
                dynamic_axes={"input": {0: "batch"}},
                do_constant_folding=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
        else:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=20,
                input_names=["input"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                optimize=False,
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=False)
    return io.load(path)


def compare(native: nn.Module, example: Tensor, folder: Path, *, script: bool = False) -> int:
    """Compare outputs and every gradient whose Parameter has its name in the graph; return how many those are."""
    native.eval()
    for parameter in native.parameters():  # exporters merge initialisers that are equal
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    for name, buffer in native.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.1)
    # A head that starts at zero is no pruned one.
    module = to_torch(converted(native, example, folder, script), keep_zeros=False).eval()
    weights = torch.linspace(-1, 1, native(example).numel())
    found = module(example)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, native(example), rtol=1e-3, atol=1e-4)
    for out in (found, native(example)):
        (out.flatten() * weights).sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
    ours, count = module.trained(), 0
    for name, parameter in native.named_parameters():
        if name in ours:
            want, got = parameter.grad, ours[name].grad
            assert want is not None and got is not None
            if got.shape != want.shape:
                continue
            assert float((got - want).abs().max()) <= TOLERANCE * max(float(want.abs().max()), 1e-6), name
            count += 1
    return count


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "residual": (Residual, lambda: torch.randn(3, 3, 16, 16), 8),
    "gpt": (Gpt, lambda: torch.randint(0, 50, (3, 9)), 16),
    "lstm": (Recurrent, lambda: torch.randn(3, 7, 6), 2),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("script", [False, True])
def test_small_networks(name: str, script: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, example, named = SMALL[name]
    assert compare(make(), example(), tmp_path, script=script) >= (named if not script else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit_b_16"])
def test_torchvision(name: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    size = 224 if name == "vit_b_16" else 64
    module = getattr(torchvision.models, name)(weights=None)
    count = compare(module, torch.randn(2, 3, size, size), tmp_path)
    assert count >= {"resnet18": 62, "mobilenet_v2": 158, "vit_b_16": 75}[name]
