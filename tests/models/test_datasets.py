from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from onnxprune.errors import DataError
from onnxprune.models.datasets import CLASS_NAMES, open_torchvision


def _idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture(params=["mnist"])
def mnist(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    raw = tmp_path / {"mnist": "MNIST", "fashion": "FashionMNIST"}[request.param] / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        images = np.arange(count * 784, dtype=np.uint32).reshape(count, 28, 28) % 251
        _idx(raw / f"{part}-images-idx3-ubyte", images.astype(np.uint8))
        _idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images per batch file; their checksums take the place of the real ones, the check still runs."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def dump(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(number: int) -> dict[str, object]:
        data = np.full((2, 3072), number, np.uint8)
        data[:, 1024:2048] = 100
        return {"data": data, "labels": [number, 9]}

    train = [dump(f"data_batch_{number}", batch(number)) for number in range(1, 6)]
    test = [dump("test_batch", batch(0))]
    meta = dump("batches.meta", {"label_names": list(CLASS_NAMES["cifar10"])})
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return tmp_path


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images per file, checksums as for ``cifar10``."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    entries = {}
    for name, shade in (("train", 10), ("test", 20)):
        content = {"data": np.full((3, 3072), shade, np.uint8), "fine_labels": [99, 0, 5], "coarse_labels": [1, 2, 3]}
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        entries[name] = [[name, hashlib.md5(data).hexdigest()]]
    names = pickle.dumps({"fine_label_names": [f"name{number}" for number in range(100)]})
    (folder / "meta").write_bytes(names)
    own = torchvision.datasets.CIFAR100
    monkeypatch.setattr(own, "train_list", entries["train"])
    monkeypatch.setattr(own, "test_list", entries["test"])
    monkeypatch.setattr(
        own, "meta", {"filename": "meta", "key": "fine_label_names", "md5": hashlib.md5(names).hexdigest()}
    )
    return tmp_path


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    ids = ["n01440764", "n01443537"]
    names = {ids[0]: ("tench", "Tinca tinca"), ids[1]: ("goldfish", "Carassius auratus")}
    torch.save((names, ids), tmp_path / "meta.bin")
    for position, name in enumerate(ids):
        folder = tmp_path / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 30), (10 * position, 0, 0)).save(folder / "a.png")
    return tmp_path


def test_mnist_splits(mnist: Path) -> None:
    fetch, labels, classes = open_torchvision("mnist", mnist, "train")
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.dtype == np.int64
    assert classes == tuple("0123456789")
    images = fetch(np.array([5, 0]))
    assert [image.shape for image in images] == [(28, 28)] * 2
    assert images[0].dtype == np.uint8
    assert images[0][0, 0] == (5 * 784) % 251
    assert len(open_torchvision("mnist", mnist, "test")[1]) == 4


@pytest.mark.parametrize("mnist", ["fashion"], indirect=True)
def test_fashion_mnist(mnist: Path) -> None:
    fetch, labels, classes = open_torchvision("fashion", mnist, "train")
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert classes == tuple(torchvision.datasets.FashionMNIST.classes)
    assert fetch(np.array([5]))[0][0, 0] == (5 * 784) % 251


def test_cifar100(cifar100: Path) -> None:
    fetch, labels, classes = open_torchvision("cifar100", cifar100)
    assert labels.tolist() == [99, 0, 5, 99, 0, 5]
    assert classes[99] == "name99"
    assert fetch(np.array([4]))[0].shape == (32, 32, 3)
    assert [image[0, 0, 0] for image in fetch(np.array([0, 3]))] == [10, 20]


