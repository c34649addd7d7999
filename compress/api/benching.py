"""Timing models side by side: latency in turns with intervals, cost and peak memory."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.api.feeding import batch_sizes as sizes_to_run
from onnxprune.api.feeding import common_inputs, examples_to_run, feed_of, sizes_made_up
from onnxprune.api.opening import Loaded, ModelLike, open_model, open_runtime, task
from onnxprune.api.options import Options
from onnxprune.budget import Gate, check_ratio, latency_gate
from onnxprune.data import DataLike
from onnxprune.errors import OptionError
from onnxprune.evaluate.intervals import check_confidence
from onnxprune.fit.sizing import block_size
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import Cost
from onnxprune.graph.cost import measure as measure_cost
from onnxprune.report.bench import BenchModel, BenchResult, BenchRow, deviation, meaning, setting_text
from onnxprune.runtime.latency import OPENINGS, measure_anew
from onnxprune.runtime.memory import Memory, peak_memory
from onnxprune.runtime.session import Session, Settings, write_copy
from onnxprune.runtime.timing import Latency

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_CPU = "CPUExecutionProvider"


def bench(
    models: Sequence[ModelLike],
    data: DataLike | None = None,
    *,
    batch_sizes: Sequence[int] | None = None,
    threads: Sequence[int | None] = (None,),
    seconds: float = 3.0,
    memory: bool = True,
    max_latency_ratio: float | None = None,
    options: Options | None = None,
) -> BenchResult:
    """Time models side by side at every batch size and number of threads; the first is what others are held against.

    Args:
        models: the models, at most 26; all take the same inputs. In the result they are called A, B, C ...
        data: where the inputs come from; None makes seeded random ones; what free dimensions became is said.
        batch_sizes: examples per run; None is one, or the number that the models fix.
        threads: threads of ONNX Runtime; None in it is its own choice.
        seconds: time per setting, shared by the models, which are opened eight times in it; loading is not counted.
        memory: measure each model's peak memory, in a process of its own.
        max_latency_ratio: gate: the upper end of every latency ratio's interval is at most this.
        options: providers, seed, confidence, preprocessing and progress; its batch size and threads are not used.

    Raises:
        OptionError: An option cannot be used, or a batch size is not the one that a model fixes.
        ModelError: A model is unusable, or has other inputs than the first.
        DataError: The data is broken or does not fit the models.
        BackendError: ONNX Runtime failed.
    """
    chosen = options or Options()
    check_confidence(chosen.confidence)
    _check(models, threads, seconds, max_latency_ratio)
    loaded = [open_model(model, chosen) for model in models]
    inputs = common_inputs(loaded)
    sizes = sizes_to_run(batch_sizes, inputs, loaded)
    settings, notices = open_runtime(chosen)
    examples, warnings = examples_to_run(data, inputs, loaded[0], chosen, max(sizes))
    fed = {size: feed_of(examples, size) for size in sizes}
    subjects = _subjects(loaded, fed[min(sizes)], min(sizes))
    plan = _Plan(loaded, subjects, fed, settings, tuple(dict.fromkeys(threads)), seconds, chosen)
    with sizes_made_up(inputs, examples), tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        files = plan.files(Path(folder))
        taken = plan.memories(files) if memory else {}
        times, used = plan.timings(files)
    if settings.providers[0] not in used:
        warnings.append(f"{settings.providers[0]} could not be used; the models ran on {', '.join(used)}")
    if memory and None in taken.values():
        warnings.append("peak memory is not measured: this system does not tell a process's high-water mark")
    gates = () if max_latency_ratio is None else (_gate(max_latency_ratio, plan, times),)
    said = tuple(dict.fromkeys((*notices, *warnings)))
    rows = tuple(_rows(plan, times, taken, on_cpu=used[:1] == (_CPU,)))
    return BenchResult(subjects, rows, examples.source, used, seconds, chosen.seed, gates, said)


def _check(
    models: Sequence[ModelLike], threads: Sequence[int | None], seconds: float, max_latency_ratio: float | None
) -> None:
    if isinstance(models, str) or not 1 <= len(models) <= len(_LETTERS):
        count = "one string" if isinstance(models, str) else str(len(models))
        raise OptionError(f"models are {count}; bench takes a list of 1 to {len(_LETTERS)}")
    if not threads or any(count is not None and count < 1 for count in threads):
        raise OptionError(f"threads are {list(threads)}; give whole numbers from 1")
    if not 0 < seconds < math.inf:
        raise OptionError(f"seconds is {seconds:g}; it must be a positive number")
    if max_latency_ratio is None:
        return
    check_ratio("max-latency-ratio", max_latency_ratio)
    if len(models) < 2:
        raise OptionError("max-latency-ratio holds other models against the first; give a second model")


_Times = Mapping[tuple[int, int | None], Sequence[Latency]]
_Memories = Mapping[tuple[int, int], Memory | None]


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is timed: models, a feed per batch size, and the settings."""

    loaded: Sequence[Loaded]
    subjects: Sequence[BenchModel]
    fed: Mapping[int, Mapping[str, np.ndarray]]
    settings: Settings
    threads: Sequence[int | None]
    seconds: float
    options: Options

    def files(self, folder: Path) -> list[Path]:
        """Write every model for ONNX Runtime to read."""
        files = []
        for item, subject in zip(self.loaded, self.subjects, strict=True):
            place = folder / subject.name
            place.mkdir()
            files.append(write_copy(item.model, place, _label(subject)))
        return files

    def at(self, threads: int | None) -> Settings:
        """Return the settings with this number of threads."""
        return Settings(self.settings.providers, threads=threads)

    def memories(self, files: Sequence[Path]) -> dict[tuple[int, int], Memory | None]:
        """Measure the memory of every model, by its place, at every batch size, with the first number of threads."""
        found = {}
        with task(self.options, "memory", len(files) * len(self.fed)) as advance:
            for size, feeds in self.fed.items():
                for place, (file, subject) in enumerate(zip(files, self.subjects, strict=True)):
                    found[place, size] = peak_memory(file, feeds, self.at(self.threads[0]), _label(subject))
                    advance(1)
        return found

    def timings(self, files: Sequence[Path]) -> tuple[dict[tuple[int, int | None], list[Latency]], tuple[str, ...]]:
        """Time all models in turns at every setting, and tell the providers that they ran on."""
        times: dict[tuple[int, int | None], list[Latency]] = {}
        used: tuple[str, ...] = ()

        def opened() -> list[Session]:
            nonlocal used
            pairs = zip(files, self.subjects, strict=True)
            sessions = [Session(file, self.at(count), _label(subject)) for file, subject in pairs]
            used = sessions[0].providers
            return sessions

        with task(self.options, "latency", OPENINGS * len(self.threads)) as advance:
            for count in self.threads:
                found = measure_anew(
                    opened, list(self.fed.values()), budget_s=self.seconds,
                    confidence=self.options.confidence, seed=self.options.seed, advance=advance,
                )  # fmt: skip
                times.update({(size, count): row for size, row in zip(self.fed, found, strict=True)})
        return times, used


