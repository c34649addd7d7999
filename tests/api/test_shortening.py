"""The shortest file that is good enough: what it decodes to was asked for, and says so."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.api.shortening import coarsest, shortest
from onnxprune.errors import ModelError


def _pruned(scale: float = 1.0) -> ir.Model:
    rng = np.random.default_rng(0)
    weight = scale * rng.laplace(size=(64, 200))
    weight[rng.random(weight.shape) < 0.9] = 0
    weight[0, :150] = scale * 1e-6  # what retraining leaves: a stream goes on for long until it tells these
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], "pruned",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 200])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )  # fmt: skip
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def _weight(model: ir.Model) -> np.ndarray:
    return model.graph.initializers["w"].const_value.numpy()


def _error(model: ir.Model, of: ir.Model) -> float:
    given, found = _weight(of), _weight(model)
    return float(np.abs(given - found).sum() / np.abs(given).sum())


def test_a_stream_ends_as_early_as_it_may() -> None:
    model = _pruned()
    before = _weight(model).copy()
    sizes = []
    for bound in (0.3, 0.03):
        asked: list[float] = []

        def good(decoded: ir.Model, asked: list[float] = asked, bound: float = bound) -> bool:
            asked.append(_error(decoded, model))
            return asked[-1] <= bound

        found = shortest(model, good)
        assert good(found.model())
        assert asked[-1] > 0.9 * bound
        assert found.packed.header.nonzeros < np.count_nonzero(before)
        sizes.append(len(found.data))
    assert sizes[0] < sizes[1]
    np.testing.assert_array_equal(_weight(model), before)


def test_own_values_where_no_end_is_good_enough() -> None:
    model = _pruned()
    found = shortest(model, lambda _: False)
    np.testing.assert_array_equal(_weight(found.model()), _weight(model).astype(np.float16).astype(np.float32))
    onnx.checker.check_model(ir.serde.serialize_model(found.model()), full_check=True)


def test_own_values_take_as_few_digits_as_are_good_enough() -> None:
    model = _pruned()
    given = _weight(model)
    kept = given != 0

    def near(decoded: ir.Model, bound: float) -> bool:
        # All weights that are not zero must be there, the tiny ones too: too long a stream.
        found = _weight(decoded)
        return bool((np.abs(found - given)[kept] <= bound * np.abs(given[kept]) + 1e-8).all())

    sizes = []
    for bound in (0.26, 0.04, 0.004):
        found = shortest(model, lambda decoded, bound=bound: near(decoded, bound))
        assert near(found.model(), bound)
        sizes.append(len(found.data))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < len(shortest(model, lambda _: False).data)


def test_too_large_for_float16() -> None:
    model = _pruned(scale=1e6)
    found = shortest(model, lambda decoded: _error(decoded, model) < 0.1)
    assert 0.05 < _error(found.model(), model) < 0.1


def test_nothing_to_code() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    model = ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    with pytest.raises(ModelError, match="no weight that can be coded"):
        shortest(model, lambda _: True)


@given(st.floats(0.002, 0.999), st.booleans())
def test_coarsest_closes_in_on_a_bound(bound: float, geometric: bool) -> None:
    point = coarsest(lambda point, depth: point <= bound, geometric=geometric)
    assert point is not None
    assert bound / 1.25 <= point <= bound


def test_coarsest_of_none() -> None:
    assert coarsest(lambda point, depth: False) is None
