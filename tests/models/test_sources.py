from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxprune.data import InputSpec, open_data
from onnxprune.data.spec import Spec
from onnxprune.errors import DataError
from onnxprune.models.sources import TrainingData, open_training, portable_spec

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)


def _folder(root: Path, sizes: tuple[int, ...] = (28, 28), count: int = 20, colour: bool = False) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            side = sizes[number % len(sizes)]
            shape = (side, side, 3) if colour else (side, side)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def test_digits_trains_on_its_training_side_only() -> None:
    data = open_training("digits", GREY)
    assert (data.train.count, data.validation.count, data.test.count) == (1293, 144, 360)
    assert data.classes == tuple("0123456789")
    assert data.spec == "digits"
    assert data.test.source == "digits:test"
    rows = [set(part.origin.tolist()) for part in (data.train, data.validation) if part.origin is not None]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == set(range(1437))


def test_inputs_are_those_that_the_metadata_describes() -> None:
    data = open_training("digits", GREY)
    want = InputSpec("input", np.dtype(np.float32), ("batch", *GREY))
    again = open_data("digits:test", [want], preprocess=data.preprocess)
    rows = np.arange(5)
    np.testing.assert_array_equal(data.test.fetch(rows)["input"], again.fetch(rows)["input"])
    images = data.train.fetch(np.arange(data.train.count))["input"]
    assert float(images.mean()) == pytest.approx(0, abs=1e-3)
    assert float(images.std()) == pytest.approx(1, abs=1e-3)
    assert data.preprocess is not None
    assert all(round(value, 4) == value for value in data.preprocess.mean + data.preprocess.std)
    assert (data.preprocess.channels, data.preprocess.resize, data.preprocess.crop) == ("L", 28, 28)


def test_grey_data_for_a_colour_network_is_not_colour() -> None:
    data = open_training("digits", COLOUR)
    assert data.train.fetch(np.arange(2))["input"].shape == (2, *COLOUR)
    assert not data.colour
    assert data.preprocess is not None
    assert data.preprocess.channels == "RGB"


def test_the_seed_decides_the_held_out_rows() -> None:
    first, again, other = (open_training("digits", GREY, seed=seed).validation for seed in (0, 0, 1))
    assert first.origin is not None
    assert again.origin is not None
    assert other.origin is not None
    assert first.origin.tolist() == again.origin.tolist() != other.origin.tolist()


def test_class_folders_are_divided_and_named(tmp_path: Path) -> None:
    data = open_training(str(_folder(tmp_path / "d")), GREY)
    assert (data.train.count, data.validation.count, data.test.count) == (48, 6, 6)
    assert data.classes == ("ant", "bee", "cat")
    assert data.spec is None
    assert data.preprocess is not None
    assert data.preprocess.resize is None
    parts = [part.origin.tolist() for part in (data.train, data.validation, data.test) if part.origin is not None]
    assert sorted(row for part in parts for row in part) == list(range(60))


def test_a_test_source_of_its_own_leaves_more_to_learn_from(tmp_path: Path) -> None:
    test = _folder(tmp_path / "test")
    for image in (test / "ant").iterdir():  # a class that the test lacks keeps its place
        image.unlink()
    (test / "ant").rmdir()
    data = open_training(str(_folder(tmp_path / "d")), GREY, test=str(test))
    assert (data.train.count, data.validation.count, data.test.count) == (54, 6, 40)
    assert data.classes == ("ant", "bee", "cat")
    assert data.test.labels is not None and set(data.test.labels) == {1, 2}
    first = data.test.fetch(np.arange(1))["input"]
    assert first.mean() == pytest.approx(_plain(test, data), abs=1e-5)
    other = open_training("digits", GREY, test="digits:train")
    assert (other.train.count, other.test.count) == (1293, 1437)
    with pytest.raises(DataError):
        open_training("digits", GREY, test=str(test))


def _plain(test: Path, data: TrainingData) -> float:
    pixels = np.asarray(Image.open(sorted((test / "bee").iterdir())[0]), dtype=np.float64) / 255
    assert data.preprocess is not None
    return float((pixels.mean() - data.preprocess.mean[0]) / data.preprocess.std[0])


