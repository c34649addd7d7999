"""Statistics from one run of the data: fixed and symbolic batches, memory, faults."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Tap
from onnxprune.data import Examples, open_data
from onnxprune.errors import DataError, OptionError
from onnxprune.runtime import collect as room
from onnxprune.runtime.collect import collect
from onnxprune.runtime.observers import Gram, GramResult
from onnxprune.runtime.session import Settings, input_specs

TAP = Tap("r", 1)


def examples(model: ir.Model, rows: np.ndarray) -> Examples:
    return open_data({"x": rows}, input_specs(model))


def gathered(model: ir.Model, rows: np.ndarray, settings: Settings | None = None) -> GramResult:
    found = collect(model, {TAP: Gram(1, 3)}, examples(model, rows), settings or Settings())
    assert isinstance(found[TAP], GramResult)
    return found[TAP]


def wanted(model: ir.Model, rows: np.ndarray) -> np.ndarray:
    weight = model.graph.initializers["w"].const_value.numpy().astype(np.float64)
    hidden = np.maximum(rows.astype(np.float64) @ weight.T, 0)
    return hidden.T @ hidden


@pytest.mark.parametrize("size", [1, 7, 32, 50, 64])
def test_any_batch_size_gives_the_same_sums(dense: Callable[..., ir.Model], rows: np.ndarray, size: int) -> None:
    model = dense("batch")
    found = gathered(model, rows, Settings(batch_size=size))
    assert found.rows == 50
    assert np.allclose(found.gram, wanted(model, rows), rtol=1e-5)
    assert np.allclose(found.gram, gathered(model, rows, Settings(batch_size=50)).gram, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 8, 25, 50, 64])
def test_a_fixed_batch_counts_every_example_once(dense: Callable[..., ir.Model], rows: np.ndarray, batch: int) -> None:
    model = dense(batch)  # 8 leaves a partial last batch, 64 is more than there are
    found = gathered(model, rows, Settings(batch_size=3))
    assert found.rows == 50
    assert np.allclose(found.gram, wanted(model, rows), rtol=1e-5)


def test_padding_is_left_out_where_a_tensor_mixes_it_with_examples(
    dense: Callable[..., ir.Model], rows: np.ndarray
) -> None:
    model, tap = dense(8), Tap("flat", 0)
    found = collect(model, {tap: Gram(0, 3, outer=8)}, examples(model, rows), Settings())[tap]
    assert found.rows == 48  # six full batches; the last two examples cannot be told from what pads them
    assert np.allclose(found.gram, wanted(model, rows[:48]), rtol=1e-5)
    few = collect(model, {tap: Gram(0, 3, outer=8)}, examples(model, rows[:4]), Settings())[tap]
    assert np.allclose(few.gram, 2 * wanted(model, rows[:4]), rtol=1e-5)  # each of the four fills in once more


def test_results_come_by_key_and_progress_by_batch(dense: Callable[..., ir.Model], rows: np.ndarray) -> None:
    model = dense("batch")
    seen: list[int] = []
    taps = {Tap("h", 1): Gram(1, 3), Tap("r", 1): Gram(1, 3), Tap("y", 1): Gram(1, 2), Tap("x", 1): Gram(1, 4)}
    found = collect(model, taps, examples(model, rows), Settings(batch_size=20), advance=seen.append)
    assert list(found) == list(taps)
    assert seen == [20, 20, 10]
    assert np.allclose(found[Tap("x", 1)].gram, rows.astype(np.float64).T @ rows)


def test_no_observers_means_no_run(dense: Callable[..., ir.Model]) -> None:
    def never(_: np.ndarray) -> dict[str, np.ndarray]:
        raise AssertionError

    assert collect(dense("batch"), {}, Examples("none", 1, None, never), Settings()) == {}


def test_the_tap_limit_shrinks_the_batch(
    dense: Callable[..., ir.Model], rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense("batch")
    seen: list[int] = []
    monkeypatch.setattr(room, "TAP_LIMIT", 5 * 4 * 3)  # five rows of three float32
    found = collect(model, {TAP: Gram(1, 3)}, examples(model, rows), Settings(), advance=seen.append)
    assert seen == [5] * 10
    assert np.allclose(found[TAP].gram, wanted(model, rows), rtol=1e-5)
    monkeypatch.setattr(room, "TAP_LIMIT", 1)
    seen.clear()
    collect(model, {TAP: Gram(1, 3)}, examples(model, rows), Settings(), advance=seen.append)
    assert seen == [1] * 50


def test_the_tap_limit_counts_the_sizes_of_the_data_not_of_the_symbols(
    conv_net: Callable[..., onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = conv_net(0)
    del proto.graph.node[4:]
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("p1", onnx.TensorProto.FLOAT, None))
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    model = ir.serde.deserialize_model(proto)
    images = np.zeros((12, 1, 40, 40), dtype=np.float32)
    data = open_data({"input": images}, input_specs(model))
    seen: list[int] = []
    monkeypatch.setattr(room, "TAP_LIMIT", 4 * 4 * 8 * 40 * 40)  # four examples of [8, 40, 40] float32
    collect(model, {Tap("r1", 1): Gram(1, 8)}, data, Settings(), advance=seen.append)
    assert seen == [4, 4, 4]


@pytest.mark.parametrize(("scale", "batch"), [(np.inf, "batch"), (3e38, "batch"), (np.nan, 8)])
def test_numbers_that_are_not_finite_name_the_tensor(
    dense: Callable[..., ir.Model], rows: np.ndarray, scale: float, batch: int | str
) -> None:
    weight = np.ones((3, 4))
    weight[1] = scale
    model = dense(batch, weight=weight)
    with pytest.raises(DataError) as caught:
        gathered(model, np.abs(rows) + 1)
    assert str(caught.value) == ("tensor 'r' holds NaN or infinity on 'arrays in memory'; check the model and the data")


def test_a_batch_size_of_zero_is_refused(dense: Callable[..., ir.Model], rows: np.ndarray) -> None:
    with pytest.raises(OptionError, match="batch size is 0"):
        gathered(dense("batch"), rows, Settings(batch_size=0))


def test_the_model_is_not_touched_and_no_file_stays(
    dense: Callable[..., ir.Model], rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = dense("batch")
    before = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    gathered(model, rows)
    assert ir.serde.serialize_model(model).SerializeToString(deterministic=True) == before
    assert not list(tmp_path.iterdir())
