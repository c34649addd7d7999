"""Benchmarks through the Python face: settings, inputs, gates; times themselves are never asserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.api import BenchResult, Options, bench, benching
from onnxprune.errors import BackendError, DataError, ModelError, OptionError
from onnxprune.fit.sizing import block_size
from onnxprune.runtime.memory import Memory
from onnxprune.runtime.timing import Latency, Ratio

Net = Callable[..., onnx.ModelProto]


def quick(models: Sequence[Any], data: Any = None, **given: Any) -> BenchResult:
    return bench(models, data, **{"seconds": 0.01, "memory": False, **given})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what the ratios are in place of measuring them; sessions are opened and run once all the same."""

    def tell(*ratios: tuple[float, float, float]) -> None:
        def measured(opened: Any, feeds: Any, **_: Any) -> list[list[Latency]]:
            for session in opened():
                session.bound(feeds[0])()
            first = Latency(2.0, 2.1, 80, 1, 2.2, 2.0, 8)
            return [
                [first, *(replace(first, ratio=Ratio(*ratio, 0.95)) for ratio in ratios)]  # type: ignore[arg-type]
                for _ in feeds
            ]

        monkeypatch.setattr(benching, "measure_anew", measured)

    return tell


def rename(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    proto.graph.input[0].name = name
    proto.graph.node[0].input[0] = name
    return proto


def resize(proto: onnx.ModelProto, **sizes: int | str) -> onnx.ModelProto:
    """Set sizes of the input by position: ``_0=4`` fixes the batch, ``_2="h"`` frees the height."""
    for place, size in sizes.items():
        dim = proto.graph.input[0].type.tensor_type.shape.dim[int(place[1:])]
        if isinstance(size, int):
            dim.dim_value = size
        else:
            dim.dim_param = size
    return proto


def test_every_model_at_every_setting(conv_net: Net) -> None:
    found = quick([conv_net(0), conv_net(0, channels=(4, 6)), conv_net(1)], batch_sizes=(1, 3), threads=(1, 2))
    assert [(row.model, row.batch, row.threads) for row in found.rows] == [
        (name, batch, count) for count in (1, 2) for batch in (1, 3) for name in "ABC"
    ]
    for row in found.rows:
        assert row.latency.batch == row.batch
        assert (row.latency.ratio is None) == (row.model == "A")
        assert row.meaning.startswith(row.model)
        assert row.memory is None
    first, second, third = found.models
    assert (first.macs_ratio, first.bytes_ratio, first.path) == (1.0, 1.0, "(in memory)")
    assert second.macs_ratio is not None
    assert second.macs_ratio < 1
    assert second.bytes_ratio is not None
    assert second.bytes_ratio < 1
    assert third.macs_ratio == 1.0
    assert (found.data, found.met, found.gates, found.providers) == ("random", True, (), ("CPUExecutionProvider",))
    assert found.warnings == ()


def test_one_model_alone_and_memory(conv_net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(file: Any, feeds: Any, settings: Any, label: str) -> Memory:
        asked.append((file.is_file(), len(feeds["input"]), settings.threads, label))
        return Memory(100, len(asked))

    monkeypatch.setattr(benching, "peak_memory", measured)
    found = quick([conv_net(0)], batch_sizes=(1, 2), threads=(2, 1), memory=True)
    assert asked == [(True, 1, 2, "model A ('(in memory)')"), (True, 2, 2, "model A ('(in memory)')")]
    assert [row.memory for row in found.rows] == [Memory(100, 1), Memory(100, 2)] * 2
    monkeypatch.setattr(benching, "peak_memory", lambda *_: None)
    found = quick([conv_net(0)], memory=True)
    assert found.warnings == ("peak memory is not measured: this system does not tell a process's high-water mark",)


def test_real_inputs_and_too_few_of_them(conv_net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    fed = []

    def measured(opened: Any, feeds: Any, **_: Any) -> list[list[Latency]]:
        fed.extend(feeds)
        return [[Latency(1.0, 1.0, 8, 1, 1.0, 1.0, 8)] for _ in feeds if opened()]

    monkeypatch.setattr(benching, "measure_anew", measured)
    data = np.random.default_rng(0).standard_normal((3, 1, 12, 12)).astype(np.float32)
    found = quick([conv_net(0)], {"input": data}, batch_sizes=(2, 5))
    assert np.array_equal(fed[0]["input"], data[:2])
    assert np.array_equal(fed[1]["input"], data[[0, 1, 2, 0, 1]])
    assert found.warnings == ("arrays in memory has 3 examples: they are repeated to fill a batch of 5",)
    with pytest.raises(DataError, match="wants"):
        quick([conv_net(0)], {"input": data[:, :, :5]})


def test_random_inputs_follow_the_seed(conv_net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[np.ndarray] = []

    def measured(opened: Any, feeds: Any, **_: Any) -> list[list[Latency]]:
        fed.append(feeds[0]["input"])
        return [[Latency(1.0, 1.0, 8, 1, 1.0, 1.0, 8)] for _ in opened()]

    monkeypatch.setattr(benching, "measure_anew", measured)
    for seed in (0, 0, 1):
        quick([conv_net(0)], options=Options(seed=seed))
    assert np.array_equal(fed[0], fed[1])
    assert not np.array_equal(fed[0], fed[2])


def test_a_fixed_batch_is_what_is_run(conv_net: Net) -> None:
    fixed = resize(conv_net(0), _0=4)
    assert [row.batch for row in quick([conv_net(0), fixed]).rows] == [4, 4]
    with pytest.raises(OptionError) as caught:
        quick([conv_net(0), fixed], batch_sizes=(4, 8))
    assert str(caught.value) == "batch size 8 cannot be run: '(in memory)' fixes its batch at 4"


def test_free_dimensions_are_made_up_with_a_word(conv_net: Net) -> None:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "h", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (said,) = quick([model]).warnings
    assert quick([model], "random").warnings == (said,)
    assert said == "free dimensions were made up: 'x' (batch,h,3) became (n,1,3); give --data for true sizes"
    assert quick([model], {"x": np.ones((2, 7, 3), np.float32)}).warnings == ()
    # Only 12 x 12 fits the layer behind the reshape.
    with pytest.raises(
        BackendError, match=r"free dimensions were made up: 'input' \(batch,1,h,w\) became .*, give --data$"
    ):
        quick([resize(conv_net(0), _2="h", _3="w")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda proto: rename(proto, "image"), "image against input"),
        (lambda proto: resize(proto, _2=14), "'input' float32 (batch,1,14,12) against 'input' float32 (batch,1,12,12)"),
        (
            lambda proto: setattr(proto.graph.input[0].type.tensor_type, "elem_type", 11) or proto,
            "'input' float64 (batch,1,12,12) against 'input' float32 (batch,1,12,12)",
        ),
    ],
)
def test_other_inputs_are_refused(conv_net: Net, tmp_path: Any, change: Callable[..., Any], said: str) -> None:
    models: list[Any] = [conv_net(0), conv_net(0), change(conv_net(0))]
    with pytest.raises(ModelError) as caught:
        quick(models)
    assert str(caught.value) == (
        f"'(in memory)' takes other inputs than '(in memory)': {said}; "
        "models that are timed side by side must take the same"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"threads": (0,)}, r"threads are \[0\]"),
        ({"threads": ()}, r"threads are \[\]"),
        ({"batch_sizes": (1, 0)}, r"batch sizes are \[1, 0\]"),
        ({"batch_sizes": ()}, r"batch sizes are \[\]"),
        ({"max_latency_ratio": 0.5}, "give a second model"),
        ({"max_latency_ratio": float("nan")}, "max-latency-ratio is nan"),
        ({"options": Options(confidence=1.0)}, "confidence is 1"),
    ],
)
def test_options_that_cannot_be_used(conv_net: Net, given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        quick([conv_net(0)], **given)


def test_no_models_and_too_many(conv_net: Net) -> None:
    with pytest.raises(OptionError, match="models are 0; bench takes a list of 1 to 26"):
        quick([])
    with pytest.raises(OptionError, match="models are 27"):
        quick([conv_net(0)] * 27)
    with pytest.raises(OptionError, match="models are one string"):
        quick("model.onnx")


@pytest.mark.parametrize(("wanted", "met"), [(0.65, True), (0.6, True), (0.599, False), (0.55, False)])
def test_the_gate_takes_the_upper_end_of_the_worst(conv_net: Net, told: Any, wanted: float, met: bool) -> None:
    told((0.4, 0.3, 0.5), (0.5, 0.4, 0.6))
    found = quick([conv_net(0)] * 3, max_latency_ratio=wanted, threads=(1,))
    (gate,) = found.gates
    assert (gate.name, gate.wanted, gate.got, gate.met, found.met) == ("max_latency_ratio", wanted, 0.6, met, met)
    assert gate.message == (
        f"latency ratio at most {wanted:g}: upper end of the interval 0.6 (C over A at batch 1, 1 thread): "
        + ("met" if met else "not met")
    )


def test_unaligned_widths_are_named_where_they_may_be_why(conv_net: Net, told: Any) -> None:
    block = block_size()
    told((0.99, 0.98, 1.02))
    models = [conv_net(0, channels=(64, 64), hidden=21), conv_net(0, channels=(45, 3 * block), hidden=19)]
    meaning = quick(models).rows[1].meaning
    assert meaning.startswith("B is smaller, not faster: the interval holds 1 (ratio 0.99, 0.98-1.02); its MACs are ")
    assert meaning.endswith(
        f"above what they say; widths that are no multiple of {block} may be why (align=auto avoids them): conv1 (45)."
    )
    # The same odd widths in A explain nothing.
    models = [conv_net(0, channels=(45, 64)), conv_net(0, channels=(45, block))]
    assert "no multiple" not in quick(models).rows[1].meaning


def test_a_provider_that_could_not_be_used_is_said(conv_net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.runtime import providers

    monkeypatch.setattr(providers, "cuda_devices", lambda: 0)
    found = quick([conv_net(0)], options=Options(providers="cuda"))
    assert found.providers == ("CPUExecutionProvider",)
    assert any("cuda is not available" in said for said in found.warnings)


def test_the_models_are_left_alone(conv_net: Net) -> None:
    proto = conv_net(0)
    before = proto.SerializeToString(deterministic=True)
    quick([proto, proto])
    assert proto.SerializeToString(deterministic=True) == before
