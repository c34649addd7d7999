"""Markdown and terminal views: what they must say, and that they say it readably."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from onnxprune.evaluate.compare import Comparison
from onnxprune.report.figures import interval, number, percent, points, settings
from onnxprune.report.markdown import markdown
from onnxprune.report.report import Cost, DataSide, DataUsed, Figures, Report, Skipped, Step
from onnxprune.report.table import render
from onnxprune.report.verdict import MADE_UP_DATA, SMALLER_NOT_FASTER, latency_sentence, verdict

VERDICT = (
    "357 of 360 decisions kept (99.2 %, 95 % interval 97.6-99.8 %); accuracy 100 % before, 99.2 % after; "
    "51 % of the FLOPs, 41.8 % of the parameters, 9.3 % of the nonzero weights, 41.8 % of the bytes; "
    "1 of 2 gates NOT met."
)


def rendered(report: Report, width: int = 80, **options: Any) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=width, **options))
    return out.getvalue()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.5, "50 %"),
        (357 / 360, "99.2 %"),
        (9_999 / 10_000, "99.99 %"),
        (999_999 / 1_000_000, "99.9999 %"),
        (0.00001, "0.001 %"),
        (1e-13, "1e-11 %"),
        (2.5, "250 %"),
        (None, "unknown"),
    ],
)
def test_only_all_reads_100_percent_and_only_none_reads_0(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_figures_read_as_people_write_them() -> None:
    assert interval(0.97584, 0.99828) == "97.6-99.8 %"
    assert [points(-0.0025), points(0.01), points(-0.0)] == ["-0.25 points", "+1.00 points", "0 points"]
    assert [number(value) for value in (1_234_567, 0.123456, True, False, None, "x", float("nan"))] == [
        "1,234,567",
        "0.1235",
        "yes",
        "no",
        "unknown",
        "x",
        "unknown",
    ]
    assert number({"a": [1, np.float32(0.5)]}) == '{"a": [1, 0.5]}'
    assert number(np.int64(5)) == "5"
    assert settings({"flops": 0.5, "only": "conv*"}) == "flops=0.5, only=conv*"


def test_the_verdict_is_the_first_thing_said(full_report: Report) -> None:
    assert verdict(full_report) == VERDICT
    assert markdown(full_report).startswith(f"# onnxprune report\n\n**{VERDICT}**\n\n- source: ")


def test_verdicts_without_decisions_or_sizes(full_report: Report, bare_report: Report) -> None:
    assert verdict(bare_report) == "decisions not judged; size unknown."
    comparison = Comparison()
    comparison.update({"depth": np.full((5, 2, 2), 2.0)}, {"depth": np.full((5, 2, 2), 2.1)})
    evidence = comparison.result()
    same = Figures(10, 10, 20, 40)
    moved = replace(
        bare_report,
        output_error=evidence.output_error,
        outputs=evidence.outputs,
        cost=Cost.between(same, same),
        gates=full_report.gates[1:],
    )
    assert verdict(moved) == ("outputs moved by 5 % (relative L2); the same size as the original; the gate is met.")
    assert "| depth | values | 0.1 | 0.1 | 0.05 | 1 | - | - |" in markdown(moved)
    assert verdict(replace(moved, gates=full_report.gates[:1])).endswith("; the gate is NOT met.")
    assert verdict(replace(moved, gates=full_report.gates[1:] * 2)).endswith("; all 2 gates are met.")


@pytest.mark.parametrize(
    "fragment",
    [
        "- source: `models/lenet5.onnx`, opset 20, sha256 0123456789abcdef",
        "- result: `pruned.onnx`, 733,212 bytes, sha256 fedcba9876543210",
        "- recipe: `surp(sparsity=0.8),id(flops=0.51)`",
        "| cost | before | after | ratio |\n| --- | ---: | ---: | ---: |\n"
        "| parameters | 431,080 | 180,000 | 41.8 % |\n"
        "| nonzero weights | 431,080 | 40,000 | 9.3 % |\n"
        "| MACs | 2,293,000 | 1,169,430 | 51 % |\n"
        "| FLOPs (2 x MACs) | 4,586,000 | 2,338,860 | 51 % |\n"
        "| weight bytes | 1,724,320 | 720,000 | 41.8 % |",
        "| min_agreement | 0.99 | 0.9786 | NO |",
        "- agreement at least 0.99: lower bound 0.9786 at 95 % (360 examples, 357 agree): not met",
        "| same top-1 | 99.2 % | 97.6-99.8 % |",
        "| top-1 still in top-5 | 99.2 % | 97.6-99.8 % |",
        "357 of 360 decisions kept, 3 changed: 3 right to wrong, 0 wrong to right, "
        "0 wrong to another wrong. Worst class: digit 8 (91.7 % of 36 decisions kept, 77.5-98.2 %).",
        "| digit 8 | digit 3 | 2 |",
        "| change | -0.83 points | -2.42 to +0.36 |",
        "| McNemar p | 0.25 |  |",
        "| original calibration error | 0 % |  |",
        "| certainly kept | 99.2 % | - |",
        "| original's margin | examples | changed | share |\n| --- | ---: | ---: | ---: |\n| 0-10 % | 0 | 0 | - |",
        "| 90-100 % | 360 | 3 | 0.8 % |",
        "0 of 3 changes are near-ties: the original's second choice was at most 10 points behind (0 examples of 360).",
        "| compressed top-1 | 99.2 % | 97.6-99.8 % |",
        "| class | decisions | agreement | 95 % interval | labelled | accuracy before | after |",
        "| digit 8 | 36 | 91.7 % | 77.5-98.2 % | 36 | 100 % | 91.7 % |",
        "Mean KL divergence from the original: ",
        "| 1. surp(sparsity=0.8) | 431,080 | 86,216 | 2,293,000 | 1,724,320 | 99.7 % (98.5-99.99 %) | 1.2 |",
        "| 2. id(flops=0.51) | 180,000 | 40,000 | 1,169,430 | 720,000 | 99.2 % (97.6-99.8 %) | 0.8 |",
        '| law | {"alpha": 1.5} |',
        "| nan | unknown |",
        "| node | before | after | residual | aligned |\n| --- | ---: | ---: | ---: | ---: |\n"
        "| conv1 | 20 | 16 | 0.01235 | - |\n| conv2 | 50 | 32 | - | yes |",
        "| fc\\|3 | its weight \\[10, 500\\] is shared with '/tied' |",
        "Latency: 1.5 ms before, 0.9 ms after (60 %), batch 1.\n\n",
        "| original_ms | 1.5 |",
        "| evaluation | digits:test | 360 | 0123456789abcdef",
        "- 12 examples are in both calibration and evaluation",
        "| providers | CPUExecutionProvider |",
        "| onnxruntime | 1.31.0 |",
        "| schema | onnxprune.report/1 |",
    ],
)
def test_markdown_says(full_report: Report, fragment: str) -> None:
    assert fragment in markdown(full_report)


def test_markdown_of_next_to_nothing(bare_report: Report) -> None:
    text = markdown(bare_report)
    assert "- result: no model was written" in text
    assert "| MACs | unknown | unknown | unknown |" in text
    assert "| calibration | none | 0 | - |" in text
    for absent in (
        "## Gates",
        "## Decisions",
        "## Accuracy",
        "## Steps",
        "## Latency",
        "## Warnings",
        "recipe",
    ):
        assert absent not in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head(full_report: Report) -> None:
    width = 0
    for line in markdown(full_report).splitlines():
        cells = line.replace("\\|", "").count("|")
        if cells and not width:
            width = cells
        assert cells in (0, width)
        width = width if cells else 0


def test_zeros_alone_are_smaller_not_faster(bare_report: Report) -> None:
    cost = Cost.between(Figures(100, 100, 50, 400), Figures(100, 20, 50, 400))
    zeros = replace(bare_report, cost=cost)
    assert f"\n\n{SMALLER_NOT_FASTER}\n\n" in markdown(zeros)
    assert "Smaller, not faster: zeros were made" in " ".join(rendered(zeros).split())
    cut = replace(bare_report, cost=Cost.between(Figures(100, 100, 50, 400), Figures(50, 20, 25, 200)))
    assert SMALLER_NOT_FASTER not in markdown(cut)
    assert "20 % of the nonzero weights" in verdict(cut)


def test_made_up_data_is_said_plainly(bare_report: Report) -> None:
    synthetic = replace(bare_report, data=DataUsed(synthetic=True))
    assert MADE_UP_DATA in markdown(synthetic)
    assert MADE_UP_DATA.split(":")[0] in rendered(synthetic)


def test_many_classes_show_the_worst(bare_report: Report) -> None:
    before = np.eye(60)
    after = before.copy()
    after[59] = before[0]
    comparison = Comparison()
    comparison.update({"logits": before}, {"logits": after})
    text = markdown(replace(bare_report, agreement=comparison.result().agreement))
    assert "The 50 worst of 60 classes; the JSON report has them all." in text
    assert "| 59 | 1 | 0 % | 0-97.5 % |" in text
    assert "| 55 | 1 |" not in text
    assert "59 of 60 decisions kept, 1 changed. Worst class: 59 " in text


def test_a_class_only_labels_know_and_one_they_do_not(bare_report: Report) -> None:
    comparison = Comparison()
    comparison.update({"y": np.eye(3)[[0, 1]]}, {"y": np.eye(3)[[0, 1]]}, np.array([0, 2]))
    evidence = comparison.result()
    text = markdown(replace(bare_report, agreement=evidence.agreement, accuracy=evidence.accuracy))
    assert "| 1 | 1 | 100 % | 2.5-100 % | 0 | - | - |" in text


def test_markdown_shows_names_as_they_are(bare_report: Report) -> None:
    odd = (Skipped("__w__ *a* `b` <i> \\", "x_y"),)
    text = markdown(replace(bare_report, recipe="custom(`a`.py:f)", steps=(Step("id", {}, 0.0, skipped=odd),)))
    assert r"| \_\_w\_\_ \*a\* \`b\` \<i\> \\ | x_y |" in text
    assert "- recipe: `` custom(`a`.py:f) ``" in text


def test_the_terminal_table_fits_80_columns_and_has_no_colour_in_a_file(full_report: Report) -> None:
    text = rendered(full_report)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    plain = " ".join(text.split())
    assert plain.startswith(VERDICT)
    for said in (
        "FLOPs (2 x MACs) 4,586,000 2,338,860 51 %",
        "same top-1 99.2 % 97.6-99.8 %",
        "Latency: 1.5 ms before, 0.9 ms after (60 %), batch 1.",
        "2. id 180,000 40,000 1,169,430 720,000 0.8",
        "Agreement after every step: surp 99.7 %, id 99.2 %.",
        "surp left fc|3: its weight [10, 500] is shared with '/tied'",
        "agreement at least 0.99: lower bound 0.9786 at 95 % (360 examples, 357 agree): not met",
        "warning: 12 examples are in both calibration and evaluation",
    ):
        assert said in plain


def test_a_terminal_gets_colour(full_report: Report) -> None:
    assert "\x1b[1;31m" in rendered(full_report, force_terminal=True, color_system="standard")


def test_large_figures_still_fit_80_columns(full_report: Report) -> None:
    vgg = Figures(138_357_544, 138_357_544, 15_470_264_320, 553_430_176)
    steps = (Step("a_rather_long_name_of_a_custom_pass", {}, 1234.5, cost=vgg),)
    text = rendered(replace(full_report, cost=Cost.between(vgg, vgg), steps=steps))
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("138,357,544", "30,940,528,640", "553,430,176", "1234.5"):
        assert figure in text


def test_names_that_look_like_markup_are_printed_as_they_are(bare_report: Report) -> None:
    steps = (Step("id", {}, 0.0, skipped=tuple(Skipped(f"[red]{i}[/red]", "[bold]") for i in range(7))),)
    text = rendered(replace(bare_report, steps=steps, warnings=("[link=x]",)))
    assert "id left [red]4[/red]: [bold]" in text
    assert "[red]5" not in text
    assert "id left 2 more nodes as they were" in text
    assert "warning: [link=x]" in text


def test_a_step_without_figures_says_so(bare_report: Report) -> None:
    text = rendered(replace(bare_report, steps=(Step("cleanup", {}, 0.0),)))
    assert "1. cleanup unknown unknown unknown unknown 0.0" in " ".join(text.split())


def test_times_that_are_not_known_make_no_sentence(bare_report: Report) -> None:
    for latency in (
        None,
        {},
        {"original_ms": None, "compressed_ms": 1.0},
        {"original_ms": 0, "compressed_ms": 1},
    ):
        assert latency_sentence(replace(bare_report, latency=latency)) is None
    assert "| skipped | yes |" in markdown(replace(bare_report, latency={"skipped": True}))


def test_a_search_is_shown_in_every_view(bare_report: Report) -> None:
    trials = [
        {"size": 0.5, "agreement": 0.9977, "low": 0.98919, "met": False},
        {"size": 0.75, "agreement": 1.0, "low": 0.99317, "met": True},
    ]
    step = Step("id", {"flops": 0.75}, 1.0, numbers={"spaces": 3, "wanted_agreement": 0.99, "search": trials})
    data = DataUsed(choosing=DataSide("train.zip", 437, None))
    report = replace(bare_report, steps=(step,), data=data)
    text = markdown(report)
    assert "| size tried | agreement | lower bound | holds |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| 0.5 | 99.8 % | 98.9 % | NO |\n| 0.75 | 100 % | 99.3 % | yes |" in text
    assert "| wanted_agreement | 0.99 |" in text
    assert "| search |" not in text
    assert "| choosing | train.zip | 437 | unknown |" in text
    assert (
        "id searched for 99 % agreement: 0.5 99.8 % (98.9 %) no, 0.75 100 % (99.3 %) yes; taken: flops=0.75 "
        "(each: size, kept, lower bound, holds)."
    ) in " ".join(rendered(report).split())
    odd = replace(bare_report, steps=(Step("custom", {}, 1.0, numbers={"search": [1, 2]}),))
    assert r"| search | \[1, 2\] |" in markdown(odd)
    assert "searched" not in rendered(odd)
