"""Peak memory of comparing two models, and two files of outputs, over few and over many examples.

Runs every comparison in a process of its own and prints the peak resident memory: it should stay flat within a few
megabytes while the examples are ten times as many. The inputs are made as they are fetched and held nowhere.

    python benchmarks/compare_memory.py [FEW MANY]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEW, MANY = 20_000, 200_000
WIDTH, CLASSES = 256, 100


def model(seed: int, noise: float) -> onnx.ModelProto:
    rng, moved = np.random.default_rng(0), np.random.default_rng(seed)
    arrays = {"w1": rng.normal(0, 0.1, (WIDTH, 64)), "w2": rng.normal(0, 0.3, (64, CLASSES))}
    arrays["w2"] += noise * moved.standard_normal(arrays["w2"].shape)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "memory",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_outputs(path: Path, count: int, noise: float) -> None:
    """Write scores as a compressed archive, as much at a time as fits anywhere."""
    import zipfile

    from numpy.lib import format as npy

    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("scores.npy", "w", force_zip64=True) as file,
    ):
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, CLASSES)}
        npy.write_array_header_1_0(file, header)
        rng, moved = np.random.default_rng(0), np.random.default_rng(1)
        for _ in range(0, count, 1000):
            scores = rng.standard_normal((1000, CLASSES)) + noise * moved.standard_normal((1000, CLASSES))
            file.write(scores.astype("<f2").tobytes())


def child(kind: str, count: int) -> None:
    from onnxprune.api import compare, compare_outputs
    from onnxprune.data import Examples

    if kind == "models":
        labels = np.random.default_rng(2).integers(0, CLASSES, count)

        def fetch(rows: np.ndarray) -> dict[str, np.ndarray]:
            made = np.random.default_rng(int(rows[0])).standard_normal((len(rows), WIDTH), dtype=np.float32)
            return {"x": made}

        report = compare(model(1, 0.0), model(1, 0.02), Examples("made up", count, labels, fetch))
    else:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("a.npz", "b.npz")]
            for path, noise in zip(paths, (0.0, 0.05), strict=True):
                write_outputs(path, count, noise)
            report = compare_outputs(*paths)
    assert report.agreement is not None and report.agreement.examples == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "agreement": report.agreement.top1.rate}))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return
    counts = [int(word) for word in sys.argv[1:]] or [FEW, MANY]
    for kind in ("models", "outputs"):
        peaks = []
        for count in counts:
            words = [sys.executable, __file__, "--child", kind, str(count)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            peaks.append(told["peak"])
            print(f"{kind:8} {count:>9,} examples: peak {told['peak']:7.1f} MB, agreement {told['agreement']:.4f}")
        print(f"{kind:8} difference: {peaks[-1] - peaks[0]:+.1f} MB")


if __name__ == "__main__":
    main()
