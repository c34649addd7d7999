"""The HTML page: whole, alone, safe, the same bytes, and what it says for every kind of report."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnxprune.budget import bytes_gate, latency_gate
from onnxprune.data import Examples, Preprocess
from onnxprune.evaluate.compare import Comparison
from onnxprune.evaluate.evidence import Evidence
from onnxprune.report.charts import class_chart, interval_chart, ratio_chart, trial_chart
from onnxprune.report.page import ROWS, page
from onnxprune.report.pictures import Pictures, picture
from onnxprune.report.report import Cost, Figures, Report, Step
from onnxprune.report.verdict import SMALLER_NOT_FASTER, size_sentences, speed_sentence
from onnxprune.report.write import write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
SAME = "its time cannot be told from the original's: 100 % (95 % interval 90-110 %)"
HOSTILE = "<script>alert(1)</script>\"'&$x_1$"


class Balanced(HTMLParser):
    """Fail where an element is closed that is not open; gather elements, ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += " " + data


def read(report: Report, pictures: dict[int, str] | None = None) -> Balanced:
    text = page(report, pictures)
    assert "http://" not in text
    assert "https://" not in text
    assert len(text.encode()) < 2_000_000
    assert text == page(report, pictures)
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert not parser.open
    assert "script" not in {tag for tag, _ in parser.seen}
    ids = [attrs["id"] for _, attrs in parser.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [value for _, attrs in parser.seen for key, value in attrs.items() if key in ("href", "src")]
    assert all(str(link).startswith(("#", "data:image/png;base64,")) for link in links)
    return parser


def evidence_of(**outputs: tuple[np.ndarray, np.ndarray]) -> Evidence:
    comparison = Comparison()
    comparison.update({k: v[0] for k, v in outputs.items()}, {k: v[1] for k, v in outputs.items()})
    return comparison.result()


def with_evidence(report: Report, evidence: Evidence) -> Report:
    return replace(
        report, agreement=evidence.agreement, accuracy=evidence.accuracy, output_error=evidence.output_error,
        outputs=evidence.outputs,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "bare", "regression", "segmentation", "unlabelled", "same", "untimed"])
def test_every_kind_of_report_is_a_page(kind: str, full_report: Report, bare_report: Report) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3, 4, 4))
    mask = rng.integers(0, 4, (20, 4, 4))
    report = {
        "full": full_report,
        "bare": bare_report,
        "regression": with_evidence(bare_report, evidence_of(y=(x[:, 0, 0, :1], x[:, 0, 0, :1] + 0.1))),
        "segmentation": with_evidence(full_report, evidence_of(scores=(x, x * 1.1), mask=(mask, mask))),
        "unlabelled": with_evidence(full_report, evidence_of(y=(x[:, 0, 0], x[:, 0, 1]))),
        "same": with_evidence(full_report, evidence_of(y=(x[:, 0, 0], x[:, 0, 0]))),
        "untimed": replace(full_report, latency=None),
    }[kind]
    read(report)
    assert read(Report.from_json(report.to_json())).text  # the JSON is the source


def test_the_page_says_it_in_order(full_report: Report) -> None:
    text = " ".join(read(full_report).text.split())
    places = [
        text.index(said)
        for said in (
            "2 gates NOT met", "NOT met : agreement at least 0.99", "met : accuracy", "357 of 360 decisions kept",
            "Smaller: 51 % of the FLOPs", "Warnings", "12 examples are in both", "Cost", "431,080", "Decisions",
            "same top-1", "Classes", "Agreement by the original", "Changed decisions", "Where the original was surest",
            "Outputs", "Steps and layers", "residual", "conv1", "Latency", "Provenance",
            "surp(sparsity=0.8),id(flops=0.51)", "digits:train", "CPUExecutionProvider",
        )
    ]  # fmt: skip
    assert places == sorted(places)


def test_hostile_names_stay_text(full_report: Report) -> None:
    labels = np.arange(40) % 4
    before, after = np.eye(4)[labels], np.eye(4)[(labels + 1) % 4]
    comparison = Comparison(classes=[HOSTILE, "<!-- x", "日本", "a" * 300])
    comparison.update({HOSTILE: before}, {HOSTILE: after}, labels)
    step = Step(HOSTILE, {}, 0.0, numbers={HOSTILE: 1, "layers": [{"node": HOSTILE, HOSTILE: 2}]})
    report = with_evidence(full_report, comparison.result())
    report = replace(report, steps=(step,), recipe=HOSTILE, warnings=(HOSTILE, "see <http:foo>"))
    assert read(report).text.count("<script>alert(1)</script>") > 8


