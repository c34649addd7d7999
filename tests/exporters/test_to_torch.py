from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.exporters.to_torch import OnnxModule, to_torch

RNG = np.random.default_rng(0)


def graph(
    nodes: Sequence[onnx.NodeProto],
    held: dict[str, np.ndarray],
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> ir.Model:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None, None, None]) for name in inputs],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    return ir.serde.deserialize_model(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def small(zeros: float = 0.0) -> ir.Model:
    """Return Conv, BatchNormalization, Relu, Dropout, a reshape by computed sizes, and a Gemm."""
    weight = noise(4, 2, 3, 3)
    weight.reshape(-1)[: round(zeros * weight.size)] = 0
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Dropout", ["r"], ["d"]),
        helper.make_node("Shape", ["d"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["size"]),
        helper.make_node("Concat", ["size", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["d", "sizes"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["y"], name="fc"),
    ]
    held = {
        "conv.weight": weight,
        "scale": np.array([0.5, 1, 1.5, 2], np.float32),
        "shift": noise(4),
        "mean": noise(4),
        "var": np.array([0.5, 1, 1.5, 2], np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "fc.weight": noise(4 * 36, 3),
        "fc.bias": noise(3),
    }
    return graph(nodes, held)


def x(batch: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 2, 6, 6)).astype(np.float32))


def one(module: OnnxModule, *inputs: Tensor) -> Tensor:
    found = module(*inputs)
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch(run_model: Callable[..., dict[str, np.ndarray]], batch: int) -> None:
    model = small()
    with torch.no_grad():
        found = one(to_torch(model).eval(), x(batch))
    np.testing.assert_allclose(found.numpy(), run_model(model, {"x": x(batch).numpy()})["y"], rtol=1e-5, atol=1e-5)


def test_weights_are_parameters_and_statistics_are_not() -> None:
    module = to_torch(small())
    names = {"conv.weight", "scale", "shift", "fc.weight", "fc.bias"}
    assert set(module.trained()) == names
    assert set(module.names.values()) == names
    assert module.names["weights.conv_weight"] == "conv.weight"
    assert dict(module.named_parameters()).keys() == module.names.keys()
    assert set(module.statistics()) == {"mean", "var"}
    assert {"weights.conv_weight", "weights.mean"} < set(module.state_dict())


def test_the_model_is_not_touched() -> None:
    model = small(0.5)
    before = ir.serde.serialize_model(model).SerializeToString()
    module = to_torch(model, untie=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_what_is_trained_can_be_chosen() -> None:
    assert set(to_torch(small(), trainable="fc.*").trained()) == {"fc.weight", "fc.bias"}
    assert set(to_torch(small(), trainable=["re:s.*", "fc.bias"]).trained()) == {"scale", "shift", "fc.bias"}
    with pytest.raises(OptionError, match="trainable='mean' names no initialiser"):
        to_torch(small(), trainable="mean")


def test_batch_norm_frozen_and_trained() -> None:
    frozen = to_torch(small()).train()
    torch.testing.assert_close(one(frozen, x()), one(deepcopy(frozen).eval(), x()))
    module = to_torch(small(), batchnorm="train")
    mean = module.statistics()["mean"].clone()
    one(module.eval(), x())
    assert torch.equal(module.statistics()["mean"], mean)
    module.train()
    conv = torch.nn.functional.conv2d(x(), module.trained()["conv.weight"], padding=1)
    one(module, x())
    want = 0.9 * mean + 0.1 * conv.mean((0, 2, 3))
    torch.testing.assert_close(module.statistics()["mean"], want.detach())


def test_dropout_drops_only_when_asked_and_in_training() -> None:
    torch.manual_seed(0)
    module = to_torch(small(), dropout=True)
    assert torch.equal(one(module.eval(), x()), one(module.eval(), x()))
    assert not torch.equal(one(module.train(), x()), one(module.train(), x()))
    off = to_torch(small()).train()
    assert torch.equal(one(off, x()), one(off, x()))


def _trained(module: OnnxModule, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        one(module, x()).square().mean().backward()  # type: ignore[no-untyped-call]  # torch's stub
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_zeros_stay_zeros(kind: str) -> None:
    module = to_torch(small(0.5)).train()
    zero = module.trained()["conv.weight"].detach() == 0
    assert set(module.masks) == {"conv.weight"}
    assert torch.equal(module.masks["conv.weight"], ~zero)
    make: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    }
    before = module.trained()["conv.weight"].detach().clone()
    _trained(module, make[kind](module.parameters()))
    after = module.trained()["conv.weight"].detach()
    assert bool((after[zero] == 0).all()) and not bool((after[~zero] == before[~zero]).any())


def test_masks_that_come_late_hold_with_old_momentum() -> None:
    module = to_torch(small()).train()
    assert module.masks == {}
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    _trained(module, optimizer)
    mask = torch.ones(4, 2, 3, 3, dtype=torch.bool)
    mask[0] = False
    module.set_masks({"conv.weight": mask})
    module.attach(optimizer)
    _trained(module, optimizer)
    weight = module.trained()["conv.weight"].detach()
    assert not weight[0].any() and bool((weight[1:] != 0).all())
    module.set_masks({})
    _trained(module, optimizer)
    assert bool(module.trained()["conv.weight"].detach()[0].any())


def test_masks_follow_copies_and_state() -> None:
    module = to_torch(small(0.5))
    copied = deepcopy(module)
    assert torch.equal(copied.masks["conv.weight"], module.masks["conv.weight"])
    assert copied.mode is not module.mode
    state = module.state_dict()
    other = to_torch(small(0.5))
    other.load_state_dict(state)
    torch.testing.assert_close(one(other.eval(), x()), one(module.eval(), x()))
    assert torch.equal(one(pickle.loads(pickle.dumps(module)), x()), one(module, x()))


def test_few_zeros_and_small_tensors_have_no_mask() -> None:
    assert to_torch(small(0.5), keep_zeros=False).masks == {}
    assert to_torch(small(0.5), min_zeros=0.6).masks == {}
    with pytest.raises(OptionError, match=r"mask of 'conv.weight': boolean masks"):
        to_torch(small()).set_masks({"conv.weight": torch.ones(4)})
    with pytest.raises(OptionError, match=r"min_zeros=2: a share in \[0, 1\]"):
        to_torch(small(), min_zeros=2)


def test_autocast_and_other_types() -> None:
    module = to_torch(small()).eval()
    want = one(module, x())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = one(module, x())
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), want, rtol=0.1, atol=0.3)
    wide = one(deepcopy(module).double(), x().double())
    torch.testing.assert_close(wide.float(), want)


def test_several_inputs_and_outputs() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Sub", ["a", "b"], ["d"])]
    model = graph(nodes, {}, inputs=["a", "b"], outputs=["s", "d"])
    module = to_torch(model)
    one_, two = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    found = module(one_, b=two)
    assert isinstance(found, tuple)
    assert [float(item) for item in found] == [3, -1]
    named = to_torch(model, as_dict=True)(b=two, a=one_)
    assert isinstance(named, dict) and list(named) == ["s", "d"]
    for wrong in ({"a": one_}, {"a": one_, "b": two, "c": two}):
        with pytest.raises(DataError, match=r"the graph's are \['a', 'b'\]"):
            module(**wrong)
    with pytest.raises(DataError, match="the graph has 2 inputs, 3 were given"):
        module(one_, two, two)
    with pytest.raises(DataError, match="each once"):
        module(one_, two, b=two)


def test_features_by_name() -> None:
    module = to_torch(small()).eval()
    found = module.run({"x": x()}, ["r"])
    assert list(found) == ["y", "r"] and found["r"].shape == (3, 4, 6, 6)
    with pytest.raises(ModelError, match="the graph computes no value 'nothing'"):
        module.run({"x": x()}, ["nothing"])


def shared() -> ir.Model:
    nodes = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "same"], ["y"]),
    ]
    return graph(nodes, {"w": noise(3, 3)})


