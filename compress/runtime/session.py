"""ONNX Runtime sessions: opened from files, run on named arrays, failing with one clear sentence."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.data import InputSpec
from onnxprune.errors import BackendError
from onnxprune.graph import io
from onnxprune.graph.shapes import true_inputs
from onnxprune.runtime.engine import engine, runtime_errors

_OOM_HINT = "give a smaller --batch-size"


@dataclass(frozen=True)
class Settings:
    """How to run: providers in order, examples per run, threads (None: ONNX Runtime's own choice)."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    batch_size: int = 32
    threads: int | None = None


class Session:
    """One open model: its input names and fixed batch size, and ``run`` from arrays to arrays."""

    def __init__(self, file: Path | bytes, settings: Settings, label: str) -> None:
        onnxruntime = engine()

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Two open models whose threads spin while they wait disturb each other: on equal models the ratio of
        # latencies jumped between 1 and 1.5 with spinning, and stays within 1 % without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
            options.inter_op_num_threads = 1
        self.label = label
        try:
            self._session = onnxruntime.InferenceSession(
                file if isinstance(file, bytes) else str(file), options, providers=list(settings.providers)
            )
        except runtime_errors() as error:
            raise BackendError(f"ONNX Runtime cannot load {label}: {_reason(error)}") from error
        self.outputs = [str(out.name) for out in self._session.get_outputs()]
        self.inputs = [str(given.name) for given in self._session.get_inputs()]
        first = self._session.get_inputs()[0].shape if self.inputs else []
        self.fixed_batch = first[0] if first and isinstance(first[0], int) else None

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that the session really uses."""
        return tuple(self._session.get_providers())

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run one batch; the batch is padded to the model's fixed batch size and cut back where it has one.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        names = list(outputs) if outputs is not None else self.outputs
        count = batch_of(feeds)
        padded = self.fixed_batch is not None and count < self.fixed_batch
        fed = {name: _pad(data, count, self.fixed_batch or 0) for name, data in feeds.items()} if padded else feeds
        try:
            results = self._session.run(names, {name: fed[name] for name in self.inputs if name in fed})
        except runtime_errors() as error:
            raise BackendError(f"ONNX Runtime failed on {self.label}: {_reason(error)}") from error
        except MemoryError as error:
            raise BackendError(f"out of memory while running {self.label}; {_OOM_HINT}") from error
        arrays = [np.asarray(item) for item in results]
        if padded:
            arrays = [a[:count] if a.ndim and a.shape[0] == self.fixed_batch else a for a in arrays]
        return dict(zip(names, arrays, strict=True))


def batch_of(feeds: Mapping[str, np.ndarray]) -> int:
    """Return how many examples a feed holds: the first size of its first array that has any."""
    return next((len(data) for data in feeds.values() if data.ndim), 0)


def _pad(data: np.ndarray, count: int, size: int) -> np.ndarray:
    """Repeat the last of ``count`` examples up to ``size``; an array that holds no examples stays as it is."""
    if not count or not data.ndim or len(data) != count:
        return data
    return np.concatenate([data, np.repeat(data[-1:], size - len(data), axis=0)])


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text.removeprefix("[ONNXRuntimeError] : ")[:400].rstrip(".")


def batch_for(session: Session, settings: Settings) -> int:
    """Return how many examples to feed at once: the model's fixed batch, else what the settings say."""
    return session.fixed_batch or settings.batch_size


@contextlib.contextmanager
def open_session(
    model: ir.Model, settings: Settings, *, label: str = "the model", taps: Sequence[str] = ()
) -> Iterator[Session]:
    """Open a session on a model in memory, with the named intermediate values as extra outputs.

    The model goes through a temporary file: handing a large one over as bytes is several times slower.
    """
    probe = _with_taps(model, taps) if taps else model
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        try:
            file = io.to_folder(probe, Path(folder), "model.onnx")
        except OSError as error:
            raise BackendError(f"a temporary copy of {label} cannot be written: {error.strerror}") from error
        yield Session(file, settings, label)


def _with_taps(model: ir.Model, taps: Sequence[str]) -> ir.Model:
    probe = model.clone()
    probe.meta.update(model.meta)
    values = ir.convenience.create_value_mapping(probe.graph)
    present = {str(value.name) for value in probe.graph.outputs}
    for name in taps:
        if name not in present:
            probe.graph.outputs.append(values[name])
            present.add(name)
    return probe


def input_specs(model: ir.Model) -> list[InputSpec]:
    """Return what the model wants to be fed: name, element type and shape of every true input."""
    specs = []
    for value in true_inputs(model):
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        dims = value.shape or ()
        shape = tuple(size if isinstance(size, int) else _symbol(size) for size in dims)
        specs.append(InputSpec(str(value.name), np.dtype(dtype), shape))
    return specs


def _symbol(size: object) -> str | None:
    name = getattr(size, "value", None)
    return None if name is None else str(name)
