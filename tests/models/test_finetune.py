"""Graphs trained further: agreement rises, zeros stay, nothing is lost where nothing is gained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.api.finetuning import Study
from onnxprune.api.finetuning import finetune as finetune_files
from onnxprune.data import Examples
from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.graph import constants, io
from onnxprune.models.finetune import finetune, score_graph, with_defaults
from onnxprune.models.options import TrainOptions
from onnxprune.models.sources import TrainingData
from onnxprune.models.teaching import Lesson
from onnxprune.models.train import Hooks, Step
from onnxprune.models.tuning_data import divided, open_tuning
from onnxprune.passes.filters import Filters
from onnxprune.passes.magnitude import Magnitude
from onnxprune.pipeline import Run, run
from onnxprune.runtime.session import InputSpec, Settings, open_session

SHORT = TrainOptions(**with_defaults({"epochs": 3, "batch_size": 32, "device": "cpu"}))
INPUT = [InputSpec("input", np.dtype(np.float32), ("batch", 1, 12, 12))]


def noise(count: int = 400) -> Examples:
    images = np.random.default_rng(5).standard_normal((count, 1, 12, 12)).astype(np.float32)
    return Examples("noise", count, None, lambda rows: {"input": images[rows]})


@pytest.fixture
def original(conv_net: Callable[..., Any]) -> ir.Model:
    return ir.serde.deserialize_model(conv_net(0))


@pytest.fixture
def pruned(original: ir.Model) -> ir.Model:
    """The original with a quarter of its filters gone and half of the other weights zero."""
    passes = [Filters(keep=0.75), Magnitude(sparsity=0.5, values="original")]
    return run(original, passes, Run(None, Settings(), inputs={"input": (1, 1, 12, 12)}))[0]


@pytest.fixture
def data(original: ir.Model) -> TrainingData:
    name = str(original.graph.inputs[0].name)
    given = noise()
    examples = replace(given, fetch=lambda rows: {name: given.fetch(rows)["input"]})
    return divided([examples.take(np.arange(*part)) for part in ((0, 300), (300, 350), (350, 400))])


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: np.array(constants.array(value)) for name, value in model.graph.initializers.items()}


def agreement(model: ir.Model, teacher: ir.Model, examples: Examples) -> float:
    """Return the share of equal decisions, in ONNX Runtime."""
    batch = next(examples.batches(examples.count))
    decided = []
    for each in (model, teacher):
        with open_session(each, Settings(), label="model") as session:
            decided.append(next(iter(session.run(batch.arrays).values())).argmax(1))
    return float((decided[0] == decided[1]).mean())


def test_agreement_rises_and_zeros_stay(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    before = arrays(pruned), arrays(original)
    tuned = finetune(pruned, original, data, SHORT)
    assert tuned.better
    assert tuned.before.agreement is not None and tuned.after.agreement is not None
    assert tuned.after.agreement > tuned.before.agreement
    assert tuned.after_test.agreement == pytest.approx(agreement(tuned.model, original, data.test))
    assert tuned.before_test.agreement == pytest.approx(agreement(pruned, original, data.test))
    assert tuned.error < 1e-4
    now = arrays(tuned.model)
    assert tuned.masked > 500
    for name, array in before[0].items():
        assert now[name].dtype == array.dtype
        if array.ndim > 1:
            assert not now[name][array == 0].any()
    assert any((now[name] != array).any() for name, array in before[0].items())
    for model, kept in zip((pruned, original), before, strict=True):
        for name, array in arrays(model).items():
            np.testing.assert_array_equal(array, kept[name])


def test_the_same_seed_gives_the_same_bytes(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    found = [ir.serde.serialize_model(finetune(pruned, original, data, SHORT).model) for _ in range(2)]
    assert found[0].SerializeToString(deterministic=True) == found[1].SerializeToString(deterministic=True)


def test_what_becomes_no_better_stays_as_it_was(original: ir.Model, data: TrainingData) -> None:
    tuned = finetune(original, original, data, replace(SHORT, lr=0.3, epochs=1))
    assert not tuned.better
    assert tuned.after == tuned.before
    assert tuned.after.agreement == 1
    for name, array in arrays(tuned.model).items():
        np.testing.assert_array_equal(array, arrays(original)[name])


def test_mixtures_teach_too(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    tuned = finetune(pruned, original, data, replace(SHORT, augment="shift+flip+mixup"))
    assert tuned.better and tuned.after.loss < tuned.before.loss


def test_labels_without_a_teacher(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    def labelled(examples: Examples) -> Examples:
        batch = next(examples.batches(examples.count))
        with open_session(original, Settings(), label="model") as session:
            return replace(examples, labels=next(iter(session.run(batch.arrays).values())).argmax(1))

    parts = [labelled(part) for part in (data.train, data.validation, data.test)]
    with pytest.raises(OptionError, match="labels do not say what a mixture is"):
        finetune(pruned, None, divided(parts), replace(SHORT, augment="shift+flip+mixup"), Lesson("labels"))
    tuned = finetune(pruned, None, divided(parts), SHORT, Lesson("labels"))
    assert tuned.before.agreement is None
    assert tuned.better
    assert tuned.after.accuracy is not None and tuned.before.accuracy is not None
    assert tuned.after.accuracy > tuned.before.accuracy
    scored = score_graph(tuned.model, None, parts[2], "cpu")
    assert scored.accuracy == tuned.after_test.accuracy


def test_only_chosen_weights_are_trained(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    name = str(next(node for node in reversed(list(pruned.graph)) if node.op_type == "Gemm").inputs[1].name)
    tuned = finetune(pruned, original, data, SHORT, trainable=name)
    changed = {key for key, array in arrays(tuned.model).items() if (array != arrays(pruned)[key]).any()}
    assert changed == ({name} if tuned.better else set())


def test_batch_statistics_are_trained_where_that_is_asked_for(
    original: ir.Model, pruned: ir.Model, data: TrainingData
) -> None:
    statistics = {str(node.inputs[3].name) for node in pruned.graph if node.op_type == "BatchNormalization"}
    assert statistics
    for way in ("frozen", "train"):
        tuned = finetune(pruned, original, data, replace(SHORT, lr=3e-3), batchnorm=way)
        moved = {name for name in statistics if (arrays(tuned.model)[name] != arrays(pruned)[name]).any()}
        assert moved == (statistics if way == "train" and tuned.better else set())
    with pytest.raises(OptionError, match="frozen and train"):
        finetune(pruned, original, data, SHORT, batchnorm="fixed")


def test_half_precision_is_trained_in_single_and_written_in_half(
    original: ir.Model, pruned: ir.Model, data: TrainingData
) -> None:
    half = pruned.clone()
    for value in (*half.graph.inputs, *half.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    for value in half.graph.initializers.values():
        if value.dtype != ir.DataType.FLOAT:
            continue
        value.const_value = ir.tensor(np.array(constants.array(value)).astype(np.float16), name=value.name)
        value.dtype = ir.DataType.FLOAT16
    for node in half.graph:
        for value in node.outputs:
            value.dtype = ir.DataType.FLOAT16

    def halved(examples: Examples) -> Examples:
        fetch = examples.fetch
        return replace(
            examples, fetch=lambda rows: {name: array.astype(np.float16) for name, array in fetch(rows).items()}
        )

    parts = [halved(part) for part in (data.train, data.validation, data.test)]
    tuned = finetune(half, original, divided(parts), SHORT)
    assert tuned.better
    assert {array.dtype for array in arrays(tuned.model).values() if array.dtype.kind == "f"} == {np.dtype(np.float16)}


def test_what_cannot_be_trained_is_refused(original: ir.Model, pruned: ir.Model, data: TrainingData) -> None:
    with pytest.raises(OptionError, match="sync-bn is for modules"):
        finetune(pruned, original, data, replace(SHORT, sync_bn=True))
    with pytest.raises(OptionError, match="names no initialiser"):
        finetune(pruned, original, data, SHORT, trainable="nowhere")
    flat = replace(data, shape=(144,))
    with pytest.raises(OptionError, match="is for one image of 1 or 3 channels"):
        finetune(pruned, original, flat, replace(SHORT, augment="shift"))
    empty = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>\ng (float[N, 1, 12, 12] input) => (float[N, 1, 12, 12] y) '
        "{ y = Relu(input) }"
    )
    with pytest.raises(ModelError, match="no weights that could be trained"):
        finetune(empty, empty, data, SHORT)


def test_a_killed_run_goes_on_to_the_same_bytes(original: ir.Model, pruned: ir.Model, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.epoch == 3:
            raise KilledError

    images = next(noise().batches(400)).arrays["input"]
    np.savez(tmp_path / "x.npz", x=images)
    files = [tmp_path / f"{name}.onnx" for name in ("original", "pruned")]
    for model, file in zip((original, pruned), files, strict=True):
        io.save(model, file)

    def tune(study: Study, hooks: Hooks | None = None, lesson: Lesson | None = None) -> bytes:
        done = finetune_files(
            files[1], files[0], str(tmp_path / "x.npz"), training=SHORT, study=study, hooks=hooks, lesson=lesson
        )
        done.save(tmp_path / "out.onnx")
        return (tmp_path / "out.onnx").read_bytes()

    whole = tune(Study())
    last = tmp_path / "run.last.pth"
    with pytest.raises(KilledError):
        tune(Study(last=last), Hooks(step=stop))
    assert tune(Study(last=last, resume=last)) == whole
    with pytest.raises(OptionError, match="comes from a run with temperature 1"):
        tune(Study(last=last, resume=last), lesson=Lesson(temperature=2.0))


def test_examples_are_shared_out_and_made_up_ones_refused() -> None:
    data = open_tuning("digits", None, INPUT_28, preprocess=None)
    assert (data.train.count, data.validation.count, data.test.count) == (1293, 144, 360)
    data = open_tuning("digits:train", None, INPUT_28)
    assert (data.train.count, data.validation.count, data.test.count) == (1149, 144, 144)
    data = open_tuning("digits:train", "digits:test", INPUT_28, val_share=0.2, drop_classes=["7"])
    assert data.test.count == 360
    assert data.train.labels is not None and not (data.train.labels == 7).any()
    with pytest.raises(DataError, match="teach nothing"):
        open_tuning("random", None, INPUT_28)
    with pytest.raises(OptionError, match="val-share"):
        open_tuning("digits", None, INPUT_28, val_share=0.6)


INPUT_28 = [InputSpec("input", np.dtype(np.float32), ("batch", 1, 28, 28))]
