"""Saving keeps everything around the graph, writes all or nothing, and never over the source."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import BackendError, OptionError
from onnxprune.graph import io, spaces, surgery
from onnxprune.graph.cleanup import cleanup, finish, prepare


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def outside(tmp_path: Path, conv_net: Any) -> Path:
    """A model with external data beside it, in a folder of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(conv_net(0), path, save_as_external_data=True, location="weights.bin", size_threshold=300)
    return path


def test_external_data_round_trip(tmp_path: Path, outside: Path, run_model: Any, feeds: Any) -> None:
    model = io.load(outside)
    before = listing(outside.parent)
    out = tmp_path / "result.onnx"
    facts = io.save(cleanup(model)[0], out)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "result.onnx", "result.onnx.data"}
    assert listing(outside.parent) == before
    saved = onnx.load(out, load_external_data=False)
    outside_now = [t for t in saved.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert outside_now
    assert {e.value for t in outside_now for e in t.external_data if e.key == "location"} == {"result.onnx.data"}
    assert facts.bytes == out.stat().st_size + (tmp_path / "result.onnx.data").stat().st_size
    given = feeds(onnx.load(outside))
    np.testing.assert_array_equal(run_model(out, given)["logits"], run_model(outside, given)["logits"])
    again = io.save(io.load(out), tmp_path / "again.onnx")
    assert again.sha256 != facts.sha256  # the files differ in the name of the data file alone
    assert (tmp_path / "again.onnx.data").read_bytes() == (tmp_path / "result.onnx.data").read_bytes()


def test_cutting_a_model_with_external_shared_weights(tmp_path: Path, net: Any, run_model: Any) -> None:
    """Two uses of one external weight are cut differently; the data of the source stays as it is."""
    n = net()
    weight = n.weight(16, 16)
    value = "x"
    for _ in range(3):
        value = n.op("Relu", n.op("MatMul", value, weight))
    model = n.model({"x": ["N", 16]}, n.op("MatMul", value, n.weight(16, 4)))
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="m.bin", size_threshold=100)
    before = listing(source.parent)
    work = prepare(io.load(source))
    analysis = spaces.analyse(work)
    keep = {space.name: np.arange(8 + i) for i, space in enumerate(analysis.prunable)}
    surgery.cut(analysis, keep)
    io.save(finish(work), tmp_path / "out.onnx")
    assert listing(source.parent) == before
    widths = [list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer]
    assert sorted(widths) == [[8, 9], [9, 10], [10, 4], [16, 8]]
    assert run_model(tmp_path / "out.onnx", {"x": np.ones((2, 16), np.float32)})[model.graph.output[0].name].shape == (
        2,
        4,
    )


def test_external_constant_attributes_survive(tmp_path: Path, run_model: Any) -> None:
    weight = numpy_helper.from_array(np.arange(2000, dtype=np.float32).reshape(4, 500), "held")
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("MatMul", ["x", "w"], ["y"])]
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", 4), ("y", 500))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", kinds[:1], kinds[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    given = {"x": np.ones((1, 4), np.float32)}
    want = run_model(model, given)["y"]
    source = tmp_path / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="m.bin", size_threshold=0, convert_attribute=True)
    assert (tmp_path / "m.bin").stat().st_size
    out = tmp_path / "out" / "r.onnx"
    out.parent.mkdir()
    io.save(io.load(source), out)
    np.testing.assert_array_equal(run_model(out, given)["y"], want)
    (tmp_path / "m.bin").unlink()
    np.testing.assert_array_equal(run_model(out, given)["y"], want)


def test_inline_source_gives_an_inline_result(tmp_path: Path, conv_net_path: Path) -> None:
    io.save(io.load(conv_net_path), tmp_path / "result.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "result.onnx"}


# What a round trip keeps -----------------------------------------------------------------------------------------


def decorated(conv_net: Any) -> onnx.ModelProto:
    model: onnx.ModelProto = conv_net(3)
    model.doc_string, model.producer_name, model.producer_version = "what it is", "somebody", "1.2"
    model.domain, model.model_version = "org.example", 17
    model.graph.doc_string = "the graph"
    model.graph.node[0].doc_string = "the first layer"
    model.graph.input[0].doc_string = "pixels"
    annotation = model.graph.quantization_annotation.add(tensor_name="r1")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="r1.scale")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "r1.scale"))
    function = helper.make_function(
        "my.ops", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    model.graph.node.append(helper.make_node("Twice", ["logits"], ["twice"], "call", domain="my.ops"))
    model.graph.output.append(helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["batch", 5]))
    return model


