"""Writes the models of the zoo into a cache folder: seeded weights, three exports of every network.

    python -m benchmarks.zoo.build --cache DIR [--only NAME ...]

``<network>-folded`` and ``<network>-kept`` come from torch's dynamo exporter (BatchNormalization folded, and kept),
``<network>-script`` from the TorchScript exporter. An export that torch refuses leaves a ``.failed`` file with the
reason. ``light_*`` are graphs of the onnx package; ``shared_*`` trained models beside the checkout, where present.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path

import onnx

from benchmarks.zoo import light

SEED = 0
VARIANTS = ("folded", "kept", "script")
# Small graphs that together hold most operators: what the ordinary tests run.
FAST = ("unet-folded", "autoencoder-script", "gpt-folded", "transformer_encoder-folded", "lstm-script", "gru-script")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "onnx"
WITHOUT_NORM = frozenset(
    {"gpt", "transformer_encoder", "lstm", "gru", "squeezenet1_1", "convnext_tiny", "swin_t", "vit_b_16"}
)
# fmt: off
NETWORK_NAMES = (
    "unet", "autoencoder", "gpt", "transformer_encoder", "lstm", "gru", "resnet18", "squeezenet1_1",
    "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf",
    "efficientnet_b0", "googlenet", "inception_v3", "densenet121", "resnet50", "resnext50_32x4d", "ssdlite",
    "fcn_resnet50", "deeplabv3_resnet50", "convnext_tiny", "swin_t", "vit_b_16", "vgg16_bn",
)
# fmt: on


class ExportError(Exception):
    """torch could not export a network; the message is torch's reason."""


def names(only: Iterable[str] = (), *, fast: bool = False) -> list[str]:
    """Return the names of all models, or of those that match a pattern of ``only`` (``resnet*``)."""
    found = [f"{name}-{v}" for name in NETWORK_NAMES for v in VARIANTS if v != "kept" or name not in WITHOUT_NORM]
    found += light.names()
    found += [f"shared_{path.stem}" for path in sorted(SHARED.glob("*.onnx"))]
    if fast:
        found = [name for name in found if name in FAST]
    patterns = list(only)
    return [
        name for name in found if not patterns or any(fnmatch(name, p) or name.startswith(f"{p}-") for p in patterns)
    ]


def default_cache() -> Path:
    """Return the folder that is used where none is given; it outlives the run, so that a second one is quick."""
    return Path(tempfile.gettempdir()) / "onnxprune-zoo"


def build(name: str, cache: Path) -> Path:
    """Return the file of a model, made anew unless it lies in ``cache``.

    Raises:
        ExportError: torch cannot export it (now, or when it was tried before).
    """
    path, failed = cache / f"{name}.onnx", cache / f"{name}.failed"
    if path.is_file():
        return path
    if failed.is_file():
        raise ExportError(failed.read_text())
    cache.mkdir(parents=True, exist_ok=True)
    if name.startswith("shared_"):
        return SHARED / f"{name.removeprefix('shared_')}.onnx"
    draft = Path(tempfile.mkdtemp(prefix=".zoo-", dir=cache))
    try:
        _write(name, draft / path.name)
        (draft / path.name).replace(path)
    except ExportError as error:
        failed.write_text(str(error))
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _write(name: str, path: Path) -> None:
    if name.startswith("light_"):
        onnx.save(light.seeded(name, SEED), path)
        return
    from benchmarks.zoo import export  # torch takes seconds to import

    network, variant = name.rsplit("-", 1)
    said = StringIO()
    with warnings.catch_warnings(), redirect_stderr(said), redirect_stdout(said):
        warnings.simplefilter("ignore")
        reason = export.export(network, variant, path, SEED)
    if reason is not None:
        raise ExportError(reason)


def main() -> int:
    """Build the models and say what could not be exported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a name, network or pattern")
    parser.add_argument("--fast", action="store_true", help="the small subset of the ordinary tests")
    args = parser.parse_args()
    for name in names(args.only, fast=args.fast):
        try:
            print(build(name, args.cache), flush=True)
        except ExportError as error:
            print(f"{name}: torch cannot export it: {error}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
