"""What counts as a model: files, protos, onnx-ir models and graphs of onnx-graphsurgeon."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxprune
from onnxprune.api import evaluate
from onnxprune.api.planning import plan
from onnxprune.errors import ModelError
from onnxprune.graph.gs import from_gs

DATA = {"input": np.random.default_rng(0).standard_normal((80, 1, 12, 12)).astype(np.float32)}


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(name): value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_a_graph_of_graphsurgeon_goes_in_and_out(conv_net: Callable[..., onnx.ModelProto]) -> None:
    import onnx_graphsurgeon as gs

    proto = conv_net(0)
    graph = gs.import_onnx(proto)
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    result = onnxprune.compress(graph, "filters(keep=0.5)", data=DATA)
    wanted = onnxprune.compress(proto, "filters(keep=0.5)", data=DATA)
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before
    found = weights(result.model)
    assert found.keys() == weights(wanted.model).keys()
    assert all(np.array_equal(found[name], data) for name, data in weights(wanted.model).items())
    assert result.report.source.path == "(in memory)"
    out = result.to_graphsurgeon()
    assert isinstance(out, gs.Graph)
    assert next(node for node in out.nodes if node.name == "conv1").inputs[1].values.shape == (4, 1, 3, 3)
    assert dict(from_gs(out, result.model).metadata_props) == dict(result.model.metadata_props)


def test_every_verb_takes_one(conv_net: Callable[..., onnx.ModelProto]) -> None:
    import onnx_graphsurgeon as gs

    proto = conv_net(0)
    report = onnxprune.compare(gs.import_onnx(proto), proto, DATA)
    assert report.agreement is not None
    assert report.agreement.top1.rate == 1.0
    assert plan(gs.import_onnx(proto), "filters(keep=0.5)")[0].rows
    assert evaluate(gs.import_onnx(proto), DATA).cost.macs > 0


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError) as caught:
        onnxprune.compress(3, "surp")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "a model is a path, an onnx_ir.Model, an onnx.ModelProto or an onnx_graphsurgeon.Graph, not int"
    )


def test_graphsurgeon_is_loaded_only_by_those_who_use_it(conv_net_path: Path) -> None:
    code = (
        "import sys, onnxprune; onnxprune.compress(sys.argv[1], 'surp', data='random'); "
        "print('onnx_graphsurgeon' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(conv_net_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
