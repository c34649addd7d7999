"""Random shifts, flips, small affine maps and mixtures of training images, drawn from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented"]

# Handwriting differs in slant and size; these reaches keep every digit the digit it is.
TURN = 0.17  # radians, about 10 degrees
STRETCH = 0.1
SHEAR = 0.15
# Ends the names of kinds that mix images.
MIXED = "+mixup"


def augmented(images: Tensor, kind: str, generator: torch.Generator, joint: tuple[int, slice] | None = None) -> Tensor:
    """Return changed copies of images ``[n, c, h, w]``; what comes in from outside repeats the border.

    ``shift`` moves every image by up to a fourteenth of its height each way (2 of 28 or 32 pixels);
    ``shift+flip`` also mirrors half of them left to right; ``crop`` and ``crop+flip`` move by up to an eighth with
    zeros around (4 of 32 pixels, as He et al. 2016); ``affine`` shifts, turns, stretches and slants them a little.
    ``+mixup`` then adds up every image and another one, in shares drawn evenly (Zhang, Cisse, Dauphin, Lopez-Paz,
    2018; for distillation as in Beyer et al., 2022): more images than there are, labelled by the teacher alone.

    Args:
        images: The batch, on any device.
        kind: One of ``options.AUGMENTATIONS`` except ``auto``.
        generator: A CPU generator; it alone decides the draw.
        joint: Size of the batch these images are a share of, and which places of it; the draw is for all of it, so
            that several processes together do what one does (mixtures are of images of the same share).
    """
    count, places = joint or (len(images), slice(None))
    if kind == "none":
        return images
    if kind.endswith(MIXED):
        moved = augmented(images, kind.removesuffix(MIXED), generator, joint)
        return _mixed(moved, generator, count, places)
    if kind == "affine":
        return _affine(images, generator, count, places)
    crop = kind.startswith("crop")
    reach = max(1, images.shape[2] // (8 if crop else 14))
    offsets = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=generator)[:, places]
    moved = _shifted(images, reach, offsets, "constant" if crop else "replicate")
    if not kind.endswith("flip"):
        return moved
    mirror = torch.rand(count, generator=generator)[places] < 0.5
    return torch.where(mirror.to(images.device)[:, None, None, None], moved.flip(3), moved)


def _shifted(images: Tensor, reach: int, offsets: Tensor, border: str) -> Tensor:
    count, _, height, width = images.shape
    rows = (offsets[0] + torch.arange(height)).to(images.device)
    columns = (offsets[1] + torch.arange(width)).to(images.device)
    padded = functional.pad(images, (reach, reach, reach, reach), mode=border).permute(0, 2, 3, 1)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _mixed(images: Tensor, generator: torch.Generator, count: int, places: slice) -> Tensor:
    share = torch.rand(count, generator=generator)[places].to(images.device, images.dtype)[:, None, None, None]
    # Every image's partner stands as far behind it, so that none is mixed with itself alone.
    step = int(torch.randint(1, max(2, len(images)), (1,), generator=generator))
    return share * images + (1 - share) * images.roll(step, 0)


def _affine(images: Tensor, generator: torch.Generator, count: int, places: slice) -> Tensor:
    """Sample each image through its own map: rotation, then slant, then stretch, then shift."""

    def draw(reach: float) -> Tensor:
        return (torch.rand(count, generator=generator)[places] * 2 - 1) * reach

    turn, slant = draw(TURN), draw(SHEAR)
    wide, high = 1 + draw(STRETCH), 1 + draw(STRETCH)
    cos, sin = torch.cos(turn), torch.sin(turn)
    across = torch.stack([cos * wide, (slant - sin) * wide, draw(1 / 7)], dim=1)  # 1/7 of half a width: a 14th
    down = torch.stack([sin * high, cos * high, draw(1 / 7)], dim=1)
    maps = torch.stack([across, down], dim=1).to(images.device)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
