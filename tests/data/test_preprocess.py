"""Preprocessing against values computed by hand, its JSON and YAML forms, and its refusals."""

# ruff: noqa: E501  (tables of exact messages)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.data import InputSpec, Preprocess
from onnxprune.data.pixels import image_side
from onnxprune.errors import DataError, OptionError

CANONICAL = (
    '{"scale": 0.00392156862745098, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], '
    '"channels": "RGB", "layout": "NCHW", "resize": 256, "crop": 224}'
)


def spec(*shape: int | str | None, dtype: str = "float32") -> InputSpec:
    return InputSpec("input", np.dtype(dtype), ("batch", *shape))


def image(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_json_round_trip_is_canonical() -> None:
    assert Preprocess.from_json(CANONICAL).to_json() == CANONICAL
    shuffled = json.dumps(dict(reversed(json.loads(CANONICAL).items())))
    assert Preprocess.from_json(shuffled).to_json() == CANONICAL


def test_fields_left_out_take_defaults() -> None:
    assert Preprocess.from_json("{}") == Preprocess()
    assert Preprocess().to_json().startswith('{"scale": 0.00392156862745098, "mean": [0.0], "std": [1.0]')


def test_yaml_and_json_files(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("mean: [0.1307]\nstd: [0.3081]\nchannels: L\n")
    (tmp_path / "p.json").write_text('{"mean": [0.1307], "std": [3081e-4], "channels": "L"}')
    wanted = Preprocess(mean=(0.1307,), std=(0.3081,), channels="L")
    assert Preprocess.from_file(tmp_path / "p.yaml") == wanted
    assert Preprocess.from_file(str(tmp_path / "p.json")) == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel": "L"}, "unknown field 'channel', accepted are scale, mean, std, channels, layout, resize, crop; did you mean 'channels'?"),
        ({"zzz": 1}, "unknown field 'zzz', accepted are scale, mean, std, channels, layout, resize, crop"),
        ({"channels": "RGBA"}, "channels is 'RGBA', accepted are RGB, BGR, L"),
        ({"channels": ["L"]}, "channels is ['L'], accepted are RGB, BGR, L"),
        ({"layout": "CHW"}, "layout is 'CHW', accepted are NCHW, NHWC"),
        ({"scale": 0}, "scale is 0, it must be a positive finite number"),
        ({"scale": "1e-3"}, "scale is '1e-3', it must be a positive finite number"),
        ({"scale": 10**400}, f"scale is {10**400}, it must be a positive finite number"),
        ({"mean": [float("-inf")]}, "mean is -inf, it must be a finite number"),
        ({"scale": True}, "scale is True, it must be a positive finite number"),
        ({"mean": [float("nan")]}, "mean is nan, it must be a finite number"),
        ({"mean": 0.5}, "mean is 0.5, it must be a list of numbers"),
        ({"mean": "abc"}, "mean is 'abc', it must be a list of numbers"),
        ({"mean": [0, 0]}, "mean has 2 numbers, it must have 1 or 3 numbers, one per channel"),
        ({"std": [1, 1, 1], "channels": "L"}, "std has 3 numbers, it must have 1 number"),
        ({"std": [1, 0, 1]}, "std is 0, it must be a positive finite number"),
        ({"resize": 0}, "resize is 0, it must be a whole number of pixels or null"),
        ({"resize": 2.5}, "resize is 2.5, it must be a whole number of pixels or null"),
        ({"crop": True}, "crop is True, it must be a whole number of pixels or null"),
        ({"resize": 10, "crop": 12}, "crop is 12, it must be at most 10, the value of resize"),
    ],
)  # fmt: skip
def test_bad_fields(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    text = json.dumps(fields)
    with pytest.raises(DataError) as from_metadata:
        Preprocess.from_json(text)
    assert str(from_metadata.value) == f"metadata onnxprune.preprocess: preprocessing: {message}"
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(OptionError) as from_file:
        Preprocess.from_file(file)
    assert str(from_file.value) == f"{file}: preprocessing: {message}"


def test_documents_that_are_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metadata onnxprune\.preprocess: preprocessing must be a mapping"):
        Preprocess.from_json("[1]")
    with pytest.raises(DataError, match="metadata x: not valid JSON"):
        Preprocess.from_json("{", where="metadata x")
    for text in ("[" * 100_000, '{"scale": 1' + "0" * 5000 + "}"):
        with pytest.raises(DataError, match="not valid JSON"):
            Preprocess.from_json(text)
    file = tmp_path / "p.yaml"
    file.write_text("resize: 2001-99-99")
    with pytest.raises(OptionError, match="not valid YAML or JSON"):
        Preprocess.from_file(file)
    file.write_text("")
    with pytest.raises(OptionError, match="must be a mapping of fields, not None"):
        Preprocess.from_file(file)
    file.write_text("a: [")
    with pytest.raises(OptionError, match="not valid YAML or JSON"):
        Preprocess.from_file(file)
    file.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(OptionError, match="cannot read the preprocessing file"):
        Preprocess.from_file(file)
    with pytest.raises(OptionError, match="cannot read the preprocessing file"):
        Preprocess.from_file(tmp_path / "gone.yaml")


def test_numbers_by_hand() -> None:
    red_green = np.zeros((1, 2, 3), np.uint8)
    red_green[0, 0] = (255, 0, 51)
    red_green[0, 1] = (0, 102, 255)
    preprocess = Preprocess(mean=(0.5, 0.25, 0.2), std=(0.5, 0.25, 0.1))
    got = preprocess.apply([red_green], spec(3, 1, 2))
    assert got.dtype == np.float32 and got.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(got, np.array([[[[1, -1]], [[-1, 0.6]], [[0, 8]]]]), atol=1e-6)


def test_bgr_reverses_before_the_mean() -> None:
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    got = Preprocess(scale=1.0, mean=(1.0, 2.0, 3.0), channels="BGR").apply([pixel], spec(3, 1, 1))
    np.testing.assert_array_equal(got.ravel(), [29, 18, 7])


def test_layouts_agree() -> None:
    images = [image(4, 5, 3, seed=seed) for seed in range(3)]
    first = Preprocess().apply(images, spec(3, 4, 5))
    last = Preprocess(layout="NHWC").apply(np.stack(images), spec(4, 5, 3))
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_grey_and_colour_convert() -> None:
    grey = image(3, 3)
    np.testing.assert_array_equal(
        Preprocess(scale=1.0).apply([grey], spec(3, 3, 3))[0], np.stack([grey] * 3).astype(np.float32)
    )
    colour = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    luma = Preprocess(scale=1.0, channels="L").apply([colour], spec(1, 2, 2))
    np.testing.assert_array_equal(luma, np.full((1, 1, 2, 2), 76, np.float32))  # 0.299 * 255


def test_resize_is_shorter_side_then_centre_crop() -> None:
    columns = np.tile(np.repeat(np.arange(4, dtype=np.uint8) * 60, 4), (8, 1))  # 8 x 16, four stripes
    half = Preprocess(scale=1.0, channels="L", resize=4).apply([columns], spec(1, 4, 8))
    assert half.shape == (1, 1, 4, 8)
    cut = Preprocess(scale=1.0, channels="L", resize=4, crop=2).apply([columns], spec(1, 2, 2))
    np.testing.assert_array_equal(cut[0, 0], half[0, 0, 1:3, 3:5])
    assert (cut[0, 0, :, 0] < cut[0, 0, :, 1]).all()


def test_resize_of_odd_sides_rounds_down_as_torchvision() -> None:
    assert Preprocess(channels="L", resize=4).apply([image(5, 7)], spec(1, 4, 5)).shape == (1, 1, 4, 5)
    assert Preprocess(channels="L", resize=4).apply([image(7, 5)], spec(1, 5, 4)).shape == (1, 1, 5, 4)


def test_other_ranks_and_types() -> None:
    grey = image(4, 4)
    preprocess = Preprocess(scale=1.0, channels="L")
    np.testing.assert_array_equal(preprocess.apply([grey], spec(4, 4))[0], grey)
    np.testing.assert_array_equal(preprocess.apply([grey], spec(16))[0], grey.ravel())
    whole = preprocess.apply([grey], spec(1, 4, 4, dtype="uint8"))
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole[0, 0], grey)
    assert preprocess.apply([grey], spec(1, 4, 4, dtype="float16")).dtype == np.float16
    assert preprocess.apply([grey], spec(1, 4, 4, dtype="float64")).dtype == np.float64


