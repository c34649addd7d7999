"""Rate and speed of SuRP's code: bytes at a sparsity, bits per hit beside their entropy, CPU seconds, ratio to R(D).

    python benchmarks/surp_codec.py                             272,474 Laplacian weights (the size of ResNet-20)
    python benchmarks/surp_codec.py --weights 14700000          the size of VGG-16 for CIFAR-10
    python benchmarks/surp_codec.py --model resnet20.onnx       a model's own weights, each tensor over its norm

R(D) = log2(1 / D) bits per weight is the bound for Laplacian weights at a relative L1 error of D; for other weights
the column only shows the trend. All bits are counted, signs and framing included, but no header. One core.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.surp_reference import seconds_per_step
from onnxprune.codec.container import code
from onnxprune.codec.decoder import StreamDecoder
from onnxprune.codec.law import Law, Stop
from onnxprune.codec.levels import Refiner, refine
from onnxprune.codec.sequential import announce
from onnxprune.codec.stream import Encoded, encode

SPARSITIES = (0.9, 0.8, 0.7, 0.6, 0.5)
ERRORS = (0.5, 0.25, 0.1)
LONGEST_SEQUENCE = 3_000_000


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def model_weights(path: str) -> np.ndarray:
    """Return all weights of two dimensions or more, each tensor over its L2 norm, float64 [n]."""
    import onnx
    from onnx import numpy_helper

    arrays = (numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer)
    weights = [array.astype(np.float64).ravel() for array in arrays if array.ndim >= 2 and array.dtype.kind == "f"]
    return np.concatenate([array / np.linalg.norm(array) for array in weights if array.any()])


def entropy(weights: np.ndarray, law: Law, hits: int) -> float:
    """Return h(p) / p summed over the first ``hits``, in bits, with p the share of a scan that is hit."""
    refiner = Refiner(np.abs(weights), law)
    bits = 0.0
    for level in refiner.levels(Stop(hits=hits)):
        size, left, scan = len(weights), level.done, 1
        while left > 0:
            found = int(np.count_nonzero(level.times >= scan))
            share = found / size
            if share < 1:
                cost = -math.log2(share) - (1 - share) / share * math.log2(1 - share)
                bits += min(left, found) * cost
            left -= found
            size, scan = found, scan + 1
    return bits


def decoded(coded: Encoded) -> None:
    decoder = StreamDecoder(coded.shape, coded.size)
    for block in coded.blocks:
        decoder.feed(block)
    state = decoder.state(last=True)
    if state.hits != coded.shape.hits or not state.verified:
        raise SystemExit("the decoder did not come to the end")


def row(weights: np.ndarray, law: Law, stop: Stop) -> str:
    coded, encoding = timed(lambda: encode(weights, law, stop))
    _, decoding = timed(lambda: decoded(coded))
    hits, kept, bits = coded.shape.hits, len(coded.support), 8 * coded.size
    ideal = entropy(weights, law, hits) / hits
    bound = len(weights) * math.log2(1 / coded.relative_l1)
    return (
        f"{1 - kept / len(weights):8.3f} {coded.relative_l1:7.4f} {hits:11,} {coded.size:11,} "
        f"{bits / len(weights):8.4f} {(bits - kept) / hits:8.3f} {ideal:8.3f} "
        f"{bits / bound:7.3f} {encoding:8.2f} {decoding:8.2f}"
    )


HEAD = "sparsity  rel.L1        hits       bytes bits/wgt bits/hit  entropy  x R(D)  enc. s   dec. s"


def tables(weights: np.ndarray) -> None:
    for patience in (20, 1):
        law = Law(patience=patience)
        print(f"\npatience {patience}, by sparsity (bits/hit and entropy without signs)\n{HEAD}")
        for sparsity in SPARSITIES:
            print(row(weights, law, Stop(sparsity=sparsity)), flush=True)
        print(f"patience {patience}, by relative L1")
        for relative in ERRORS:
            print(row(weights, law, Stop(relative_l1=relative)), flush=True)


def laws(weights: np.ndarray) -> None:
    magnitudes = np.abs(weights)
    level, seconds = timed(lambda: refine(magnitudes, Stop(sparsity=0.5), Law()))
    print(f"\nlevel law to 50 % sparsity: {level.hits:,} hits, relative L1 {level.relative_l1:.4f}, {seconds:.2f} s")
    step = seconds_per_step(magnitudes)
    if len(weights) <= LONGEST_SEQUENCE:
        run, seconds = timed(lambda: announce(magnitudes, Stop(sparsity=0.5), Law()))
        print(
            f"sequential law to 50 %: {run.hits:,} hits, relative L1 {run.relative_l1:.4f}, {seconds:.2f} s, "
            f"{1e6 * seconds / run.hits:.1f} us a hit, start included; "
            f"estimated index bits per weight {run.index_bits / len(weights):.3f}"
        )
    print(f"direct scan: {1e6 * step:.0f} us a hit, so {step * level.hits:,.0f} s for {level.hits:,} hits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=272_474, help="how many Laplacian weights")
    parser.add_argument("--model", help="an ONNX model whose weights are coded instead")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.model:
        weights = model_weights(given.model)
    else:
        weights = np.random.default_rng(given.seed).laplace(size=given.weights)
    coded = code({"w": weights.astype(np.float32)}, Law(), Stop(sparsity=0.5))
    print(f"{len(weights):,} weights; at 50 % sparsity {coded.stream.size:,} of {4 * len(weights):,} bytes as float32")
    laws(weights)
    tables(weights)


if __name__ == "__main__":
    main()