def test_long_tables_are_cut(full_report: Report) -> None:
    layers = [{"node": f"node{i}", "before": 64, "after": 32} for i in range(20_000)]
    report = replace(full_report, steps=(Step("id", {}, 1.0, numbers={"layers": layers, "pairs": layers}),))
    text = read(report).text
    assert f"{20_000 - ROWS:,} more rows are in the JSON report" in text
    assert f"node{ROWS - 1}" in text
    assert f"node{ROWS} " not in text


def test_a_thousand_classes_and_the_search(full_report: Report) -> None:
    rng = np.random.default_rng(1)
    report = with_evidence(full_report, evidence_of(y=(rng.normal(size=(900, 1000)), rng.normal(size=(900, 1000)))))
    trials = [{"size": s, "agreement": 1 - s / 9, "low": 0.98 - s / 9, "met": s < 0.5} for s in (0.2, 0.9, 0.5)]
    step = Step("surp", {"sparsity": 0.2}, 1.0, numbers={"wanted_agreement": 0.95, "search": trials})
    text = read(replace(report, steps=(step, step))).text
    assert "more classes are in the JSON report" in text
    assert "surp searched for 95 % agreement" in text
    assert trial_chart(step) is not None
    assert trial_chart(Step("surp", {}, 1.0)) is None


def test_a_time_that_may_be_the_same_is_no_gain(bare_report: Report) -> None:
    timed = {"original_ms": 1.0, "compressed_ms": 0.9, "ratio": 0.9, "low": 0.8}
    bars = [ratio_chart(replace(bare_report, latency={**timed, "high": high})) for high in (0.95, 1.1, None)]
    assert ["fill: var(--main)" in str(bar) for bar in bars] == [True, False, False]


def test_charts_are_missing_where_there_is_nothing_to_draw(full_report: Report, bare_report: Report) -> None:
    assert ratio_chart(bare_report) is interval_chart(bare_report) is class_chart(bare_report) is None
    for chart in (ratio_chart, interval_chart, class_chart):
        svg = chart(full_report)
        assert svg is not None
        assert svg.startswith("<svg ")
        assert "xmlns" not in svg
        assert "#0" not in svg  # colours are the page's


