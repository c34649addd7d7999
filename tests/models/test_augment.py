from __future__ import annotations

import pytest
import torch

from onnxprune.models.augment import augmented

KINDS = ("shift", "shift+flip", "affine")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images() -> torch.Tensor:
    return torch.rand(6, 3, 28, 28, generator=_generator(1))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_images(kind: str) -> None:
    first, second = (augmented(_images(), kind, _generator()) for _ in range(2))
    assert first.shape == (6, 3, 28, 28)
    assert torch.equal(first, second)
    assert not torch.equal(first, augmented(_images(), kind, _generator(2)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_constant_image_stays_constant(kind: str) -> None:
    flat = torch.full((4, 1, 28, 28), 0.25)
    torch.testing.assert_close(augmented(flat, kind, _generator()), flat)


def test_none_changes_nothing() -> None:
    images = _images()
    assert augmented(images, "none", _generator()) is images


def test_shift_moves_by_at_most_a_fourteenth() -> None:
    images = torch.zeros(64, 1, 28, 28)
    images[:, 0, 14, 14] = 1
    places = augmented(images, "shift", _generator())[:, 0].nonzero()
    assert len(places) == 64
    moves = places[:, 1:] - 14
    assert moves.abs().max() == 2
    assert len({tuple(move) for move in moves.tolist()}) > 10


def test_flip_mirrors_about_half_of_the_images() -> None:
    ramp = torch.arange(28.0).expand(64, 1, 28, 28).contiguous()
    changed = augmented(ramp, "shift+flip", _generator())
    falling = (changed[:, 0, 14, 0] > changed[:, 0, 14, -1]).sum()
    assert 20 <= int(falling) <= 44


def test_affine_keeps_the_middle_near_the_middle() -> None:
    images = torch.zeros(32, 1, 28, 28)
    images[:, 0, 12:16, 12:16] = 1
    mass = augmented(images, "affine", _generator())[:, 0]
    total = mass.sum((1, 2))
    rows = (mass.sum(2) * torch.arange(28)).sum(1) / total
    columns = (mass.sum(1) * torch.arange(28)).sum(1) / total
    assert float((rows - 13.5).abs().max()) < 2.6
    assert float((columns - 13.5).abs().max()) < 2.6