def test_shared_initialisers_are_one_parameter_unless_untied() -> None:
    given = torch.randn(2, 1, 4, 3)
    tied, untied = to_torch(shared()), to_torch(shared(), untie=True)
    assert set(tied.trained()) == {"w"} and set(untied.trained()) == {"w", "w/1"}
    assert [copy.source for copy in untied.copies] == ["w"]
    assert one(tied, given).shape == one(untied, given).shape


def test_unsupported_nodes_are_named() -> None:
    custom = helper.make_node("Magic", ["x"], ["y"], domain="acme", name="trick")
    with pytest.raises(ModelError, match=r"node 'trick' \(acme.Magic\): operators of domain 'acme'"):
        to_torch(graph([custom], {}))
    unknown = helper.make_node("StringNormalizer", ["x"], ["y"], name="text")
    with pytest.raises(ModelError, match=r"node 'text' \(StringNormalizer\): this operator cannot run in torch"):
        to_torch(graph([unknown], {}))
    loop = helper.make_node("Loop", ["", "", "x"], ["y"], body=helper.make_graph([], "b", [], []), name="again")
    with pytest.raises(ModelError, match=r"node 'again' \(Loop\)"):
        to_torch(graph([loop], {}))


def test_a_node_that_fails_is_named() -> None:
    with pytest.raises(ModelError, match=r"node 'conv' \(Conv\) fails on inputs of shapes \(1, 3, 6, 6\), "):
        one(to_torch(small()), torch.zeros(1, 3, 6, 6))
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear", antialias=1, name="up")
    model = graph([resize], {"scales": np.array([1, 1, 2, 2], np.float32)})
    with pytest.raises(ModelError, match=r"node 'up' \(Resize\): resizing with antialias is not supported"):
        one(to_torch(model), torch.zeros(1, 1, 2, 2))


def test_sizes_are_computed_on_the_host() -> None:
    module = to_torch(small())
    host = {step.call.op for step in module._steps if step.host}
    assert host == {"Shape", "Gather", "Concat"}
    module.to("meta")  # a device whose values nobody can read
    assert one(module, x().to("meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda() -> None:
    module = to_torch(small(0.5)).eval()
    want = one(module, x())
    module.to("cuda")
    torch.testing.assert_close(one(module, x().cuda()).cpu(), want, rtol=1e-3, atol=1e-3)
