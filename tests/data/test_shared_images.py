"""The shared image archives, where they are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxprune.data import Fingerprint, InputSpec, Preprocess, open_data, shared_examples, split_data

F4 = np.dtype(np.float32)
MNIST = [InputSpec("input", F4, ("batch", 1, 28, 28))]
GREY = Preprocess(mean=(0.1307,), std=(0.3081,), channels="L")


def test_mnist_zip(shared_data: Path) -> None:
    examples = open_data(str(shared_data / "mnist-test.zip"), MNIST, preprocess=GREY)
    assert examples.count == 5000 and examples.labels is not None
    assert np.bincount(examples.labels).tolist() == [500] * 10
    got = examples.fetch(np.arange(0, 5000, 250))["input"]
    assert got.shape == (20, 1, 28, 28) and got.dtype == np.float32
    np.testing.assert_allclose(got.min(axis=(1, 2, 3)), -0.1307 / 0.3081, rtol=1e-5)
    assert 2.5 < got.max() <= np.float32((1 - 0.1307) / 0.3081) + 1e-5


def test_cifar_zip(shared_data: Path) -> None:
    inputs = [InputSpec("input", F4, ("batch", 3, 32, 32))]
    examples = open_data(shared_data / "cifar10-val.zip", inputs, preprocess=Preprocess())
    assert examples.labels is not None
    assert np.bincount(examples.labels).tolist() == [500] * 10
    assert examples.fetch(np.arange(20))["input"].shape == (20, 3, 32, 32)


def test_mnist_split_shares_no_images(shared_data: Path) -> None:
    split = split_data(
        MNIST, data=str(shared_data / "mnist-test.zip"), calib_examples=60, eval_examples=60, preprocess=GREY
    )
    prints = []
    for part in (split.calibration, split.evaluation):
        assert part is not None
        prints.append(Fingerprint(keep=True))
        for batch in part.batches(32):
            prints[-1].update(batch.arrays)
    assert shared_examples(*prints) == 0
    assert split.choosing is not None and split.choosing.count == 1000
