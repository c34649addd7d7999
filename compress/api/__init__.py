"""The Python face: compress, code, compare, evaluate, time models; the command line parses and prints."""

from __future__ import annotations

from onnxprune.api.benching import bench
from onnxprune.api.coding import DecodeResult, EncodeResult, decode, encode
from onnxprune.api.comparing import Evaluation, compare, evaluate
from onnxprune.api.compressing import Result, compress
from onnxprune.api.options import Gates, Options
from onnxprune.api.outputs import compare_outputs
from onnxprune.api.receiving import Stream, open_stream
from onnxprune.api.replaying import replay
from onnxprune.api.sizing import size_table
from onnxprune.api.sweeping import sweep
from onnxprune.report.bench import BenchResult
from onnxprune.report.sizes import SizeTable
from onnxprune.report.sweep import Sweep

__all__ = [
    "BenchResult",
    "DecodeResult",
    "EncodeResult",
    "Evaluation",
    "Gates",
    "Options",
    "Result",
    "SizeTable",
    "Stream",
    "Sweep",
    "bench",
    "compare",
    "compare_outputs",
    "compress",
    "decode",
    "encode",
    "evaluate",
    "open_stream",
    "replay",
    "size_table",
    "sweep",
]
