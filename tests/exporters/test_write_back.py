from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.exporters.to_torch import OnnxModule, to_torch
from onnxprune.exporters.write_back import check_writable, write_back
from onnxprune.graph import io

RNG = np.random.default_rng(0)


def model_of(dtype: type[np.generic] = np.float32, *, second: str = "w", name: str = "fc") -> ir.Model:
    """Return ``relu(batchnorm(x w)) w``: one weight read twice."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name=name),
        helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("MatMul", ["r", second], ["y"], name="last"),
    ]
    held = {
        "w": np.where(RNG.random((4, 4)) < 0.3, 0, RNG.standard_normal((4, 4))).astype(dtype),
        "scale": np.ones(4, dtype),
        "shift": np.zeros(4, dtype),
        "mean": np.zeros(4, dtype),
        "var": np.ones(4, dtype),
    }
    info = [helper.make_tensor_value_info(n, kind, ["batch", 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(a, n) for n, a in held.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"onnxprune.kept": "{}", "mine": "yes"})
    return ir.serde.deserialize_model(model)


def bytes_of(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString()


def trained(module: OnnxModule, steps: int = 2) -> OnnxModule:
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        found = module(torch.randn(8, 4, generator=generator))
        assert isinstance(found, torch.Tensor)
        found.square().mean().backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()
    return module


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("untie", [False, True])
def test_untrained_weights_give_the_same_bytes(dtype: type[np.generic], untie: bool) -> None:
    model = model_of(dtype)
    assert bytes_of(write_back(to_torch(model, untie=untie), model)) == bytes_of(model)
    assert bytes_of(write_back(to_torch(model, untie=untie).float(), model)) == bytes_of(model) or dtype is np.float64


def test_what_was_learnt_is_what_runs(run_model: Callable[..., dict[str, np.ndarray]]) -> None:
    model = model_of()
    before = bytes_of(model)
    module = trained(to_torch(model, batchnorm="train").train())
    result = write_back(module, model)
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(x))
    assert isinstance(want, torch.Tensor)
    np.testing.assert_allclose(run_model(result, {"x": x})["y"], want.numpy(), rtol=1e-5, atol=1e-6)
    assert bytes_of(model) == before
    assert list(result.graph.initializers) == list(model.graph.initializers)
    assert dict(result.metadata_props) == dict(model.metadata_props)
    for name in ("w", "scale", "mean", "var"):
        old, new = (m.graph.initializers[name].const_value for m in (model, result))
        assert old is not None and new is not None and not np.array_equal(old.numpy(), new.numpy())
    weight = result.graph.initializers["w"].const_value
    source = model.graph.initializers["w"].const_value
    assert weight is not None and source is not None
    np.testing.assert_array_equal(weight.numpy() == 0, source.numpy() == 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays(dtype: type[np.generic]) -> None:
    model = model_of(dtype)
    module = trained(to_torch(model).float())
    value = write_back(module, model).graph.initializers["w"]
    assert value.const_value is not None and value.const_value.numpy().dtype == dtype
    want = module.trained()["w"].detach().numpy().astype(dtype)
    np.testing.assert_array_equal(value.const_value.numpy(), want)


def test_untied_weights_are_parted(run_model: Callable[..., dict[str, np.ndarray]]) -> None:
    model = model_of()
    module = trained(to_torch(model, untie=True))
    result = write_back(module, model)
    assert set(result.graph.initializers) == {*model.graph.initializers, "w/1"}
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(x))
    assert isinstance(want, torch.Tensor)
    np.testing.assert_allclose(run_model(result, {"x": x})["y"], want.numpy(), rtol=1e-5, atol=1e-6)


def test_through_files(tmp_path: Path) -> None:
    io.save(model_of(), tmp_path / "a.onnx")
    model = io.load(tmp_path / "a.onnx")
    io.save(write_back(trained(to_torch(model)), model), tmp_path / "b.onnx")
    again = io.load(tmp_path / "b.onnx")
    io.save(write_back(to_torch(again), again), tmp_path / "c.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes() != (tmp_path / "b.onnx").read_bytes()


def test_another_graph_is_refused() -> None:
    module = to_torch(model_of())
    assert write_back(module, model_of())  # other weights, same graph
    with pytest.raises(ModelError, match="the module was made from another graph"):
        write_back(module, model_of(name="other"))


def test_values_that_are_not_finite_are_refused() -> None:
    for dtype, value in ((np.float32, float("nan")), (np.float16, 1e6)):
        model = model_of(dtype)
        module = to_torch(model).float()
        with torch.no_grad():
            module.trained()["shift"][0] = value
        with pytest.raises(ModelError, match="'shift' holds NaN or infinite values after training"):
            write_back(module, model)


def test_quantised_weights_are_refused() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"], name="dq"),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    held = {"q": np.ones((4, 4), np.int8), "scale": np.array(0.5, np.float32)}
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(a, n) for n, a in held.items()])
    model = ir.serde.deserialize_model(helper.make_model(graph))
    module = to_torch(model)
    found = module(torch.ones(1, 4))
    assert isinstance(found, torch.Tensor) and float(found[0, 0]) == 2
    for refused in (lambda: write_back(module, model), lambda: check_writable(model)):
        with pytest.raises(ModelError, match="weight 'q' is stored quantised: take it back to floating point"):
            refused()


def test_merged_statistics_follow_their_own_batches(run_model: Callable[..., dict[str, np.ndarray]]) -> None:
    model = model_of()
    bn = next(node for node in model.graph if node.op_type == "BatchNormalization")
    for place, name in ((2, "mean"), (4, "scale")):  # as exporters merge the zeros and ones of a fresh network
        bn.replace_input_with(place, model.graph.initializers[name])
    for name in ("shift", "var"):
        model.graph.initializers.pop(name)
    assert bytes_of(write_back(to_torch(model, batchnorm="train"), model)) == bytes_of(model)
    module = to_torch(model, batchnorm="train").train()
    module(torch.randn(8, 4) + 1)
    result = write_back(module, model)
    assert set(result.graph.initializers) == {"w", "scale", "mean", "scale/1", "mean/1"}
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(x))
    assert isinstance(want, torch.Tensor)
    np.testing.assert_allclose(run_model(result, {"x": x})["y"], want.numpy(), rtol=1e-5, atol=1e-6)
