"""The embedded digits: counts, credit, agreement with scikit-learn, and float resizing."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from PIL import Image

from onnxprune.data import InputSpec, Preprocess, digits, open_data
from onnxprune.errors import DataError

F4 = np.dtype(np.float32)
GREY = Preprocess(channels="L")


def spec(*shape: int | str) -> list[InputSpec]:
    return [InputSpec("input", F4, ("batch", *shape))]


def test_counts_types_and_split_by_index() -> None:
    images, labels = digits.load()
    assert images.shape == (1797, 8, 8)
    assert (images.dtype.name, labels.dtype.name) == ("uint8", "int64")
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    train, test = digits.load("train"), digits.load("test")
    assert (len(train[0]), len(test[0])) == (1437, 360)
    np.testing.assert_array_equal(np.concatenate([train[0], test[0]]), images)
    np.testing.assert_array_equal(np.concatenate([train[1], test[1]]), labels)


def test_same_as_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = datasets.load_digits()
    images, labels = digits.load()
    np.testing.assert_array_equal(images, np.rint(wanted.images * 255 / 16))
    np.testing.assert_array_equal(labels, wanted.target)


def test_unknown_split() -> None:
    with pytest.raises(DataError, match=r"^digits has no split 'val'; accepted are train and test$"):
        digits.load("val")


def test_file_is_small_and_credited() -> None:
    folder = resources.files("onnxprune.data")
    assert len(folder.joinpath("digits.npz").read_bytes()) < 100_000
    text = folder.joinpath("digits.LICENSE").read_text(encoding="utf-8")
    for credit in ("E. Alpaydin", "C. Kaynak", "CC BY 4.0", "BSD 3-Clause", "scikit-learn developers"):
        assert credit in text


@pytest.mark.parametrize("side", [28, 32])
def test_resized_in_floating_point(side: int) -> None:
    examples = open_data("digits:test", spec(1, side, side), preprocess=GREY)
    got = examples.fetch(np.array([5]))["input"]
    picture = Image.fromarray(digits.load("test")[0][5].astype(np.float32))
    wanted = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(got[0, 0], wanted, atol=1e-6)
    assert len(np.unique(np.round(got * 255, 3) % 1)) > 1  # not rounded back to whole pixels


def test_own_size_is_kept() -> None:
    images, labels = digits.load("test")
    for inputs in (spec(1, 8, 8), spec(1, "h", "w"), spec(8, 8), spec(64)):
        examples = open_data("digits:test", inputs, preprocess=Preprocess(scale=1.0, channels="L"))
        got = examples.fetch(np.arange(360))["input"]
        np.testing.assert_array_equal(got.reshape(360, 8, 8), images)
        assert examples.labels is not None
        np.testing.assert_array_equal(examples.labels, labels)


def test_grey_is_replicated_for_colour_and_laid_out() -> None:
    first = open_data("digits", spec(3, 12, 10), preprocess=Preprocess()).fetch(np.array([0]))["input"]
    last = open_data("digits", spec(12, 10, 3), preprocess=Preprocess(layout="NHWC")).fetch(np.array([0]))
    assert first.shape == (1, 3, 12, 10)
    np.testing.assert_array_equal(first[:, 0], first[:, 2])
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last["input"])


def test_resize_of_the_preprocessing_is_not_used() -> None:
    plain = open_data("digits", spec(1, 28, 28), preprocess=GREY).fetch(np.arange(3))["input"]
    sized = open_data("digits", spec(1, 28, 28), preprocess=Preprocess(channels="L", resize=28, crop=28))
    np.testing.assert_array_equal(plain, sized.fetch(np.arange(3))["input"])


def test_flat_input_of_28_by_28() -> None:
    flat = open_data("digits", spec(784), preprocess=GREY).fetch(np.arange(3))["input"]
    square = open_data("digits", spec(1, 28, 28), preprocess=GREY).fetch(np.arange(3))["input"]
    np.testing.assert_array_equal(flat, square.reshape(3, 784))


def test_unknown_preprocessing_is_warned_about() -> None:
    assert open_data("digits", spec(1, 8, 8), preprocess=GREY).warnings == ()
    examples = open_data("digits", spec(1, 8, 8))
    assert len(examples.warnings) == 1
    assert examples.warnings[0].startswith("digits: no preprocessing is known, pixels are divided by 255")
    assert float(examples.fetch(np.arange(9))["input"].max()) == 1.0


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"have shape \(n,3,28,28\); input 'input' wants \(batch,1,28,28\)"):
        open_data("digits", spec(1, 28, 28), preprocess=Preprocess())


def test_model_with_the_classes_in_another_order() -> None:
    plain = open_data("digits", spec(1, 8, 8), preprocess=GREY, classes=list("0123456789")).labels
    turned = open_data("digits", spec(1, 8, 8), preprocess=GREY, classes=list("9876543210")).labels
    named = open_data("digits", spec(1, 8, 8), preprocess=GREY, classes=["zero", "one"]).labels
    assert plain is not None and turned is not None and named is not None
    np.testing.assert_array_equal(turned, 9 - plain)
    np.testing.assert_array_equal(named, plain)
