"""Peak memory of one model: loaded and run in a process of its own, whose idle memory is taken off.

A process's high-water mark holds whatever ran in it before, so each model gets a fresh one. Host memory only: what
lies on a GPU does not show here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import BackendError
from onnxprune.runtime.session import Session, Settings

_RUNS = 3
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory: the process at its peak, and how much of that came with the model.

    ``model`` is the peak while the model is loaded and run, less the peak of the same process with an empty model
    run in ONNX Runtime and the input arrays at hand. Weights, ONNX Runtime's own copies of them, activations,
    outputs and pages of mapped files count.
    """

    peak: int
    model: int


def peak_memory(file: Path, feeds: Mapping[str, np.ndarray], settings: Settings, label: str) -> Memory | None:
    """Return the memory that a model takes to load and run three times, or None where the system does not tell.

    Raises:
        BackendError: ONNX Runtime failed, or the process was ended from outside.
    """
    if _high_water() is None:
        return None
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        arrays = Path(folder) / "feeds.npz"
        # Positions in place of names, which may hold anything.
        np.savez(arrays, allow_pickle=True, **{str(place): data for place, data in enumerate(feeds.values())})
        work = {
            "model": str(file), "arrays": str(arrays), "names": list(feeds), "label": label,
            "providers": list(settings.providers), "threads": settings.threads,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune.runtime.memory", json.dumps(work)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2] or "null") or {}
    except json.JSONDecodeError:
        found = {}
    if "error" in found:
        raise BackendError(found["error"])
    if done.returncode or not found:
        raise BackendError(
            f"the process that measures the memory of {label} ended with status {done.returncode}; "
            "leave memory out (--no-memory) or give a smaller --batch-size"
        )
    return Memory(int(found["peak"]), max(0, int(found["peak"]) - int(found["idle"])))


def _work(given: dict[str, Any]) -> dict[str, Any]:
    """Measure one model in this process; what fails is returned as its sentence."""
    settings = Settings(tuple(given["providers"]), threads=given["threads"])
    with np.load(given["arrays"], allow_pickle=True) as stored:
        feeds = {name: stored[str(place)] for place, name in enumerate(given["names"])}
    empty = Session(_empty_model(), settings, "an empty model")
    empty.run({"x": np.zeros(1, np.float32)})
    _forget_high_water()
    idle = _high_water()
    try:
        session = Session(Path(given["model"]), settings, given["label"])
        run = session.bound(feeds)
        for _ in range(_RUNS):
            run()
    except BackendError as error:
        return {"error": str(error)}
    return {"idle": idle, "peak": _high_water()}


def _empty_model() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


def _high_water() -> int | None:
    """Return the most resident bytes of this process so far, or None where the system does not tell."""
    if _STATUS.is_file():
        # Not getrusage: on Linux its figure outlives exec, so that a child starts with its parent's.
        lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    if sys.platform == "darwin":
        import resource

        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


def _forget_high_water() -> None:
    """Start the high-water mark anew where Linux lets it; else imports that swelled for a moment stay in it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    print(json.dumps(_work(json.loads(sys.argv[1]))))
