"""How fast a candidate runs beside the source model."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.contract import Context
from onnxprune.errors import DataError
from onnxprune.runtime.latency import measure
from onnxprune.runtime.session import open_session

_SECONDS = 1.0


def ratio(context: Context, candidate: ir.Model) -> float:
    """Return the candidate's median latency over the source model's, measured in turns on one example a run.

    Raises:
        DataError: There are no examples to run.
        BackendError: ONNX Runtime failed.
    """
    if context.examples is None:
        raise DataError("a latency target needs calibration data to run; give --data or --calib")
    feeds = next(context.examples.batches(1)).arrays
    with open_session(context.original, context.settings) as first, open_session(candidate, context.settings) as second:
        times = measure([first, second], feeds, budget_s=_SECONDS)
    return times[1].median_ms / times[0].median_ms if times[0].median_ms else 1.0