@pytest.mark.parametrize("tidy", [False, True], ids=["save", "cleanup and save"])
def test_round_trip_keeps_everything_around_the_graph(
    tmp_path: Path, conv_net: Any, run_model: Any, tidy: bool
) -> None:
    model = decorated(conv_net)
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    loaded = io.load(source)
    io.save(cleanup(loaded)[0] if tidy else loaded, out)
    saved = onnx.load(out)
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version", "ir_version"):
        assert getattr(saved, field) == getattr(model, field), field
    for field in ("metadata_props", "opset_import", "functions"):
        want, got = getattr(model, field), getattr(saved, field)
        assert sorted(map(str, got)) == sorted(map(str, want)), field
    assert saved.graph.doc_string == "the graph"
    assert saved.graph.name == model.graph.name
    assert saved.graph.node[0].doc_string == "the first layer"
    assert [str(i) for i in saved.graph.input] == [str(i) for i in model.graph.input]
    assert [str(o) for o in saved.graph.output] == [str(o) for o in model.graph.output]
    assert [str(a) for a in saved.graph.quantization_annotation] == [
        str(a) for a in model.graph.quantization_annotation
    ]
    assert "r1.scale" in {t.name for t in saved.graph.initializer}
    x = np.random.default_rng(0).standard_normal((2, 1, 12, 12)).astype(np.float32)
    for name, want in run_model(model, {"input": x}).items():
        np.testing.assert_array_equal(run_model(out, {"input": x})[name], want)


def test_opset_under_its_other_name_is_understood(tmp_path: Path, conv_net: Any) -> None:
    model = conv_net(0)
    model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, tmp_path / "m.onnx")
    assert io.load(tmp_path / "m.onnx").opset_imports == {"": 18}


def test_loading_and_saving_leave_the_source_file_alone(tmp_path: Path, conv_net_path: Path) -> None:
    before = conv_net_path.read_bytes()
    model = io.load(conv_net_path)
    first = io.save(model, tmp_path / "a.onnx")
    second = io.save(model, tmp_path / "b.onnx")
    assert first.sha256 == second.sha256
    assert conv_net_path.read_bytes() == before


def test_facts_are_stable_and_see_the_external_data(outside: Path) -> None:
    first = io.facts(outside)
    assert io.facts(outside) == first
    assert first.bytes == sum(path.stat().st_size for path in outside.parent.iterdir())
    data = outside.parent / "weights.bin"
    changed = bytearray(data.read_bytes())
    changed[0] ^= 1
    data.write_bytes(bytes(changed))
    assert io.facts(outside).sha256 != first.sha256


