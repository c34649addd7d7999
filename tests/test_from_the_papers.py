"""Every command of docs/from-the-papers.md runs, in the page's order, on small files in the data sets' own formats."""

from __future__ import annotations

import hashlib
import pickle
import re
import shlex
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from onnxprune import recipe
from onnxprune.budget import parse_targets
from onnxprune.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "from-the-papers.md"
CONFIGS = ROOT / "models" / "configs"

# The commands in the READMEs of the five repositories, as they stand there.
THEIRS = {
    "SuRP": [
        "python3 main.py --trainer=Classifier --config=cifar_resnet20/config.yaml",
        "python3 main.py --trainer=Classifier --config=cifar_resnet20/config.yaml --test",
        "python3 main.py --trainer=Reconstruction --config=cifar_resnet20/recon.yaml",
        "python3 main.py --trainer=ReconFromFile --config=cifar_resnet20/recon.yaml",
    ],
    "ID": [
        "from main import iditer, create_args",
        "args = create_args()",
        'args.arch = "VGG16"',
        "args.seed = 2",
        "args.prune_batch_size = 5000",
        "args.k = 0.95",
        "args.log_interval = 10",
        'args.k_args = "iditer"',
        "iditer(args, <savedir>)",
        "from pca import pca_prune",
        "pca_prune(net=net, keep_ratio=0.70, prune_size=5000, savename=<savename>)",
        "from lrank import lrank_prune",
        "lrank_prune(net=net, keep_ratio=0.984, prune_size=5000, savename=<savename>)",
        "net = torch.load(<ID pruned model>)",
        "python train.py --arch vgg16 --epochs <epochs> --batch-size <batch size> --lr <lr> --momentum <momentum> "
        "--weight-decay <weight decay> --prune-batch-size 5000 --print-freq 5000 --workers 32 "
        "--resume <checkpoint path/checkpoint.pth.tar> --evalute --pretrained <compressed model path> "
        "--log_dir <logging output path> --tensorboard_dir <tensorboard logging path> "
        "--dist-url 'tcp://127.0.0.1:40781' --dist-backend nccl --seed 2 --multiprocessing-distributed "
        "--world-size 1 --rank 0",
        "atom3d-Pruning.ipynb",
        "ComparisonsNet.ipynb",
        "Iter-PerClass-ClassRemoved-Figure.ipynb",
    ],
    "i-SpaSP": [
        "prune_resnet34_ispasp.py",
        "prune_mobilenetv2_ispasp.py",
        "scripts/prune_rn34_ispasp.py",
        "scripts/prune_mbnv2_ispasp.py",
    ],
    "InCoP": [
        "sbatch pytorch.slurm ../src/prune.py --net_arch=vgg16 --net_dataset=MNIST --net_lr=.01 "
        f"--net_train_epochs=20 --net_warmup=10 {method} --prune_p={orders[0]} --prune_q={orders[1]} "
        "--exper_imp_total_iter=15 --exper_num_trial=3"
        for method, orders in (
            ("--prune_method=ciap", ("1.0", "2.0")),
            ("--prune_method=ciap", ("0.5", "1.0")),
            ("--prune_method=giap", ("1.0", "2.0")),
            ("--prune_method=giap", ("0.5", "1.0")),
            ("--exper_type=performance --prune_method=sap", ("1.0", "2.0")),
            ("--exper_type=performance --prune_method=sap", ("0.5", "1.0")),
            ("--prune_method=lth", ("1.0", "2.0")),
        )
    ],
    "DeepHoyer": [
        "python element.py --reg 0 --decay 0.0",
        "python element.py --reg [regularization type] --decay [regularization strength] --pretrained",
        "python structure.py --reg [regularization type] --decay [regularization strength] --pretrained",
        "python prun_tune_T.py --model [path to trained model] --sensitivity [pruning threshold]",
        "python prun_tune_V.py --model [path to trained model] --sensitivity [ratio of threshold/std]",
    ],
}
# What is said behind every command so that it ends soon: the last word on an option wins.
SHORT = {
    "train": "--epochs 1 --batch-size 8 --device cpu",
    "prune-tune": "--epochs 1 --batch-size 8 --device cpu",
    "finetune": "--epochs 1 --batch-size 8 --device cpu --workers 2",
    "iterate": "--epochs 1 --batch-size 20 --device cpu --dense-epochs 1 --rounds 1 --trials 1 --probe 8 --epsilon 0.5",
    "apply": "--batch-size 8 --eval-examples 8",
    "sweep": "--batch-size 8 --calib-examples 24 --eval-examples 40",
}
# Without any: the next stage of the schedule alone.
STAGES = "--sparsity 0.36"
IMAGES = 40


