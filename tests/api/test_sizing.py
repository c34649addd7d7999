"""The size table: every row is what it says, judged on examples that chose nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import helper, numpy_helper

from onnxprune.api import Options, encode, size_table
from onnxprune.api.archives import output_axes, quantised
from onnxprune.errors import ModelError, OptionError
from onnxprune.graph import cleanup
from onnxprune.graph import io as files
from onnxprune.report.sizes import sizes_markdown, write_plot


@pytest.fixture(scope="module")
def table(digits_net, digits, tmp_path_factory: pytest.TempPathFactory):
    """The table of a small classifier of digits, and the model's path."""
    path = tmp_path_factory.mktemp("sizes") / "digits.onnx"
    onnx.save(digits_net(), path)
    return size_table(path, calib=digits["calib"], eval=digits["eval"], points=(0.9, 0.5)), path


def _row(table, name: str):
    return next(row for row in table.rows if row.name == name)


def test_rows_and_figures(table) -> None:
    found, path = table
    names = ["raw", "zstd", "fp16 + zstd", "int8 + zstd"]
    names += [f".surp{own} {point}" for own in ("", "+own") for point in ("0.9", "0.5", ">= 97 %", ">= 99 %")]
    assert [row.name for row in found.rows] == names
    assert _row(found, "raw").bytes == path.stat().st_size
    packed = len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))
    assert abs(_row(found, "zstd").bytes - packed) <= 16  # the frame names its size or not
    for row in found.rows:
        assert row.ratio == row.bytes / path.stat().st_size
        assert row.bits_per_weight == 8 * row.bytes / found.weights
        assert row.bits_per_survivor == 8 * row.bytes / row.nonzeros
        assert row.agreement is not None
        assert row.agreement.low <= row.agreement.rate <= row.agreement.high
    assert _row(found, "raw").agreement.rate == _row(found, "zstd").agreement.rate == 1.0
    assert _row(found, "raw").accuracy == found.accuracy
    assert _row(found, "fp16 + zstd").agreement.rate > 0.99
    sizes = [_row(found, name).bytes for name in names[:4]]
    assert sizes == sorted(sizes, reverse=True)
    assert (found.examples, found.choosing_examples) == (360, 1000)


def test_points_by_agreement_are_the_smallest_that_hold(table) -> None:
    found, _ = table
    for own in ("", "+own"):
        loose, tight = (_row(found, f".surp{own} >= {rate} %") for rate in (97, 99))
        assert loose.bytes <= tight.bytes
        assert loose.agreement.rate > 0.93
        assert tight.agreement.rate > 0.96
    assert _row(found, ".surp 0.5").relative_l1 > 0
    assert _row(found, ".surp+own 0.5").relative_l1 is None


def test_surp_rows_are_the_files_that_encode_writes(table, tmp_path: Path) -> None:
    found, path = table
    assert encode(path, tmp_path / "a.surp", sparsity=0.9).bytes == _row(found, ".surp 0.9").bytes
    row = _row(found, ".surp+own 0.5")
    assert row.nonzeros == encode(path, tmp_path / "b.surp", sparsity=0.5).nonzeros


def test_views(table, tmp_path: Path) -> None:
    found, _ = table
    text = sizes_markdown(found)
    assert text.count("\n| ") == len(found.rows) + 2
    write_plot(found, tmp_path / "a.svg")
    write_plot(found, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_without_data_there_are_sizes_alone(conv_net_path: Path, tmp_path: Path) -> None:
    found = size_table(conv_net_path, points=(0.5,))
    assert len(found.rows) == 6
    assert {row.agreement for row in found.rows} == {row.accuracy for row in found.rows} == {None}
    assert found.data is None
    with pytest.raises(OptionError, match="give --data"):
        write_plot(found, tmp_path / "p.svg")


def test_a_model_in_memory_and_external_data(conv_net, tmp_path: Path) -> None:
    proto = conv_net(0)
    inside = size_table(proto, points=(0.5,))
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = size_table(tmp_path / "e.onnx", points=(0.5,))
    assert outside.rows[0].bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert inside.rows[-1].nonzeros == outside.rows[-1].nonzeros


def _chain(path: Path, given: list[int | str], result: list[int | str], *steps: tuple[object, ...]) -> Path:
    """Save a chain of (operator, weight's name, weight's shape, attributes); a "left" weight stands on the left."""
    rng, value, nodes, stored = np.random.default_rng(0), "x", [], []
    for place, (op_type, name, shape, attributes) in enumerate(steps):
        inputs = ([name, value] if name == "left" else [value, name]) if name else [value]
        nodes.append(helper.make_node(op_type, inputs, [f"v{place}"], f"n{place}", **attributes))
        value = f"v{place}"
        if name:
            stored.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", given), (value, result))]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_models_without_class_scores_and_bad_points(conv_net_path: Path, tmp_path: Path) -> None:
    _chain(tmp_path / "m.onnx", ["n", 3, 8, 8], ["n", 4, 6, 6], ("Conv", "w", (4, 3, 3, 3), {}))
    data = {"x": np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)}
    found = size_table(tmp_path / "m.onnx", data, points=(0.5,))
    assert {row.agreement for row in found.rows} == {None}
    assert "no output holds class scores" in found.warnings[-1]
    for points, until in (((1.0,), ()), ((-0.1,), ()), ((0.5,), (0.0,)), ((0.5,), (1.5,))):
        with pytest.raises(OptionError, match="is not accepted"):
            size_table(conv_net_path, points=points, until=until)
    with pytest.raises(ModelError, match="no weight that can be coded"):
        size_table(conv_net_path, only="nothing")
    with pytest.raises(OptionError, match="confidence"):
        size_table(conv_net_path, options=Options(confidence=1.5))


def test_integers_per_channel() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((5, 3, 2, 2)) * 10.0 ** np.arange(-2, 3)[:, None, None, None]).astype(np.float32)
    weight[4] = 0
    whole, scales = quantised(weight, 0)
    assert (whole.dtype, scales.shape) == (np.int8, (5, 1, 1, 1))
    assert np.abs(whole[:4]).reshape(4, -1).max(axis=1).tolist() == [127] * 4
    assert np.all(np.abs(whole * scales - weight) <= scales / 2 * 1.001)


def test_axes_of_output_channels(tmp_path: Path) -> None:
    _chain(
        tmp_path / "m.onnx", [4, 3, 2, 2], [2, 9],
        ("Conv", "conv", (8, 3, 1, 1), {}), ("ConvTranspose", "up", (8, 5, 1, 1), {}), ("Flatten", "", (), {}),
        ("Gemm", "rows", (7, 20), {"transB": 1}), ("Gemm", "columns", (7, 6), {}), ("MatMul", "right", (6, 9), {}),
        ("MatMul", "left", (2, 4), {}),
    )  # fmt: skip
    model = cleanup.lifted(files.load(tmp_path / "m.onnx"))
    names = ["conv", "up", "rows", "columns", "right", "left"]
    assert list(output_axes(model, names).values()) == [0, 1, 0, 1, 1, 0]


def test_a_weight_too_large_for_float16_has_no_such_row(conv_net, tmp_path: Path) -> None:
    proto = conv_net(0)
    tensor = next(t for t in proto.graph.initializer if t.name == "g2.w")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] = 1e6
    tensor.CopyFrom(numpy_helper.from_array(array, "g2.w"))
    found = size_table(proto, points=(0.5,))
    assert "fp16" not in {row.kind for row in found.rows}
    assert "surp own" not in {row.kind for row in found.rows}
    assert any("too large for float16" in warning for warning in found.warnings)
