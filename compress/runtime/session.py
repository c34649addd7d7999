"""ONNX Runtime sessions: opened from files, run on named arrays, failing with one clear sentence."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.data import InputSpec
from onnxprune.errors import BackendError
from onnxprune.graph import io
from onnxprune.graph.shapes import true_inputs
from onnxprune.runtime.engine import engine, runtime_errors

_OOM_HINT = "give a smaller --batch-size"
_ON_DEVICE = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


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
        fed = self._fed(feeds, count)
        with self._failing():
            results = self._session.run(names, fed)
        arrays = [np.asarray(item) for item in results]
        if self.fixed_batch is not None and count < self.fixed_batch:
            arrays = [a[:count] if a.ndim and a.shape[0] == self.fixed_batch else a for a in arrays]
        return dict(zip(names, arrays, strict=True))

    def bound(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return a function that runs the model once on these arrays and comes back when that is done; for timing.

        On a GPU the inputs are copied there once, here, and the outputs stay there: a run is the model's own work.

        Raises:
            BackendError: ONNX Runtime failed, now or in a run.
        """
        fed = self._fed(feeds, batch_of(feeds))
        if _ON_DEVICE.isdisjoint(self.providers):

            def plain() -> object:
                with self._failing():
                    return self._session.run(self.outputs, fed)

            return plain
        with self._failing():
            binding = self._binding(fed)

        def on_device() -> None:
            with self._failing():
                self._session.run_with_iobinding(binding)
                # Kernels are only queued so far; the clock must not be read before they are done.
                binding.synchronize_outputs()

        return on_device

    def _binding(self, fed: Mapping[str, np.ndarray]) -> Any:
        """Bind arrays and outputs to the device; text and sequences exist on the host alone."""
        onnxruntime = engine()
        binding = self._session.io_binding()
        for name, data in fed.items():
            if data.dtype.kind in "OUST":
                binding.bind_cpu_input(name, data)
            else:
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(data, "cuda", 0))
        for out in self._session.get_outputs():
            numeric = out.type.startswith("tensor(") and out.type != "tensor(string)"
            binding.bind_output(out.name, "cuda" if numeric else "cpu", 0)
        binding.synchronize_inputs()
        return binding

    def _fed(self, feeds: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
        """Return what the model takes of a feed of ``count`` examples, padded to its fixed batch size."""
        fed = {name: feeds[name] for name in self.inputs if name in feeds}
        if self.fixed_batch is not None and count < self.fixed_batch:
            return {name: _pad(data, count, self.fixed_batch) for name, data in fed.items()}
        return fed

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn what ONNX Runtime raises into one sentence."""
        try:
            yield
        except runtime_errors() as error:
            raise BackendError(f"ONNX Runtime failed on {self.label}: {_reason(error)}") from error
        except MemoryError as error:
            raise BackendError(f"out of memory while running {self.label}; {_OOM_HINT}") from error


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
        yield Session(write_copy(probe, Path(folder), label, scratch=True), settings, label)


def write_copy(model: ir.Model, folder: Path, label: str, *, scratch: bool = False) -> Path:
    """Write a model into a folder for a session to read, and return the file.

    It has the form of a file that a user would have, unless ``scratch`` asks for the one that opens fastest.

    Raises:
        BackendError: It cannot be written.
    """
    try:
        return io.to_scratch(model, folder) if scratch else io.to_folder(model, folder, "model.onnx")
    except OSError as error:
        raise BackendError(f"a temporary copy of {label} cannot be written: {error.strerror}") from error


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
