"""Which nodes a cut touches, and in which order they are refitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.fit.links import Flow, Link, find_links, stages, touched
from onnxprune.graph import spaces
from onnxprune.graph.cleanup import prepare
from onnxprune.graph.cost import example_shapes
from onnxprune.graph.shapes import concrete_shapes


class Seen:
    """A model's links, by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        work = prepare(ir.serde.deserialize_model(proto))
        self.analysis = spaces.analyse(work)
        self.links = find_links(self.analysis, concrete_shapes(work, example_shapes(work)))
        self.flow = Flow.of(work, self.links)
        self.named = {link.unit.name: link for link in self.links}

    def space(self, name: str) -> spaces.ChannelSpace:
        return next(space for space in self.analysis.spaces if space.name == name)

    def keep(self, *names: str) -> np.ndarray:
        return self.analysis.keep_mask({name: np.arange(self.space(name).width - 1) for name in names})

    def touched(self, *names: str) -> list[str]:
        return [self.links[i].unit.name for i in touched(self.flow, self.keep(*names))]

    def stages(self, names: Sequence[str] | None = None) -> list[list[Link]]:
        wanted = [i for i, link in enumerate(self.links) if names is None or link.unit.name in names]
        return stages(self.flow, wanted)

    def order(self, names: Sequence[str] | None = None) -> list[list[str]]:
        return [[link.unit.name for link in stage] for stage in self.stages(names)]


def check_order(seen: Seen, found: Sequence[Sequence[Link]]) -> None:
    """Whatever a link reads, or is added to, is final by its turn."""
    place = {link.unit.name: level for level, stage in enumerate(found) for link in stage}
    for level, stage in enumerate(found):
        for link in stage:
            behind = seen.flow.behind(link.unit.value) | seen.flow.behind(link.unit.other)
            for i, other in enumerate(seen.links):
                if behind >> i & 1 and other.unit.name in place and other.unit.name != link.unit.name:
                    assert place[other.unit.name] < level


@pytest.mark.parametrize("down_first", [False, True])
def test_the_deeper_branch_makes_up_for_the_skip(networks: Any, down_first: bool) -> None:
    seen = Seen(networks["residual"](down_first=down_first))
    found = seen.stages()
    check_order(seen, found)
    links = {link.unit.name: link for stage in found for link in stage}
    assert links["down"].unit.other is None and links["down"].unit.total is None
    assert links["b2"].unit.other is links["down"].unit.out
    assert links["a2"].unit.other is not None
    assert seen.order()[:3] == [["stem"], ["a1"], ["a2"]]
    place = {name: level for level, stage in enumerate(seen.order()) for name in stage}
    assert place["b2"] > max(place["down"], place["b1"]) and place["head"] == max(place.values())


def test_the_skip_itself_keeps_its_sum_where_it_is_refitted_alone(networks: Any) -> None:
    seen = Seen(networks["residual"]())
    (stage,) = seen.stages(["down"])
    assert stage[0].unit.other is seen.named["b2"].unit.out


def test_branches_are_fitted_at_once(net: Any) -> None:
    n = net(3, 6, 6)
    x = n.relu(n.conv("x", 3, 5, name="start"))
    parts = [n.relu(n.conv(x, 5, 4, 2 * i + 1, name=f"branch{i}")) for i in range(3)]
    deeper = n.relu(n.conv(parts[2], 4, 4, name="deeper"))
    x = n.op("Concat", parts[0], parts[1], deeper, axis=1)
    seen = Seen(n.model(n.pooled(x, 12)))
    assert seen.order() == [["start"], ["branch0", "branch1", "branch2"], ["deeper"], ["head"]]
    assert seen.touched("branch0") == ["head"]
    assert seen.touched("branch2") == ["deeper", "head"]
    assert seen.touched("start") == ["branch0", "branch1", "branch2", "deeper", "head"]
    assert seen.touched() == []


def test_skips_of_a_unet(networks: Any) -> None:
    seen = Seen(networks["unet"]())
    assert seen.order() == [["in"], ["low"], ["bottom"], ["up"], ["joined"], ["last"]]
    assert seen.touched("up") == ["joined", "last"]
    assert seen.touched("low") == ["bottom", "up", "joined", "last"]
    assert seen.touched("joined") == ["last"]
    np.testing.assert_array_equal(
        np.unique(seen.named["joined"].owners(seen.analysis, seen.space("in"))), np.arange(-1, 6)
    )


