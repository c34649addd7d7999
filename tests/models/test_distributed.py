"""Two gloo processes give the loss curve of one with the joint batch, however they are started."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxprune.errors import OptionError
from onnxprune.models import distributed
from onnxprune.models.augment import augmented
from onnxprune.models.distributed import Rendezvous

# 1,293 training examples: a last batch of one, so that the second process has none of it.
OPTIONS = (
    "--data",
    "digits",
    "--epochs",
    "2",
    "--batch-size",
    "68",
    "--device",
    "cpu",
    "--reg",
    "hs",
    "--decay",
    "1e-4",
)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _started(*words: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], env=environment, text=True, stdout=subprocess.PIPE
    )


def _curve(file: Path) -> np.ndarray:
    with file.open() as stream:
        return np.array([[float(value) for value in row.values()] for row in csv.DictReader(stream)])


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("one")
    words = ("onnxprune", "train", "lenet300", *OPTIONS, "--out", folder / "m.onnx", "--csv", folder / "m.csv")
    process = _started(*words)
    process.communicate(timeout=300)
    assert process.returncode == 0
    return _curve(folder / "m.csv")


@pytest.mark.parametrize(
    "way",
    ["torchrun", *(pytest.param(way, marks=pytest.mark.slow) for way in ("multiprocessing", "by hand"))],
)
def test_two_processes_are_one_with_the_joint_batch(way: str, wanted: np.ndarray, tmp_path: Path) -> None:
    words = ("onnxprune", "train", "lenet300", *OPTIONS, "--out", tmp_path / "m.onnx", "--csv", tmp_path / "m.csv")
    url = ("--dist-url", f"tcp://127.0.0.1:{_port()}", "--dist-backend", "gloo")
    if way == "torchrun":
        run = ("torch.distributed.run", "--nproc-per-node", 2, "--master-port", _port(), "-m")
        processes = [_started(*run, *words)]
    elif way == "multiprocessing":
        nodes = ("--multiprocessing-distributed", "--nproc-per-node", 2, "--world-size", 1, "--rank", 0)
        processes = [_started(*words, *nodes, *url)]
    else:
        processes = [_started(*words, "--world-size", 2, "--rank", rank, *url) for rank in (0, 1)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    assert "".join(said).count("wrote ") == 1
    found = _curve(tmp_path / "m.csv")
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.best.pth", "m.csv", "m.last.pth", "m.onnx"]


def test_two_processes_tune_as_one(tmp_path: Path, conv_net: Callable[..., Any]) -> None:
    for seed, name in ((0, "model"), (1, "pruned")):
        onnx.save(conv_net(seed), tmp_path / f"{name}.onnx")
    images = np.random.default_rng(5).standard_normal((200, 1, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    words = ("onnxprune", "finetune", tmp_path / "pruned.onnx", "--teacher", tmp_path / "model.onnx")
    words += ("--data", tmp_path / "x.npz", "--epochs", 2, "--batch-size", 33, "--device", "cpu")
    processes = []
    for name, run in (
        ("one", ()),
        ("two", ("torch.distributed.run", "--nproc-per-node", 2, "--master-port", _port(), "-m")),
    ):
        files = ("--out", tmp_path / f"{name}.onnx", "--csv", tmp_path / f"{name}.csv")
        processes.append(_started(*run, *words, *files))
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    np.testing.assert_allclose(_curve(tmp_path / "two.csv"), _curve(tmp_path / "one.csv"), rtol=1e-5)


LEAVES = """
import os, sys, torch
from onnxprune.models import distributed
meeting = distributed.Rendezvous(2, int(sys.argv[1]), sys.argv[2], "gloo")
with distributed.joined(meeting, "cpu"):
    parallel = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    parallel(torch.ones(2, 4)).sum().backward()
    del parallel