def sections() -> dict[str, list[tuple[str, list[str], str]]]:
    """Return by paper the rows of its table: their words, our commands, what differs."""
    found: dict[str, list[tuple[str, list[str], str]]] = {}
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        rows = [line.strip("|").split(" | ") for line in body.splitlines() if line.startswith("| ")][1:]
        found[title] = [(row[0].strip(), re.findall(r"`([^`]+)`", row[1]), row[2]) for row in rows]
    return found


@pytest.mark.parametrize("paper", THEIRS)
def test_every_command_of_their_readme_is_there(paper: str) -> None:
    rows = sections()[paper]
    theirs = [" ; ".join(re.findall(r"`([^`]+)`", row[0])) for row in rows]
    for command in THEIRS[paper]:
        assert any(command in words for words in theirs), command
    for words, ours, _ in rows:
        assert ours, words
        assert all(line.startswith("onnxprune ") for line in ours)


def test_every_configuration_is_in_the_page_and_every_notebook_exists() -> None:
    text = PAGE.read_text("utf-8")
    for path in CONFIGS.glob("*.yaml"):
        assert f"--config {path.stem} " in text.replace("`", " "), path.stem
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", text):
        assert (PAGE.parent / link).exists(), link


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def _write_mnist(folder: Path, rng: np.random.Generator) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 2 * IMAGES), ("t10k", IMAGES)):
        _write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        _write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))


