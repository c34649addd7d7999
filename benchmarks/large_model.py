"""A model of 2.5 GB: memory and seconds of inspect, plan and a cut, each in a process of its own.

python benchmarks/large_model.py [--folder F] [--size BYTES]

The model (two square matrices in an external data file, seeded) is written to a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

CUT = """
import sys
from onnxprune.contract import Context
from onnxprune.graph import io
from onnxprune.graph.cost import example_shapes, measure
from onnxprune.passes.filters import Filters
model = io.load(sys.argv[1])
context = Context(model, measure(model), example_shapes(model), 0)
io.save(Filters(keep=0.5).apply(model, context).model, sys.argv[2])
"""


def write(folder: Path, size: int) -> Path:
    """Write MatMul-Relu-MatMul whose two weights hold ``size`` bytes together."""
    width = int((size / 8) ** 0.5)
    rng = np.random.default_rng(0)
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(2 * width):
            file.write((rng.standard_normal(width, dtype=np.float32) / width**0.5).tobytes())

    def stored(name: str, place: int) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        tensor.dims.extend([width, width])
        parts = {"location": "weights.bin", "offset": place * width * width * 4, "length": width * width * 4}
        for key, value in parts.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "b"], ["y"], "second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy"]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], [stored("a", 0), stored("b", 1)])
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def run() -> None:
    """Write the model, run the three commands, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the model goes for a while")
    parser.add_argument("--size", type=int, default=2_500_000_000, help="bytes of weights")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = write(Path(folder), given.size)
        print(f"| command on {given.size / 1e9:.1f} GB | seconds | peak memory, GB | over the model's size |")
        print("|---|---|---|---|")
        for name, words in (
            ("inspect", ["-m", "onnxprune", "inspect", str(path)]),
            ('plan "filters(keep=0.5)"', ["-m", "onnxprune", "plan", "filters(keep=0.5)", "--in", str(path)]),
            ("cut to half and save", ["-c", CUT, str(path), str(Path(folder) / "cut.onnx")]),
        ):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            # ru_maxrss of children is the largest so far, so the commands stand in order of their memory.
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            peak = after.ru_maxrss * 1024
            print(f"| {name} | {spent:.1f} | {peak / 1e9:.2f} | {peak / given.size:.2f} |", flush=True)


if __name__ == "__main__":
    run()
