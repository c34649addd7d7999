from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from onnxprune.errors import ModelError, OptionError
from onnxprune.exporters import to_onnx
from onnxprune.exporters.to_onnx import export
from onnxprune.models.checkpoint import load_weights
from onnxprune.models.zoo import NETWORKS, build


class Small(nn.Module):
    """Conv with and without bias, BatchNorm with non-trivial statistics, a flatten and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.conv = nn.Conv2d(4, 3, 3, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(3 * 16, 5)
        for bn in (self.stem[1], self.bn):
            assert isinstance(bn, nn.BatchNorm2d)
            nn.init.uniform_(bn.weight, 0.5, 2)
            nn.init.normal_(bn.bias)
            nn.init.normal_(bn.running_mean)  # type: ignore[arg-type]  # Optional in torch's stubs
            nn.init.uniform_(bn.running_var, 0.5, 2)  # type: ignore[arg-type]  # as above

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(self.stem(x))))
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images})
    return np.asarray(output)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("fold_bn", [True, False])
def test_small_network(small: Small, tmp_path: Path, fold_bn: bool) -> None:
    made = export(small, (2, 8, 8), tmp_path / "m.onnx", fold_bn=fold_bn)
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    bn = ["BatchNormalization"] * (not fold_bn)
    assert kinds == ["Conv", *bn, "Relu", "Conv", *bn, "Relu", "Reshape", "Gemm"]
    assert _dims(model.graph.input[0]) == ["batch", 2, 8, 8]
    assert _dims(model.graph.output[0]) == ["batch", 5]
    images = np.random.default_rng(1).standard_normal((7, 2, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = small.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(made.path, images), wanted, rtol=1e-4, atol=1e-5)
    assert made.error is not None
    assert made.error < 1e-5
    assert made.bytes == made.path.stat().st_size
    assert [entry.version for entry in model.opset_import] == [20]


def test_names_are_those_of_the_state_dict(small: Small, tmp_path: Path) -> None:
    export(small, (2, 8, 8), tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [node.name for node in graph.node if node.op_type in ("Conv", "Gemm")] == [
        "stem.0",
        "conv",
        "head",
    ]
    assert [node.output[0] for node in graph.node if node.op_type == "Conv"] == ["stem.0", "conv"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert {"stem.0.weight", "stem.0.bias", "conv.weight", "conv.bias", "head.weight", "head.bias"} < set(stored)
    np.testing.assert_array_equal(stored["head.weight"], small.head.weight.detach().numpy())


def test_kept_batch_norm_has_the_state_dicts_arrays(small: Small, tmp_path: Path) -> None:
    export(small, (2, 8, 8), tmp_path / "m.onnx", fold_bn=False)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    for name, value in small.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(stored[name], value.numpy())


@pytest.mark.parametrize("fold_bn", [True, False])
def test_no_local_paths_and_no_traces(small: Small, tmp_path: Path, fold_bn: bool) -> None:
    made = export(small, (2, 8, 8), tmp_path / "m.onnx", fold_bn=fold_bn, metadata={"a": "b"})
    data = made.path.read_bytes()
    places = [
        Path.cwd(),
        Path.home(),
        tmp_path,
        sysconfig.get_path("purelib"),
        Path(__file__).parent,
        "site-packages",
    ]
    for place in (*places, 'File "', ".py", "pkg.torch", "stack_trace", "namespace"):
        assert os.fsencode(place) not in data
    model = onnx.load(made.path)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"a": "b"}
    assert model.producer_name == "pytorch"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_same_weights_same_bytes(small: Small, tmp_path: Path) -> None:
    first = export(small, (2, 8, 8), tmp_path / "a.onnx", metadata={"x": "1", "y": "2"})
    second = export(small, (2, 8, 8), tmp_path / "b.onnx", metadata={"x": "1", "y": "2"})
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == second.sha256


def test_the_module_is_not_touched(small: Small, tmp_path: Path) -> None:
    small.train()
    before = {name: value.clone() for name, value in small.state_dict().items()}
    export(small, (2, 8, 8), tmp_path / "m.onnx")
    assert small.training
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())


def test_names_and_opset_are_chosen(small: Small, tmp_path: Path) -> None:
    made = export(small, (2, 8, 8), tmp_path / "m.onnx", opset=18, input_name="pixels", output_name="scores")
    model = onnx.load(made.path)
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("pixels", "scores")
    assert (made.opset, model.opset_import[0].version) == (18, 18)


def test_nothing_is_printed(small: Small, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(small, (2, 8, 8), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_opset_out_of_range(small: Small, tmp_path: Path, opset: int) -> None:
    with pytest.raises(OptionError, match=f"opset {opset}: export writes 18 to 23"):
        export(small, (2, 8, 8), tmp_path / "m.onnx", opset=opset)


def test_existing_files_need_force(small: Small, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(OptionError, match=r"m.onnx' exists already; give --force to overwrite it"):
        export(small, (2, 8, 8), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"
    assert export(small, (2, 8, 8), tmp_path / "m.onnx", force=True).bytes > 100


def test_missing_folder_and_bad_shape(small: Small, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="does not exist"):
        export(small, (2, 8, 8), tmp_path / "no" / "m.onnx")
    with pytest.raises(OptionError, match=r"input shape \(2, 0\): give positive sizes"):
        export(small, (2, 0), tmp_path / "m.onnx")


class _FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 2 else x


class _DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="torch fixed the batch size of _FixedBatch: its code depends on the number"):
        export(_FixedBatch(), (4,), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_export_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"torch could not export _DataDependent with a dynamic batch: ") as caught:
        export(_DataDependent(), (4,), tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


class _Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x + 1


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="_Pair has 2 outputs: export writes modules that return one tensor"):
        export(_Pair(), (4,), tmp_path / "m.onnx")


def test_a_file_that_disagrees_is_not_kept(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_onnx, "TOLERANCE", 1e-12)
    with pytest.raises(ModelError, match=r"the export of Small differs from torch by .* relative; at most 1e-12"):
        export(small, (2, 8, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    assert export(small, (2, 8, 8), tmp_path / "m.onnx", check=False).error is None


def test_nan_weights_do_not_pass_the_check(small: Small, tmp_path: Path) -> None:
    with torch.no_grad():
        small.head.bias[0] = float("nan")
    with pytest.raises(ModelError, match="differs from torch by inf"):
        export(small, (2, 8, 8), tmp_path / "m.onnx")


def test_interruption_leaves_nothing(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx.checker, "check_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(small, (2, 8, 8), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["lenet300", "lenet5", "resnet20"])
def test_the_zoo_exports(name: str, tmp_path: Path) -> None:
    made = export(build(name), NETWORKS[name].input_shape, tmp_path / "m.onnx")
    kinds = {node.op_type for node in onnx.load(made.path).graph.node}
    wanted = {
        "lenet300": {"Reshape", "Gemm", "Relu"},
        "lenet5": {"Conv", "Relu", "MaxPool", "Reshape", "Gemm"},
        "resnet20": {"Conv", "Relu", "Add", "Slice", "Pad", "ReduceMean", "Gemm"},
    }
    assert kinds == wanted[name]


@pytest.mark.parametrize("fold_bn", [True, False])
def test_published_resnet20_equals_the_shared_model(shared_data: Path, tmp_path: Path, fold_bn: bool) -> None:
    from onnxprune.data import InputSpec, Preprocess, open_data

    module = build("resnet20")
    load_weights(module, shared_data / "pretrained" / "resnet20-12fca82f.th")
    made = export(module, (3, 32, 32), tmp_path / "m.onnx", fold_bn=fold_bn)
    reference = shared_data / "onnx" / "resnet20.onnx"
    stored = {entry.key: entry.value for entry in onnx.load(reference).metadata_props}
    want = InputSpec("input", np.dtype(np.float32), ("batch", 3, 32, 32))
    preprocess = Preprocess.from_json(stored["onnxprune.preprocess"])
    images = open_data(str(shared_data / "cifar10-val.zip"), [want], preprocess=preprocess, examples=200)
    (batch,) = images.fetch(np.arange(200)).values()
    ours, theirs = _run(made.path, batch), _run(reference, batch)
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert images.labels is not None
    assert float((ours.argmax(1) == images.labels).mean()) > 0.7


@pytest.mark.parametrize("fold_bn", [True, False])
@pytest.mark.parametrize("opset", [13, 17, 20])
def test_torchscript(
    small: Small, tmp_path: Path, fold_bn: bool, opset: int, capfd: pytest.CaptureFixture[str]
) -> None:
    made = export(small, (2, 8, 8), tmp_path / "m.onnx", exporter="torchscript", opset=opset, fold_bn=fold_bn)
    model = onnx.load(made.path)
    assert model.opset_import[0].version == opset
    assert ("BatchNormalization" in {node.op_type for node in model.graph.node}) == (not fold_bn)
    assert made.error is not None and made.error < 1e-4
    assert _dims(model.graph.input[0]) == ["batch", 2, 8, 8]
    for place in (b"site-packages", b".py", os.fsencode(Path.cwd())):
        assert place not in made.path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_torchscript_refusals(small: Small, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="opset 21: export writes 13 to 20"):
        export(small, (2, 8, 8), tmp_path / "m.onnx", exporter="torchscript", opset=21)
    with pytest.raises(OptionError, match="exporter 'jit': dynamo and torchscript are accepted"):
        export(small, (2, 8, 8), tmp_path / "m.onnx", exporter="jit")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ModelError, match="_Pair returns tuple: export writes modules that return one tensor"):
        export(_Pair(), (4,), tmp_path / "m.onnx", exporter="torchscript")
    with pytest.raises(ModelError, match="the export of _FixedBatch differs from torch by"):
        export(_FixedBatch(), (4,), tmp_path / "m.onnx", exporter="torchscript")
    with pytest.raises(ModelError, match="torch could not export Small through TorchScript: "):
        export(small, (3, 8, 8), tmp_path / "m.onnx", exporter="torchscript")
    assert not list(tmp_path.iterdir())
