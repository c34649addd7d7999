"""Eight bits by ONNX Runtime's quantiser and the way back: close decisions, smaller files, refusals."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.data import open_data
from onnxprune.errors import BackendError, DataError, ModelError, OptionError
from onnxprune.passes.dequantize import Dequantize
from onnxprune.passes.int8 import Int8
from onnxprune.pipeline import Run, run
from onnxprune.recipe import parse
from onnxprune.runtime.session import Settings, input_specs


def size(model: ir.Model | onnx.ModelProto) -> int:
    return len((ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model).SerializeToString())


@pytest.mark.parametrize(
    ("options", "agreement"),
    [
        ("", 0.97),
        ("(method=percentile)", 0.97),
        ("(method=entropy)", 0.97),
        ("(activations=int8,per_channel=false)", 0.95),
        ("(weights=uint8,reduce_range=false)", 0.97),
        ("(mode=dynamic)", 0.97),
    ],
)
def test_decisions_stay_and_the_file_shrinks(
    options: str, agreement: float, digits_net: Any, digits: Any, apply: Any, run_model: Any
) -> None:
    proto = digits_net()
    given = proto.SerializeToString()
    result, step = apply(proto, f"int8{options}", digits["calib"])
    assert step.result.numbers["quantised"] == step.result.numbers["nodes"] == 2
    assert step.result.warnings == () and step.result.skipped == {}
    shown = {"input": digits["eval"]["input"]}
    got, want = (run_model(model, shown, optimise=True)["out"] for model in (result, proto))
    assert np.mean(got.argmax(1) == want.argmax(1)) >= agreement
    assert size(result) < 0.5 * size(proto)
    assert proto.SerializeToString() == given


def test_what_is_said_of_the_model_stays(conv_net: Any, apply: Any, run_model: Any) -> None:
    proto = conv_net(0)
    data = {"input": np.random.default_rng(0).standard_normal((70, 1, 12, 12)).astype(np.float32)}
    level, folder = logging.root.manager.disable, tempfile.gettempdir()
    result, step = apply(proto, "int8", data, settings=Settings(batch_size=32))
    assert (logging.root.manager.disable, tempfile.gettempdir()) == (level, folder)
    written = ir.serde.serialize_model(result)
    assert [str(v) for v in written.graph.input] == [str(v) for v in proto.graph.input]
    assert [str(v) for v in written.graph.output] == [str(v) for v in proto.graph.output]
    assert dict(result.metadata_props) == {p.key: p.value for p in proto.metadata_props}
    assert (result.ir_version, dict(result.opset_imports)) == (9, {"": 18})
    assert "BatchNormalization" not in {node.op_type for node in result.graph}
    assert step.cost.bytes < 0.5 * sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)
    # Weights that are named in the source are still found.
    kinds = {
        value.const_value.dtype for name, value in result.graph.initializers.items() if name.endswith("_quantized")
    }
    assert kinds == {ir.DataType.INT8, ir.DataType.INT32}
    again, _ = apply(proto, "int8", data, settings=Settings(batch_size=32))
    assert ir.serde.serialize_model(again).SerializeToString() == written.SerializeToString()


def test_only_and_ignore(conv_net: Any, apply: Any) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((40, 1, 12, 12)).astype(np.float32)}
    _, step = apply(conv_net(0), "int8(only=conv*;fc1,ignore=conv2)", data)
    assert step.result.skipped == {"conv2": "ignore= names it", "fc2": "only= does not name it"}
    assert step.result.numbers["quantised"] == 2
    _, step = apply(conv_net(0), "int8(only=nothing)", data)
    assert step.result.warnings == ("int8 quantised nothing; the reasons are listed with the step",)


def test_without_data_ranges_are_taken_at_run_time(conv_net: Any, apply: Any) -> None:
    result, step = apply(conv_net(0), "int8")
    assert step.result.numbers["mode"] == "dynamic"
    assert "without calibration examples" in step.result.warnings[0]
    assert step.result.skipped == {
        name: "the quantiser left it in floating point (dynamic)" for name in ("conv1", "conv2")
    }
    assert "MatMulInteger" in {node.op_type for node in result.graph}
    _, step = apply(conv_net(0), "int8(weights=uint8)")
    assert step.result.numbers["quantised"] == 4


def masked_net(net: Any) -> onnx.ModelProto:
    """Return two layers with a softmax between them whose input an infinite mask was added to."""
    build = net(8)
    x = build.gemm("x", 8, 6, name="one")
    mask = build.store("mask", np.array([0, -np.inf, 0, 0, -np.inf, 0], np.float32))
    x = build.node("Softmax", build.node("Add", x, mask, name="masked"), name="soft")
    proto: onnx.ModelProto = build.model(build.gemm(x, 6, 3, name="two"))
    return proto


def test_a_mask_of_minus_infinity_stays_in_floating_point(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    proto, data = masked_net(net), images(50, 8)
    result, step = apply(proto, "int8", data)
    (got,), (want,) = (run_model(model, data).values() for model in (result, proto))
    assert np.isfinite(want).all() and np.isfinite(got).all()
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
    assert step.result.numbers["quantised"] >= 1
    assert step.result.skipped.items() <= {
        ("one", "a tensor that it reads or makes holds infinity, which has no range")
    }


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_names_of_free_dimensions_stay(mode: str, net: Any, apply: Any, images: Any) -> None:
    build = net(8)
    proto = build.model(build.relu(build.gemm("x", 8, 6, name="one")))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    result, _ = apply(proto, f"int8(mode={mode})", images(40, 8))
    assert [str(v) for v in ir.serde.serialize_model(result).graph.output] == [str(v) for v in proto.graph.output]


@pytest.mark.parametrize("count", [3, 50])
def test_a_fixed_batch_is_filled(count: int, net: Any, apply: Any, images: Any) -> None:
    build = net(8)
    proto = build.model(build.gemm(build.relu(build.gemm("x", 8, 6, name="one")), 6, 3, name="two"))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 16
    _, step = apply(proto, "int8", images(count, 8))
    assert step.result.numbers["quantised"] == 2


def test_the_way_back(conv_net: Any, apply: Any, run_model: Any) -> None:
    proto = conv_net(0)
    data = {"input": np.random.default_rng(0).standard_normal((64, 1, 12, 12)).astype(np.float32)}
    result, step = apply(proto, "int8,dequantize", data)
    assert step.result.numbers == {"pairs": 10, "weights": 8, "clips": 0}
    assert step.result.skipped == {}
    kinds = [node.op_type for node in result.graph]
    assert kinds == [n.op_type for n in proto.graph.node if n.op_type != "BatchNormalization"]
    assert {"c1.w", "g1.w"} <= set(result.graph.initializers)
    got, want = (run_model(model, data)["logits"] for model in (result, proto))
    assert np.abs(got - want).max() < 0.03 * np.abs(want).max()
    # Other passes work on the result.
    narrow, last = apply(proto, "int8,dequantize,id(keep=0.5)", data)
    assert len(last.result.numbers["layers"]) == 3 and last.result.skipped.keys() == {"fc2"}
    _, third = apply(narrow, "int8", data)
    assert third.result.numbers["quantised"] == 4


def pair(build: Any, value: str, zero: int, name: str) -> str:
    build.store(f"{name}.s", np.array(0.05))
    build.store(f"{name}.z", np.array(zero, np.uint8))
    rounded = build.node("QuantizeLinear", value, f"{name}.s", f"{name}.z", name=f"{name}_q")
    return str(build.node("DequantizeLinear", rounded, f"{name}.s", f"{name}.z", name=f"{name}_d"))


@pytest.mark.parametrize(("zero", "clips"), [(0, 1), (128, 0)])
def test_a_removed_relu_comes_back(zero: int, clips: int, net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(8)
    proto = build.model(build.gemm(pair(build, build.gemm("x", 8, 6, name="one"), zero, "mid"), 6, 3, name="two"))
    result, step = apply(proto, [Dequantize()])
    assert step.result.numbers["clips"] == clips
    data = images(30, 8)
    got, want = (run_model(model, data)["two_out"] for model in (result, proto))
    assert np.abs(got - want).max() < 0.2


def test_pairs_at_the_ends_of_the_graph(net: Any, apply: Any, run_model: Any, images: Any) -> None:
    build = net(8)
    build.store("big", np.array(0.5)), build.store("none", np.array(0, np.uint8))
    value = build.gemm(pair(build, "x", 128, "start"), 8, 3, name="one")
    rounded = build.node("QuantizeLinear", value, "big", "none", name="alone")
    proto = build.model(pair(build, value, 128, "end"))
    result, step = apply(proto, [Dequantize()])
    assert [node.op_type for node in result.graph] == ["Gemm"]
    assert [out.name for out in result.graph.outputs] == [out.name for out in proto.graph.output]
    data = images(30, 8)
    name = proto.graph.output[0].name
    assert np.abs(run_model(result, data)[name] - run_model(proto, data)[name]).max() < 0.3
    proto.graph.output.append(helper.make_tensor_value_info(rounded, onnx.TensorProto.UINT8, ["batch", 3]))
    _, step = apply(proto, [Dequantize()])
    assert step.result.skipped == {
        "alone": "it stands alone: an input or output of the graph, or a computed tensor, is quantised"
    }


def test_integer_operators_stay(conv_net: Any, apply: Any) -> None:
    quantised, _ = apply(conv_net(0), "int8(mode=dynamic)")
    _, step = apply(quantised, "dequantize")
    assert any("computes with integers" in reason for reason in step.result.skipped.values())
    assert step.result.warnings == ("dequantize found no QuantizeLinear or DequantizeLinear to take out",)
    with pytest.raises(ModelError, match="computes with integers; give the float model"):
        apply(quantised, "int8")


def test_a_quantised_model_is_refused_with_the_way_out(conv_net: Any, apply: Any) -> None:
    data = {"input": np.random.default_rng(0).standard_normal((20, 1, 12, 12)).astype(np.float32)}
    with pytest.raises(ModelError, match=r"the model is quantised already \('.*' is .*\); .*dequantize,\.\.\.,int8"):
        apply(conv_net(0), "int8,int8", data)


def test_old_opsets_and_half_precision_are_refused(net: Any, apply: Any, images: Any) -> None:
    def built(opset: int, dtype: Any = np.float32) -> onnx.ModelProto:
        build = net(8, dtype=dtype)
        proto: onnx.ModelProto = build.model(build.gemm("x", 8, 3, name="one"), opset=opset)
        return proto

    with pytest.raises(ModelError, match="opset 9; quantised models need 11"):
        apply(built(9), "int8", images(8, 8))
    with pytest.raises(ModelError, match="scale per channel needs 13: export it anew, or give per_channel=false"):
        apply(built(12), "int8", images(8, 8))
    result, _ = apply(built(12), "int8(per_channel=false)", images(8, 8))
    assert result.opset_imports[""] == 12
    with pytest.raises(ModelError, match="'one' has weights in FLOAT16; the quantiser wants FLOAT"):
        apply(built(18, np.float16), "int8", images(8, 8, dtype=np.float16))


def test_broken_data_is_named(net: Any, images: Any) -> None:
    build = net(8)
    model = ir.serde.deserialize_model(build.model(build.gemm("x", 8, 3, name="one")))
    data = images(8, 8)
    data["x"][3, 2] = np.nan
    with pytest.raises(DataError, match="holds NaN in example 3"):
        run(model, parse("int8"), Run(open_data(data, input_specs(model)), Settings()))


def test_what_the_quantiser_raises_is_one_sentence(
    conv_net: Any, apply: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnxruntime.quantization as quantization

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("some\ninner name")

    monkeypatch.setattr(quantization, "quantize_dynamic", broken)
    with pytest.raises(BackendError, match="int8: ONNX Runtime's quantiser failed: KeyError: 'some"):
        apply(conv_net(0), "int8(mode=dynamic)")


def test_refused_options() -> None:
    with pytest.raises(OptionError, match="multiplies no int8 activations by uint8 weights; give weights=int8"):
        Int8(activations="int8", weights="uint8")
    for text in ("int8(mode=half)", "int8(method=mean)", "int8(weights=int4)", "dequantize(x=1)"):
        with pytest.raises(OptionError):
            parse(text)