def _write_cifar10(folder: Path, rng: np.random.Generator, patch: pytest.MonkeyPatch) -> None:
    """Write files as torchvision reads them; their checksums take the place of the real ones."""
    import torchvision

    from onnxprune.models.datasets import CLASS_NAMES

    below = folder / "cifar-10-batches-py"
    below.mkdir(parents=True)

    def dump(name: str, content: object) -> tuple[str, str]:
        (below / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((below / name).read_bytes()).hexdigest()

    def batch(count: int) -> dict[str, object]:
        images = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
        return {"data": images, "labels": [int(label) for label in np.arange(count) % 10]}

    train = [dump(f"data_batch_{number}", batch(IMAGES // 2)) for number in range(1, 6)]
    test, (meta, digest) = (
        [dump("test_batch", batch(IMAGES))],
        dump("batches.meta", {"label_names": list(CLASS_NAMES["cifar10"])}),
    )
    own = torchvision.datasets.CIFAR10
    patch.setattr(own, "train_list", train)
    patch.setattr(own, "test_list", test)
    patch.setattr(own, "meta", {"filename": meta, "key": "label_names", "md5": digest})


def _write_class_folders(folder: Path, rng: np.random.Generator) -> None:
    for split, count in (("train", 8), ("val", 4)):
        for name in ("n01440764", "n01443537", "n01484850"):
            below = folder / split / name
            below.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (80, 60, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(below / f"{name}_{number}.JPEG")


def _thinner(patch: pytest.MonkeyPatch) -> None:
    """Let the wide networks have an eighth of their channels; layers and names stay."""
    import torchvision

    from onnxprune.models import zoo
    from onnxprune.models.zoo import vgg

    plan = tuple(channels // 8 for channels in vgg.PLAN)

    def made(classes: int, in_channels: int, *, norm: bool) -> Any:
        return vgg.CifarVGG(classes, in_channels, norm=norm, plan=plan)

    patch.setattr(vgg, "vgg16", lambda classes, in_channels: made(classes, in_channels, norm=False))
    patch.setattr(vgg, "vgg16_bn", lambda classes, in_channels: made(classes, in_channels, norm=True))
    wide = torchvision.models.vgg.cfgs["D"]
    patch.setitem(torchvision.models.vgg.cfgs, "D", [each if each == "M" else each // 8 for each in wide])
    plain = torchvision.models.vgg.VGG

    class Thin(plain):  # type: ignore[misc,valid-type]  # the class is torchvision's, which has no types
        def __init__(self, features: Any, num_classes: int = 1000, **given: Any) -> None:
            from torch import nn

            super().__init__(features, num_classes, init_weights=False)
            self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
            head = (nn.Linear(64 * 4, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(True), nn.Dropout())
            self.classifier = nn.Sequential(*head, nn.Linear(64, num_classes))

    patch.setattr(torchvision.models.vgg, "VGG", Thin)
    assert zoo.build("vgg16").classifier.in_features == 64


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder as the page expects it, with small data; the parameter says whether networks are thinner too."""
    import torch

    rng = np.random.default_rng(0)
    _write_mnist(tmp_path / "data", rng)
    _write_cifar10(tmp_path / "data", rng, monkeypatch)
    _write_class_folders(tmp_path / "imagenet", rng)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if request.param == "thin":
        _thinner(monkeypatch)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def _checkpoints(text: str) -> None:
    """Write what torchvision's checkpoints that a page's commands name would hold, with fresh weights."""
    import torch

    from onnxprune.models import zoo

    for network, name in re.findall(r"export (\w+) --weights (\S+)", text):
        torch.save(zoo.build(network).state_dict(), name)


@pytest.mark.parametrize("paper", THEIRS)
def test_our_commands_can_be_read(paper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options, configurations and recipes are there; nothing is run."""
    monkeypatch.chdir(ROOT)
    context = click.Context(main)
    for line in [line for _, ours, _ in sections()[paper] for line in ours]:
        _, verb, *words = shlex.split(line)
        command = main.get_command(context, verb)
        assert command is not None, line
        given = command.make_context(verb, words, parent=context).params
        if verb == "apply":
            recipe.parse(given["recipe"])
        for text in given.get("recipes", ()):
            recipe.parse(text, parse_targets(given["targets"][0])[:1])


# Those of the others take minutes.
QUICK = ("InCoP", "DeepHoyer")
RUNS = [
    pytest.param(paper, size, id=f"{paper}-{size}", marks=() if paper in QUICK and size == "thin" else pytest.mark.slow)
    for paper in THEIRS
    for size in ("thin", "full")
]


@pytest.mark.parametrize(("paper", "desk"), RUNS, indirect=["desk"])
def test_our_commands_run(paper: str, desk: Path) -> None:
    rows = sections()[paper]
    commands = [line for _, ours, _ in rows for line in ours]
    _checkpoints("\n".join(commands))
    if paper == "ID":  # whose last study is of a network that another page's command has trained
        commands.insert(-1, "onnxprune train --config surp-resnet20-train")
    for line in commands:
        _, verb, *words = shlex.split(line)
        more = SHORT.get(verb, "").split()
        if verb == "iterate" and "surp" in line:
            more += [] if "--sparsity" in words else STAGES.split()
        done = CliRunner().invoke(main, [verb, *words, *more])
        assert done.exit_code == 0, (line, done.output)
        for option, name in pairwise(words):
            if option in ("--out", "--plot", "--class-plot", "--report"):
                assert (desk / name).exists(), (line, name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_says_what_it_is_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith("# ")
    assert f"--config {path.stem}" in text or f"{path.stem}`" in text
    assert isinstance(yaml.safe_load(text), dict)


def test_a_name_that_is_no_configuration() -> None:
    done = CliRunner().invoke(main, ["train", "--config", "surp-resnet"])
    assert done.exit_code == 2
    assert "did you mean 'surp-resnet20-train'?" in done.output
