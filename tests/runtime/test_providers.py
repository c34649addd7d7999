"""Providers: what is asked for, what is there, what is said about the difference."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from onnxprune.errors import OptionError
from onnxprune.runtime import providers
from onnxprune.runtime.providers import Providers, cuda_devices, parse_providers, resolve

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Engine:
    """Stands in for ONNX Runtime: what was compiled into the build."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.preloaded = 0

    def get_available_providers(self) -> list[str]:
        return list(self.names)

    def preload_dlls(self) -> None:
        self.preloaded += 1


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Pretend that ONNX Runtime was built with these providers and that so many devices are here."""

    def pretend(devices: int, *names: str) -> Engine:
        found = Engine(*names)
        monkeypatch.setattr(providers, "engine", lambda: found)
        monkeypatch.setattr(providers, "cuda_devices", lambda: devices)
        return found

    return pretend


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, None),
        ("auto", None),
        ("cpu", ("cpu",)),
        ("cuda,cpu", ("cuda", "cpu")),
        (" CUDA , cpu,", ("cuda", "cpu")),
        ("cpu,cpu", ("cpu",)),
        ("tensorrt", ("tensorrt",)),
    ],
)
def test_parse(text: str | None, words: tuple[str, ...] | None) -> None:
    assert parse_providers(text) == words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "--providers 'gpu': 'gpu' is unknown; use cpu, cuda, tensorrt or auto"),
        ("cpu,rocm,gpu", "--providers 'cpu,rocm,gpu': 'rocm, gpu' is unknown; use cpu, cuda, tensorrt or auto"),
        ("", "--providers '' names no provider; use cpu, cuda, tensorrt or auto"),
        (" , ", "--providers ' , ' names no provider; use cpu, cuda, tensorrt or auto"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_providers(text)
    assert str(caught.value) == message


def test_nothing_asked_and_nothing_there_is_the_cpu_without_a_word(machine: Callable[..., Engine]) -> None:
    machine(0, TENSORRT, CUDA, CPU)
    assert resolve(None) == Providers((CPU,))


def test_nothing_asked_takes_cuda_where_it_is(machine: Callable[..., Engine]) -> None:
    engine = machine(1, TENSORRT, CUDA, CPU)
    assert resolve(None) == Providers((CUDA, CPU))
    assert engine.preloaded == 1


@pytest.mark.parametrize("words", [("cuda",), ("cuda", "cpu")])
def test_cuda_asked_for_and_no_device(machine: Callable[..., Engine], words: tuple[str, ...]) -> None:
    engine = machine(0, TENSORRT, CUDA, CPU)
    found = resolve(words)
    assert found.names == (CPU,)
    assert found.notices == ("cuda is not available (no NVIDIA device or driver was found); running on the CPU",)
    assert engine.preloaded == 0


def test_cuda_asked_for_and_not_in_the_build(machine: Callable[..., Engine]) -> None:
    machine(1, CPU)
    assert resolve(("cuda",)).notices == (
        "cuda is not available (this onnxruntime build does not contain it; install onnxruntime-gpu); "
        "running on the CPU",
    )


def test_the_notice_names_what_is_used_instead(machine: Callable[..., Engine]) -> None:
    machine(1, CUDA, CPU)
    found = resolve(("tensorrt", "cuda", "cpu"))
    assert found.names == (CUDA, CPU)
    assert found.notices == (
        "tensorrt is not available (this onnxruntime build does not contain it; install onnxruntime-gpu); "
        "running on cuda and the CPU",
    )


def test_the_cpu_is_always_the_last_resort_and_named_once(machine: Callable[..., Engine]) -> None:
    machine(2, TENSORRT, CUDA, CPU)
    assert resolve(("tensorrt",)).names == (TENSORRT, CPU)
    assert resolve(("cpu", "cuda")).names == (CPU, CUDA)
    assert resolve(()).names == (CPU,)


def test_devices_are_asked_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, status: int) -> None:
            self.status = status

        def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
            return self.status

        def cuDeviceGetCount(self, count: object) -> int:  # noqa: N802 - the driver's name
            count._obj.value = 3  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: Driver(0))
    assert cuda_devices() == 3
    monkeypatch.setattr(providers.ctypes, "CDLL", lambda name: Driver(100))
    assert cuda_devices() == 0

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(providers.ctypes, "CDLL", missing)
    assert cuda_devices() == 0
