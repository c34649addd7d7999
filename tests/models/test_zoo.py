from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from onnxprune.errors import OptionError
from onnxprune.models.zoo import NETWORKS, build, find
from onnxprune.models.zoo.resnet import CifarResNet, shortcut

WEIGHTS = {
    "lenet300": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    "lenet5": 430_500 + 20 + 50 + 500 + 10,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "vgg16": 14_719_818,
    "vgg16_bn": 14_728_266,
    "vgg_small": 71_792 + 2 * 224 + 9 * 64 * 10 + 10,
    "mlp2": 784 * 1024 + 1024 + 1024 * 10 + 10,
    "vgg16_imagenet": 138_357_544,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "cnn3d": 44_161,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_published_sizes(name: str) -> None:
    module = build(name).eval()
    images = torch.zeros(2, *find(name).input_shape)
    with torch.no_grad():
        assert module(images).shape == (2, find(name).classes)
    assert sum(weight.numel() for weight in module.parameters()) == WEIGHTS[name]


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20", "vgg16_bn", "mlp2", "mobilenet_v2", "resnet18"])
def test_classes_and_channels(name: str) -> None:
    channels, height, width = 2, *find(name).input_shape[1:]
    with torch.no_grad():
        assert build(name, 7, channels).eval()(torch.zeros(1, channels, height, width)).shape == (1, 7)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"unknown network 'lenet4': did you mean 'lenet5'\? the zoo has lenet300,"):
        build("lenet4")
    with pytest.raises(OptionError, match=r"unknown network 'qqq': the zoo has"):
        find("qqq")


def test_numbers_out_of_range() -> None:
    with pytest.raises(OptionError, match="lenet5 with 1 classes: a classifier needs at least 2"):
        build("lenet5", 1)
    with pytest.raises(OptionError, match="lenet5 with 0 input channels"):
        build("lenet5", 10, 0)
    with pytest.raises(OptionError, match="depth 21: the depth is 6n\\+2"):
        CifarResNet(21)


def test_option_a_subsamples_and_pads_channels_with_zeros() -> None:
    features = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    out = shortcut(features, 4, 2)
    assert out.shape == (1, 4, 2, 2)
    assert not out[:, [0, 3]].any()
    assert torch.equal(out[0, 1], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert torch.equal(out[0, 2], torch.tensor([[16.0, 18.0], [24.0, 26.0]]))


def test_option_a_is_the_identity_inside_a_stage() -> None:
    features = torch.ones(1, 3, 4, 4)
    assert shortcut(features, 3, 1) is features


def test_he_initialisation_by_fan_in() -> None:
    torch.manual_seed(0)
    weight = build("resnet20").get_parameter("layer3.1.conv1.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_published_resnet20_weights_have_our_names(shared_data: Path) -> None:
    path = shared_data / "pretrained" / "resnet20-12fca82f.th"
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    module = build("resnet20")
    ours = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    theirs = {name.removeprefix("module.") for name in state}
    assert ours == {name for name in theirs if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["lenet300", "lenet5"])
def test_lenets_compute_what_the_shared_models_compute(name: str, shared_data: Path) -> None:
    import onnxruntime

    path = shared_data / "onnx" / f"{name}.onnx"
    module = build(name).eval()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    module.load_state_dict({key: torch.from_numpy(stored[key].copy()) for key in module.state_dict()})
    images = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"input": images})
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(images)).numpy(), wanted, atol=1e-4)