print(*sorted(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")))
"""


def test_two_processes_prune_in_rounds_as_one(tmp_path: Path) -> None:
    words = (
        "onnxprune", "iterate", "surp", "--model", "lenet300", "--data", "digits", "--sparsity", "0.8",
        "--epochs", 1, "--dense-epochs", 1, "--batch-size", 68, "--device", "cpu", "--loss", "both", "--out",
    )  # fmt: skip
    run = ("torch.distributed.run", "--nproc-per-node", 2, "--master-port", _port(), "-m")
    rounds = []
    for name, first in (("one", ()), ("two", run)):
        process = _started(*first, *words, tmp_path / name)
        process.communicate(timeout=300)
        assert process.returncode == 0
        rounds.append(json.loads((tmp_path / name / "rounds.json").read_text()))
    for one, two in zip(*rounds, strict=True):
        assert two["left"] == one["left"]
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-2)
        assert two["surp_bytes"] == (tmp_path / "two" / f"round-{two['round']:02d}" / "model.surp").stat().st_size


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_leaving_ends_every_thread_of_the_process_group() -> None:
    # One of them alive at the interpreter's end aborted the process now and then.
    url = f"tcp://127.0.0.1:{_port()}"
    words = ([sys.executable, "-c", LEAVES, str(rank), url] for rank in (0, 1))
    processes = [subprocess.Popen(each, text=True, stdout=subprocess.PIPE) for each in words]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert not any("gloo" in each or "tcpstore" in each for each in said)


def test_a_failing_process_says_why_and_gives_its_status(tmp_path: Path) -> None:
    words = ("onnxprune", "train", "lenet300", "--data", "digit", "--out", tmp_path / "m.onnx")
    more = ("--multiprocessing-distributed", "--nproc-per-node", 1, "--dist-url", f"tcp://127.0.0.1:{_port()}")
    done = subprocess.run(
        [sys.executable, "-m", *map(str, (*words, *more))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "did you mean 'digits'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_shares_of_augmented_batches_are_those_of_one_process() -> None:
    images = torch.rand(7, 3, 32, 32)
    for kind in ("shift", "shift+flip", "crop", "crop+flip", "affine"):
        whole = augmented(images, kind, torch.Generator().manual_seed(1))
        for rank in (0, 1):
            places = slice(rank, 7, 2)
            own = augmented(images[places], kind, torch.Generator().manual_seed(1), (7, places))
            torch.testing.assert_close(own, whole[places])


def test_mixtures_are_of_two_images() -> None:
    images = torch.eye(9).reshape(9, 1, 3, 3).repeat(1, 3, 1, 1) + 1
    mixed = augmented(images, "none+mixup", torch.Generator().manual_seed(3))
    shares = mixed[:, 0].reshape(9, 9) - 1
    assert ((shares > 1e-6).sum(dim=1) == 2).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(9))
    again = augmented(images, "none+mixup", torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, again, rtol=0, atol=0)
    one = augmented(images[:1], "shift+flip+mixup", torch.Generator().manual_seed(3))
    assert one.shape == images[:1].shape and torch.isfinite(one).all()


def test_crop_puts_zeros_around() -> None:
    moved = augmented(torch.ones(64, 1, 32, 32), "crop", torch.Generator().manual_seed(0))
    assert (moved[:, :, 4:-4, 4:-4] == 1).all()
    assert (moved[:, :, 0] == 0).any()


def test_alone_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.from_environment() is None
    with distributed.joined(None):
        assert (distributed.rank(), distributed.world(), distributed.shard(5)) == (0, 1, slice(0, 5, 1))
    assert distributed.summed([1.5, 2], torch.device("cpu")) == [1.5, 2]


def test_what_torchrun_sets_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed.from_environment("gloo") == Rendezvous(4, 1, "env://", "gloo")
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(OptionError, match="RANK and WORLD_SIZE are to be whole numbers"):
        distributed.from_environment()


def test_wrong_meetings() -> None:
    with pytest.raises(OptionError, match="rank 2 with world size 2: 0 up to it"):
        Rendezvous(2, 2)
    with pytest.raises(OptionError, match="dist-backend 'mpi': accepted are nccl, gloo"):
        Rendezvous(2, 0, backend="mpi")
