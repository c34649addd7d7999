from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data import InputSpec, open_data
from onnxprune.errors import DataError

WANT = InputSpec("input", np.dtype(np.float32), ("batch", 1, 20, 20, 20))


def test_the_same_everywhere() -> None:
    train, test, both = (open_data(spec, [WANT]) for spec in ("voxels:train", "voxels:test", "voxels"))
    assert (train.count, test.count, both.count) == (512, 128, 640)
    assert train.labels is None
    assert train.targets is not None and test.targets is not None and both.targets is not None
    np.testing.assert_array_equal(both.targets, np.concatenate([train.targets, test.targets]))
    assert train.targets[:2].tolist() == pytest.approx([0.10293, 1.06239], abs=1e-5)
    assert abs(float(train.targets.mean())) < 0.5
    assert 0.5 < float(train.targets.std()) < 2
    images = both.fetch(np.array([512, 0]))["input"]
    assert images.shape == (2, 1, 20, 20, 20)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[0], test.fetch(np.array([0]))["input"][0])
    assert float(images.min()) >= 0


def test_other_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="voxels"):
        open_data("voxels", [InputSpec("input", np.dtype(np.float32), ("batch", 1, 28, 28))])
    with pytest.raises(DataError, match="holds real numbers; input 'input' wants int64"):
        open_data("voxels", [InputSpec("input", np.dtype(np.int64), ("batch", 1, 20, 20, 20))])
