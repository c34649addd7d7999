"""Structured magnitude: scores, scopes, sizes, blocks, choices of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.contract import Context
from onnxprune.errors import OptionError
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import measure
from onnxprune.graph.kept import read_kept
from onnxprune.passes.filters import Filters, channel_scores, strongest


def costs(model: ir.Model) -> tuple[int, int]:
    cost = measure(model)
    return cost.macs, cost.params


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.3])
def test_keep_cuts_every_space(conv_net: Callable[..., onnx.ModelProto], apply: Any, keep: float) -> None:
    result, step = apply(conv_net(0), f"filters(keep={keep})", None)
    kept = [row["kept"] for row in step.result.numbers["layers"]]
    assert kept == [max(1, int(keep * width + 1e-9)) for width in (8, 12, 20)]
    assert read_kept(result).keys() == (set() if keep == 1.0 else {"conv1", "conv2", "fc1"})


def test_the_smallest_filters_go(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    proto = conv_net(0)
    weight = next(t for t in proto.graph.initializer if t.name == "c1.w")
    norms = np.linalg.norm(onnx.numpy_helper.to_array(weight).reshape(8, -1), axis=1)
    result, _ = apply(proto, "filters(keep=0.5,only=conv1)", None)
    assert read_kept(result) == {"conv1": sorted(np.argsort(-norms)[:4].tolist())}


def test_norms_sum_over_the_producers_of_a_residual_stream(net: Any) -> None:
    build = net(2, 6, 6)
    first = build.conv("x", 2, 5, name="one")
    second = build.conv(build.relu(first), 5, 5, name="two", kernel=1)
    stream = build.node("Add", first, second, name="sum")
    proto = build.model(build.conv(stream, 5, 3, name="last"))
    analysis = spaces.analyse(prepare(ir.serde.deserialize_model(proto)))
    space = next(s for s in analysis.prunable if s.width == 5)
    arrays = [np.asarray(p.weight.const_value.numpy(), dtype=np.float64).reshape(5, -1) for p in space.producers]
    assert len(arrays) == 2
    np.testing.assert_allclose(channel_scores(analysis, space, "l1"), sum(np.abs(a).sum(1) for a in arrays))
    np.testing.assert_allclose(channel_scores(analysis, space, "l2") ** 2, sum((a**2).sum(1) for a in arrays))


@pytest.mark.parametrize("options", [{}, {"scope": "global", "norm": "l1"}, {"only": "conv2"}])
def test_what_is_prepared_gives_what_explicit_sizes_give(
    conv_net: Callable[..., onnx.ModelProto], options: dict[str, Any]
) -> None:
    def written(model: ir.Model) -> bytes:
        return ir.serde.serialize_model(model).SerializeToString(deterministic=True)

    model = ir.serde.deserialize_model(conv_net(0))
    before = written(model)
    context = Context(model, measure(model), {}, seed=0)
    attempt = Filters(**options).prepared(model, context)
    for flops in (0.5, 1.0, 0.01, 0.8, 0.5):
        found, wanted = attempt(flops), Filters(flops=flops, **options).apply(model, context)
        assert written(found.model) == written(wanted.model)
        assert replace(found, model=model) == replace(wanted, model=model)
    assert written(model) == before


@pytest.mark.parametrize("scope", ["space", "global"])
@pytest.mark.parametrize(("size", "place"), [("flops", 0), ("params", 1)])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_budgets_are_never_passed(
    conv_net: Callable[..., onnx.ModelProto], apply: Any, scope: str, size: str, place: int, share: float
) -> None:
    proto = conv_net(1, channels=(16, 24), hidden=40)
    before = costs(ir.serde.deserialize_model(proto))
    result, step = apply(proto, f"filters({size}={share},scope={scope})", None)
    ratio = costs(result)[place] / before[place]
    assert ratio <= share
    assert ratio >= share - (0.02 if scope == "space" else 0.1)
    assert step.result.reached == {size: (share, ratio)}


def test_blocks(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    _, step = apply(conv_net(1, channels=(16, 24), hidden=40), "filters(flops=0.5,align=8)", None)
    assert all(row["kept"] % 8 == 0 for row in step.result.numbers["layers"])
    _, step = apply(conv_net(1, channels=(16, 24), hidden=40), "filters(keep=0.3,align=8)", None)
    assert [row["kept"] for row in step.result.numbers["layers"]] == [8, 8, 16]


def test_only_and_ignore(conv_net: Callable[..., onnx.ModelProto], apply: Any) -> None:
    result, step = apply(conv_net(0), "filters(keep=0.5,only='conv*;re:fc1',ignore=conv2)", None)
    assert read_kept(result).keys() == {"conv1", "fc1"}
    assert step.result.skipped["conv2"] == "ignore= names it"
    _, step = apply(conv_net(0), "filters(keep=0.5,only=conv1)", None)
    assert step.result.skipped["fc1"] == "only= does not name it"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"keep": 0.5, "flops": 0.5}, "keep and flops are both given"),
        ({"align": "some"}, "give auto or a positive whole number"),
        ({"only": "re:("}, "is not a regular expression"),
        ({"ignore": "a;;b"}, "has an empty pattern"),
        ({"norm": "l3"}, "give l1 or l2"),
    ],
)
def test_refusals(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Filters(**options)


def test_ties_go_to_the_lowest_index() -> None:
    assert strongest(np.array([1.0, 2.0, 2.0, 1.0, 1.0]), 3).tolist() == [0, 1, 2]
