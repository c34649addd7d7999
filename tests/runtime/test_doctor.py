"""The doctor: versions, clashing wheels, providers that only seem to work."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import onnxruntime
import pytest

import onnxprune
from onnxprune.runtime import doctor, providers
from onnxprune.runtime.doctor import diagnose, versions

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def installed(monkeypatch: pytest.MonkeyPatch, wheels: Mapping[str, str]) -> None:
    original = importlib.metadata.version

    def version(name: str) -> str:
        if name.startswith("onnxruntime"):
            if name in wheels:
                return wheels[name]
            raise importlib.metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_versions_name_what_results_depend_on() -> None:
    found = versions()
    assert {"python", "onnxprune", "onnx", "onnx-ir", "numpy", "scipy"} <= set(found)
    assert found["onnxprune"] == onnxprune.__version__
    assert "torch" not in found


def test_a_sound_machine_has_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.22.0"})
    monkeypatch.setattr(providers, "cuda_devices", lambda: 0)
    monkeypatch.setattr(doctor, "cuda_devices", lambda: 0)
    found = diagnose()
    assert found.problems == ()
    assert found.wheels == {"onnxruntime": "1.22.0"}
    assert found.usable == (CPU,)
    assert set(found.compiled) == set(onnxruntime.get_available_providers())
    assert found.devices == 0
    assert len(found.notices) == 1
    assert found.notices[0].startswith("cuda is not available")
    assert set(found.optional) == {"torch", "torchvision", "onnxscript"}


def test_two_wheels_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime": "1.22.0", "onnxruntime-gpu": "1.23.1"})
    (problem,) = (p for p in diagnose().problems if "onnxruntime" in p)
    assert problem.startswith(
        "onnxruntime 1.22.0 and onnxruntime-gpu 1.23.1 are both installed and overwrite each other's files; uninstall "
    )


def test_three_wheels_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = {"onnxruntime": "1", "onnxruntime-gpu": "2", "onnxruntime-openvino": "3"}
    installed(monkeypatch, wheels)
    (problem,) = (p for p in diagnose().problems if "openvino" in p)
    assert problem.startswith("onnxruntime 1 and onnxruntime-gpu 2 and onnxruntime-openvino 3 are ")


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {})
    found = diagnose()
    assert any(p.startswith("no onnxruntime distribution is installed") for p in found.problems)
    assert "onnxruntime" not in found.versions


def test_a_device_that_the_runtime_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, {"onnxruntime-gpu": "1.23.1"})
    monkeypatch.setattr(doctor, "cuda_devices", lambda: 1)
    monkeypatch.setattr(doctor, "resolve", lambda words: providers.Providers((CUDA, CPU)))
    monkeypatch.setattr(doctor, "_opens", lambda name: name == CPU)
    found = diagnose()
    assert found.usable == (CPU,)
    assert found.problems[0].startswith("a CUDA device is present but ONNX Runtime cannot use it; try pip install")


@pytest.mark.parametrize("name", ["NoSuchFile", "Fail", "EPFail", "RuntimeException"])
def test_whatever_the_runtime_raises_means_that_a_provider_does_not_open(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    def broken(*_: object, **__: object) -> None:
        raise getattr(state, name)("no such library")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    assert diagnose().usable == ()


def test_a_gpu_provider_that_does_not_load_keeps_stdout_clean(capfd: pytest.CaptureFixture[str]) -> None:
    if CUDA not in onnxruntime.get_available_providers() or providers.cuda_devices():
        pytest.skip("needs the GPU build of ONNX Runtime on a machine without a GPU")
    assert not doctor._opens(CUDA)
    assert capfd.readouterr().out == ""