@pytest.mark.parametrize(("kind", "files"), [("fashion", "mnist"), ("cifar100", "cifar100"), ("cifar10", "cifar10")])
@pytest.mark.parametrize("mnist", ["fashion"], indirect=True)
def test_specs_reach_the_readers(kind: str, files: str, mnist: Path, request: pytest.FixtureRequest) -> None:
    from onnxprune.data import InputSpec, Preprocess, open_data
    from onnxprune.data.spec import parse_spec
    from onnxprune.models.sources import known_classes

    root = mnist if files == "mnist" else request.getfixturevalue(files)
    grey = kind == "fashion"
    want = InputSpec("input", np.dtype(np.float32), ("batch", 1 if grey else 3, *((28, 28) if grey else (32, 32))))
    spec = f"{kind}:{root}:test"
    examples = open_data(spec, [want], preprocess=Preprocess(channels="L" if grey else "RGB"))
    assert examples.labels is not None
    assert examples.fetch(np.arange(examples.count))["input"].shape[1:] == want.shape[1:]
    assert known_classes(parse_spec(spec)) == open_torchvision(kind, root, "test")[2]


def test_no_split_is_all_of_them_in_order(mnist: Path) -> None:
    fetch, labels, _ = open_torchvision("mnist", mnist)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    whole = fetch(np.arange(10))
    np.testing.assert_array_equal(whole[7], open_torchvision("mnist", mnist, "test")[0](np.array([1]))[0])


def test_cifar10(cifar10: Path) -> None:
    fetch, labels, classes = open_torchvision("cifar10", cifar10, "train")
    assert labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert classes[:2] == ("airplane", "automobile")
    (image,) = fetch(np.array([4]))
    assert image.shape == (32, 32, 3)
    assert image[7, 7].tolist() == [3, 100, 3]


def test_damaged_cifar10_is_refused(cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py" / "test_batch").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cifar10: no readable data under .*corrupted.* or give --download"):
        open_torchvision("cifar10", cifar10, "train")


def test_imagenet(imagenet: Path) -> None:
    fetch, labels, classes = open_torchvision("imagenet", imagenet, "val")
    assert labels.tolist() == [0, 1]
    assert classes == ("tench", "goldfish")
    assert fetch(np.array([1]))[0].shape == (30, 40, 3)


def test_imagenet_without_the_split_is_not_unpacked(imagenet: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet: the folder .*train does not exist: unpack ILSVRC2012"):
        open_torchvision("imagenet", imagenet, "train")


def test_damaged_imagenet_image_is_named(imagenet: Path) -> None:
    file = imagenet / "val" / "n01443537" / "a.png"
    file.write_bytes(b"no image")
    fetch, _, _ = open_torchvision("imagenet", imagenet, "val")
    with pytest.raises(DataError, match=r"imagenet: cannot decode .*n01443537"):
        fetch(np.array([1]))


@pytest.mark.parametrize("kind", ["mnist", "fashion", "cifar10", "cifar100"])
def test_missing_files_name_root_and_download(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{kind}: no readable data under .*{tmp_path.name}.* or give --download"):
        open_torchvision(kind, tmp_path, "train")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="nowhere does not exist: name one or give --download"):
        open_torchvision(kind, tmp_path / "nowhere", "train")


def test_truncated_mnist(mnist: Path) -> None:
    (mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00")
    with pytest.raises(DataError, match="mnist: no readable data"):
        open_torchvision("mnist", mnist, "train")


def test_unknown_kind_and_split(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="unknown torchvision data 'svhn': accepted are mnist, fashion, cifar10, cifar100, imagenet"
    ):
        open_torchvision("svhn", tmp_path)
    with pytest.raises(DataError, match="mnist has no split 'val': accepted are train and test"):
        open_torchvision("mnist", tmp_path, "val")


def test_missing_torchvision_is_answered_with_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.models.datasets.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r'mnist needs torchvision: pip install "onnxprune\[train\]"'):
        open_torchvision("mnist", tmp_path, "train")


def test_download_is_asked_for_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def offline(self: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(DataError, match=r"mnist: cannot download to .*: no network"):
        open_torchvision("mnist", tmp_path, "train", download=True)
