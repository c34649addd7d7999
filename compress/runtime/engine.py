"""The ONNX Runtime module itself, with its usage events switched off: the deploy side talks to no network."""

from __future__ import annotations

from typing import Any


def engine() -> Any:
    """Import ONNX Runtime (half a second, so only when it is needed) and return the module."""
    import onnxruntime

    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its exceptions share no ancestor of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = "Fail InvalidArgument NoSuchFile NoModel EngineError RuntimeException InvalidProtobuf ModelLoaded"
    names += " NotImplemented InvalidGraph EPFail ModelRequiresCompilation ModelLoadCanceled NotFound DeviceReset"
    found = [getattr(state, name) for name in names.split() if hasattr(state, name)]
    return (*found, RuntimeError, ValueError)
