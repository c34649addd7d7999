"""Execution providers: what the user asked for, what this machine has, and what is said about the difference."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.errors import OptionError
from onnxprune.runtime.engine import engine

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


@dataclass(frozen=True)
class Providers:
    """ONNX Runtime's provider names in order of preference, and notices about what is not there."""

    names: tuple[str, ...]
    notices: tuple[str, ...] = ()


def parse_providers(text: str | None) -> tuple[str, ...] | None:
    """Return the provider words of ``cuda,cpu``; None (nothing asked) for None or ``auto``.

    Raises:
        OptionError: A word is none of cpu, cuda, tensorrt.
    """
    if text is None or text == "auto":
        return None
    words = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip()))
    unknown = [word for word in words if word not in NAMES]
    if not words:
        raise OptionError(f"--providers '{text}' names no provider; use {', '.join(NAMES)} or auto")
    if unknown:
        raise OptionError(f"--providers '{text}': '{', '.join(unknown)}' is unknown; use {', '.join(NAMES)} or auto")
    return words


def resolve(words: Sequence[str] | None) -> Providers:
    """Return the providers to use: CUDA where a device is present, CPU otherwise and always as the last resort."""
    onnxruntime = engine()

    wanted = tuple(words) if words is not None else ("cuda", "cpu")
    compiled = set(onnxruntime.get_available_providers())
    missing = {word: _missing(word, compiled) for word in wanted if word != "cpu"}
    usable = [word for word in wanted if missing.get(word) is None]
    names = list(dict.fromkeys(NAMES[word] for word in [*usable, "cpu"]))
    running = " and ".join({"cpu": "the CPU"}.get(word, word) for word in usable or ["cpu"])
    notices = [
        f"{word} is not available ({reason}); running on {running}"
        for word, reason in missing.items()
        if reason is not None and words is not None
    ]
    if NAMES["cuda"] in names and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    return Providers(tuple(names), tuple(notices))


def _missing(word: str, compiled: set[str]) -> str | None:
    """Return why a GPU provider cannot be used here, or None when it can."""
    if NAMES[word] not in compiled:
        return "this onnxruntime build does not contain it; install onnxruntime-gpu"
    count = cuda_devices()
    return None if count else "no NVIDIA device or driver was found"


def cuda_devices() -> int:
    """Return how many CUDA devices the driver reports; 0 without a driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return int(count.value)


def installed_wheels() -> dict[str, str]:
    """Return the installed distributions that provide the ``onnxruntime`` module, with their versions."""
    found = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
