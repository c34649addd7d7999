"""The ONNX Runtime module itself, with its usage events switched off: the deploy side talks to no network."""

from __future__ import annotations

from typing import Any


def engine() -> Any:
    """Import ONNX Runtime (half a second, so only when it is needed) and return the module."""
    import onnxruntime

    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime
