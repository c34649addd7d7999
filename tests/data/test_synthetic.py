"""Synthetic images: how they look, which inputs get them, and that a seed fixes every row."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data import InputSpec, Preprocess, open_data
from onnxprune.data.synthetic import Canvas, colour_axes, draw, plain_look, shapes, softened

F4 = np.dtype(np.float32)
IMAGE = InputSpec("x", F4, ("n", 3, 32, 32))
NORMED = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def rows(want: InputSpec, preprocess: Preprocess | None = None, count: int = 60, seed: int = 0) -> np.ndarray:
    opened = open_data("random", [want], preprocess=preprocess, seed=seed, examples=count)
    return opened.fetch(np.arange(count))[want.name]


def test_images_are_smooth_and_their_channels_alike() -> None:
    images = rows(IMAGE, count=300).astype(float)
    assert images.shape == (300, 3, 32, 32)
    assert abs(images.mean()) < 0.1
    assert 0.7 < images.var() < 1.1
    across = np.corrcoef(images.transpose(1, 0, 2, 3).reshape(3, -1))
    assert across[np.triu_indices(3, 1)].min() > 0.75
    assert np.corrcoef(images[..., :-1].ravel(), images[..., 1:].ravel())[0, 1] > 0.75
    # The amplitude of natural images falls about as the frequency does.
    power = (np.abs(np.fft.fft(images, axis=-1)) ** 2).mean(axis=(0, 1, 2))
    slope = np.polyfit(np.log(np.arange(1, 12)), np.log(power[1:12]), 1)[0]
    assert -3 < slope < -1


def test_the_layers_are_uncorrelated_and_of_unit_variance() -> None:
    canvas = Canvas((3, 16, 16), "NCHW", 3, 16, 16)
    drawn = np.stack([shapes(canvas, np.random.default_rng(row)) for row in range(400)])
    found = np.cov(drawn.transpose(1, 0, 2, 3).reshape(3, -1))
    np.testing.assert_allclose(found, np.eye(3), atol=0.15)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_axes_are_orthogonal(channels: int) -> None:
    axes = colour_axes(channels)
    np.testing.assert_allclose(axes @ axes.T, channels * np.eye(channels), atol=1e-12)
    np.testing.assert_allclose(axes[0], np.ones(channels))


def test_softening_keeps_flat_images_and_blurs_edges() -> None:
    flat = np.full((2, 5, 6), 3.0)
    np.testing.assert_array_equal(softened(flat, 0.7), flat)
    edge = np.zeros((1, 5, 6))
    edge[..., 3:] = 4.0
    np.testing.assert_allclose(softened(edge, 1.0)[0, 2], [0, 0, 1, 3, 4, 4])
    np.testing.assert_array_equal(softened(edge, 0.0), edge)


@pytest.mark.parametrize(
    "preprocess",
    [
        NORMED,
        Preprocess(),
        Preprocess(scale=1.0),
        Preprocess(mean=(0.5,), std=(0.5,)),
        Preprocess(scale=1.0, mean=(123.0, 117.0, 104.0)),
        Preprocess(channels="BGR", mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4)),
    ],
)
def test_draws_keep_to_the_range_of_pixels(preprocess: Preprocess) -> None:
    images = rows(IMAGE, preprocess)
    mean, std = np.broadcast_to(preprocess.mean, 3), np.broadcast_to(preprocess.std, 3)
    for channel in range(3):
        low, high = (0 - mean[channel]) / std[channel], (255 * preprocess.scale - mean[channel]) / std[channel]
        found = images[:, channel].astype(float)
        edge = 1e-6 * (high - low)
        assert low - edge <= found.min() and found.max() <= high + edge
        assert 0.1 < found.std() / (high - low) < 0.35
        assert 0.1 < (found.mean() - low) / (high - low) < 0.8


def test_what_is_told_of_the_data_is_kept() -> None:
    look = plain_look(IMAGE, NORMED, alone=True)
    assert look is not None
    assert (look.gain, look.offset) == ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    middle = plain_look(IMAGE, Preprocess(), alone=True)
    assert middle is not None
    assert (middle.gain, middle.offset) == ((0.25, 0.25, 0.25), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("shape", "preprocess", "example"),
    [
        (("n", 1, 8, 8), None, (1, 8, 8)),
        (("n", 16, 24, 3), None, (16, 24, 3)),
        (("n", 4, 16, 4), None, None),
        (("n", 3, 32, 3), Preprocess(), None),
        (("n", 3, 7, 8), None, None),
        (("n", 16, 32, 32), None, None),
        (("n", 3, "h", "w"), None, None),
        (("n", 3, "h", "w"), Preprocess(), (3, 32, 32)),
        (("n", 3, "h", "w"), Preprocess(resize=48, crop=40), (3, 40, 40)),
        (("n", None, 20, 3), Preprocess(layout="NHWC"), (32, 20, 3)),
        (("n", 64), None, None),
        (("n", 64), Preprocess(channels="L"), (64,)),
        (("n", 192), Preprocess(layout="NHWC"), (192,)),
        (("n", 65), Preprocess(channels="L"), None),
        (("n", 9, 10), Preprocess(channels="L"), (9, 10)),
        (("n", 9, 10), Preprocess(), None),
        (("n",), Preprocess(), None),
    ],
)
def test_which_inputs_are_images(
    shape: tuple[int | str | None, ...], preprocess: Preprocess | None, example: tuple[int, ...] | None
) -> None:
    want = InputSpec("x", F4, shape)
    look = plain_look(want, preprocess, alone=True)
    assert (None if look is None else look.canvas.shape) == example
    if look is not None:
        assert draw(look, np.random.default_rng(0)).shape == example
    assert plain_look(InputSpec("x", np.dtype(np.int64), shape), preprocess, alone=True) is None


def test_free_sides_are_left_where_other_inputs_may_share_them() -> None:
    want = InputSpec("x", F4, ("n", 3, "s", "s"))
    assert plain_look(want, Preprocess(), alone=False) is None


def test_a_row_is_the_same_whatever_is_fetched_with_it() -> None:
    some = open_data("random", [IMAGE], seed=3, examples=4)
    more = open_data("random", [IMAGE], seed=3, examples=9)
    order = np.array([3, 1, 3])
    first = some.fetch(order)["x"]
    np.testing.assert_array_equal(first, more.fetch(order)["x"])
    np.testing.assert_array_equal(first, some.fetch(order)["x"])
    np.testing.assert_array_equal(first[0], first[2])
    assert not np.array_equal(first, open_data("random", [IMAGE], seed=4).fetch(order)["x"])


def test_several_inputs_half_precision_and_warnings() -> None:
    inputs = [
        InputSpec("left", np.dtype(np.float16), ("n", 1, 12, 12)),
        InputSpec("right", F4, ("n", 12, 12, 1)),
        InputSpec("ids", np.dtype(np.int64), ("n", 5)),
        InputSpec("vector", F4, ("n", 7)),
    ]
    opened = open_data("random", inputs, examples=3)
    arrays = next(opened.batches(3)).arrays
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "left": ("float16", (3, 1, 12, 12)),
        "right": ("float32", (3, 12, 12, 1)),
        "ids": ("int64", (3, 5)),
        "vector": ("float32", (3, 7)),
    }
    assert not np.allclose(arrays["left"][:, 0], arrays["right"][..., 0], atol=0.01)
    expected = np.random.default_rng([0, 3, 0]).standard_normal(7, dtype=np.float32)
    np.testing.assert_array_equal(arrays["vector"][0], expected)
    assert opened.synthetic
    assert opened.warnings == (
        "inputs are random numbers: nothing measured on them says how the model does on real data",
        *(
            f"random: images of random shapes for input '{name}' have mean 0 and variance 1: "
            "the model tells nothing of its inputs"
            for name in ("left", "right")
        ),
    )


def test_the_range_and_made_up_sides_are_told() -> None:
    opened = open_data("random", [InputSpec("x", F4, ("n", 3, "h", "w"))], preprocess=NORMED)
    assert opened.warnings[1:] == (
        "random: images of random shapes for input 'x' keep to the range of pixels that preprocessing gives: "
        "the model keeps no statistics of its first layer",
        "random: input 'x' has free dimensions (h,w), examples have shape (3,32,32)",
    )
