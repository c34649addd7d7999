"""The networks of the zoo as torch modules: torchvision's, and small ones for what torchvision lacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torchvision import models as vision
from torchvision.models import detection, segmentation

TOKENS = 256


@dataclass(frozen=True)
class Network:
    """How to make one network, and the shape of one example; ``integers`` where it reads token numbers."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    integers: bool = False


class OnlyOut(nn.Module):
    """Returns the entry ``out`` of a segmentation model's dictionary."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map of class scores."""
        found: torch.Tensor = self.inner(x)["out"]
        return found


class SsdLite(nn.Module):
    """Backbone and head of ssdlite, without the boxes' post-processing: two outputs."""

    def __init__(self) -> None:
        super().__init__()
        whole = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes and class scores of all anchors."""
        found = self.head(list(self.backbone(x).values()))
        return found["bbox_regression"], found["cls_logits"]


def _double(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Three levels down and up again, joined by Concat, with ConvTranspose on the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths[:2]], widths[:3], strict=True))
        self.bottom = _double(widths[2], widths[3])
        self.raise_ = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:3]))
        self.up = nn.ModuleList(_double(2 * w, w) for w in reversed(widths[:3]))
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map of class scores."""
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.bottom(x)
        for raise_, block in zip(self.raise_, self.up, strict=True):
            x = block(torch.cat([kept.pop(), raise_(x)], dim=1))
        found: torch.Tensor = self.head(x)
        return found


class Autoencoder(nn.Module):
    """Convolutions, a bottleneck of linear layers, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 24),
        )
        self.decode = nn.Sequential(
            nn.Linear(24, 32 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (32, 7, 7)),
            nn.ConvTranspose2d(32, 16, 2, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 2, stride=2),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the image made anew."""
        found: torch.Tensor = self.decode(self.encode(x))
        return found


class GptBlock(nn.Module):
    """Pre-norm attention with one matrix for queries, keys and values, then the hidden layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of input, attention and hidden layer."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        found: torch.Tensor = x + self.mlp(self.norm2(x))
        return found


class Gpt(nn.Module):
    """A small decoder whose output layer is the embedding itself."""

    def __init__(self, width: int = 96, heads: int = 6, depth: int = 3, length: int = 24) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, TOKENS, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return scores of the next token at every place."""
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        found: torch.Tensor = self.head(self.norm(x))
        return found


class Encoder(nn.Module):
    """nn.TransformerEncoder between two linear layers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True)
        self.rise = nn.Linear(20, width)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores."""
        found: torch.Tensor = self.head(self.encoder(self.rise(x)).mean(dim=1))
        return found


class Recurrent(nn.Module):
    """A classifier on the last step of a recurrent network."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], *, both: bool) -> None:
        super().__init__()
        self.inner = kind(20, 48, num_layers=2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(96 if both else 48, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores."""
        found: torch.Tensor = self.head(self.inner(x)[0][:, -1])
        return found


def _plain(make: Callable[..., nn.Module], size: int = 64, **options: object) -> Network:
    return Network(lambda: make(weights=None, **options), (3, size, size))


def _segmentation(make: Callable[..., nn.Module]) -> Network:
    return Network(lambda: OnlyOut(make(weights=None, weights_backbone=None)), (3, 64, 64))


NETWORKS: dict[str, Network] = {
    "unet": Network(UNet, (3, 32, 32)),
    "autoencoder": Network(Autoencoder, (1, 28, 28)),
    "gpt": Network(Gpt, (24,), integers=True),
    "transformer_encoder": Network(Encoder, (12, 20)),
    "lstm": Network(lambda: Recurrent(nn.LSTM, both=False), (10, 20)),
    "gru": Network(lambda: Recurrent(nn.GRU, both=True), (10, 20)),
    "resnet18": _plain(vision.resnet18),
    "squeezenet1_1": _plain(vision.squeezenet1_1),
    "shufflenet_v2_x1_0": _plain(vision.shufflenet_v2_x1_0),
    "mobilenet_v2": _plain(vision.mobilenet_v2),
    "mobilenet_v3_small": _plain(vision.mobilenet_v3_small),
    "mnasnet0_5": _plain(vision.mnasnet0_5),
    "regnet_y_400mf": _plain(vision.regnet_y_400mf),
    "efficientnet_b0": _plain(vision.efficientnet_b0),
    "googlenet": _plain(vision.googlenet, aux_logits=False, init_weights=False),
    "inception_v3": _plain(vision.inception_v3, size=96, aux_logits=False, init_weights=False),
    "densenet121": _plain(vision.densenet121),
    "resnet50": _plain(vision.resnet50),
    "resnext50_32x4d": _plain(vision.resnext50_32x4d),
    "ssdlite": Network(SsdLite, (3, 96, 96)),
    "fcn_resnet50": _segmentation(segmentation.fcn_resnet50),
    "deeplabv3_resnet50": _segmentation(segmentation.deeplabv3_resnet50),
    "convnext_tiny": _plain(vision.convnext_tiny),
    "swin_t": _plain(vision.swin_t, size=224),
    "vit_b_16": _plain(vision.vit_b_16, size=224),
    "vgg16_bn": _plain(vision.vgg16_bn, size=224),
}
