"""What a model takes as ``.surp`` beside the usual ways to store it, and what each way does to its decisions.

    python benchmarks/surp_sizes.py --model resnet20.onnx --calib cifar10-train.zip --eval cifar10-val.zip

Prints the size table (``onnxprune encode --table``) as Markdown: raw, zstd, fp16 + zstd, int8 + zstd, ``.surp`` at
sparsities and where an agreement of 0.97 and 0.99 is reached, with and without the model's own values. Points by
agreement are chosen on --calib alone (1,000 images, labels unread); the figures are those on --eval. Where NNCodec
(ISO 15938-17, ``pip install nncodec``) can be imported, its rows follow: coarsest quantisation parameter that holds
on the same images of --calib, DeepCABAC with dependent quantisation, everything else as zstd packs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.api import Options, size_table
from onnxprune.api.archives import packed
from onnxprune.api.opening import Loaded, open_model, open_runtime, open_split
from onnxprune.codec.law import Law
from onnxprune.evaluate.intervals import clopper_pearson
from onnxprune.evaluate.streaming import count_kept, decide_all
from onnxprune.graph import skeleton
from onnxprune.report.figures import interval, number, percent
from onnxprune.report.sizes import sizes_markdown

# From coarse to fine; a step of 4 halves the quantiser's step.
_PARAMETERS = range(-8, -61, -1)


def nncodec_rows(loaded: Loaded, options: Options, given: argparse.Namespace) -> None:
    """Print what NNCodec takes for every agreement, or that it is not there."""
    try:
        from nncodec import nn
    except ImportError as error:
        print(f"NNCodec was not there ({error}); `pip install nncodec` adds its rows.")
        return
    tensors, graph = skeleton.split(loaded.model)
    split = open_split(loaded, options, None, given.calib, given.eval)
    settings, _ = open_runtime(options)
    assert split.calibration is not None
    assert split.evaluation is not None
    choosing, judging = (decide_all(loaded.model, side, settings) for side in (split.calibration, split.evaluation))
    if choosing is None or judging is None:
        print("NNCodec is not judged: no output holds class scores.")
        return
    weights, rest = sum(array.size for array in tensors.values()), packed([graph])

    def coded(parameter: int) -> tuple[int, ir.Model]:
        wide = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            stream = nn.encode(wide, {"qp": parameter, "verbose": False, "results": folder})
            back = nn.decode(stream)
        restored = {name: np.asarray(back[name]).astype(array.dtype) for name, array in tensors.items()}
        return len(stream) + rest, skeleton.joined(graph, restored)

    for target in given.until:
        found = _coarsest(coded, lambda model: count_kept(choosing, model, settings) / choosing.examples.count, target)
        if found is None:
            print(f"NNCodec does not reach {target:g} within qp {_PARAMETERS[0]} to {_PARAMETERS[-1]}.")
            continue
        parameter, size, model = found
        kept, count = count_kept(judging, model, settings), judging.examples.count
        ends = interval(*clopper_pearson(kept, count)).removesuffix(" %")
        print(
            f"| NNCodec >= {percent(target)}, qp {parameter} | {number(size)} | {percent(size / loaded.facts.bytes)} "
            f"| {8 * size / weights:.2f} | - | {percent(kept / count)} ({ends}) |",
            flush=True,
        )


def _coarsest(
    coded: Callable[[int], tuple[int, ir.Model]], agreement: Callable[[ir.Model], float], target: float
) -> tuple[int, int, ir.Model] | None:
    """Return the coarsest parameter that holds, found by halving, with its bytes and model."""
    low, high, best = 0, len(_PARAMETERS) - 1, None
    while low <= high:
        middle = (low + high) // 2
        size, model = coded(_PARAMETERS[middle])
        if agreement(model) >= target:
            best, high = (_PARAMETERS[middle], size, model), middle - 1
        else:
            low = middle + 1
    return best


def run() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="an .onnx file (repeatable)")
    parser.add_argument("--calib", required=True, help="examples to choose points on, any DATA form")
    parser.add_argument("--eval", required=True, help="examples to judge on, any DATA form")
    parser.add_argument("--eval-examples", type=int, help="judge on so many")
    parser.add_argument("--until", nargs="+", type=float, default=[0.97, 0.99])
    parser.add_argument("--patience", nargs="+", type=int, default=[20, 1], help="of the code; a table for each")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    options = Options(eval_examples=given.eval_examples, threads=given.threads)
    for model in given.model:
        for patience in given.patience:
            print(f"patience {patience}\n")
            table = size_table(
                model,
                calib=given.calib,
                eval=given.eval,
                until=given.until,
                law=Law(patience=patience),
                options=options,
            )
            print(sizes_markdown(table), flush=True)
        nncodec_rows(open_model(model, options), options, given)


if __name__ == "__main__":
    sys.exit(run())
