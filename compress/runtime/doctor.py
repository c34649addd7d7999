"""What is installed and what works here: versions, providers, clashing wheels."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

from onnxprune.runtime.engine import engine, runtime_errors
from onnxprune.runtime.providers import cuda_devices, installed_wheels, resolve

_REPORTED = (
    "onnxprune",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx-graphsurgeon",
    "numpy",
    "scipy",
)
_OPTIONAL = ("torch", "torchvision", "onnxscript")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions that a report names: Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    return found | {name: version for name in _REPORTED if (version := _version(name)) is not None}


@dataclass(frozen=True)
class Diagnosis:
    """Everything ``onnxprune doctor`` prints; ``problems`` is empty when all is well."""

    versions: dict[str, str]
    optional: dict[str, str | None]
    wheels: dict[str, str]
    compiled: tuple[str, ...]
    usable: tuple[str, ...]
    devices: int
    notices: tuple[str, ...]
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at versions, wheels and providers; a session is really opened on every usable provider."""
    onnxruntime = engine()

    wheels = installed_wheels()
    problems = []
    if len(wheels) > 1:
        names = " and ".join(f"{name} {version}" for name, version in wheels.items())
        problems.append(
            f"{names} are both installed and overwrite each other's files; "
            "uninstall all of them, then install the one you need"
        )
    if not wheels:
        problems.append("no onnxruntime distribution is installed; reinstall onnxprune")
    devices = cuda_devices()
    chosen = resolve(("cuda", "cpu"))
    usable = tuple(name for name in chosen.names if _opens(name))
    if devices and "CUDAExecutionProvider" not in usable:
        problems.append(
            "a CUDA device is present but ONNX Runtime cannot use it; "
            'try pip install "onnxprune[cuda]" for the libraries that it needs'
        )
    return Diagnosis(
        versions(),
        {name: _version(name) for name in _OPTIONAL},
        wheels,
        tuple(onnxruntime.get_available_providers()),
        usable,
        devices,
        chosen.notices,
        tuple(problems),
    )


def _opens(provider: str) -> bool:
    """Return whether a session on a one-node model really runs on ``provider``."""
    import numpy as np
    import onnx

    onnxruntime = engine()

    float_vector = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", [float_vector], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[provider], enable_fallback=0
        )
        session.run(None, {"x": np.ones(2, dtype=np.float32)})
    except runtime_errors():
        return False
    return provider in session.get_providers()
