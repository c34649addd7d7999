"""Outputs that are no class scores: against scikit-learn and scipy, by hand, and however the batches are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, jaccard_score, mean_squared_error
from sklearn.neighbors import NearestNeighbors

from onnxprune.errors import DataError, ModelError, OptionError
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.embedding import hashed, neighbours
from onnxprune.evaluate.evidence import EmbeddingFigures, Evidence, MapFigures, OutputEvidence, Pair, ValueFigures
from onnxprune.evaluate.maps import decide_maps, mean_iou
from onnxprune.evaluate.regression import EvenSample, spearman
from onnxprune.evaluate.single import Tally

Arrays = Mapping[str, np.ndarray]


def compared(
    before: Arrays, after: Arrays, targets: np.ndarray | None = None, batch: int = 10_000, **options: Any
) -> Evidence:
    comparison = Comparison(**options)
    for start in range(0, len(next(iter(before.values()))), batch):
        part = slice(start, start + batch)
        comparison.update(
            {name: array[part] for name, array in before.items()},
            {name: array[part] for name, array in after.items()},
            targets=None if targets is None else targets[part],
        )
    return comparison.result()


def output(evidence: Evidence) -> OutputEvidence:
    assert len(evidence.outputs) == 1
    return evidence.outputs[0]


def maps_of(evidence: Evidence) -> MapFigures:
    found = output(evidence)
    assert found.kind == "class maps" and found.judged and found.maps is not None
    return found.maps


def values_of(evidence: Evidence) -> ValueFigures:
    found = output(evidence).values
    assert found is not None
    return found


def embedding_of(evidence: Evidence) -> EmbeddingFigures:
    found = output(evidence).embedding
    assert found is not None
    return found


@pytest.fixture
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(30, 4, 6, 5)).astype(np.float32)
    after = (before + 0.5 * rng.normal(size=before.shape)).astype(np.float32)
    labels = np.where(rng.random((30, 6, 5)) < 0.7, before.argmax(axis=1), rng.integers(0, 4, (30, 6, 5)))
    return before, after, labels


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_maps_are_scikit_learns(scene: tuple[np.ndarray, ...], batch: int) -> None:
    before, after, labels = scene
    found = maps_of(compared({"m": before}, {"m": after}, labels, batch))
    was, now = before.argmax(axis=1), after.argmax(axis=1)
    assert (found.classes, found.positions, found.ignored) == (4, 900, 0)
    assert found.agreement == (was == now).mean()
    assert found.miou == pytest.approx(jaccard_score(was.ravel(), now.ravel(), average="macro"))
    assert found.accuracy == Pair((was == labels).mean(), (now == labels).mean())
    assert found.label_miou is not None
    for ours, decided in ((found.label_miou.original, was), (found.label_miou.compressed, now)):
        assert ours == pytest.approx(jaccard_score(labels.ravel(), decided.ravel(), average="macro"))
    rates = (was == now).reshape(30, -1).mean(axis=1)
    low, high = stats.t.interval(0.95, 29, rates.mean(), stats.sem(rates))
    image = found.per_image
    assert (image.images, image.method) == (30, "t over images")
    assert (image.rate, image.low, image.high) == pytest.approx((rates.mean(), low, high))


def test_mean_iou_leaves_out_classes_that_do_not_occur_and_counts_what_was_not_decided() -> None:
    counts = np.zeros((4, 5), dtype=np.int64)
    counts[:3, :3] = confusion_matrix([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], labels=[0, 1, 2])
    assert mean_iou(counts) == pytest.approx(jaccard_score([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], average="macro"))
    counts[0, 4] = 2
    assert mean_iou(counts) == pytest.approx((1 / 5 + 2 / 3 + 0) / 3)
    assert mean_iou(np.zeros((2, 3), dtype=np.int64)) is None


def test_nan_in_a_map_is_no_class_and_never_agrees(scene: tuple[np.ndarray, ...]) -> None:
    before, _, labels = scene
    broken = before.copy()
    broken[0, 2, :3] = np.nan
    assert (decide_maps(broken)[0, :3] == 4).all()
    evidence = compared({"m": before}, {"m": broken}, labels)
    found = maps_of(evidence)
    assert found.agreement == (900 - 15) / 900
    assert any("NaN for 1 of 30" in warning for warning in evidence.warnings)


def test_labels_of_255_and_below_0_are_not_judged(scene: tuple[np.ndarray, ...]) -> None:
    before, after, labels = scene
    marked = labels.copy()
    marked[:, 0], marked[:, 1] = 255, -1
    found = maps_of(compared({"m": before}, {"m": after}, marked[:, None]))
    assert found.ignored == 30 * 10
    assert found.accuracy is not None
    assert found.accuracy.original == (before.argmax(axis=1) == labels)[:, 2:].mean()
    marked[3, 4, 1] = 4
    with pytest.raises(DataError, match="label 4 is outside the model's 4 classes; labels must be 0 to 3, or 255"):
        compared({"m": before}, {"m": after}, marked)


def test_maps_are_only_judged_where_it_is_safe_to_say(scene: tuple[np.ndarray, ...]) -> None:
    before, after, labels = scene
    assert output(compared({"m": before}, {"m": after})).kind == "values"
    asked = maps_of(compared({"m": before}, {"m": after}, kinds={"m": "maps"}))
    assert asked.accuracy is None and asked.label_miou is None and asked.ignored is None
    evidence = compared({"m": before}, {"m": after}, labels[:, :3])
    assert output(evidence).kind == "values"
    assert evidence.warnings == (
        "labels 'y' (int64 of shape (n,3,5)) fit no output that holds class maps or values: they were not used",
    )


def test_images_that_do_not_differ_have_no_interval(scene: tuple[np.ndarray, ...]) -> None:
    before, _, _ = scene
    same = maps_of(compared({"m": before}, {"m": before}, kinds={"m": "maps"}))
    assert (same.agreement, same.miou, same.per_image.low, same.per_image.high) == (1, 1, None, None)
    one = maps_of(compared({"m": before[:1]}, {"m": before[1:2]}, kinds={"m": "maps"}))
    assert one.per_image.low is None


@pytest.mark.parametrize("batch", [1, 13, 400])
def test_values_are_scipys(batch: int) -> None:
    rng = np.random.default_rng(1)
    before = (1000 + rng.normal(0, 3, (400, 2))).astype(np.float32)
    after = (before + rng.normal(0, 1, before.shape)).astype(np.float32)
    labels = before + rng.normal(0, 2, before.shape)
    found = values_of(compared({"v": before}, {"v": after}, labels, batch, kinds={"v": "values"}))
    x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-9)
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-12)
    assert found.rel_rmse == pytest.approx(np.sqrt(((y - x) ** 2).mean()) / x.std(), rel=1e-9)
    assert found.rmse is not None and found.rmse.original is not None and found.rmse.compressed is not None
    assert found.rmse.original == pytest.approx(mean_squared_error(labels.ravel(), x) ** 0.5)
    assert found.rmse.compressed == pytest.approx(mean_squared_error(labels.ravel(), y) ** 0.5)
    assert found.rmse_ratio == pytest.approx(found.rmse.compressed / found.rmse.original)
    assert found.sampled == 800


def test_real_labels_fit_a_column_and_not_class_scores() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(size=(50, 1))
    found = values_of(compared({"v": before}, {"v": before + 1}, before[:, 0] + 2))
    assert found.rmse == Pair(pytest.approx(2), pytest.approx(1))
    assert found.rmse_ratio == pytest.approx(0.5)
    scores = rng.normal(size=(50, 3))
    evidence = compared({"v": scores}, {"v": scores}, scores.copy())
    assert evidence.agreement is not None
    assert evidence.warnings[0].endswith("not used; --output-kind v=values judges that output as values")
    asked = compared({"v": scores}, {"v": scores}, scores.copy(), kinds={"v": "values"})
    assert asked.agreement is None and values_of(asked).rmse == Pair(0, 0) and values_of(asked).rmse_ratio is None


def test_values_without_spread_have_no_correlation() -> None:
    flat = np.full((20, 1), 3.0)
    found = values_of(compared({"v": flat}, {"v": flat + np.arange(20)[:, None]}))
    assert (found.rel_rmse, found.pearson, found.spearman) == (None, None, None)
    assert spearman(np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 3.0, 9.0])) == pytest.approx(1)


@pytest.mark.parametrize("cut", [1, 3, 64, 1000])
def test_an_even_sample_is_every_nth_whatever_the_batches(cut: int) -> None:
    sample = EvenSample(100)
    rows = np.arange(1000.0)[:, None]
    for start in range(0, 1000, cut):
        sample.update(rows[start : start + cut])
    assert sample.values()[:, 0].tolist() == np.arange(0.0, 1000.0, 16).tolist()


@pytest.mark.parametrize("batch", [1, 9, 200])
def test_embeddings_keep_their_neighbours_as_scikit_learn_finds_them(batch: int) -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=(200, 2, 4))
    after = before + 0.2 * rng.normal(size=before.shape)
    found = embedding_of(compared({"e": before}, {"e": after}, batch=batch, kinds={"e": "embedding"}))
    x, y = before.reshape(200, -1), after.reshape(200, -1)
    near = [NearestNeighbors(metric="cosine").fit(z).kneighbors(n_neighbors=1)[1][:, 0] for z in (x, y)]
    assert found.nearest == (near[0] == near[1]).mean()
    assert 0.1 < found.nearest < 1
    cosines = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert found.cosine == pytest.approx(cosines.mean())
    assert found.sampled == 200


def test_many_embeddings_are_sampled_the_same_however_they_come() -> None:
    rng = np.random.default_rng(4)
    before = rng.normal(size=(3000, 5))
    after = before + 0.1 * rng.normal(size=before.shape)
    cut = [embedding_of(compared({"e": before}, {"e": after}, batch=n, kinds={"e": "embedding"})) for n in (3000, 64)]
    assert cut[0].sampled == cut[1].sampled == 1000
    assert cut[0].nearest == cut[1].nearest
    drawn = np.sort(np.argsort(hashed(np.arange(3000)))[:1000])
    assert cut[0].nearest == (neighbours(before[drawn]) == neighbours(after[drawn])).mean()


def test_huge_tiny_and_zero_embeddings_have_neighbours_without_a_warning() -> None:
    rows = np.array([[1e300, 0.0], [1e300, 1e299], [0.0, 1e-320], [0.0, 0.0], [-1.0, 1.0]])
    assert neighbours(rows).tolist() == [1, 0, 4, 0, 2]
    found = embedding_of(compared({"e": rows}, {"e": rows}, kinds={"e": "embedding"}))
    assert found.nearest == 1 and found.sampled == 5


def test_values_that_overflow_leave_figures_unknown() -> None:
    rows = np.array([[1e300], [-1e300], [1.0]])
    found = values_of(compared({"v": rows}, {"v": -rows}))
    assert (found.rel_rmse, found.pearson) == (None, None)
    assert found.spearman == pytest.approx(-1)


def test_two_embeddings_have_no_neighbours_to_lose() -> None:
    found = embedding_of(compared({"e": np.eye(2)}, {"e": np.eye(2)}, kinds={"e": "embedding"}))
    assert found == EmbeddingFigures(1.0, None, 2)


@pytest.mark.parametrize(
    ("kinds", "sentence"),
    [
        ({"gone": "maps"}, "output-kind gone=maps: there is no such output; there are m, n"),
        ({"m": "boxes"}, "output-kind m=boxes: there is no such kind; accepted are scores, maps, values, embedding"),
        ({"m": "maps"}, "output-kind m=maps: the output is float64 of shape (6, 3); maps must be floating"),
        ({"n": "scores"}, "output-kind n=scores: the output is float64 of shape (6, 3, 2); scores must be floating"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(kinds: dict[str, str], sentence: str) -> None:
    outputs = {"m": np.zeros((6, 3)), "n": np.zeros((6, 3, 2))}
    with pytest.raises(OptionError) as error:
        compared(outputs, outputs, kinds=kinds)
    assert str(error.value).startswith(sentence)
    with pytest.raises(OptionError):
        Tally(kinds=kinds).update(outputs)


def test_scores_that_were_asked_for_are_judged_before_others() -> None:
    first, second = np.eye(4)[[0, 1, 2, 3]], np.eye(4)[[3, 2, 1, 0]]
    outputs = {"a": first, "b": second}
    swapped = {"a": second, "b": second}
    plain, asked = (compared(outputs, swapped, kinds=kinds).agreement for kinds in ({}, {"b": "scores"}))
    assert plain is not None and asked is not None
    assert (plain.top1.rate, asked.top1.rate) == (0, 1)


def test_maps_whose_classes_change_are_refused(scene: tuple[np.ndarray, ...]) -> None:
    before, _, _ = scene
    comparison = Comparison(kinds={"m": "maps"})
    comparison.update({"m": before}, {"m": before})
    with pytest.raises(ModelError, match="class maps of 4 classes are wanted"):
        comparison.update({"m": before[:, :3]}, {"m": before[:, :3]})


def test_one_model_is_scored_on_maps_and_values(scene: tuple[np.ndarray, ...]) -> None:
    before, _, labels = scene
    tally, values = Tally(), Tally()
    for start in range(0, 30, 8):
        part = slice(start, start + 8)
        tally.update({"m": before[part]}, targets=labels[part])
        values.update({"v": before[part, 0]}, targets=before[part, 0] + np.float32(0.5))
    found = tally.result()
    assert found.maps is not None and found.values is None and found.warnings == ()
    assert found.maps.accuracy == (before.argmax(axis=1) == labels).mean()
    assert found.maps.miou == pytest.approx(
        jaccard_score(labels.ravel(), before.argmax(axis=1).ravel(), average="macro")
    )
    score = values.result().values
    assert score is not None and score.rmse == pytest.approx(0.5) and score.count == 900
