"""Several processes train one network: joining, sharing out, adding up. One process needs none of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from onnxprune.errors import BackendError, OnnxPruneError, OptionError

__all__ = ["Rendezvous", "from_environment", "joined", "local_rank", "rank", "shard", "spawn", "summed", "world"]

BACKENDS = ("nccl", "gloo")
_PATIENCE = timedelta(minutes=30)  # torch's default; a rank may decode a whole data set before its first step


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of one run meet.

    Attributes:
        world_size: Processes in all.
        rank: This process, from 0.
        url: ``env://`` (as torchrun sets it), ``tcp://HOST:PORT`` or ``file:///PATH``.
        backend: ``nccl`` or ``gloo``; None is nccl where every process has a CUDA device of its own.

    Raises:
        OptionError: If a number is out of range or the backend unknown.
    """

    world_size: int
    rank: int = 0
    url: str = "env://"
    backend: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise OptionError(
                f"rank {self.rank} with world size {self.world_size}: 0 up to it, not including, is accepted"
            )
        if self.backend not in (None, *BACKENDS):
            raise OptionError(f"dist-backend {self.backend!r}: accepted are {', '.join(BACKENDS)}")


def from_environment(backend: str | None = None) -> Rendezvous | None:
    """Read what torchrun sets (RANK, WORLD_SIZE); None where this process was started by itself.

    Raises:
        OptionError: If they are no numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    try:
        return Rendezvous(int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]), "env://", backend)
    except ValueError as error:
        raise OptionError(f"RANK and WORLD_SIZE are to be whole numbers: {error}") from error


@contextmanager
def joined(meeting: Rendezvous | None, device: str = "auto") -> Iterator[None]:
    """Be one of the processes of a run while the block runs; None is no run of several.

    Args:
        meeting: Where they meet.
        device: As in ``TrainOptions``; ``cpu`` rules nccl out.

    Raises:
        BackendError: If the processes do not find each other.
    """
    if meeting is None or meeting.world_size == 1:
        yield
        return
    # Its functions take the process group as a default argument: first imported (by DistributedDataParallel) after the
    # processes have joined, it would keep the group and its threads alive into the interpreter's end, where a thread
    # that still lets go of a tensor aborts the process.
    import torch.distributed.nn.functional

    own = device != "cpu" and torch.cuda.device_count() > local_rank()
    backend = meeting.backend or ("nccl" if own else "gloo")
    if backend == "nccl":
        torch.cuda.set_device(local_rank())
    try:
        distributed.init_process_group(
            backend, init_method=meeting.url, rank=meeting.rank, world_size=meeting.world_size, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BackendError(
            f"process {meeting.rank} of {meeting.world_size} cannot join at {meeting.url}: {reason}"
        ) from error
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process; 0 writes files and prints."""
    return distributed.get_rank() if _several() else 0


def world() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _several() else 1


def local_rank() -> int:
    """Return the number of this process on its machine: the CUDA device that is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def shard(count: int) -> slice:
    """Return which of ``count`` joint places are this process's: every ``world()``-th from its rank on.

    torch's DistributedSampler deals out likewise, and then repeats examples to make the shares equal, which would
    change the loss; here the shares may differ by one, and whoever adds up weighs them.
    """
    return slice(rank(), count, world())


def summed(values: Sequence[float], device: torch.device) -> list[float]:
    """Add up numbers over all processes, in float64."""
    if not _several():
        return list(values)
    place = device if distributed.get_backend() == "nccl" else torch.device("cpu")
    joint = torch.tensor(values, dtype=torch.float64, device=place)
    distributed.all_reduce(joint)
    return [float(value) for value in joint.tolist()]


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], node: Rendezvous, processes: int) -> None:
    """Run a function in several processes of this machine, joined; returns when all are done.

    Args:
        function: Of a module's top level; called as ``function(*arguments)``.
        arguments: Must be picklable.
        node: ``world_size`` counts machines here and ``rank`` is this machine's, as in PyTorch's ImageNet example.
        processes: Per machine.

    Raises:
        OptionError: If there is no process, or the url is ``env://``.
        SystemExit: With the status of the first process that failed; that process said why.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, start_processes

    if processes < 1:
        raise OptionError(f"{processes} processes: at least 1 is accepted")
    if node.url == "env://" and "MASTER_ADDR" not in os.environ:
        raise OptionError("give --dist-url, such as tcp://127.0.0.1:23456, where the processes can meet")
    first = replace(node, world_size=node.world_size * processes, rank=node.rank * processes)
    try:
        start_processes(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            _child, (function, arguments, first), nprocs=processes, start_method="spawn"
        )
    except ProcessExitedException as error:
        raise SystemExit(error.exit_code if error.exit_code and error.exit_code > 0 else 4) from error


def _child(number: int, function: Callable[..., None], arguments: tuple[Any, ...], first: Rendezvous) -> None:
    os.environ["LOCAL_RANK"] = str(number)
    try:
        with joined(replace(first, rank=first.rank + number)):
            function(*arguments)
    except OnnxPruneError as error:
        sys.stderr.write(f"onnxprune: {error}\n")
        sys.exit(error.status)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
