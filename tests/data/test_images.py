"""Folders and zips of images: classes, order, lazy decoding, odd and damaged images."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onnxprune.data import InputSpec, Preprocess, open_data
from onnxprune.data.images import SUFFIXES, decode
from onnxprune.errors import DataError

ONE = [InputSpec("input", np.dtype(np.float32), ("batch", 1, 4, 4))]
GREY = Preprocess(scale=1.0, channels="L")


def png(value: int, size: tuple[int, int] = (4, 4), mode: str = "L", form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(buffer, form)
    return buffer.getvalue()


def store(tmp_path: Path, form: str, members: dict[str, bytes]) -> str:
    """Write members as a folder or as a zip, in the order given."""
    if form == "zip":
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return str(path)
    root = tmp_path / "images"
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    root.mkdir(exist_ok=True)
    return str(root)


def values(examples: Any) -> list[int]:
    return [int(v) for v in examples.fetch(np.arange(examples.count))["input"][:, 0, 0, 0]]


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_data(source, ONE, preprocess=GREY, **options)
    return str(caught.value)


CLASSES = {"dog/b.png": png(4), "cat/b.png": png(2), "dog/a.PNG": png(3), "cat/a.png": png(1)}


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("wrapper", ["", "top/", "top/deep/"])
def test_class_folders_sorted_whatever_the_order(tmp_path: Path, form: str, wrapper: str) -> None:
    members = {wrapper + name: content for name, content in CLASSES.items()}
    examples = open_data(store(tmp_path, form, members), ONE, preprocess=GREY)
    assert values(examples) == [1, 2, 3, 4]
    assert examples.labels is not None and examples.labels.tolist() == [0, 0, 1, 1]
    assert examples.warnings == ()


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_model_classes_give_the_index(tmp_path: Path, form: str) -> None:
    source = store(tmp_path, form, CLASSES)
    labels = open_data(source, ONE, preprocess=GREY, classes=["dog", "eel", "cat"]).labels
    assert labels is not None and labels.tolist() == [2, 2, 0, 0]
    assert refusal(source, classes=["dog", "eel"]) == (
        f"{source}: folder 'cat' is no class of the model; its classes are 'dog', 'eel'"
    )
    many = [str(number) for number in range(12)]
    assert refusal(source, classes=many).endswith("'7', '8', '9' and 2 more")


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_hidden_and_other_files_are_ignored(tmp_path: Path, form: str) -> None:
    noise = {
        "__MACOSX/cat/a.png": b"junk",
        ".git/x.png": b"junk",
        "cat/.hidden.png": b"junk",
        "cat/Thumbs.db": b"junk",
        "readme.txt": b"junk",
    }
    examples = open_data(store(tmp_path, form, noise | CLASSES), ONE, preprocess=GREY)
    assert values(examples) == [1, 2, 3, 4]


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("wrapper", ["", "photos/"])
def test_flat_images_are_unlabelled(tmp_path: Path, form: str, wrapper: str) -> None:
    source = store(tmp_path, form, {f"{wrapper}b.png": png(2), f"{wrapper}a.png": png(1)})
    examples = open_data(source, ONE, preprocess=GREY)
    assert examples.labels is None and values(examples) == [1, 2]


def test_one_folder_named_as_a_class_is_labelled(tmp_path: Path) -> None:
    source = store(tmp_path, "folder", {"cat/a.png": png(1)})
    labels = open_data(source, ONE, preprocess=GREY, classes=["ant", "cat"]).labels
    assert labels is not None and labels.tolist() == [1]


def test_images_outside_the_class_folders_are_refused(tmp_path: Path) -> None:
    source = store(tmp_path, "folder", CLASSES | {"stray.png": png(9)})
    assert refusal(source) == (
        f"{source} holds images both in '.' and in its folder 'cat'; "
        "put each image into the folder of its class, or all into one folder"
    )


def test_same_class_in_two_places_is_warned_about(tmp_path: Path) -> None:
    members = {f"{part}/{name}": content for part in ("test", "train") for name, content in CLASSES.items()}
    source = store(tmp_path, "zip", members)
    examples = open_data(source, ONE, preprocess=GREY)
    assert examples.labels is not None and examples.labels.tolist() == [0, 0, 1, 1] * 2
    assert examples.warnings == (
        f"{source}: class folder 'cat' lies in test and in train; all were taken, "
        "so a training and a test part may be mixed",
    )


def test_linked_class_folders_are_followed_once(tmp_path: Path) -> None:
    store(tmp_path, "folder", {"cat/a.png": png(1)})
    root = tmp_path / "linked"
    root.mkdir()
    try:
        (root / "cat").symlink_to(tmp_path / "images" / "cat", target_is_directory=True)
        (root / "loop").symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no symbolic links")
    assert values(open_data(str(root), ONE, preprocess=GREY)) == [1]


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(("members", "tail"), [({}, "it is empty"), ({"a/notes.txt": b""}, "it holds 'a/notes.txt'")])
def test_no_images(tmp_path: Path, form: str, members: dict[str, bytes], tail: str) -> None:
    source = store(tmp_path, form, members)
    assert refusal(source) == f"{source} holds no images ({', '.join(SUFFIXES)}); {tail}"


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_decoding_is_lazy_and_names_the_damaged_member(tmp_path: Path, form: str) -> None:
    source = store(tmp_path, form, CLASSES | {"dog/c.png": png(5)[:40], "dog/d.png": b"no image"})
    examples = open_data(source, ONE, preprocess=GREY)
    assert examples.count == 6
    with pytest.raises(DataError, match=r"^dog/c\.png in .* cannot be decoded as an image \("):
        examples.fetch(np.array([4]))
    with pytest.raises(DataError, match=r"^dog/d\.png in .* cannot be decoded as an image \(unknown format\)$"):
        examples.fetch(np.array([0, 5]))


def test_wrong_size_is_told_on_opening_and_in_the_middle(tmp_path: Path) -> None:
    source = store(tmp_path, "zip", {"a.png": png(1, (5, 6))})
    assert refusal(source) == (f"a.png in {source} is 6x5; input 'input' wants 4x4: give resize in --preprocess")
    mixed = open_data(store(tmp_path, "folder", {"a.png": png(1), "b.png": png(1, (5, 5))}), ONE, preprocess=GREY)
    with pytest.raises(DataError, match=r"^b\.png in .* is 5x5; input 'input' wants 4x4"):
        mixed.fetch(np.array([0, 1]))


def test_unknown_preprocessing_is_warned_about(tmp_path: Path) -> None:
    source = store(tmp_path, "zip", {"a.png": png(51)})
    examples = open_data(source, ONE)
    assert examples.fetch(np.array([0]))["input"][0, 0, 0, 0] == pytest.approx(0.2)
    assert examples.warnings == (
        f"{source}: no preprocessing is known, pixels are divided by 255 and not normalised; "
        "if the model was trained otherwise, give --preprocess",
    )
    whole = open_data(source, [InputSpec("input", np.dtype(np.uint8), ("n", 1, 4, 4))])
    assert whole.fetch(np.array([0]))["input"][0, 0, 0, 0] == 51
    assert "pixels are given as they are" in whole.warnings[0]


def test_images_fill_one_input_only(tmp_path: Path) -> None:
    source = store(tmp_path, "zip", CLASSES)
    with pytest.raises(DataError, match=r"image data fills one input, but the model has 2 \('input', 'b'\)"):
        open_data(source, [*ONE, InputSpec("b", np.dtype(np.float32), ("n",))])


def test_zip_is_read_by_several_threads(tmp_path: Path) -> None:
    source = store(tmp_path, "zip", {f"{number:03}.png": png(number) for number in range(100)})
    examples = open_data(source, ONE, preprocess=GREY)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda row: examples.fetch(np.array([row]))["input"][0, 0, 0, 0], range(100)))
    assert parts == list(range(100))


def test_broken_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK not really")
    assert refusal(str(path)).startswith(f"{path} cannot be read as .zip: truncated, damaged or of another format (")
    source = Path(store(tmp_path, "zip", CLASSES))
    source.write_bytes(source.read_bytes()[:-30])
    assert refusal(str(source)).startswith(f"{source} cannot be read as .zip")


def test_encrypted_and_huge_members(tmp_path: Path) -> None:
    source = Path(store(tmp_path, "zip", {"a.png": png(1)}))
    whole = bytearray(source.read_bytes())
    central = whole.index(b"PK\x01\x02")
    whole[central + 8] |= 1  # the flag that says: encrypted
    source.write_bytes(bytes(whole))
    assert refusal(str(source)) == f"a.png in {source} is encrypted; give an archive without a password"
    whole[central + 8] &= ~1
    whole[central + 24 : central + 28] = (2**30).to_bytes(4, "little")  # unpacked size
    source.write_bytes(bytes(whole))
    assert refusal(str(source)) == f"a.png in {source} unpacks to 1073741824 bytes; 268435456 at most are read"


def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "shape", "corner"),
    [
        (Image.new("L", (3, 2), 7), (2, 3), 7),
        (Image.new("1", (3, 2), 1), (2, 3), 255),
        (Image.new("LA", (3, 2), (7, 0)), (2, 3), 7),
        (Image.new("RGB", (3, 2), (1, 2, 3)), (2, 3, 3), [1, 2, 3]),
        (Image.new("RGBA", (3, 2), (1, 2, 3, 0)), (2, 3, 3), [1, 2, 3]),
        (Image.new("RGB", (3, 2), (1, 2, 3)).convert("P"), (2, 3, 3), None),
        (Image.fromarray(np.full((2, 3), 65535, np.uint16)), (2, 3), 255),
        (Image.fromarray(np.full((2, 3), 514, np.uint16)), (2, 3), 2),
    ],
)
def test_modes_decode_to_grey_or_colour(picture: Image.Image, shape: tuple[int, ...], corner: Any) -> None:
    got = decode(encoded(picture), "a.png")
    assert got.dtype == np.uint8 and got.shape == shape
    if corner is not None:
        assert got[0, 0].tolist() == corner


def test_cmyk_and_real_numbers() -> None:
    assert decode(encoded(Image.new("CMYK", (3, 2)), "JPEG"), "a.jpg").shape == (2, 3, 3)
    with pytest.raises(DataError, match=r"^a\.tif holds real numbers; 8-bit or 16-bit images are needed$"):
        decode(encoded(Image.new("F", (3, 2), 0.5), "TIFF"), "a.tif")


@settings(max_examples=80, deadline=None)
@given(
    form=st.sampled_from(["PNG", "JPEG", "BMP", "GIF"]),
    cut=st.floats(0, 1),
    place=st.floats(0, 0.999),
    flip=st.integers(0, 255),
)
def test_damaged_images_are_data_errors(form: str, cut: float, place: float, flip: int) -> None:
    whole = bytearray(png(100, (8, 8), "RGB", form))
    whole[int(place * len(whole))] ^= flip
    try:
        decoded = decode(bytes(whole[: int(cut * len(whole))]), "a.png")
    except DataError as error:
        assert str(error).startswith("a.png ")
    else:
        assert decoded.dtype == np.uint8