@given(
    scale=st.floats(1e-3, 2),
    mean=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    std=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    channels=st.sampled_from(["RGB", "BGR"]),
    seed=st.integers(0, 99),
)
def test_matches_the_formula(scale: float, mean: list[float], std: list[float], channels: str, seed: int) -> None:
    pixels = image(2, 3, 3, seed=seed)
    preprocess = Preprocess(scale, tuple(mean), tuple(std), channels)
    got = preprocess.apply([pixels], spec(3, 2, 3, dtype="float64"))
    ordered = pixels if channels == "RGB" else pixels[:, :, ::-1]
    wanted = ((ordered * scale - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
    np.testing.assert_allclose(got[0], wanted, rtol=1e-12, atol=1e-12)
    assert Preprocess.from_json(preprocess.to_json()) == preprocess


@pytest.mark.parametrize(
    ("images", "want", "preprocess", "message"),
    [
        ([image(32, 32)], spec(1, 28, 28), Preprocess(channels="L"), "image 0 is 32x32; input 'input' wants 28x28: give resize in --preprocess"),
        ([image(32, 40)], spec(1, "h", 28), Preprocess(channels="L"), "image 0 is 32x40; input 'input' wants ?x28: give resize in --preprocess"),
        ([image(32, 32)], spec(1, 28, 28), Preprocess(channels="L", resize=30), "image 0 is 30x30; input 'input' wants 28x28: that is after resize 30; change them in --preprocess"),
        ([image(8, 8), image(8, 9)], spec(1, "h", "w"), Preprocess(channels="L"), "image 1 is 8x9, but another image of the batch is 8x8: give resize and crop in --preprocess"),
        ([image(8, 8)], spec(1, 9, 9), Preprocess(channels="L", crop=9), "image 0 is 8x8, too small to crop to 9x9: give resize in --preprocess"),
        ([image(8, 8)], spec(1, 8, 8), Preprocess(), "preprocessed images have shape (n,3,8,8); input 'input' wants (batch,1,8,8): change channels (RGB), layout (NCHW) or resize in --preprocess"),
        ([image(8, 8)], spec(63), Preprocess(channels="L"), "preprocessed images have shape (n,64); input 'input' wants (batch,63): change channels (L), layout (NCHW) or resize in --preprocess"),
        ([image(8, 8).astype(np.float32)], spec(1, 8, 8), Preprocess(channels="L"), "image 0 is float32 of shape (8,8); an image is uint8 of shape (H,W), (H,W,1) or (H,W,3)"),
        ([image(8, 8, 4)], spec(1, 8, 8), Preprocess(channels="L"), "image 0 is uint8 of shape (8,8,4); an image is uint8 of shape (H,W), (H,W,1) or (H,W,3)"),
        ([], spec(1, 8, 8), Preprocess(channels="L"), "no images to preprocess for input 'input'"),
        ([image(8, 8)], spec(1, 8, 8, dtype="bool"), Preprocess(channels="L"), "input 'input' wants bool; images can only feed numbers"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(images: list[Any], want: InputSpec, preprocess: Preprocess, message: str) -> None:
    with pytest.raises(DataError) as caught:
        preprocess.apply(images, want)
    assert str(caught.value) == message


def test_names_are_used_in_errors() -> None:
    with pytest.raises(DataError, match=r"^cat/1\.png is 8x8; input 'input' wants 4x4"):
        Preprocess(channels="L").apply([image(4, 4), image(8, 8)], spec(1, 4, 4), names=["a", "cat/1.png"])


@pytest.mark.parametrize(
    ("want", "channels", "layout"),
    [
        (spec(1, 28, 28), "L", "NCHW"),
        (spec(3, 28, 28), "RGB", "NCHW"),
        (spec(28, 28, 1), "L", "NHWC"),
        (spec(28, 28, 3), "RGB", "NHWC"),
        (spec(None, None, None), "RGB", "NCHW"),
        (spec(28, 28), "L", "NCHW"),
        (spec(784), "L", "NCHW"),
        (spec(3072), "RGB", "NCHW"),
    ],
)
def test_plain_guesses(want: InputSpec, channels: str, layout: str) -> None:
    plain = Preprocess.plain(want)
    assert (plain.scale, plain.channels, plain.layout) == (1 / 255, channels, layout)


def test_plain_leaves_whole_numbers_alone() -> None:
    assert Preprocess.plain(spec(1, 8, 8, dtype="uint8")).scale == 1.0


@pytest.mark.parametrize(
    ("want", "layout", "depth", "side"),
    [
        (spec(1, 28, 30), "NCHW", 1, (28, 30)),
        (spec(28, 30, 3), "NHWC", 3, (28, 30)),
        (spec(3, "h", None), "NCHW", 3, (None, None)),
        (spec(28, 30), "NCHW", 1, (28, 30)),
        (spec(784), "NCHW", 1, (28, 28)),
        (spec(3072), "NCHW", 3, (32, 32)),
        (spec(785), "NCHW", 1, (None, None)),
        (spec("n"), "NCHW", 1, (None, None)),
        (spec(), "NCHW", 1, (None, None)),
    ],
)
def test_image_side(want: InputSpec, layout: str, depth: int, side: tuple[int | None, int | None]) -> None:
    assert image_side(want, layout, depth) == side
