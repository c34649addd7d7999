"""The Python face: compress a model, compare two, evaluate one, time several; the command line parses and prints."""

from __future__ import annotations

from onnxprune.api.benching import bench
from onnxprune.api.comparing import Evaluation, compare, evaluate
from onnxprune.api.compressing import Result, compress
from onnxprune.api.options import Gates, Options
from onnxprune.report.bench import BenchResult

__all__ = ["BenchResult", "Evaluation", "Gates", "Options", "Result", "bench", "compare", "compress", "evaluate"]
