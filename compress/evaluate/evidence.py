"""What comparing two models (or judging one) found: plain frozen data, with the report's key names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OutputKind = Literal["class scores", "class maps", "values", "embedding", "discrete"]


@dataclass(frozen=True)
class Rate:
    """A share of the examples with its two-sided interval."""

    rate: float
    low: float
    high: float
    confidence: float
    method: str = "clopper-pearson"


@dataclass(frozen=True)
class ClassRate:
    """The share of one class's examples, with its two-sided interval."""

    label: str
    count: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Flip:
    """One changed decision: ``index`` is the example's row in its source as opened, from 0.

    ``before`` and ``after`` are the classes of the original and the compressed model, ``label`` the true one, if
    known. ``confidence`` is the probability that the original gave its class, ``margin`` how far its second choice
    was behind; None where its scores are not finite.
    """

    index: int
    before: str
    after: str
    label: str | None
    confidence: float | None
    margin: float | None


@dataclass(frozen=True)
class MarginBin:
    """Examples whose original margin (first less second probability) is at most ``up_to`` and above the bin before."""

    up_to: float
    examples: int
    flipped: int


@dataclass(frozen=True)
class Flips:
    """What became of the decisions: ``kept + count = examples``.

    With labels ``lost`` (right to wrong), ``gained`` (wrong to right) and ``changed_wrong`` (wrong to another
    wrong) add up to ``count``; without labels they are None. ``confusion`` holds the most frequent changes as
    (class of the original, class of the compressed model, count), ``examples`` the changes that the original was
    surest against, the surest first. ``margins`` counts them by the original's margin; rows without probabilities
    are in none of its bins.
    """

    kept: int
    lost: int | None
    gained: int | None
    changed_wrong: int | None
    count: int
    confusion: tuple[tuple[str, str, int], ...]
    examples: tuple[Flip, ...] = ()
    margins: tuple[MarginBin, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """How often the compressed model decides as the original does; ``per_class`` by the original's class.

    ``top5`` is the share of examples whose original top-1 is among the compressed model's first five; None
    for fewer than six classes. ``certified`` is the share of examples whose scores moved by less than half the
    original's margin: their decisions cannot have changed.
    """

    examples: int
    top1: Rate
    top5: Rate | None
    per_class: tuple[ClassRate, ...]
    flips: Flips
    certified: float | None = None


@dataclass(frozen=True)
class Pair:
    """One figure of both models; None where it is not a number."""

    original: float | None
    compressed: float | None


@dataclass(frozen=True)
class ClassAccuracy:
    """Both models' accuracy on the examples with one label."""

    label: str
    count: int
    original: float
    compressed: float


@dataclass(frozen=True)
class Accuracy:
    """Both models against the labels; ``drop = original - compressed``, losses in nats per example.

    ``drop_low`` and ``drop_high`` are the ends of the drop's paired two-sided interval. ``calibration_error`` is the
    expected calibration error of 15 bins, None for a model whose probabilities are not all finite.
    """

    original: float
    compressed: float
    drop: float
    mcnemar_p: float
    top5: Pair | None
    loss: Pair
    per_class: tuple[ClassAccuracy, ...]
    drop_low: float | None = None
    drop_high: float | None = None
    calibration_error: Pair | None = None


@dataclass(frozen=True)
class OutputError:
    """How far the judged output moved; ``kl`` is the mean KL(original || compressed) in nats."""

    max_abs: float | None
    mean_abs: float | None
    rel_l2: float | None
    cosine: float | None
    kl: float | None


@dataclass(frozen=True)
class ImageRate:
    """The mean share of an image's positions with its t interval over images; no ends where images do not differ."""

    images: int
    rate: float
    low: float | None
    high: float | None
    confidence: float
    method: str = "t over images"


@dataclass(frozen=True)
class MapFigures:
    """Class maps: ``agreement`` is the share of positions with the same class, ``miou`` that of both models' maps.

    ``miou`` is the mean intersection over union of the classes that occur. With maps of labels ``accuracy`` is the
    share of right positions, ``label_miou`` the mIoU against them, ``ignored`` the positions that labels leave out.
    """

    classes: int
    positions: int
    agreement: float
    per_image: ImageRate
    miou: float | None
    accuracy: Pair | None
    label_miou: Pair | None
    ignored: int | None


@dataclass(frozen=True)
class ValueFigures:
    """Values: ``rel_rmse`` is RMSE(compressed, original) / std(original); correlations pool all values.

    ``spearman`` is that of ``sampled`` values. With real labels ``rmse`` is both models' error against them,
    ``rmse_ratio`` compressed / original.
    """

    rel_rmse: float | None
    pearson: float | None
    spearman: float | None
    sampled: int
    rmse: Pair | None
    rmse_ratio: float | None


@dataclass(frozen=True)
class EmbeddingFigures:
    """Embeddings: the mean ``cosine`` of both models' vectors, and how often an example keeps its neighbour.

    ``nearest`` is the share of ``sampled`` examples whose nearest other one is the same in both models; None for
    fewer than three.
    """

    cosine: float
    nearest: float | None
    sampled: int


@dataclass(frozen=True)
class OutputEvidence:
    """How far one output moved; figures that mean nothing for its kind are None.

    ``equal`` is the share of equal elements of a discrete output (integers, booleans, text); ``judged`` marks
    the output whose decisions, or else whose error, the report speaks about. ``maps``, ``values`` and ``embedding``
    hold the figures of that kind of output.
    """

    name: str
    kind: OutputKind
    judged: bool
    max_abs: float | None
    mean_abs: float | None
    rel_l2: float | None
    cosine: float | None
    r2: float | None
    equal: float | None
    maps: MapFigures | None = None
    values: ValueFigures | None = None
    embedding: EmbeddingFigures | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything a comparison of two models found on the same examples.

    ``classes`` counts those of the judged output, chosen or not; None without class scores.
    """

    examples: int
    agreement: Agreement | None
    accuracy: Accuracy | None
    output_error: OutputError | None
    outputs: tuple[OutputEvidence, ...]
    warnings: tuple[str, ...]
    classes: int | None = None


@dataclass(frozen=True)
class ClassScore:
    """One class of a single model: its labelled examples, how often it was predicted, and its accuracy."""

    label: str
    count: int
    predicted: int
    rate: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class MapScore:
    """One model's maps against labels: judged positions, the share that is right, mIoU, positions left out."""

    positions: int
    accuracy: float | None
    miou: float | None
    ignored: int


@dataclass(frozen=True)
class ValueScore:
    """One model's values against labels: how many, and the root of the mean squared error."""

    count: int
    rmse: float | None


@dataclass(frozen=True)
class Performance:
    """One model on its own; figures that need labels are None without them.

    ``per_class`` is empty when the model gives no class scores; ``loss`` is in nats per example. ``maps`` and
    ``values`` are told of the first output of that kind that labels fit.
    """

    examples: int
    output: str | None
    classes: int | None
    accuracy: Rate | None
    top5: Rate | None
    loss: float | None
    per_class: tuple[ClassScore, ...]
    warnings: tuple[str, ...]
    maps: MapScore | None = None
    values: ValueScore | None = None
