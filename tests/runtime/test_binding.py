"""Bound runs: a plain run on the CPU; on a device inputs go there once, outputs stay, and the clock waits."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import BackendError
from onnxprune.runtime import session as room
from onnxprune.runtime.providers import cuda_devices
from onnxprune.runtime.session import Session, Settings, open_session

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FEEDS = {"x": np.ones((3, 4), dtype=np.float32), "unknown": np.zeros(3)}


def test_on_the_cpu_a_bound_run_is_a_plain_run(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as session:
        (found,) = session.bound(FEEDS)()  # type: ignore[misc]
        assert np.array_equal(found, session.run(FEEDS)["y"])


def test_a_fixed_batch_is_padded_once(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense(8), Settings()) as session:
        (found,) = session.bound(FEEDS)()  # type: ignore[misc]
        assert found.shape == (8, 2)


def test_a_feed_that_does_not_fit_fails_in_the_run(dense: Callable[..., ir.Model]) -> None:
    with open_session(dense("batch"), Settings()) as session:
        run = session.bound({"x": np.ones((3, 5), np.float32)})
        with pytest.raises(BackendError, match=r"^ONNX Runtime failed on the model: "):
            run()


class Device:
    """Stands in for ONNX Runtime on a GPU: writes down what is called, in order."""

    def __init__(self, *outputs: tuple[str, str]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.outputs = [SimpleNamespace(name=name, type=kind) for name, kind in outputs]
        self.error: Exception | None = None
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self.copy)

    def copy(self, data: np.ndarray, device: str, number: int) -> str:
        self.calls.append(("copy", data.shape, device, number))
        return "on device"

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def get_outputs(self) -> list[SimpleNamespace]:
        return self.outputs

    def io_binding(self) -> Device:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*given: Any) -> None:
            self.calls.append((name, *(item for item in given if item is not self)))
            if name == "run_with_iobinding" and self.error is not None:
                raise self.error

        return call


def on(device: Device, monkeypatch: pytest.MonkeyPatch, inputs: list[str], fixed: int | None = None) -> Session:
    """Return a session on a device that only seems to be there."""
    session = Session.__new__(Session)
    session.label, session.inputs, session.fixed_batch = "the model", inputs, fixed
    session.outputs = [out.name for out in device.outputs]
    session._session = device
    monkeypatch.setattr(room, "engine", lambda: device)
    return session


def test_on_a_device_nothing_moves_in_a_run_and_the_clock_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(("y", "tensor(float)"), ("words", "tensor(string)"), ("list", "seq(tensor(float))"))
    run = on(device, monkeypatch, ["x"]).bound(FEEDS)
    assert device.calls == [
        ("copy", (3, 4), "cuda", 0),
        ("bind_ortvalue_input", "x", "on device"),
        ("bind_output", "y", "cuda", 0),
        ("bind_output", "words", "cpu", 0),
        ("bind_output", "list", "cpu", 0),
        ("synchronize_inputs",),
    ]
    device.calls.clear()
    run()
    run()
    assert device.calls == [("run_with_iobinding",), ("synchronize_outputs",)] * 2


def test_text_stays_on_the_host_and_a_fixed_batch_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(("y", "tensor(float)"))
    words = np.array(["a", "b"], dtype=object)
    on(device, monkeypatch, ["x", "t"], fixed=5).bound({"x": np.ones((2, 4), np.float32), "t": words})
    assert device.calls[0] == ("copy", (5, 4), "cuda", 0)
    assert device.calls[2][:2] == ("bind_cpu_input", "t")
    assert list(device.calls[2][2]) == ["a", "b", "b", "b", "b"]


def test_a_failure_on_a_device_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(("y", "tensor(float)"))
    run = on(device, monkeypatch, ["x"]).bound(FEEDS)
    device.error = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory")
    with pytest.raises(BackendError) as caught:
        run()
    assert str(caught.value) == "ONNX Runtime failed on the model: 1 : FAIL : CUDA failure 2: out of memory"


def test_a_real_device_gives_what_a_plain_run_gives(dense: Callable[..., ir.Model]) -> None:
    if not cuda_devices():
        pytest.skip("no NVIDIA device or driver is here")
    from onnxprune.runtime.providers import resolve

    with open_session(dense("batch"), Settings(resolve(["cuda", "cpu"]).names)) as session:
        if CUDA not in session.providers:
            pytest.skip("ONNX Runtime cannot use the device: its CUDA libraries are not installed")
        fed = {"x": FEEDS["x"]}
        wanted = session.run(fed)["y"]
        binding = session._binding(fed)
        session._session.run_with_iobinding(binding)
        (found,) = binding.get_outputs()
        assert found.device_name().lower() == "cuda"
        assert np.allclose(found.numpy(), wanted, atol=1e-6)
        session.bound(fed)()
