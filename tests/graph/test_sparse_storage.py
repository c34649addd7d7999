"""Weights kept as sparse initialisers: smaller files that ONNX Runtime and onnxprune read as the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.graph import io, sparse


def _thinned(proto: onnx.ModelProto, share: float, dtype: type = np.float32) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor) * (rng.random(tensor.dims) < share)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
    return proto


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_same_model_in_fewer_bytes(net, run_model, tmp_path: Path, external: bool, dtype: type) -> None:
    made = net(dtype=dtype)
    value = made.op("MatMul", "x", made.weight(64, 48))
    value = made.op("Add", value, made.weight(1))
    proto = made.model({"x": ["n", 64]}, made.op("Gemm", value, made.weight(48, 80)))
    onnx.save(_thinned(proto, 0.05, dtype), tmp_path / "m.onnx", save_as_external_data=external, size_threshold=0)
    model = io.load(tmp_path / "m.onnx")
    dense = io.save(model, tmp_path / "dense.onnx")
    thin = io.save(model, tmp_path / "thin.onnx", sparse_storage=True)
    assert thin.bytes < dense.bytes / 2
    stored = onnx.load(tmp_path / "thin.onnx", load_external_data=False)
    assert len(stored.graph.sparse_initializer) == 2
    assert all(tensor.indices.data_type == onnx.TensorProto.INT64 for tensor in stored.graph.sparse_initializer)
    assert not (tmp_path / "thin.onnx.data").exists()
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(dtype)}
    results = [next(iter(run_model(tmp_path / name, feeds).values())) for name in ("dense.onnx", "thin.onnx")]
    assert np.array_equal(*results)
    again = io.load(tmp_path / "thin.onnx")
    for name, value in model.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), again.graph.initializers[name].const_value.numpy())
    assert io.save(again, tmp_path / "again.onnx", sparse_storage=True).bytes == thin.bytes


def test_weights_that_would_not_shrink_stay_dense(conv_net, tmp_path: Path) -> None:
    for share, names in ((0.5, set()), (0.4, set()), (0.15, {"c1.w", "c2.w", "g1.w", "g2.w"})):
        onnx.save(_thinned(conv_net(0), share), tmp_path / "m.onnx")
        assert sparse.smaller(io.load(tmp_path / "m.onnx")).keys() == names
    facts = io.save(io.load(tmp_path / "m.onnx"), tmp_path / "t.onnx", sparse_storage=True)
    assert facts.bytes < (tmp_path / "m.onnx").stat().st_size


def test_nothing_is_left_where_the_sparse_form_fails(conv_net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(_thinned(conv_net(0), 0.05), tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sparse, "sparsify", broken)
    with pytest.raises(KeyboardInterrupt):
        io.save(model, tmp_path / "t.onnx", sparse_storage=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