# Writing is all or nothing ---------------------------------------------------------------------------------------


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older one"])
@pytest.mark.parametrize("moment", ["onnx.save", "check", "rename", "second rename"])
@pytest.mark.parametrize(("failure", "expected"), [(full_disk, BackendError), (interrupted, KeyboardInterrupt)])
def test_nothing_is_left_behind(
    tmp_path: Path,
    conv_net: Any,
    monkeypatch: pytest.MonkeyPatch,
    external: bool,
    older: bool,
    moment: str,
    failure: Callable[..., Any],
    expected: type[BaseException],
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    source, out = tmp_path / "m.onnx", folder / "r.onnx"
    onnx.save(conv_net(0), source, save_as_external_data=external, location="m.bin", size_threshold=0)
    if older:
        write(out, b"older model")
        write(folder / "r.onnx.data", b"older data")
    before = listing(folder)
    model = io.load(source)
    replace, calls = Path.replace, iter(range(100))
    if moment == "onnx.save":
        monkeypatch.setattr(onnx, "save", failure)
    elif moment == "check":
        monkeypatch.setattr(onnx.checker, "check_model", failure)
    else:
        last = {"rename": 0, "second rename": (2 if older else 1) if external else 0}[moment]

        def fail_once(self: Path, target: Path) -> Path:
            return failure() if next(calls) == last else replace(self, target)

        monkeypatch.setattr(Path, "replace", fail_once)
    with pytest.raises(expected) as caught:
        io.save(model, out)
    monkeypatch.undo()
    assert listing(folder) == before
    assert {path.name for path in folder.iterdir()} == set(before)
    if expected is BackendError:
        assert str(caught.value) == f"'{out}' cannot be written: No space left on device"
    io.save(model, out)
    assert io.load(out)


def test_a_full_disk_while_external_data_is_written(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = io.load(outside)
    monkeypatch.setattr(ir.external_data, "unload_from_model", full_disk)
    with pytest.raises(BackendError, match="No space left on device"):
        io.save(model, tmp_path / "r.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    monkeypatch.undo()
    assert all(value.const_value is not None for value in model.graph.initializers.values())
    io.save(model, tmp_path / "r.onnx")


def test_checking_on_a_full_disk_is_a_backend_error(conv_net_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = io.load(conv_net_path)
    monkeypatch.setattr(onnx, "save", full_disk)
    with pytest.raises(BackendError, match="cannot be written for checking: No space left on device"):
        io.check(model)


def test_checking_leaves_no_temporary_files(
    conv_net_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    io.check(io.load(conv_net_path))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_wrong_rewrite_is_caught_before_it_is_written(
    tmp_path: Path, conv_net_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(io, "_SCRATCH_LIMIT", limit)
    model = io.load(conv_net_path)
    first = model.graph.initializers["c2.w"]
    first.const_value = ir.Tensor(np.zeros((12, 7, 3, 3), np.float32), name="c2.w")
    with pytest.raises(BackendError, match=r"the rewritten model fails onnx\.checker"):
        io.check(model)
    with pytest.raises(BackendError, match=r"the rewritten model fails onnx\.checker"):
        io.save(model, tmp_path / "r.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


def test_a_temporary_model_with_large_weights_lies_in_two_files(
    tmp_path: Path, conv_net_path: Path, monkeypatch: pytest.MonkeyPatch, run_model: Any, feeds: Any
) -> None:
    model, given = io.load(conv_net_path), feeds(onnx.load(conv_net_path))
    (tmp_path / "small").mkdir()
    small = io.to_scratch(model, tmp_path / "small")
    assert listing(small.parent).keys() == {"model.onnx"}
    monkeypatch.setattr(io, "_SCRATCH_LIMIT", 0)
    (tmp_path / "large").mkdir()
    large = io.to_scratch(model, tmp_path / "large")
    assert listing(large.parent).keys() == {"model.onnx", "model.onnx.data"}
    np.testing.assert_array_equal(run_model(large, given)["logits"], run_model(small, given)["logits"])
    assert all(not isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    io.save(model, tmp_path / "result.onnx")
    assert not (tmp_path / "result.onnx.data").exists()


# Where a result may go -------------------------------------------------------------------------------------------


def test_output_equal_to_the_source_under_any_spelling(
    tmp_path: Path, conv_net_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "link.onnx").symlink_to(conv_net_path)
    os.link(conv_net_path, tmp_path / "hard.onnx")
    spellings = ["model.onnx", "./model.onnx", "deeper/../model.onnx", str(conv_net_path), "link.onnx", "hard.onnx"]
    for spelling in spellings:
        with pytest.raises(OptionError, match="is the source model itself; give another path"):
            io.check_output(spelling, source=conv_net_path, force=True)


def test_output_that_exists_needs_force(tmp_path: Path, conv_net_path: Path) -> None:
    out = write(tmp_path / "r.onnx", b"older")
    with pytest.raises(OptionError, match=r"r\.onnx' exists already; give --force to overwrite it"):
        io.check_output(out, source=conv_net_path, force=False)
    assert io.check_output(out, source=conv_net_path, force=True) == out
    out.unlink()
    assert io.check_output(out, source=conv_net_path, force=False) == out
    write(tmp_path / "r.onnx.data", b"older")
    with pytest.raises(OptionError, match=r"r\.onnx\.data' exists already; give --force to overwrite it"):
        io.check_output(out, source=conv_net_path, force=False)


def test_output_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist; make it first"):
        io.check_output(tmp_path / "no" / "r.onnx", source=None, force=False)
    with pytest.raises(OptionError, match="is a folder; give a file name such as"):
        io.check_output(tmp_path, source=None, force=True)
    write(tmp_path / "file", b"")
    with pytest.raises(OptionError, match="does not exist; make it first"):
        io.check_output(tmp_path / "file" / "r.onnx", source=None, force=False)
    with pytest.raises(OptionError, match="the file name has 304 characters, 240 are accepted"):
        io.check_output(tmp_path / ("n" * 300 + ".out"), source=None, force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_output_folder_must_be_writable(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    with pytest.raises(OptionError, match="is not writable"):
        io.check_output(folder / "r.onnx", source=None, force=False)


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is not an ordinary file, so it is not overwritten"):
        io.check_output(os.devnull, source=None, force=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OptionError, match="is not an ordinary file, so it is not overwritten"):
        io.check_output(tmp_path / "pipe", source=None, force=True)


def test_force_never_overwrites_the_data_of_the_source(tmp_path: Path, conv_net: Any) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(conv_net(0), source, save_as_external_data=True, location="r.onnx.data", size_threshold=0)
    with pytest.raises(OptionError, match=r"would overwrite '.*r\.onnx\.data' of the source model"):
        io.check_output(tmp_path / "r.onnx", source=source, force=True)


def test_checking_an_output_leaves_nothing_there(tmp_path: Path) -> None:
    io.check_output(tmp_path / "r.onnx", source=None, force=False)
    assert not list(tmp_path.iterdir())


def test_a_staged_model_stays_only_where_it_is_kept(tmp_path: Path, outside: Path) -> None:
    model, folder = io.load(outside), tmp_path / "results"
    folder.mkdir()
    out = folder / "out.onnx"
    with io.staged(model, out) as waiting:
        assert not out.exists()
        size = waiting.facts.bytes
    assert list(folder.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), io.staged(model, out):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []
    with io.staged(model, out) as waiting:
        waiting.keep()
    assert io.facts(out) == waiting.facts
    assert waiting.facts.bytes == size == sum(each.stat().st_size for each in folder.iterdir())


def test_a_model_is_measured_without_being_written(tmp_path: Path, conv_net_path: Path, outside: Path) -> None:
    model = io.load(conv_net_path)
    assert io.size(model) == io.save(model, tmp_path / "inline.onnx").bytes
    model = io.load(outside)
    assert io.size(model) == io.save(model, tmp_path / "model.onnx").bytes