def test_zip_of_class_folders_in_a_wrapper(tmp_path: Path) -> None:
    root = _folder(tmp_path / "d", colour=True)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, f"top/{file.relative_to(root)}")
        archive.writestr("__MACOSX/top/zebra/1.png", b"")
        archive.writestr("top/.hidden/1.png", b"")
    data = open_training(str(tmp_path / "d.zip"), COLOUR)
    assert data.classes == ("ant", "bee", "cat")
    assert data.colour
    assert data.preprocess is not None
    assert (data.preprocess.resize, data.preprocess.crop) == (32, 32)


def test_one_odd_image_makes_all_resized(tmp_path: Path) -> None:
    root = _folder(tmp_path / "d")
    Image.new("L", (50, 40), 9).save(root / "cat" / "odd.png")
    data = open_training(str(root), GREY)
    assert data.preprocess is not None
    assert (data.preprocess.resize, data.preprocess.crop) == (28, 28)


def test_finished_arrays_need_no_preprocessing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, *GREY)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(40) % 4)
    data = open_training(str(tmp_path / "x.npz"), GREY)
    assert data.preprocess is None
    assert data.classes == ("0", "1", "2", "3")
    assert data.train.origin is not None
    np.testing.assert_array_equal(data.train.fetch(np.arange(32))["input"], images[data.train.origin])


def test_pixel_arrays_are_preprocessed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=images, y=np.arange(40) % 4)
    data = open_training(str(tmp_path / "x.npz"), GREY)
    assert data.preprocess is not None
    assert data.preprocess.mean[0] == pytest.approx(0.5, abs=0.01)


def _saved(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "x.npz", **arrays)
    return str(folder / "x.npz")


def test_unsuitable_data_is_told_in_a_sentence(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((40, *GREY)).astype(np.float32)
    with pytest.raises(DataError, match=r"x.npz: the examples have no labels; training needs class folders, or 'y'"):
        open_training(_saved(tmp_path, x=images), GREY)
    with pytest.raises(DataError, match=r"all of one class; a classifier needs at least 2"):
        open_training(_saved(tmp_path, x=images, y=np.zeros(40, np.int64)), GREY)
    with pytest.raises(DataError, match=r"5 examples are too few to train on; at least 10 are needed"):
        open_training(_saved(tmp_path, x=images[:5], y=np.arange(5)), GREY)
    with pytest.raises(DataError, match=r"same value everywhere; there is nothing to learn"):
        open_training(_saved(tmp_path, x=np.ones_like(images), y=np.arange(40) % 2), GREY)
    with pytest.raises(DataError, match=r"\(n,1,28,28\).*\(batch,3,"):
        open_training(_saved(tmp_path, x=images, y=np.arange(40) % 2), COLOUR)
    with pytest.raises(DataError, match="random: the examples have no labels"):
        open_training("random", GREY)


def test_nan_in_the_data_is_found(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((40, *GREY)).astype(np.float32)
    images[7, 0, 3, 3] = np.nan
    with pytest.raises(DataError, match="holds NaN in example 7"):
        open_training(_saved(tmp_path, x=images, y=np.arange(40) % 2), GREY, seed=3)


def test_flat_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("L", (28, 28), number).save(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match="have no labels"):
        open_training(str(tmp_path), GREY)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (Spec("digits", "digits"), "digits"),
        (Spec("digits:train", "digits", split="train"), None),
        (Spec("mnist:data/mnist", "mnist", path="data/mnist"), "mnist:data/mnist"),
        (Spec("mnist:/data/mnist", "mnist", path="/data/mnist"), None),
        (Spec("mnist:~/mnist", "mnist", path="~/mnist"), None),
        (Spec("mnist:../mnist", "mnist", path="../mnist"), None),
        (Spec("mnist:C:\\mnist", "mnist", path="C:\\mnist"), None),
        (Spec("images.zip", "zip", path="images.zip"), None),
    ],
)
def test_only_portable_specs_with_splits_go_into_files(spec: Spec, wanted: str | None) -> None:
    assert portable_spec(spec) == wanted


def test_shared_mnist(shared_data: Path) -> None:
    data = open_training(str(shared_data / "mnist-test.zip"), GREY)
    assert (data.train.count, data.validation.count, data.test.count) == (4000, 500, 500)
    assert data.classes == tuple("0123456789")
    assert data.preprocess is not None
    assert data.preprocess.resize is None
    assert data.preprocess.mean[0] == pytest.approx(0.1307, abs=0.01)
    assert data.preprocess.std[0] == pytest.approx(0.3081, abs=0.01)
