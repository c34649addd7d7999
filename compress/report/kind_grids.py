"""Tables and sentences on outputs that are no class scores: class maps, values, embeddings."""

from __future__ import annotations

from onnxprune.evaluate.evidence import EmbeddingFigures, MapFigures, OutputEvidence, Pair, ValueFigures
from onnxprune.report.figures import UNKNOWN, interval, number, percent
from onnxprune.report.grids import Grid


def kind_grids(outputs: tuple[OutputEvidence, ...]) -> list[Grid]:
    """Return one table per output that has figures of its kind."""
    found = []
    for each in outputs:
        if each.maps is not None:
            found.append(_maps(each.name, each.maps))
        if each.values is not None:
            found.append(_values(each.name, each.values))
        if each.embedding is not None:
            found.append(_embedding(each.name, each.embedding))
    return found


def kind_sentence(outputs: tuple[OutputEvidence, ...]) -> str | None:
    """Return what became of the judged output, where it is a class map, values with labels, or an embedding."""
    judged = next((each for each in outputs if each.judged), None)
    if judged is None:
        return None
    if judged.maps is not None:
        return _maps_sentence(judged.maps)
    if judged.values is not None and judged.values.rmse is not None:
        rmse = judged.values.rmse
        return f"RMSE {number(rmse.original)} before, {number(rmse.compressed)} after"
    if judged.embedding is not None:
        near = judged.embedding.nearest
        kept = (
            "" if near is None else f", {percent(near)} of {judged.embedding.sampled:,} examples keep their neighbour"
        )
        return f"mean cosine {number(judged.embedding.cosine)}{kept}"
    return None


def _maps_sentence(maps: MapFigures) -> str:
    image, ends = maps.per_image, ""
    if image.low is not None and image.high is not None:
        ends = f" ({percent(image.confidence)} interval over images {interval(image.low, image.high)})"
    said = f"{percent(maps.agreement)} of {maps.positions:,} positions keep their class{ends}"
    if maps.label_miou is not None:
        said += f"; mIoU {percent(maps.label_miou.original)} before, {percent(maps.label_miou.compressed)} after"
    return said


def _maps(name: str, maps: MapFigures) -> Grid:
    image = maps.per_image
    ends = UNKNOWN if image.low is None or image.high is None else interval(image.low, image.high)
    rows = [
        ("same class, all positions", percent(maps.agreement), ""),
        ("same class, mean of images", percent(image.rate), ends),
        ("mIoU of the two", percent(maps.miou), ""),
    ]
    for told, pair in (("accuracy", maps.accuracy), ("mIoU", maps.label_miou)):
        if pair is not None:
            rows += [
                (f"original {told}", percent(pair.original), ""),
                (f"compressed {told}", percent(pair.compressed), ""),
            ]
    rows += [("classes", number(maps.classes), ""), ("images", number(image.images), "")]
    rows.append(("positions", number(maps.positions), ""))
    if maps.ignored:
        rows.append(("not judged by labels", number(maps.ignored), ""))
    return Grid((f"maps: {name}", "figure", f"{percent(image.confidence)} over images"), tuple(rows))


def _values(name: str, values: ValueFigures) -> Grid:
    rows = [
        ("RMSE to the original / its deviation", number(values.rel_rmse)),
        ("Pearson correlation", number(values.pearson)),
        (f"Spearman correlation ({values.sampled:,} values)", number(values.spearman)),
    ]
    if isinstance(values.rmse, Pair):
        rows += [("original RMSE", number(values.rmse.original)), ("compressed RMSE", number(values.rmse.compressed))]
        rows.append(("compressed / original", number(values.rmse_ratio)))
    return Grid((f"values: {name}", "figure"), tuple(rows))


def _embedding(name: str, embedding: EmbeddingFigures) -> Grid:
    rows = (
        ("mean cosine", number(embedding.cosine)),
        (f"same nearest neighbour ({embedding.sampled:,} examples)", percent(embedding.nearest)),
    )
    return Grid((f"embedding: {name}", "figure"), rows)
