"""A model as a .surp file and back: whole, cut off, in pieces, damaged, in another process."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.api import decode, encode, open_stream
from onnxprune.codec.container import read_header
from onnxprune.errors import CodecError, ModelError, OptionError
from onnxprune.graph import cleanup, io, weights


def _weights(model: str | Path | ir.Model) -> dict[str, np.ndarray]:
    opened = cleanup.lifted(io.load(model) if isinstance(model, str | Path) else model)
    found = weights.weights(opened, weights.Selection()).values
    names = {str(value.name) for value in found}
    graph = opened.graph
    return {name: np.asarray(graph.initializers[name].const_value.numpy()) for name in sorted(names)}


def _all(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture
def coded(conv_net, tmp_path: Path) -> Path:
    """A model of 70,000 weights as a file of several blocks, at a relative L1 error of 2 %."""
    onnx.save(conv_net(0, channels=(16, 32), hidden=128), tmp_path / "model.onnx")
    encode(tmp_path / "model.onnx", tmp_path / "model.surp", relative_l1=0.02)
    return tmp_path / "model.surp"


def test_there_and_back(coded: Path, run_model) -> None:
    source = coded.with_name("model.onnx")
    found = decode(coded, coded.with_name("back.onnx"))
    assert (found.verified, found.fitted, found.warnings) == (True, False, ())
    assert found.hits == found.all_hits
    before, after = _all(source), _all(coded.with_name("back.onnx"))
    assert before.keys() == after.keys()
    weighty = _weights(source)
    for name, array in before.items():
        if name not in weighty:
            assert np.array_equal(array, after[name])
        else:
            assert np.all(np.abs(after[name]) <= 1.5 * np.abs(array).max())
            assert np.all(after[name] * array >= 0)
    errors = [np.abs(weighty[n] - after[n]).sum() / np.linalg.norm(weighty[n]) for n in weighty]
    sizes = [np.abs(weighty[n]).sum() / np.linalg.norm(weighty[n]) for n in weighty]
    assert sum(errors) / sum(sizes) < found.relative_l1  # the code's own values would be at it
    assert found.relative_l1 <= 0.02
    feeds = {"input": np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32)}
    one, two = (run_model(path, feeds)["logits"] for path in (source, coded.with_name("back.onnx")))
    assert np.abs(one - two).max() < 0.2 * np.abs(one).max()


def test_the_result_says_what_is_in_the_file(coded: Path) -> None:
    out = coded.with_name("again.surp")
    found = onnxprune.encode(coded.with_name("model.onnx"), out)
    assert found.bytes == out.stat().st_size
    assert found.bytes == found.header_bytes + found.skeleton_bytes + found.values_bytes + found.body_bytes
    assert found.source_bytes == coded.with_name("model.onnx").stat().st_size
    assert found.sparsity == pytest.approx(0.5, abs=1e-4)
    assert found.sparsity >= 0.5
    assert found.bits_per_weight == pytest.approx(8 * found.bytes / found.weights)
    assert found.bits_per_survivor == pytest.approx(8 * found.bytes / found.nonzeros)
    assert (found.values_bytes, found.fitted, found.warnings) == (0, False, ())
    assert onnxprune.decode(out).nonzeros == found.nonzeros


def test_the_same_bytes_in_another_process(coded: Path) -> None:
    decode(coded, coded.with_name("here.onnx"))
    code = (
        "import sys, onnxprune; onnxprune.encode(sys.argv[1], sys.argv[2], relative_l1=0.02); "
        "onnxprune.decode(sys.argv[3], sys.argv[4])"
    )
    names = ["model.onnx", "there.surp", "model.surp", "there.onnx"]
    subprocess.run([sys.executable, "-c", code, *(coded.with_name(name) for name in names)], check=True)
    assert coded.with_name("there.surp").read_bytes() == coded.read_bytes()
    assert coded.with_name("there.onnx").read_bytes() == coded.with_name("here.onnx").read_bytes()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_a_prefix_is_the_model_that_stops_there(coded: Path, share: float) -> None:
    with coded.open("rb") as file:
        header = read_header(file)
    cut = coded.with_name("cut.surp")
    cut.write_bytes(coded.read_bytes()[: header.body_begin + int(share * header.body)])
    found = decode(cut)
    assert 0 < found.hits < header.shape.hits
    assert found.warnings[0].startswith("the file is cut off")
    by_share = decode(coded, fraction=share)
    assert (by_share.hits, by_share.verified) == (found.hits, True)
    stopped = coded.with_name("stopped.surp")
    encode(coded.with_name("model.onnx"), stopped, hits=found.hits)
    models = [_weights(m) for m in (found.model, by_share.model, decode(stopped).model)]
    models.append(_weights(decode(coded, hits=found.hits).model))
    for name, array in models[0].items():
        assert all(np.array_equal(array, other[name]) for other in models[1:])


def test_stops_of_both_sides(coded: Path) -> None:
    source, out = coded.with_name("model.onnx"), coded.with_name("s.surp")
    assert encode(source, out, bytes=5000).body_bytes <= 5000
    assert encode(source, out, bits=8 * 4000, force=True).body_bytes <= 4000
    assert encode(source, out, hits=777, force=True).hits == 777
    assert encode(source, out, relative_l1=0.3, force=True).relative_l1 <= 0.3
    found = encode(source, out, sparsity=0.75, force=True)
    assert found.nonzeros == found.weights - -(-3 * found.weights // 4)
    at = decode(coded, sparsity=0.75)
    assert at.nonzeros == found.nonzeros
    assert decode(coded, bytes=0).nonzeros == 0
    assert "ends at a sparsity of 0.75" in decode(out, sparsity=0.5).warnings[0]


def test_a_stream_in_pieces(coded: Path) -> None:
    data = coded.read_bytes()
    stream = open_stream()
    begin = 0
    for size in (7, 12, 2000, *[30_000] * (len(data) // 30_000 + 1)):
        stream.feed(data[begin : begin + size])
        begin += size
        if not stream.ready:
            with pytest.raises(CodecError, match="there is no model in the first"):
                stream.model()
            continue
        cut = coded.with_name("cut.surp")
        cut.write_bytes(data[:begin])
        for name, array in _weights(decode(cut).model).items():
            assert np.array_equal(array, _weights(stream.model()).get(name, np.zeros_like(array)))
    assert stream.done
    assert stream.received == len(data)
    early = open_stream(sparsity=0.9)
    early.feed(data)
    assert early.done


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04", b"\x89SURP\r\n\x1a" + b"\xff" * 12, b"\x89SURP\r\n\x1a\x02\x00" + bytes(10)]
)
def test_a_stream_that_is_none_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(CodecError):
        open_stream().feed(data)


def test_fitted_values(coded: Path, conv_net) -> None:
    source = coded.with_name("pruned.onnx")
    proto = conv_net(0, channels=(16, 32), hidden=128)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor) * (rng.random(tensor.dims) < 0.3)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(proto, source)
    plain = encode(source, coded.with_name("p.surp"), values="fitted", alpha=5.0)
    found = encode(source, coded.with_name("f.surp"), values="fitted")
    assert found.body_bytes < plain.body_bytes / 2  # positions alone
    assert found.body_bytes * 8 < 1.05 * (found.weights * 0.882 + found.nonzeros)  # entropy of the mask, and signs
    assert found.fitted
    assert found.relative_l1 is None
    assert found.values_bytes > 0
    for name in ("p.surp", "f.surp"):
        back = decode(coded.with_name(name))
        assert back.fitted
        for key, array in _weights(source).items():
            assert np.array_equal(_weights(back.model)[key], array.astype(np.float16).astype(np.float32))
    half = decode(coded.with_name("p.surp"), fraction=0.5)
    assert not half.fitted
    assert "not used" in half.warnings[0]
    known = _weights(decode(coded.with_name("p.surp"), fraction=0.5, fitted=True).model)
    for key, array in _weights(half.model).items():
        exact = _weights(source)[key].astype(np.float16).astype(np.float32)
        assert np.array_equal(known[key], np.where(array != 0, exact, 0))
    with pytest.raises(OptionError, match="holds no fitted values"):
        decode(coded, fitted=True)
    with pytest.raises(OptionError, match="give no stop beside it"):
        encode(source, coded.with_name("x.surp"), values="fitted", sparsity=0.5)
    with pytest.raises(OptionError, match="is not accepted; give fitted"):
        encode(source, coded.with_name("x.surp"), values="refit")
    dense = encode(coded.with_name("model.onnx"), coded.with_name("d.surp"), values="fitted")
    assert "no weight is zero" in " ".join(dense.warnings)


def _one(weight: np.ndarray, kind: int, readers: int = 1) -> onnx.ModelProto:
    tensor = TensorProto(data_type=kind, dims=weight.shape, name="w", raw_data=weight.tobytes())
    nodes = [helper.make_node("MatMul", ["x", "w"], [f"y{i}"], f"m{i}") for i in range(readers)]
    given = [helper.make_tensor_value_info("x", kind, ["n", weight.shape[0]])]
    outs = [helper.make_tensor_value_info(f"y{i}", kind, ["n", weight.shape[1]]) for i in range(readers)]
    graph = helper.make_graph(nodes, "one", given, outs, [tensor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.float16, TensorProto.FLOAT16),
        (np.float32, TensorProto.FLOAT),
        (np.float64, TensorProto.DOUBLE),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16),
    ],
)
@pytest.mark.parametrize("shape", [(40, 30), (3, 4), (1, 1)])
def test_element_types_small_and_shared(dtype, kind: int, shape: tuple[int, int], tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    onnx.save(_one(weight, kind, readers=2), tmp_path / "m.onnx")
    found = encode(tmp_path / "m.onnx", tmp_path / "m.surp", sparsity=0.0, centroid=0.0)
    assert (found.weights, found.nonzeros, found.tensors) == (weight.size, weight.size, 1)
    back = decode(tmp_path / "m.surp", tmp_path / "back.onnx")
    (array,) = _weights(back.model).values()
    assert array.dtype == dtype
    wide, close = weight.astype(np.float64), array.astype(np.float64)
    assert np.all(np.abs(close) <= np.abs(wide) * 1.01)
    assert np.all(np.sign(close) == np.sign(wide))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float16, TensorProto.FLOAT16), (ml_dtypes.bfloat16, TensorProto.BFLOAT16)]
)
def test_fitted_values_of_short_types_are_exact(dtype, kind: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((40, 30)) * (rng.random((40, 30)) < 0.3)).astype(dtype)
    onnx.save(_one(weight, kind), tmp_path / "m.onnx")
    encode(tmp_path / "m.onnx", tmp_path / "m.surp", values="fitted")
    (array,) = _weights(decode(tmp_path / "m.surp").model).values()
    assert array.dtype == dtype
    assert np.array_equal(array, weight)


def test_weights_that_are_no_weights(conv_net_path: Path, tmp_path: Path) -> None:
    onnx.save(_one(np.zeros((4, 4), np.float32), TensorProto.FLOAT), tmp_path / "zeros.onnx")
    with pytest.raises(ModelError, match=r"has no weight that can be coded: node 'm0', its weight 'w' is all zeros"):
        encode(tmp_path / "zeros.onnx", tmp_path / "z.surp")
    with pytest.raises(ModelError, match="only= does not name it"):
        encode(conv_net_path, tmp_path / "z.surp", only="nothing")
    assert not (tmp_path / "z.surp").exists()
    found = encode(conv_net_path, tmp_path / "some.surp", ignore="fc*")
    assert found.tensors == 2
    assert set(found.skipped) == {"fc1", "fc2"}
    before, after = _weights(conv_net_path), _weights(decode(tmp_path / "some.surp").model)
    assert np.array_equal(before["g1.w"], after["g1.w"])
    assert not np.array_equal(before["c2.w"], after["c2.w"])


def test_a_model_that_is_sparser_already(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    weight[:15] = 0
    onnx.save(_one(weight, TensorProto.FLOAT), tmp_path / "m.onnx")
    found = encode(tmp_path / "m.onnx", tmp_path / "m.surp", sparsity=0.5)
    assert found.nonzeros == 100
    assert found.warnings == ("the code ended before its stop: 100 of 400 weights are not zero, all that there are",)


def test_fitted_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    weight = np.array([[1e5, 1.0], [0.0, 2.0]], np.float32)
    onnx.save(_one(weight, TensorProto.FLOAT), tmp_path / "m.onnx")
    with pytest.raises(CodecError, match="too large for float16"):
        encode(tmp_path / "m.onnx", tmp_path / "m.surp", values="fitted")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    weight[0, 0] = 1e-9
    onnx.save(_one(weight, TensorProto.FLOAT), tmp_path / "m.onnx")
    found = encode(tmp_path / "m.onnx", tmp_path / "m.surp", values="fitted")
    assert any("too small" in warning for warning in found.warnings)


def test_external_data_and_models_in_memory(conv_net, tmp_path: Path) -> None:
    proto = conv_net(0, hidden=64)
    onnx.save(proto, tmp_path / "m.onnx")
    first = encode(tmp_path / "m.onnx", tmp_path / "a.surp")
    third = encode(proto, tmp_path / "c.surp")
    onnx.save(proto, tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    second = encode(tmp_path / "e.onnx", tmp_path / "b.surp")
    assert first.body_bytes == second.body_bytes == third.body_bytes
    assert second.source_bytes > first.source_bytes * 0.9
    decode(tmp_path / "b.surp", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx.data").exists()
    with pytest.raises(OptionError, match="holds weights of the source model"):
        encode(tmp_path / "e.onnx", tmp_path / "w.bin", force=True)


def test_what_is_not_coded_must_fit_into_protobuf(
    conv_net_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.graph.skeleton.PROTOBUF_LIMIT", 5000)
    with pytest.raises(ModelError, match="over protobuf's 2 GiB; let more nodes be coded"):
        encode(conv_net_path, tmp_path / "m.surp", only="fc2")
    encode(conv_net_path, tmp_path / "m.surp")
    monkeypatch.setattr(io, "INLINE_LIMIT", 5000)  # a model over the limit comes back with a data file
    decode(tmp_path / "m.surp", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx.data").exists()


def test_outputs_that_must_not_be_written(coded: Path) -> None:
    data = coded.read_bytes()
    with pytest.raises(OptionError, match="is the source model itself"):
        encode(coded.with_name("model.onnx"), coded.with_name("model.onnx"), force=True)
    with pytest.raises(OptionError, match="exists already"):
        encode(coded.with_name("model.onnx"), coded)
    with pytest.raises(OptionError, match=r"would overwrite the \.surp file"):
        decode(coded, coded, force=True)
    copy = coded.with_name("out.onnx.data")
    copy.write_bytes(data)
    with pytest.raises(OptionError, match=r"would overwrite the \.surp file"):
        decode(copy, coded.with_name("out.onnx"), force=True)
    assert copy.read_bytes() == coded.read_bytes() == data


def test_nothing_is_left_after_an_interruption(coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(coded.parent.iterdir())
    packing = importlib.import_module("onnxprune.api.packing")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing.container, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(coded.with_name("model.onnx"), coded.with_name("new.surp"))
    assert sorted(coded.parent.iterdir()) == before


def test_a_file_of_fewer_bytes_than_its_header(coded: Path) -> None:
    data, cut = coded.read_bytes(), coded.with_name("cut.surp")
    with coded.open("rb") as file:
        header = read_header(file)
    for size in (0, 5, 30, header.begin - 1, header.begin + 5, header.body_begin - 1):
        cut.write_bytes(data[:size])
        with pytest.raises(CodecError, match=r"cut\.surp'"):
            decode(cut)
    cut.write_bytes(data[: header.body_begin])
    assert decode(cut).nonzeros == 0
    cut.write_bytes(data[:-9])
    assert decode(cut).hits > 0
    with pytest.raises(CodecError, match="cannot be verified"):
        decode(cut, strict=True)


def test_flipped_bits(coded: Path) -> None:
    data, bad = bytearray(coded.read_bytes()), coded.with_name("bad.surp")
    with coded.open("rb") as file:
        header = read_header(file)
    assert header.body > 65536
    for place, said in (
        (9, "version"),
        (40, "header is corrupt"),
        (header.begin + 50, "the skeleton does not match its checksum"),
        (header.body_begin + 300, f"block 0 at byte {header.body_begin:,} is corrupt"),
        (header.body_begin + 65536 + 300, f"block 1 at byte {header.body_begin + 65536:,} is corrupt"),
        (len(data) - 3, "is corrupt"),
    ):
        data[place] ^= 16
        bad.write_bytes(data)
        with pytest.raises(CodecError) as caught:
            decode(bad)
        assert said in str(caught.value)
        data[place] ^= 16


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_light_graphs_of_the_onnx_package(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    onnx.save(importlib.import_module("benchmarks.zoo.light").seeded(name, 0), tmp_path / "m.onnx")
    found = encode(tmp_path / "m.onnx", tmp_path / "m.surp", sparsity=0.7)
    back = decode(tmp_path / "m.surp", tmp_path / "back.onnx")
    assert back.nonzeros == found.nonzeros
    io.save(io.load(tmp_path / "m.onnx"), tmp_path / "same.onnx")
    one, two = onnx.load(tmp_path / "same.onnx"), onnx.load(tmp_path / "back.onnx")
    coded = set(_weights(tmp_path / "m.onnx"))
    for model in (one, two):
        for tensor in model.graph.initializer:
            if tensor.name in coded:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
    assert one == two


def test_encoding_holds_forty_bytes_a_weight(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).laplace(size=(1000, 1000)).astype(np.float32)
    onnx.save(_one(weight, TensorProto.FLOAT), tmp_path / "m.onnx")
    encode(tmp_path / "m.onnx", tmp_path / "warm.surp", sparsity=0.99)
    tracemalloc.start()
    encode(tmp_path / "m.onnx", tmp_path / "m.surp", sparsity=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 44 * weight.size  # four of them are the model itself