def crossing(net: Any) -> onnx.ModelProto:
    """Two sums, each of which has behind its skip a node that waits for the other one."""
    n = net(3, 6, 6)
    a, b = n.conv("x", 3, 4, name="a"), n.conv("x", 3, 4, name="b")
    late_a, late_b = n.conv(a, 4, 4, name="late_a"), n.conv(b, 4, 4, name="late_b")
    first, second = n.op("Add", a, n.relu(late_b)), n.op("Add", b, n.relu(late_a))
    return n.model(n.pooled(n.relu(n.op("Concat", first, second, axis=1)), 8))


def waiting(net: Any) -> onnx.ModelProto:
    """Sums of two nodes whose skips hang on each other's outputs."""
    n = net(3, 6, 6)
    start = n.relu(n.conv("x", 3, 4, name="start"))
    p = n.conv(start, 4, 4, name="p")
    q = n.conv(start, 4, 4, name="q")
    other = n.op("Mul", n.op("Sigmoid", start), start)
    sums = [n.op("Add", p, n.op("Identity", other)), n.op("Add", q, other)]
    return n.model(n.pooled(n.relu(n.op("Concat", *sums, axis=1)), 8))


@pytest.mark.parametrize("build", [crossing, waiting])
def test_every_node_gets_its_turn(net: Any, build: Any) -> None:
    seen = Seen(build(net))
    found = seen.stages()
    names = [link.unit.name for stage in found for link in stage]
    assert sorted(names) == sorted(seen.named)
    check_order(seen, found)


def test_two_sums_that_wait_for_each_other(net: Any) -> None:
    n = net(3, 6, 6)
    x = n.relu(n.conv("x", 3, 4, name="start"))
    p, q = n.conv(x, 4, 4, name="p"), n.conv(x, 4, 4, name="q")
    first = n.op("Add", p, x, name="first")
    second = n.op("Add", q, x, name="second")
    seen = Seen(n.model(n.pooled(n.relu(n.op("Concat", first, second, axis=1)), 8)))
    # No acyclic graph makes two such sums by itself: say that each skip is what the other one computes.
    links = list(seen.links)
    for name, other in (("p", "q"), ("q", "p")):
        place = next(i for i, link in enumerate(links) if link.unit.name == name)
        links[place] = replace(links[place], unit=replace(links[place].unit, other=seen.named[other].unit.out))
    flow = Flow(seen.flow.bits, links)
    found = stages(flow, range(len(links)))
    fixed = {link.unit.name: link.unit for stage in found for link in stage}
    assert [[link.unit.name for link in stage] for stage in found] == [["start"], ["p"], ["q"], ["head"]]
    assert fixed["p"].other is None and fixed["q"].other is not None


def test_touched_is_what_reads_and_what_is_behind(networks: Any) -> None:
    """Against a search along the graph itself."""
    for build in networks.values():
        seen = Seen(build())
        for space in seen.analysis.prunable:
            keep = seen.keep(space.name)
            losing: set[ir.Value] = set()
            want = []
            for node in seen.analysis.model.graph:
                link = seen.named.get(str(node.name))
                reads = link is not None and not link.keeps(keep).all()
                if link is not None and (reads or link.unit.value in losing):
                    want.append(link.unit.name)
                    reads = True
                if reads or any(value in losing for value in node.inputs):
                    losing.update(node.outputs)
            assert seen.touched(space.name) == want


def test_features_are_taps_by_channels_of_a_group(net: Any) -> None:
    n = net(3, 6, 6)
    x = n.relu(n.conv("x", 3, 6, name="start"))
    seen = Seen(n.model(n.pooled(n.relu(n.conv(x, 6, 4, 3, name="grouped", group=2)), 4)))
    link = seen.named["grouped"]
    assert link.taps == 9
    mask = np.array([True, False, True, True, True, False])
    np.testing.assert_array_equal(link.features(mask), np.stack([np.tile(mask[:3], 9), np.tile(mask[3:], 9)]))


def test_what_no_space_governs_stays(net: Any) -> None:
    n = net(3, 6, 6)
    seen = Seen(n.model(n.conv("x", 3, 4, name="only")))
    link = seen.named["only"]
    assert link.keeps(np.zeros(len(seen.keep()), dtype=bool)).all()
    assert link.keeps(np.zeros(0, dtype=bool)).all() or (link.channels >= 0).any()


def test_reads_inside_bodies_count(net: Any) -> None:
    n = net(4)
    h = n.dense("x", 4, 5, name="h")
    yes = onnx.parser.parse_graph(f"yes () => (float[N, 5] a) {{ a = Relu({h}) }}")
    no = onnx.parser.parse_graph(f"no () => (float[N, 5] b) {{ b = Neg({h}) }}")
    picked = n.op("If", n.const(np.array(True)), then_branch=yes, else_branch=no)
    proto = n.model(n.dense(picked, 5, 3, name="last"))
    seen = Seen(proto)
    assert seen.order() == [["h"], ["last"]]