@pytest.mark.parametrize(
    ("after", "low", "high", "nonzero", "macs", "said"),
    [
        (0.6, 0.5, 0.7, 50, 50, "Faster: it takes 60 % of the original's time (95 % interval 50-70 %)"),
        (1.2, 1.1, 1.3, 50, 50, "Smaller, but slower: it takes 120 % of the original's time (95 % interval 110-130 %)"),
        (1.2, 1.1, 1.3, 100, 100, "Slower: it takes 120 % of the original's time (95 % interval 110-130 %)"),
        (1.0, 0.9, 1.1, 50, 50, f"Smaller, not faster: {SAME}"),
        (1.0, 0.9, 1.1, 100, 100, f"Neither smaller nor faster: {SAME}"),
        (0.9, 0.8, 0.95, 50, 100, "Measured: it takes 90 % of the original's time (95 % interval 80-95 %)"),
        (0.9, None, None, 50, 50, "Speed: it takes 90 % of the original's time, in too few runs for an interval"),
    ],
)  # fmt: skip
def test_speed_is_said_plainly(
    bare_report: Report, after: float, low: float | None, high: float | None, nonzero: int, macs: int, said: str
) -> None:
    cost = Cost.between(Figures(100, 100, 100, 100), Figures(macs, nonzero, macs, macs))
    latency = {"original_ms": 1.0, "compressed_ms": after, "ratio": after, "low": low, "high": high, "confidence": 0.95}
    report = replace(bare_report, cost=cost, latency=latency)
    assert speed_sentence(report) == f"{said}."
    text = read(report).text
    assert (SMALLER_NOT_FASTER in text) == (macs == 100 and nonzero == 50)
    assert all(sentence in text for sentence in size_sentences(report))


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("channels", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_preprocessing_is_undone(channels: str, layout: str) -> None:
    depth = 1 if channels == "L" else 3
    image = np.random.default_rng(0).integers(0, 256, (8, 8, depth), dtype=np.uint8)
    how = Preprocess(mean=(0.4,) * depth, std=(0.2, 0.3, 0.25)[:depth], channels=channels, layout=layout)
    fed = image[:, :, ::-1] if channels == "BGR" else image
    batch = (fed[None] / 255 - np.array(how.mean)) / np.array(how.std)
    batch = (batch.transpose(0, 3, 1, 2) if layout == "NCHW" else batch).astype(np.float32)
    for array in (batch, batch.reshape(1, -1)):
        uri = picture({"mask": np.zeros(1), "x": array}, how)
        assert uri is not None
        assert np.array_equal(pixels_of(uri).reshape(image.shape), image)


def test_without_preprocessing_the_range_is_black_to_white() -> None:
    ramp = np.linspace(-3, 5, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    uri = picture({"x": ramp}, None)
    assert uri is not None
    assert (pixels_of(uri).min(), pixels_of(uri).max()) == (0, 255)
    # Arrays that never were pixels / 255: undoing that would lead far outside.
    far = picture({"x": ramp * 100}, Preprocess(channels="L"))
    assert far is not None
    assert np.array_equal(pixels_of(far), pixels_of(uri))
    assert picture({"x": np.full((1, 3, 8, 8), 2.0)}, None) is not None
    big = picture({"x": np.zeros((1, 3, 500, 300), np.uint8)}, None)
    assert big is not None
    assert max(pixels_of(big).shape) <= 80


@pytest.mark.parametrize("shape", [(1, 8), (1, 8, 8), (1, 5, 8, 8), (1, 3, 2, 2), (1, 3, 2, 8, 8), (1,)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert picture({"x": np.ones(shape, np.float32)}, None) is None


def test_the_gallery_shows_the_examples_named(full_report: Report) -> None:
    images = np.random.default_rng(0).random((400, 1, 8, 8)).astype(np.float32)
    source = Examples("x.npz", 400, None, lambda rows: {"x": images[rows]})
    assert full_report.agreement is not None
    assert [flip.index for flip in full_report.agreement.flips.examples] == [8, 18, 28]
    for examples in (source, source.take(np.arange(399, -1, -1))):
        shown = Pictures(examples).of(full_report)
        assert shown == {index: picture({"x": images[[index]]}, None) for index in (8, 18, 28)}
        assert sum(tag == "img" for tag, _ in read(full_report, shown).seen) == 3
    assert Pictures(source.take([3, 18])).of(full_report).keys() == {18}
    assert Pictures(replace(source, synthetic=True)).of(full_report) == {}


def test_pictures_are_pngs_or_nothing(full_report: Report) -> None:
    assert not [tag for tag, _ in read(full_report, {8: "javascript:alert(1)"}).seen if tag == "img"]


def test_the_page_is_written(tmp_path: Path, full_report: Report) -> None:
    write_report(full_report, tmp_path / "r.html", {8: "data:image/png;base64,AAAA"})
    assert (tmp_path / "r.html").read_text("utf-8") == page(full_report, {8: "data:image/png;base64,AAAA"})


def test_apply_and_compare_write_pages_with_pictures(tmp_path: Path, conv_net_path: Path) -> None:
    from click.testing import CliRunner

    from onnxprune.cli import main

    images = np.random.default_rng(0).random((60, 1, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=images)
    out = tmp_path / "out.onnx"
    words: list[Any] = ["apply", "id(flops=0.3)", "--in", conv_net_path, "--out", out, "--data", tmp_path / "x.npz"]
    runs = [
        [*words, "--report", tmp_path / "a.html", "--keep-failed"],
        ["compare", conv_net_path, out, "--data", tmp_path / "x.npz", "--report", tmp_path / "b.html"],
    ]
    for run, name in zip(runs, ("a.html", "b.html"), strict=True):
        done = CliRunner().invoke(main, [str(word) for word in run])
        assert done.exit_code == 0, done.output
        assert "data:image/png;base64," in (tmp_path / name).read_text("utf-8")


def test_paper_gets_light_colours_whole_rows_and_unfolded_tables(full_report: Report) -> None:
    text = page(full_report)
    style = text[text.index("<style>") : text.index("</style>")]
    dark, paper = style.index("@media (prefers-color-scheme:dark)"), style.index("@media print")
    assert dark < paper  # the later rule decides, in a dark browser too
    printed = style[paper:]
    for rule in (
        "color-scheme:light;--ground:#fff", "max-height:none", "thead{display:table-header-group}", "tr,",
        "break-inside:avoid", "details::details-content{content-visibility:visible",
    ):  # fmt: skip
        assert rule in printed
    assert not re.search(r"[;{]height:\s*\d", style.replace("width:84px;height:84px", ""))


def test_the_gates_of_a_release_read_well(full_report: Report) -> None:
    gates = (
        bytes_gate(2_000_001, 2_000_000),
        latency_gate(0.9123456, 0.9, "ratio 0.85, 95 % interval"),
        latency_gate(None, 0.9, "no clock"),
    )
    text = " ".join(read(replace(full_report, gates=gates)).text.split())
    assert "3 of 3 gates NOT met" in text
    assert "NOT met : file of at most 2,000,000 bytes: 2,000,001 bytes " in text
    assert (
        "NOT met : latency ratio at most 0.9: upper end of the interval 0.912346 (ratio 0.85, 95 % interval) " in text
    )
    assert "NOT met : latency ratio at most 0.9: could not be measured (no clock) " in text