def _label(subject: BenchModel) -> str:
    return f"model {subject.name} ('{subject.path}')"


def _subjects(loaded: Sequence[Loaded], feeds: Mapping[str, np.ndarray], batch: int) -> tuple[BenchModel, ...]:
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    costs = [measure_cost(item.model, shapes) for item in loaded]
    return tuple(
        _subject(letter, item, cost, costs[0], batch)
        for letter, item, cost in zip(_LETTERS, loaded, costs, strict=False)
    )


def _subject(letter: str, item: Loaded, cost: Cost, first: Cost, batch: int) -> BenchModel:
    counted = not cost.unknown and not first.unknown
    return BenchModel(
        name=letter,
        path=item.facts.path,
        bytes=item.facts.bytes,
        sha256=item.facts.sha256,
        params=cost.params,
        nonzero=cost.nonzero,
        macs=None if cost.unknown else cost.macs,
        macs_batch=batch,
        weight_bytes=cost.bytes,
        macs_ratio=_over(cost.macs, first.macs) if counted else None,
        bytes_ratio=_over(cost.bytes, first.bytes),
        nonzero_ratio=_over(cost.nonzero, first.nonzero),
    )


def _over(value: int, base: int) -> float | None:
    return value / base if base else None


def _gate(wanted: float, plan: _Plan, times: _Times) -> Gate:
    """Judge the slowest of all models and settings by the upper end of its interval."""
    found = [
        (math.inf if time.ratio is None or time.ratio.high is None else time.ratio.high, place, setting)
        for setting, row in times.items()
        for place, time in enumerate(row)
        if place
    ]
    got, place, setting = max(found, key=lambda item: item[0])
    where = f"{plan.subjects[place].name} over A at {setting_text(*setting)}"
    return latency_gate(got if math.isfinite(got) else None, wanted, where)


def _rows(plan: _Plan, times: _Times, taken: _Memories, *, on_cpu: bool) -> Iterator[BenchRow]:
    block = block_size()
    odd = _Widths(plan.loaded, block)
    for (size, count), row in times.items():
        for place, (subject, latency) in enumerate(zip(plan.subjects, row, strict=True)):
            off = deviation(subject, latency.ratio)
            named = odd.of(place) if on_cpu and off is not None and off > 0 else ()
            meant = meaning(plan.subjects[0], subject, latency, named, block)
            yield BenchRow(subject.name, size, count, latency, taken.get((place, size)), meant)


class _Widths:
    """Widths of convolutions that are no multiple of the processor's block, found when they are asked for."""

    def __init__(self, loaded: Sequence[Loaded], block: int) -> None:
        self._loaded, self._block = loaded, block
        self._found: dict[int, dict[str, int]] = {}

    def of(self, place: int) -> tuple[str, ...]:
        """Name those of one model that the first model does not have so, each with its width."""
        own, first = self._widths(place), self._widths(0)
        return tuple(
            f"{name} ({width})" for name, width in own.items() if width % self._block and first.get(name) != width
        )

    def _widths(self, place: int) -> dict[str, int]:
        if place not in self._found:
            analysis = spaces.analyse(prepare(self._loaded[place].model))
            self._found[place] = {
                space.name: space.width
                for space in analysis.spaces
                if any(p.node.op_type in _CONVOLUTIONS for p in space.producers)
            }
        return self._found[place]
