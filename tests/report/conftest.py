"""Two reports every view is tried on: one that says everything, and one that says as little as it may."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.budget import accuracy_drop_gate, agreement_gate
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Rate
from onnxprune.report.report import (
    Cost,
    DataSide,
    DataUsed,
    Figures,
    Report,
    Result,
    Skipped,
    Source,
    Step,
)

HASH = "0123456789abcdef" * 4


@pytest.fixture
def full_report() -> Report:
    """Say everything: 360 labelled examples of which 357 decisions are kept."""
    labels = np.arange(360) % 10
    before = np.eye(10, dtype=np.float32)[labels]
    after = before.copy()
    after[[8, 18, 28]] = np.eye(10, dtype=np.float32)[[3, 3, 1]]
    comparison = Comparison(classes=[f"digit {label}" for label in range(10)])
    comparison.update({"logits": before}, {"logits": after}, labels)
    evidence = comparison.result()
    assert evidence.accuracy is not None
    assert evidence.agreement is not None
    zeros, narrow = (
        Figures(431_080, 86_216, 2_293_000, 1_724_320),
        Figures(180_000, 40_000, 1_169_430, 720_000),
    )
    return Report(
        source=Source("models/lenet5.onnx", HASH, 20),
        result=Result("pruned.onnx", HASH[::-1], 733_212),
        recipe="surp(sparsity=0.8),id(flops=0.51)",
        steps=(
            Step(
                "surp",
                {"sparsity": 0.8, "seed": 0},
                1.25,
                skipped=(Skipped("fc|3", "its weight [10, 500] is shared\nwith '/tied'"),),
                numbers={"rounds": 12, "law": {"alpha": 1.5}, "nan": float("nan")},
                cost=zeros,
                recipe="surp(sparsity=0.8)",
                agreement=Rate(0.9972, 0.9846, 0.9999, 0.95),
            ),
            Step(
                "id",
                {"flops": 0.51},
                0.75,
                numbers={
                    "layers": [
                        {"node": "conv1", "before": 20, "after": 16, "residual": np.float64(0.0123456)},
                        {"node": "conv2", "before": 50, "after": 32, "aligned": True},
                    ]
                },
                cost=narrow,
                recipe="id(flops=0.51)",
                agreement=evidence.agreement.top1,
            ),
        ),
        cost=Cost.between(Figures(431_080, 431_080, 2_293_000, 1_724_320), narrow),
        data=DataUsed(DataSide("digits:train", 1000, HASH), DataSide("digits:test", 360, HASH)),
        agreement=evidence.agreement,
        accuracy=evidence.accuracy,
        output_error=evidence.output_error,
        outputs=evidence.outputs,
        latency={"batch": 1, "original_ms": 1.5, "compressed_ms": 0.9},
        gates=(
            agreement_gate(357, 360, 0.99, 0.95, low=0.97860, needed=299),
            accuracy_drop_gate(evidence.accuracy.drop, 0.01),
        ),
        warnings=("12 examples are in both calibration and evaluation",),
        providers=("CPUExecutionProvider",),
        seed=7,
        versions={"onnxprune": "0.1.0", "onnxruntime": "1.31.0"},
    )


@pytest.fixture
def bare_report() -> Report:
    """Say as little as a report may."""
    unknown = Figures(None, None, None, None)
    return Report(Source("a.onnx", HASH, 13), None, None, (), Cost.between(unknown, unknown), DataUsed())
